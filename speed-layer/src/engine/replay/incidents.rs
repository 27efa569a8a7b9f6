//! Alerts by rule, key and time, to tell which of those that a replay finds are new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iot_schemas::alert::{AlertFeed, AlertState, Transition, TransitionId};
use iot_schemas::catalog::RuleDef;

use crate::alert_log::AlertLog;
use crate::error::Result;

/// The alerts of the alert log.
#[derive(Debug, Clone, Default)]
pub struct KnownAlerts {
    /// Transitions up to here are in it.
    up_to: TransitionId,
    alerts: HashMap<String, Incident>,
}

/// One alert: its rule, its labels, and from when to when it was active.
#[derive(Debug, Clone)]
struct Incident {
    rule: String,
    labels: BTreeMap<String, String>,
    start: i64,
    /// `i64::MAX` while it is active.
    end: i64,
}

/// A step in the life of an alert, as far as [`KnownAlerts`] must know it.
#[derive(Debug, Clone)]
pub struct KnownStep {
    /// The alert.
    pub alert_id: String,
    /// The rule.
    pub rule: String,
    /// The alert's labels.
    pub labels: BTreeMap<String, String>,
    /// The state entered.
    pub state: AlertState,
    /// When the alert began, in microseconds since 1970.
    pub started_at: i64,
    /// When the state was entered, in microseconds since 1970.
    pub at: i64,
}

impl KnownAlerts {
    /// What the log has up to here, which [`Self::note`] is told next. What comes later is read from it.
    pub fn up_to(up_to: TransitionId) -> Self {
        Self { up_to, alerts: HashMap::new() }
    }

    /// Takes the newest step of an alert in.
    pub fn note(&mut self, step: KnownStep) {
        let KnownStep { alert_id, rule, labels, state, started_at: start, at } = step;
        let end = if is_over(state) { at } else { i64::MAX };
        self.alerts.insert(alert_id, Incident { rule, labels, start, end });
    }

    /// Takes in what the log has got since.
    pub(super) fn catch_up(&mut self, alerts: &AlertLog, rules: &[Arc<RuleDef>]) -> Result<()> {
        for transition in alerts.read_after(self.up_to, usize::MAX)? {
            self.up_to = transition.id;
            if rules.iter().any(|rule| rule.name == transition.rule) {
                self.note((&transition).into());
            }
        }
        Ok(())
    }

    /// Those of one rule, to be looked up by the labels named `keys`.
    pub(super) fn of_rule(&self, rule: &str, keys: &[String]) -> Busy {
        let mut incidents: Vec<&Incident> =
            self.alerts.values().filter(|incident| incident.rule == rule).collect();
        incidents.sort_unstable_by_key(|incident| incident.start);
        let mut busy = Busy { keys: keys.to_vec(), times: HashMap::new() };
        for incident in incidents {
            let times = busy.times.entry(key_of(&incident.labels, keys)).or_default();
            match times.last_entry() {
                // Those that overlap are one stretch of time.
                Some(mut last) if incident.start == *last.key() || incident.start < *last.get() => {
                    let end = (*last.get()).max(incident.end);
                    last.insert(end);
                }
                _ => _ = times.insert(incident.start, incident.end),
            }
        }
        busy
    }
}

impl From<&Transition> for KnownStep {
    fn from(transition: &Transition) -> Self {
        Self {
            alert_id: transition.alert_id.clone(),
            rule: transition.rule.clone(),
            labels: transition.labels.clone(),
            state: transition.state,
            started_at: transition.started_at,
            at: transition.at,
        }
    }
}

/// When a rule had alerts, by key: stretches of time that do not overlap, by their starts.
#[derive(Debug)]
pub(super) struct Busy {
    keys: Vec<String>,
    times: HashMap<Vec<Option<String>>, BTreeMap<i64, i64>>,
}

impl Busy {
    /// Whether there was an alert of the same key while `episode` was active.
    pub(super) fn overlaps(&self, episode: &Episode) -> bool {
        let Some(times) = self.times.get(&key_of(&episode.first().labels, &self.keys)) else { return false };
        let (start, end) = (episode.first().started_at, episode.end().unwrap_or(i64::MAX));
        let before =
            times.range(..=start).next_back().is_some_and(|(from, to)| *from == start || *to > start);
        before || times.range(start..).next().is_some_and(|(from, _)| *from < end)
    }
}

fn key_of(labels: &BTreeMap<String, String>, keys: &[String]) -> Vec<Option<String>> {
    keys.iter().map(|key| labels.get(key).cloned()).collect()
}

/// All transitions of one alert, oldest first. Never empty.
#[derive(Debug, Clone)]
pub(super) struct Episode(pub(super) Vec<Transition>);

impl Episode {
    /// Transitions in the order in which they were found, by alert, in the order in which these began.
    pub(super) fn of(transitions: Vec<Transition>) -> Vec<Self> {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut episodes: Vec<Self> = Vec::new();
        for transition in transitions {
            match places.get(&transition.alert_id) {
                Some(place) => episodes[*place].0.push(transition),
                None => {
                    places.insert(transition.alert_id.clone(), episodes.len());
                    episodes.push(Self(vec![transition]));
                }
            }
        }
        episodes.sort_by_key(|episode| episode.first().started_at);
        episodes
    }

    pub(super) fn first(&self) -> &Transition {
        &self.0[0]
    }

    /// When it ended; `None` if it goes on.
    pub(super) fn end(&self) -> Option<i64> {
        self.0.last().filter(|last| is_over(last.state)).map(|last| last.at)
    }
}

fn is_over(state: AlertState) -> bool {
    matches!(state, AlertState::Resolved | AlertState::Inactive)
}

#[cfg(test)]
mod tests {
    use iot_schemas::catalog::Severity;

    use super::*;

    fn episode(device: &str, start: i64, end: Option<i64>) -> Episode {
        let step = |state, at| Transition {
            id: 0,
            alert_id: format!("{device}-{start}"),
            rule: "r".into(),
            state,
            previous: None,
            severity: Severity::Info,
            labels: [("device_id".to_owned(), device.to_owned()), ("team".into(), "a".into())].into(),
            annotations: BTreeMap::new(),
            values: Default::default(),
            started_at: start,
            at,
            recorded_at: 0,
            node: "n".into(),
            seq: 1,
            ordinal: 0,
            historical: false,
        };
        let ends = end.map(|end| step(AlertState::Resolved, end));
        Episode(std::iter::once(step(AlertState::Firing, start)).chain(ends).collect())
    }

    #[test]
    fn an_alert_is_known_if_one_of_its_key_was_active_then() {
        let mut known = KnownAlerts::default();
        let long = [episode("c", 100, Some(200)), episode("c", 110, Some(120))];
        let others = [episode("a", 10, Some(20)), episode("a", 40, None), episode("b", 12, Some(12))];
        for logged in long.into_iter().chain(others) {
            logged.0.iter().for_each(|step| known.note(step.into()));
        }
        let busy = known.of_rule("r", &["device_id".to_owned()]);
        let check = |device: &str, start: i64, end: Option<i64>, expect: bool| {
            assert_eq!(busy.overlaps(&episode(device, start, end)), expect, "{device} {start} {end:?}");
        };
        check("a", 0, Some(10), false);
        check("a", 0, Some(11), true);
        check("a", 10, Some(10), true);
        check("a", 15, Some(16), true);
        check("a", 20, Some(40), false);
        check("a", 20, Some(41), true);
        check("a", 20, None, true);
        check("a", 50, Some(60), true);
        check("b", 12, Some(30), true);
        check("b", 13, Some(30), false);
        check("c", 150, Some(160), true);
        check("c", 200, None, false);
        check("d", 0, None, false);
        assert!(!known.of_rule("other", &[]).overlaps(&episode("a", 10, None)));
    }

    #[test]
    fn transitions_are_put_together_by_alert() {
        let (a, b) = (episode("a", 20, Some(30)), episode("b", 10, None));
        let found = vec![a.0[0].clone(), b.0[0].clone(), a.0[1].clone()];
        let episodes = Episode::of(found);
        let ends: Vec<_> =
            episodes.iter().map(|episode| (episode.first().started_at, episode.end())).collect();
        assert_eq!(ends, [(10, None), (20, Some(30))]);
    }
}
