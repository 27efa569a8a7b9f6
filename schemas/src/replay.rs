//! What a replay of history through the speed layer is asked for, and what it answers.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde::{Deserialize, Serialize};

use crate::alert::{AlertState, Transition, micros_rfc3339};
use crate::error::{Error, Result};
use crate::position::Frontier;

/// One replay of what a stream's raw table and log hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayRequest {
    /// The stream whose events are replayed.
    pub stream: String,
    /// The oldest event time, as text (see [`parse_time`]); from the first event if it is absent.
    pub from: Option<String>,
    /// The event time before which events end, likewise. If it is absent the replay ends in the present, and the
    /// rules go on from there.
    pub to: Option<String>,
    /// The rules to replay for; empty means all on the stream and on its views.
    pub rules: Vec<String>,
    /// Only say what would be recorded.
    pub dry_run: bool,
}

/// What a replay found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplayReport {
    /// The stream.
    pub stream: String,
    /// Events up to here were replayed.
    pub frontier: Frontier,
    /// The messages that were replayed.
    pub messages: u64,
    /// The events in them.
    pub events: u64,
    /// What was found, by rule.
    pub rules: Vec<ReplayedRule>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// What a replay found for one rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayedRule {
    /// The rule.
    pub rule: String,
    /// The stream or view that it watches.
    pub on: String,
    /// The alerts that history has of it: [`Self::recorded`], [`Self::known`] and [`Self::open`] together.
    pub alerts: u64,
    /// Alerts that are new in the alert log (or, in a dry run, would be).
    pub recorded: u64,
    /// Those among the recorded that go on: the rule has them as its own from here on.
    pub active: u64,
    /// Alerts left as the log has them: it knows one of the same rule and key at that time.
    pub known: u64,
    /// Alerts that had not ended at the end of the range and are not recorded.
    pub open: u64,
    /// Rows on which its condition failed.
    pub failed: u64,
    /// Samples that would have begun an alert, but the rule had as many at once as it may.
    pub shed: u64,
    /// The first few transitions of those that are recorded.
    pub examples: Vec<ReplayedStep>,
}

/// One transition that a replay found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayedStep {
    /// When, in event time.
    pub at: String,
    /// The alert.
    pub alert_id: String,
    /// The state that it entered.
    pub state: AlertState,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl From<&Transition> for ReplayedStep {
    fn from(transition: &Transition) -> Self {
        Self {
            at: micros_rfc3339::to_text(transition.at),
            alert_id: transition.alert_id.clone(),
            state: transition.state,
            labels: transition.labels.clone(),
        }
    }
}

impl ReplayRequest {
    /// [`Self::from`] and [`Self::to`] in microseconds since 1970.
    pub fn range(&self) -> Result<(Option<i64>, Option<i64>)> {
        let from = self.from.as_deref().map(|text| parse_time("from", text)).transpose()?;
        let to = self.to.as_deref().map(|text| parse_time("to", text)).transpose()?;
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(Error::invalid("`from` is not before `to`: no event lies between"));
        }
        Ok((from, to))
    }
}

/// A time in microseconds since 1970: RFC 3339, or without a zone (then UTC), or a day (then its beginning).
pub fn parse_time(name: &str, text: &str) -> Result<i64> {
    let with_zone = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
    let without = |format| NaiveDateTime::parse_from_str(text, format).ok();
    let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    let in_utc = || {
        let time =
            without("%Y-%m-%dT%H:%M:%S%.f").or_else(|| without("%Y-%m-%d %H:%M:%S%.f")).or_else(day)?;
        Some(time.and_utc().timestamp_micros())
    };
    with_zone().or_else(in_utc).ok_or_else(|| {
        Error::invalid(format!(
            "`{name}`: `{text}` is no time; write it like 2026-11-01T06:00:00Z or 2026-11-01"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_have_a_zone_or_be_a_day() {
        let check = |text: &str, expect: i64| {
            assert_eq!(parse_time("from", text).ok(), Some(expect * 1_000_000), "{text}");
        };
        check("1970-01-01T02:00:01+02:00", 1);
        check("1970-01-01T00:00:01Z", 1);
        check("1970-01-01T00:00:01", 1);
        check("1970-01-01 00:00:01.0", 1);
        check("1970-01-02", 86_400);
        let error = parse_time("from", "yesterday").expect_err("it is no time").to_string();
        assert!(error.contains("`from`: `yesterday` is no time"), "{error}");
    }

    #[test]
    fn a_range_that_can_hold_no_event_is_refused() {
        let range = |from: &str, to: &str| {
            let text = |text: &str| Some(text.to_owned());
            ReplayRequest { from: text(from), to: text(to), ..ReplayRequest::default() }.range()
        };
        assert_eq!(range("1970-01-01", "1970-01-02").ok(), Some((Some(0), Some(86_400_000_000))));
        assert!(range("1970-01-01", "1970-01-01").is_err());
        assert!(range("1970-01-02", "1970-01-01").is_err());
        assert_eq!(ReplayRequest::default().range().ok(), Some((None, None)));
    }
}
