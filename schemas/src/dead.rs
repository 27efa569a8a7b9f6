//! Dead letters as people deal with them: which are meant, and what was done about them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::position::Seq;

/// Names one dead letter, or, without a stream, all that one message became: `NODE:SEQ` or `NODE:SEQ/STREAM`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeadId {
    /// The node that accepted the message.
    pub node: String,
    /// The message's number there.
    pub seq: Seq,
    /// The stream that could not take it.
    pub stream: Option<String>,
}

impl FromStr for DeadId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.rsplit_once(':').and_then(|(node, rest)| {
            let (seq, stream) = match rest.split_once('/') {
                Some((seq, stream)) => (seq, Some(stream.to_owned())),
                None => (rest, None),
            };
            Some(Self { node: node.to_owned(), seq: seq.parse().ok()?, stream })
        });
        parsed.ok_or_else(|| {
            Error::invalid(format!(
                "`{text}` is no dead letter; write NODE:SEQ or NODE:SEQ/STREAM, as in `local:17`"
            ))
        })
    }
}

impl TryFrom<String> for DeadId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeadId> for String {
    fn from(id: DeadId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for DeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.seq)?;
        self.stream.iter().try_for_each(|stream| write!(f, "/{stream}"))
    }
}

/// What is done about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadAction {
    /// Its message goes through ingest again, for the stream that could not take it.
    Replay,
    /// Nothing any more.
    Drop,
}

/// Which dead letters are meant: those that fit everything that is given. Only open ones are ever touched.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadSelection {
    /// These.
    pub ids: Vec<DeadId>,
    /// Those of this stream.
    pub stream: Option<String>,
    /// Those whose reason contains this text.
    pub reason: Option<String>,
    /// Those for which this SQL condition over the table `dead` holds.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// All of them, where nothing else is given.
    pub all: bool,
}

impl DeadSelection {
    /// Whether anything says which are meant. Nothing is not everything.
    pub fn is_empty(&self) -> bool {
        let Self { ids, stream, reason, condition, all } = self;
        ids.is_empty() && stream.is_none() && reason.is_none() && condition.is_none() && !all
    }
}

/// What is to be done about which dead letters, by whom and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadRequest {
    /// What is to be done.
    pub action: DeadAction,
    /// About which.
    #[serde(default)]
    pub selection: DeadSelection,
    /// Who wants it, as they say.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadReport {
    /// Letters that were open and are no longer.
    pub done: u64,
    /// Of those that were replayed: how many are dead letters again, under a new number.
    pub dead_again: u64,
    /// Letters that were named or fit but were left as they are.
    pub skipped: u64,
    /// Why, for the first few of them.
    pub reasons: Vec<String>,
}

/// Whoever deals with dead letters.
#[async_trait::async_trait]
pub trait DeadLetters: Send + Sync + fmt::Debug {
    /// Replays or drops open letters, each once, whatever interrupts this. Goes on when the caller goes away.
    async fn resolve(&self, request: DeadRequest) -> Result<DeadReport>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_position_and_perhaps_a_stream() {
        for text in ["local:17", "local:17/readings", "a:b:17/x"] {
            assert_eq!(text.parse::<DeadId>().expect("an id").to_string(), text);
        }
        for bad in ["", "local", "local:", "local:x", "17"] {
            assert!(bad.parse::<DeadId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_not_everything() {
        assert!(DeadSelection::default().is_empty());
        assert!(!DeadSelection { all: true, ..DeadSelection::default() }.is_empty());
    }
}
