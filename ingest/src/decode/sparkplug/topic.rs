//! What a Sparkplug topic says: `spBv1.0/GROUP/TYPE/NODE[/DEVICE]`.

/// What a message tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A session begins: this is what there is.
    Birth,
    Data,
    /// A session has ended.
    Death,
}

/// A message about a node or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topic<'a> {
    pub(super) kind: Kind,
    pub(super) group: &'a str,
    /// The type as it is written, such as `NBIRTH`.
    pub(super) word: &'a str,
    pub(super) node: &'a str,
    /// `None`: the message is about the node itself.
    pub(super) device: Option<&'a str>,
}

impl<'a> Topic<'a> {
    /// `None`: a command or the state of a host application, neither of which holds events.
    pub(super) fn parse(topic: &'a str) -> Result<Option<Self>, String> {
        let wrong = || {
            format!(
                "`{}` is no Sparkplug topic (spBv1.0/GROUP/TYPE/NODE[/DEVICE])",
                crate::decode::shorten(topic)
            )
        };
        let mut levels = topic.splitn(5, '/');
        let mut level = || levels.next().filter(|level| !level.is_empty());
        let (Some("spBv1.0"), Some(group), Some(word)) = (level(), level(), level()) else {
            return Err(wrong());
        };
        if group == "STATE" {
            return Ok(None);
        }
        let (node, device) = (level().ok_or_else(wrong)?, levels.next());
        let (of_device, kind) = match word {
            "NBIRTH" => (false, Kind::Birth),
            "DBIRTH" => (true, Kind::Birth),
            "NDATA" => (false, Kind::Data),
            "DDATA" => (true, Kind::Data),
            "NDEATH" => (false, Kind::Death),
            "DDEATH" => (true, Kind::Death),
            "NCMD" | "DCMD" => return Ok(None),
            _ => return Err(wrong()),
        };
        let fits = device.is_some_and(|device| !device.is_empty() && !device.contains('/')) == of_device;
        let fits = fits && (of_device || device.is_none());
        if fits { Ok(Some(Self { kind, group, word, node, device })) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_told_apart() {
        let topic = Topic::parse("spBv1.0/g/DDATA/n/d").expect("a topic").expect("data");
        assert_eq!((topic.group, topic.node, topic.device), ("g", "n", Some("d")));
        assert_eq!((topic.kind, topic.word), (Kind::Data, "DDATA"));
        for ignored in ["spBv1.0/STATE/host", "spBv1.0/g/NCMD/n", "spBv1.0/g/DCMD/n/d"] {
            assert_eq!(Topic::parse(ignored), Ok(None));
        }
        for wrong in [
            "spBv1.0",
            "spAv1.0/g/NDATA/n",
            "spBv1.0/g/NDATA",
            "spBv1.0//NDATA/n",
            "spBv1.0/g/NDATA/n/d",
            "spBv1.0/g/NDATA/n/",
            "spBv1.0/g/DDATA/n",
            "spBv1.0/g/DDATA/n/",
            "spBv1.0/g/DDATA/n/d/e",
            "spBv1.0/g/OTHER/n",
        ] {
            Topic::parse(wrong).expect_err(wrong);
        }
    }
}
