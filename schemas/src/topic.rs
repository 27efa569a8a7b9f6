//! Topic patterns: an MQTT filter whose levels may have names.
//!
//! `devices/{device_id}/telemetry` subscribes to `devices/+/telemetry` and makes the second level of each
//! topic the column `device_id`. `+` and a final `#` keep their MQTT meaning.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A parsed topic pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPattern {
    text: String,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(String),
    Named(String),
    Any,
    Rest,
}

impl TopicPattern {
    /// The MQTT filter to subscribe to.
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self
            .levels
            .iter()
            .map(|level| match level {
                Level::Literal(text) => text.as_str(),
                Level::Named(_) | Level::Any => "+",
                Level::Rest => "#",
            })
            .collect();
        levels.join("/")
    }

    /// The names of the named levels, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(|level| match level {
            Level::Named(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The values of the named levels in `topic`, in the order of [`Self::names`]; `None` if it does not match.
    pub fn capture<'t>(&self, topic: &'t str) -> Option<Vec<&'t str>> {
        let mut captured = Vec::new();
        let mut parts = topic.split('/');
        for level in &self.levels {
            if matches!(level, Level::Rest) {
                return Some(captured);
            }
            let part = parts.next()?;
            match level {
                Level::Literal(text) if text != part => return None,
                Level::Named(_) => captured.push(part),
                _ => {}
            }
        }
        parts.next().is_none().then_some(captured)
    }
}

impl FromStr for TopicPattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::invalid(format!("topic pattern `{text}`: {why}"));
        if text.is_empty() || text.contains('\0') {
            return Err(wrong("it is empty or contains a NUL"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let mut levels = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            let level = match *part {
                "+" => Level::Any,
                "#" if i + 1 == parts.len() => Level::Rest,
                "#" => return Err(wrong("`#` may only be the last level")),
                _ => match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                    Some(name) if is_name(name) => Level::Named(name.to_owned()),
                    Some(name) => {
                        return Err(wrong(&format!(
                            "`{name}` is no column name; use letters, digits and `_`"
                        )));
                    }
                    None if part.contains(['+', '#', '{', '}']) => {
                        return Err(wrong("a wildcard or a name must take up a whole level"));
                    }
                    None => Level::Literal((*part).to_owned()),
                },
            };
            if let Level::Named(name) = &level
                && levels.contains(&Level::Named(name.clone()))
            {
                return Err(wrong(&format!("the level name `{name}` is used twice")));
            }
            levels.push(level);
        }
        Ok(Self { text: text.to_owned(), levels })
    }
}

/// Whether `name` can be a column: a letter or `_`, then letters, digits and `_`.
pub fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl TryFrom<String> for TopicPattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TopicPattern> for String {
    fn from(pattern: TopicPattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, topic: &str, expect: Option<&[&str]>) {
        let pattern: TopicPattern = pattern.parse().expect("a good pattern");
        assert_eq!(pattern.capture(topic).as_deref(), expect, "{pattern} on {topic}");
    }

    #[test]
    fn named_levels_are_captured_in_order() {
        check("devices/{device_id}/telemetry", "devices/a/telemetry", Some(&["a"]));
        check("{site}/{device_id}/#", "s1/d1/x/y", Some(&["s1", "d1"]));
        check("{site}/{device_id}/#", "s1/d1", Some(&["s1", "d1"]));
        check("+/{device_id}", "anything/d", Some(&["d"]));
        check("devices/{device_id}/telemetry", "devices/a/status", None);
        check("devices/{device_id}/telemetry", "devices/a/telemetry/x", None);
        check("devices/{device_id}/telemetry", "devices/a", None);
    }

    #[test]
    fn a_pattern_becomes_an_mqtt_filter() {
        let pattern: TopicPattern = "a/{b}/+/#".parse().expect("a good pattern");
        assert_eq!(pattern.filter(), "a/+/+/#");
        assert_eq!(pattern.names().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_bad_pattern_says_why() {
        for bad in ["", "a/#/b", "a/{b c}/d", "a/x{b}/d", "{a}/{a}"] {
            assert!(bad.parse::<TopicPattern>().is_err(), "{bad}");
        }
    }
}
