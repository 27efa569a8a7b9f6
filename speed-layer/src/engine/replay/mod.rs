//! Replaying history for rules that came after it.
//!
//! ```text
//! raw rows of the stream, in log order ──▶ an engine of its own (views, rules) ──▶ its alert log
//!                                                       │ caught up                    │ sorted by alert
//! the engine, between two groups ◀── instances that are active ── alerts that the log does not know
//! ```
//! It is the engine itself that history is played to, with the definitions of now and nothing else: so a rule finds
//! what it would have found had it been in force then. The end is at an exact position: the engine, between two groups
//! of the log, plays the last few messages that it has taken in itself, and takes over alerts that are still active.
//! From then on the rule goes on as if it had always been there.
//!
//! An alert that overlaps one of the same rule and key in the alert log is left as the log has it, so that repeating a
//! replay records nothing twice. Each alert is recorded whole, in one frame of the alert log: a crash leaves it in or
//! out, and the next replay records what is missing. Alerts that were over before they were recorded say so
//! ([`Transition::historical`]).

mod incidents;
mod rehearsal;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use iot_schemas::alert::Transition;
use iot_schemas::catalog::{RuleDef, ViewDef};
use iot_schemas::replay::{ReplayReport, ReplayedRule, ReplayedStep};

use super::{Command, Engine, SpeedLayer};
use crate::error::Result;
use incidents::Episode;
pub use incidents::{KnownAlerts, KnownStep};
use rehearsal::Rehearsal;
pub(super) use rehearsal::remove as remove_scratch;

/// Messages that may be left for the engine when it takes over: it takes in nothing else meanwhile.
const LAST_MESSAGES: u64 = 1_000;
/// How often a replay runs after the present before it lets the engine do the rest.
const CATCH_UP_ROUNDS: usize = 5;
/// Transitions that go into one frame of the alert log, unless one alert has more.
const FRAME: usize = 256;
/// Transitions of a rule that a report shows.
const EXAMPLES: usize = 20;

/// What to replay.
#[derive(Debug)]
pub struct ReplayPlan {
    /// The stream whose events are replayed.
    pub stream: Arc<str>,
    /// The oldest event time, in microseconds since 1970.
    pub from: Option<i64>,
    /// The event time before which events end. Without it the rules take over what is active.
    pub to: Option<i64>,
    /// The rules, as they are in force, on the stream or on one of [`Self::views`].
    pub rules: Vec<Arc<RuleDef>>,
    /// The views that the rules watch, each after those that it reads.
    pub views: Vec<Arc<ViewDef>>,
    /// What the alert log has of these rules.
    pub known: KnownAlerts,
    /// Only say what would be recorded.
    pub dry_run: bool,
}

/// A replay that has come close to the present.
#[derive(Debug)]
pub(super) struct Replay {
    plan: ReplayPlan,
    rehearsal: Rehearsal,
}

/// What a replay has found, sorted by what is to be done about it.
#[derive(Debug, Default)]
struct Findings {
    rules: Vec<ReplayedRule>,
    /// Alerts that are over.
    ended: Vec<Episode>,
    /// Alerts that go on.
    active: Vec<Episode>,
}

impl SpeedLayer {
    /// Replays history for rules, and records what they find; see [`ReplayPlan`]. One replay at a time.
    ///
    /// Costs a scan of the stream's raw table within the range, and the work of the engine with a group for each message;
    /// memory for the state of the views that the rules watch, and for at most 200,000 transitions.
    ///
    /// Whoever drops the future ends the replay, unless the engine is taking over already: then it is done all the same.
    pub async fn replay(&self, plan: ReplayPlan) -> Result<ReplayReport> {
        let turn = self.replays.clone().lock_owned().await;
        let started = Instant::now();
        let mut rehearsal = Rehearsal::begin(self, &plan, turn).await?;
        for _ in 0..CATCH_UP_ROUNDS {
            // In this order: the snapshot has everything that has been taken in.
            let taken_in = self.processed.borrow().clone();
            let raw = self.raw.snapshot(&plan.stream)?;
            rehearsal.play(&raw, &taken_in).await?;
            let ahead = self.processed.borrow().get(&self.node) - rehearsal.covered.get(&self.node);
            if ahead < LAST_MESSAGES {
                break;
            }
        }
        // What has been found so far is read here, and not while the engine waits.
        rehearsal.collect()?;
        let replay = Box::new(Replay { plan, rehearsal });
        let mut report = match replay.plan.dry_run {
            true => replay.report(replay.findings()?.rules),
            false => self.ask(|reply| Command::TakeOver(replay, reply)).await?,
        };
        report.elapsed_ms = started.elapsed().as_millis() as u64;
        Ok(report)
    }
}

impl Replay {
    fn findings(&self) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut by_rule: std::collections::HashMap<String, Vec<Transition>> = Default::default();
        for transition in &self.rehearsal.found {
            by_rule.entry(transition.rule.clone()).or_default().push(transition.clone());
        }
        let stats = self.rehearsal.engine.rules.stats();
        for def in &self.plan.rules {
            let stats = stats.get(&def.name).cloned().unwrap_or_default();
            let mut found = ReplayedRule {
                rule: def.name.clone(),
                on: def.on.clone(),
                failed: stats.failed,
                shed: stats.shed,
                ..Default::default()
            };
            let busy = self.plan.known.of_rule(&def.name, self.rehearsal.engine.rules.key_columns(&def.name));
            for episode in Episode::of(by_rule.remove(&def.name).unwrap_or_default()) {
                found.alerts += 1;
                let is_over = episode.end().is_some();
                if busy.overlaps(&episode) {
                    found.known += 1;
                } else if !is_over && self.plan.to.is_some() {
                    found.open += 1;
                } else {
                    found.recorded += 1;
                    found.active += u64::from(!is_over);
                    let room = EXAMPLES.saturating_sub(found.examples.len());
                    found.examples.extend(episode.0.iter().take(room).map(ReplayedStep::from));
                    if is_over { &mut findings.ended } else { &mut findings.active }.push(episode);
                }
            }
            findings.rules.push(found);
        }
        Ok(findings)
    }

    fn report(&self, rules: Vec<ReplayedRule>) -> ReplayReport {
        ReplayReport {
            stream: self.plan.stream.to_string(),
            frontier: self.rehearsal.covered.clone(),
            messages: self.rehearsal.messages,
            events: self.rehearsal.events,
            rules,
            elapsed_ms: 0,
        }
    }
}

impl Engine {
    /// The end of a replay, between two groups of the log.
    pub(super) async fn take_over(&mut self, mut replay: Replay) -> Result<ReplayReport> {
        let raw = self.raw.snapshot(&replay.plan.stream)?;
        replay.rehearsal.play(&raw, &self.processed).await?;
        replay.rehearsal.collect()?;
        self.check_unchanged(&replay)?;
        replay.plan.known.catch_up(&self.alerts, &replay.plan.rules)?;
        let mut findings = replay.findings()?;
        let wanted: BTreeSet<String> =
            findings.active.iter().map(|episode| episode.first().alert_id.clone()).collect();
        let mut adopted = BTreeSet::new();
        for rule in &replay.plan.rules {
            adopted.extend(self.rules.adopt(&rule.name, &replay.rehearsal.engine.rules, &wanted));
        }
        findings.active.retain(|episode| adopted.contains(&episode.first().alert_id));
        let at = self.position(self.processed.get(&self.config.node), &replay.plan.stream);
        // What goes on first: after a crash it is what would be missed.
        let active = findings.active.into_iter().map(|episode| (episode, false));
        let ended = findings.ended.into_iter().map(|episode| (episode, true));
        let mut frames = vec![Vec::new()];
        for (episode, historical) in active.chain(ended) {
            let steps =
                episode.0.into_iter().map(|step| Transition { historical, ..self.rules.renumber(step, &at) });
            match frames.last_mut() {
                Some(frame) if frame.len() < FRAME => frame.extend(steps),
                _ => frames.push(steps.collect()),
            }
        }
        // The rules first, with the numbers that have been given: after a crash they make up for what the log lacks,
        // but end what they do not know.
        self.save_surely().await;
        for frame in frames {
            self.record(frame).await;
        }
        Ok(replay.report(findings.rules))
    }

    /// Whether what was rehearsed is still what is in force.
    fn check_unchanged(&self, replay: &Replay) -> Result<()> {
        let changed = |what: &str, name: &str| {
            let why = format!("{what} `{name}` was changed while history was replayed; try again");
            Err(iot_schemas::Error::invalid(why).into())
        };
        for def in &replay.plan.views {
            if self.shared.live(&def.name).ok().is_none_or(|live| live.view().def() != def) {
                return changed("view", &def.name);
            }
        }
        let rehearsed = &replay.rehearsal.engine.rules;
        for def in &replay.plan.rules {
            let same_keys = self.rules.key_columns(&def.name) == rehearsed.key_columns(&def.name);
            if self.rules.definition(&def.name) != Some(def) || !same_keys {
                return changed("rule", &def.name);
            }
        }
        Ok(())
    }
}
