//! Alerts as the alert log records them and everybody reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::Severity;
use crate::position::{NodeId, Seq};

/// The number of a transition in the alert log: 1, 2, 3, ... It is the event id of the SSE stream.
pub type TransitionId = u64;

/// Where an alert is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition holds, not yet for long enough.
    Pending,
    /// It has held for long enough: somebody should know.
    Firing,
    /// It fired and is over.
    Resolved,
    /// It was pending and ended without firing.
    Inactive,
}

/// One step in an alert's life, as recorded in the alert log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// Its number in the alert log.
    pub id: TransitionId,
    /// The alert: the same for all transitions of one episode, and the same again when the log is replayed.
    pub alert_id: String,
    /// The rule.
    pub rule: String,
    /// The state entered.
    pub state: AlertState,
    /// The state left; `None` at the start of the episode.
    pub previous: Option<AlertState>,
    /// How bad it is.
    pub severity: Severity,
    /// The instance's labels (keys of the view, or the device) and the rule's.
    pub labels: BTreeMap<String, String>,
    /// The rule's annotations, filled in with the values of the row.
    pub annotations: BTreeMap<String, String>,
    /// The row that caused the transition: column -> value.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// When the episode began, in event time (microseconds since 1970).
    #[serde(with = "micros_rfc3339")]
    pub started_at: i64,
    /// The event time of the transition (microseconds since 1970).
    #[serde(with = "micros_rfc3339")]
    pub at: i64,
    /// When the transition was recorded (microseconds since 1970).
    #[serde(with = "micros_rfc3339")]
    pub recorded_at: i64,
    /// The node whose log caused it.
    pub node: NodeId,
    /// The last position of the log group that caused it.
    pub seq: Seq,
    /// Its index among the transitions of that group.
    pub ordinal: u32,
    /// Whether the alert was over when it was recorded: a replay of history has found it. No news to anybody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub historical: bool,
}

/// Microseconds since 1970 as RFC 3339 text.
pub mod micros_rfc3339 {
    use chrono::{DateTime, SecondsFormat};
    use serde::{Deserialize, Deserializer, Serializer};

    /// `1970-01-01T00:00:00.000000Z`, with as many decimals as needed.
    pub fn to_text(micros: i64) -> String {
        match DateTime::from_timestamp_micros(micros) {
            Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            None => micros.to_string(),
        }
    }

    /// Writes text.
    pub fn serialize<S: Serializer>(micros: &i64, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&to_text(*micros))
    }

    /// Reads what [`serialize`] wrote.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
        let text = String::deserialize(d)?;
        match DateTime::parse_from_rfc3339(&text) {
            Ok(time) => Ok(time.timestamp_micros()),
            Err(_) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Where readers follow the alert log. Implemented by the speed layer.
pub trait AlertFeed: Send + Sync + std::fmt::Debug {
    /// The newest transition's number, 0 if there is none. Changes wake whoever waits on it.
    fn latest(&self) -> tokio::sync::watch::Receiver<TransitionId>;

    /// Up to `limit` transitions with numbers greater than `after`, in order.
    fn read_after(&self, after: TransitionId, limit: usize) -> crate::Result<Vec<Transition>>;

    /// The newest transition of each alert: all that are pending or firing, and the newest of the others.
    fn current(&self) -> Vec<Transition>;

    /// All retained transitions of one alert, oldest first. Empty if it is unknown.
    fn history(&self, alert_id: &str) -> crate::Result<Vec<Transition>>;
}
