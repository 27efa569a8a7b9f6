//! `kind: rule`

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, duration_text};

/// An alert condition over a stream (each event) or a view (each row as it changes).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDef {
    /// Always [`Kind::Rule`]; present because the document carries it.
    pub kind: Kind,
    /// The rule's name.
    pub name: String,
    /// The stream or view that it watches.
    pub on: String,
    /// A SQL condition over the columns of `on`. NULL says nothing: the sample is skipped.
    pub when: String,
    /// The condition that ends the alert (hysteresis). Default: not `when`.
    #[serde(default)]
    pub clear_when: Option<String>,
    /// How long, in event time, `when` must hold before the alert fires.
    #[serde(default, rename = "for", with = "duration_text")]
    pub hold: Option<Duration>,
    /// How long, in event time, the alert goes on firing after the condition has ended.
    #[serde(default, with = "duration_text")]
    pub keep_firing_for: Option<Duration>,
    /// How bad it is.
    #[serde(default)]
    pub severity: Severity,
    /// Labels that each of its alerts carries, beside those of the instance.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Texts for people; `{column}` stands for the value in the row.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Names of receivers.
    #[serde(default)]
    pub notify: Vec<String>,
}

impl RuleDef {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.when.trim().is_empty() {
            return Err("`when` is empty".into());
        }
        Ok(())
    }
}

/// How bad an alert is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    #[default]
    Warning,
    /// Look at it now.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}
