//! `kind: view`

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, duration_text};

/// One SQL aggregate query over a stream, grouped by a window and keys. [`crate::view`] compiles it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewDef {
    /// Always [`Kind::View`]; present because the document carries it.
    pub kind: Kind,
    /// The name under which queries see it.
    pub name: String,
    /// The query.
    pub sql: String,
    /// When the batch layer recomputes it.
    #[serde(default)]
    pub batch: BatchSchedule,
    /// How long its windows are kept.
    #[serde(default, with = "duration_text")]
    pub retention: Option<Duration>,
    /// Whether the system keeps it of its own accord; no document can say so. See [`crate::view::last_values`].
    #[serde(skip)]
    pub generated: bool,
}

impl ViewDef {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.sql.trim().is_empty() {
            return Err("`sql` is empty".into());
        }
        Ok(())
    }
}

/// When the batch layer runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSchedule {
    /// The interval between incremental runs; 5 minutes if absent.
    #[serde(default, with = "duration_text")]
    pub every: Option<Duration>,
}

impl BatchSchedule {
    /// The interval between incremental runs.
    pub fn interval(&self) -> Duration {
        self.every.unwrap_or(Duration::from_secs(300))
    }
}
