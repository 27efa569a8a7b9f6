//! Which transitions a reader of the alert log wants.

use serde::Deserialize;
use serde::de::value::StrDeserializer;

use iot_schemas::alert::{AlertState, Transition};
use iot_schemas::catalog::Severity;
use iot_schemas::{Error, Result};

/// The label that names the device of an alert.
const DEVICE_LABEL: &str = "device_id";

/// All conditions must hold. A condition lists the values that satisfy it; without values it always does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TransitionFilter {
    rules: Vec<String>,
    states: Vec<AlertState>,
    severities: Vec<Severity>,
    labels: Vec<(String, String)>,
    historical: Option<bool>,
}

impl TransitionFilter {
    /// Adds a condition as query strings write it: `rule=a,b`, `state=firing`, `severity=critical`,
    /// `device_id=pump-1`, `label.team=plant`, `historical=true`.
    pub(crate) fn add(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "rule" => self.rules.extend(value.split(',').map(str::to_owned)),
            "state" => self.states.extend(words::<AlertState>(name, value)?),
            "severity" => self.severities.extend(words::<Severity>(name, value)?),
            "historical" => match value {
                "all" => self.historical = None,
                "true" | "false" => self.historical = Some(value == "true"),
                _ => return Err(Error::invalid(format!("`{name}`: `{value}` is none of true, false, all"))),
            },
            DEVICE_LABEL => self.labels.push((DEVICE_LABEL.to_owned(), value.to_owned())),
            _ => match name.strip_prefix("label.") {
                Some(label) if !label.is_empty() => self.labels.push((label.to_owned(), value.to_owned())),
                _ => return Err(Error::invalid(format!("there is no filter `{name}`; {KNOWN}"))),
            },
        }
        Ok(())
    }

    /// All that is news: what [`Default`] gives, without alerts that were over when a replay recorded them.
    pub(crate) fn of_news() -> Self {
        Self { historical: Some(false), ..Self::default() }
    }

    /// Whether the reader wants this transition.
    pub(crate) fn matches(&self, transition: &Transition) -> bool {
        let labelled = |(name, value): &(String, String)| transition.labels.get(name) == Some(value);
        (self.rules.is_empty() || self.rules.contains(&transition.rule))
            && (self.states.is_empty() || self.states.contains(&transition.state))
            && (self.severities.is_empty() || self.severities.contains(&transition.severity))
            && self.labels.iter().all(labelled)
            && self.historical.is_none_or(|wanted| wanted == transition.historical)
    }
}

const KNOWN: &str = "it is one of rule, state, severity, device_id, label.NAME, historical";

/// Words of an enum, separated by commas, under the names that the enum has everywhere else.
fn words<T: for<'de> Deserialize<'de>>(name: &str, value: &str) -> Result<Vec<T>> {
    let word = |text: &str| {
        T::deserialize(StrDeserializer::<serde::de::value::Error>::new(text.trim()))
            .map_err(|e| Error::invalid(format!("`{name}`: {e}")))
    };
    value.split(',').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fakes::transition;

    fn filter(query: &[(&str, &str)]) -> Result<TransitionFilter> {
        let mut filter = TransitionFilter::default();
        for (name, value) in query {
            filter.add(name, value)?;
        }
        Ok(filter)
    }

    #[track_caller]
    fn check(query: &[(&str, &str)], expect: bool) {
        let mut transition = transition(1, "a1", AlertState::Firing);
        transition.labels.insert("team".into(), "plant".into());
        assert_eq!(filter(query).unwrap().matches(&transition), expect, "{query:?}");
    }

    #[test]
    fn all_conditions_must_hold() {
        check(&[], true);
        check(&[("rule", "overheating")], true);
        check(&[("rule", "other,overheating"), ("state", "firing")], true);
        check(&[("state", "pending,resolved")], false);
        check(&[("severity", "critical"), ("device_id", "a1")], true);
        check(&[("severity", "critical"), ("device_id", "a2")], false);
        check(&[("label.team", "plant")], true);
        check(&[("label.team", "office")], false);
        check(&[("label.floor", "1")], false);
    }

    #[test]
    fn what_was_over_when_it_was_recorded_is_no_news() {
        let mut old = transition(1, "a1", AlertState::Resolved);
        old.historical = true;
        let matches = |mut filter: TransitionFilter, historical: Option<&str>| {
            historical.into_iter().for_each(|value| filter.add("historical", value).expect("a filter"));
            (filter.matches(&old), filter.matches(&transition(2, "a1", AlertState::Firing)))
        };
        assert_eq!(matches(TransitionFilter::of_news(), None), (false, true));
        assert_eq!(matches(TransitionFilter::of_news(), Some("all")), (true, true));
        assert_eq!(matches(TransitionFilter::of_news(), Some("true")), (true, false));
        assert_eq!(matches(TransitionFilter::default(), None), (true, true));
        assert!(filter(&[("historical", "maybe")]).is_err());
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be() {
        let error = |name, value| filter(&[(name, value)]).unwrap_err().to_string();
        assert!(error("devise_id", "a").contains("label.NAME"));
        assert!(error("state", "burning").contains("firing"));
        assert!(error("label.", "a").contains("label."));
    }
}
