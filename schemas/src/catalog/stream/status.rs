//! `status`: the topics on which devices, or their last wills, say whether they are there.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::layout::DEVICE_ID;
use crate::topic::TopicPattern;

/// What counts as online unless the stream says otherwise, whatever the case.
const ONLINE: [&str; 5] = ["online", "1", "true", "on", "connected"];
/// What counts as offline unless the stream says otherwise, whatever the case.
const OFFLINE: [&str; 5] = ["offline", "0", "false", "off", "disconnected"];
/// The fields of an object that are looked at unless the stream names one; the first that is there counts.
const FIELDS: [&str; 3] = ["online", "state", "status"];

/// Where and how the devices of a stream say whether they are online. These messages are no events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusDef {
    /// Which messages are about a device's connection. One level must be named `device_id`.
    pub topics: Vec<TopicPattern>,
    /// The field of a JSON object that holds the state; `online`, `state` or `status` if absent.
    #[serde(default)]
    pub field: Option<String>,
    /// What online is called, exactly as it is written; the usual words if absent.
    #[serde(default)]
    pub online: Option<Words>,
    /// What offline is called, exactly as it is written; the usual words if absent.
    #[serde(default)]
    pub offline: Option<Words>,
}

/// One word or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Words {
    /// The only one.
    One(String),
    /// Any of these.
    Any(Vec<String>),
}

impl Words {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Any(words) => words,
        }
    }
}

impl StatusDef {
    /// The device that a message on `topic` is about; `None` if it is no status topic, or names nobody.
    ///
    /// As in MQTT, a wildcard does not match a first level that begins with `$`.
    pub fn device_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        self.topics.iter().find_map(|pattern| {
            if topic.starts_with('$') && !pattern.filter().starts_with('$') {
                return None;
            }
            let captured = pattern.capture(topic)?;
            let at = pattern.names().position(|name| name == DEVICE_ID)?;
            captured.get(at).copied().filter(|device| !device.is_empty())
        })
    }

    /// Whether a payload says online or offline; `None` for an empty one, by which a retained message is taken
    /// away.
    ///
    /// A payload is bare text, or JSON: text, a number, a boolean, or an object with one of these in a field.
    pub fn decode(&self, payload: &[u8]) -> Result<Option<bool>, String> {
        let text = std::str::from_utf8(payload).map_err(|_| "the status is no UTF-8 text".to_owned())?;
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let word = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => self.word_of(&object)?,
            Ok(value) => scalar(&value)
                .ok_or_else(|| format!("the status {value} is neither text, number, boolean nor object"))?,
            Err(_) => text.to_owned(),
        };
        let is_online = is_one_of(&word, self.online.as_ref(), &ONLINE);
        let is_offline = is_one_of(&word, self.offline.as_ref(), &OFFLINE);
        match (is_online, is_offline) {
            (true, false) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            _ => Err(self.unknown(&word)),
        }
    }

    fn word_of(&self, object: &serde_json::Map<String, Value>) -> Result<String, String> {
        let found = match &self.field {
            Some(field) => object.get(field),
            None => FIELDS.iter().find_map(|field| object.get(*field)),
        };
        found.and_then(scalar).ok_or_else(|| {
            let wanted = self.field.clone().unwrap_or_else(|| FIELDS.join("`, `"));
            format!("the status has no text, number or boolean in the field `{wanted}`")
        })
    }

    fn unknown(&self, word: &str) -> String {
        let words = |own: Option<&Words>, usual: &[&str]| match own {
            Some(own) => own.as_slice().join(", "),
            None => usual.join(", "),
        };
        let word: String = word.chars().take(64).collect();
        format!(
            "the status `{word}` is neither online ({}) nor offline ({})",
            words(self.online.as_ref(), &ONLINE),
            words(self.offline.as_ref(), &OFFLINE)
        )
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.topics.is_empty() {
            return Err("`status` has no `topics`; give at least one MQTT filter".into());
        }
        if let Some(topic) = self.topics.iter().find(|topic| topic.names().all(|name| name != DEVICE_ID)) {
            return Err(format!(
                "the status topic `{topic}` does not say which device it is about; name a level `{{{DEVICE_ID}}}`"
            ));
        }
        let [online, offline] =
            [&self.online, &self.offline].map(|words| words.as_ref().map(Words::as_slice));
        if [online, offline].iter().flatten().any(|words| words.is_empty()) {
            return Err("`online` and `offline` of `status` need at least one word each".into());
        }
        match online.unwrap_or_default().iter().find(|word| offline.unwrap_or_default().contains(word)) {
            Some(word) => Err(format!("`{word}` cannot mean both online and offline")),
            None => Ok(()),
        }
    }
}

/// The text of a value that is one.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn is_one_of(word: &str, own: Option<&Words>, usual: &[&str]) -> bool {
    match own {
        Some(own) => own.as_slice().iter().any(|own| own == word),
        None => usual.iter().any(|usual| usual.eq_ignore_ascii_case(word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(yaml: &str) -> StatusDef {
        serde_saphyr::from_str(&format!("topics: [\"d/{{device_id}}/status\"]\n{yaml}")).expect("it parses")
    }

    #[test]
    fn what_devices_usually_say_is_understood() {
        let usual = status("");
        for online in [
            "online",
            " Online\n",
            "1",
            "true",
            "\"online\"",
            "{\"online\": true}",
            "{\"state\":\"online\"}",
            "ON",
        ] {
            assert_eq!(usual.decode(online.as_bytes()), Ok(Some(true)), "{online}");
        }
        for offline in ["offline", "Offline", "0", "false", "\"offline\"", "{\"status\": 0, \"ip\": \"::1\"}"]
        {
            assert_eq!(usual.decode(offline.as_bytes()), Ok(Some(false)), "{offline}");
        }
        assert_eq!(usual.decode(b""), Ok(None));
    }

    #[test]
    fn what_is_not_understood_says_what_would_be() {
        let check = |status: &StatusDef, payload: &[u8], words: &[&str]| {
            let error = status.decode(payload).expect_err("not understood");
            words.iter().for_each(|word| assert!(error.contains(word), "{error}"));
        };
        check(&status(""), b"maybe", &["`maybe`", "online", "disconnected"]);
        check(&status(""), b"{\"up\": true}", &["`online`, `state`, `status`"]);
        check(&status(""), b"[1]", &["[1]"]);
        check(&status(""), b"\xff", &["UTF-8"]);
        check(&status("field: up"), b"{\"online\": true}", &["`up`"]);
        check(&status("online: UP\noffline: [DOWN, LOST]"), b"up", &["UP", "DOWN, LOST"]);
    }

    #[test]
    fn own_words_take_the_place_of_the_usual_ones() {
        let own = status("field: link\nonline: UP\noffline: [DOWN, LOST, \"2\"]");
        assert_eq!(own.decode(b"{\"link\": \"UP\"}"), Ok(Some(true)));
        assert_eq!(own.decode(b"LOST"), Ok(Some(false)));
        assert_eq!(own.decode(b"2"), Ok(Some(false)));
        assert!(own.decode(b"online").is_err());
    }

    #[test]
    fn a_topic_tells_the_device() {
        let status = status("");
        assert_eq!(status.device_of("d/pump-1/status"), Some("pump-1"));
        for topic in ["d/pump-1/telemetry", "$SYS/a/status", "d//status"] {
            assert_eq!(status.device_of(topic), None, "{topic}");
        }
    }

    #[test]
    fn settings_are_checked() {
        let error = |yaml: &str| {
            let status: StatusDef = serde_saphyr::from_str(yaml).expect("it parses");
            status.check().expect_err(yaml)
        };
        assert!(error("topics: []").contains("`topics`"));
        assert!(error("topics: [\"d/+/status\"]").contains("{device_id}"));
        assert!(error("topics: [\"{device_id}\"]\nonline: up\noffline: [up]").contains("`up`"));
        assert!(error("topics: [\"{device_id}\"]\nonline: []").contains("at least one word"));
    }
}
