//! What is not stored on purpose: rate limits of devices, and what streams shed under pressure. All of it is counted.
//!
//! Both are decided before a message is numbered, so the log knows nothing of what was shed and a replay has
//! nothing to decide. A message for several streams is shed only if each of them would. Events that are
//! written over HTTP and replayed dead letters always wait: their sender is told. So do messages that say the state of a
//! device (`status.topics`): there are few of them, and the next one may be long in coming.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::HashMap;
use parking_lot::Mutex;

use iot_schemas::catalog::{OnPressure, RateLimit};
use iot_schemas::topic::TopicPattern;

use crate::left_out::LeftOutReason;
use crate::message::WRITTEN;
use crate::route::matches;
use crate::stream::{Stream, device_of};

/// Devices whose rate is known per stream. Beyond that, those that have sent little of late are forgotten.
const MAX_DEVICES: usize = 100_000;

/// What a stream says about more than it can take.
#[derive(Debug)]
struct Policy {
    stream: Arc<Stream>,
    topics: Vec<TopicPattern>,
    /// Where devices say how they are.
    status: Vec<TopicPattern>,
    on_pressure: OnPressure,
    limit: Option<Mutex<Rates>>,
}

/// The policies of all streams.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    policies: Vec<Policy>,
    /// Whether no stream ever sheds anything, as it is by default.
    all_wait: bool,
    sampled: AtomicU64,
}

/// The streams that want a message.
pub(crate) type Concerned = Arc<[Arc<Stream>]>;

/// What is to become of a message.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It waits for room as long as it takes.
    Wait,
    /// It waits for room; if that takes long it may be shed, which counts for these streams.
    MayBeShed(Concerned),
    /// More comes than can be taken, and it is not stored.
    Shed,
    /// Its device sends too many, and it is not stored.
    Limited,
}

impl Policies {
    pub(crate) fn new<'a>(streams: impl IntoIterator<Item = &'a Arc<Stream>>) -> Self {
        let policy = |stream: &Arc<Stream>| {
            let def = stream.def()?;
            let limit = def.rate_limit.map(|limit| Mutex::new(Rates::new(limit)));
            Some(Policy {
                stream: stream.clone(),
                topics: def.topics.clone(),
                status: def.status.as_ref().map_or_else(Vec::new, |status| status.topics.clone()),
                on_pressure: def.on_pressure,
                limit,
            })
        };
        let policies: Vec<Policy> = streams.into_iter().filter_map(policy).collect();
        let all_wait = policies.iter().all(|it| it.limit.is_none() && it.on_pressure == OnPressure::Wait);
        Self { policies, all_wait, sampled: AtomicU64::new(0) }
    }

    /// Decides about a message that arrives at `now` (microseconds); `is_pressed` is asked only if it matters.
    ///
    /// Costs nothing while all streams wait, and a match against the topics of each stream otherwise.
    pub(crate) fn judge(&self, topic: &str, now: i64, is_pressed: impl FnOnce() -> bool) -> Verdict {
        if self.all_wait || topic.starts_with(WRITTEN) || self.is_status(topic) {
            return Verdict::Wait;
        }
        let mut concerned: Vec<(&Policy, &TopicPattern)> = Vec::new();
        for policy in &self.policies {
            concerned.extend(policy.topics.iter().find(|it| matches(it, topic)).map(|it| (policy, it)));
        }
        if concerned.is_empty() {
            return Verdict::Wait;
        }
        // A device over the limit of one stream may be within that of another, whose event this is too.
        let limited: Vec<bool> =
            concerned.iter().map(|(policy, it)| policy.is_over_limit(it, topic, now)).collect();
        if limited.iter().all(|over| *over) {
            let limited = LeftOutReason::RateLimited;
            concerned.iter().for_each(|(policy, _)| policy.stream.leave_out(limited, topic, now));
            return Verdict::Limited;
        }
        if concerned.iter().any(|(policy, _)| policy.on_pressure == OnPressure::Wait) {
            return Verdict::Wait;
        }
        let verdict = self.under_pressure(&concerned, is_pressed);
        if matches!(verdict, Verdict::Shed) {
            concerned.iter().for_each(|(policy, _)| policy.stream.leave_out(LeftOutReason::Shed, topic, now));
        }
        verdict
    }

    fn is_status(&self, topic: &str) -> bool {
        self.policies.iter().flat_map(|policy| &policy.status).any(|pattern| matches(pattern, topic))
    }

    fn under_pressure(
        &self,
        concerned: &[(&Policy, &TopicPattern)],
        is_pressed: impl FnOnce() -> bool,
    ) -> Verdict {
        let streams = || concerned.iter().map(|(policy, _)| policy.stream.clone()).collect();
        let sheds_oldest = concerned.iter().any(|(policy, _)| policy.on_pressure == OnPressure::ShedOldest);
        if sheds_oldest {
            return Verdict::MayBeShed(streams());
        }
        if !is_pressed() {
            return Verdict::Wait;
        }
        let every = concerned.iter().filter_map(|(policy, _)| match policy.on_pressure {
            OnPressure::Sample(every) => Some(u64::from(every)),
            _ => None,
        });
        if every.min().is_some_and(|every| self.sampled.fetch_add(1, Ordering::Relaxed).is_multiple_of(every))
        {
            return Verdict::Wait;
        }
        Verdict::Shed
    }
}

impl Policy {
    fn is_over_limit(&self, pattern: &TopicPattern, topic: &str, now: i64) -> bool {
        let Some(limit) = &self.limit else { return false };
        // Where the topic does not name a device, it stands for one.
        !limit.lock().take(device_of(pattern, topic).unwrap_or(topic), now)
    }
}

/// How fast devices send: the generic cell rate algorithm (ITU-T I.371), one instant per device.
#[derive(Debug)]
struct Rates {
    interval: i64,
    tolerance: i64,
    /// When the device would have sent what it has sent, at the rate that it may have.
    due: HashMap<Box<str>, i64>,
    max_devices: usize,
}

impl Rates {
    fn new(limit: RateLimit) -> Self {
        let (interval, tolerance) = limit.interval_and_tolerance();
        Self { interval, tolerance, due: HashMap::default(), max_devices: MAX_DEVICES }
    }

    /// Whether `device` may send a message now.
    fn take(&mut self, device: &str, now: i64) -> bool {
        // No device is further ahead than that: if one seems to be, the clock was set back.
        let furthest = now.saturating_add(self.tolerance).saturating_add(self.interval);
        if let Some(known) = self.due.get_mut(device) {
            let due = (*known).min(furthest).max(now);
            let may_send = due - now <= self.tolerance;
            *known = if may_send { due + self.interval } else { due };
            return may_send;
        }
        self.make_room(now);
        self.due.insert(device.into(), now + self.interval);
        true
    }

    fn make_room(&mut self, now: i64) {
        if self.due.len() >= self.max_devices {
            // A device that is not ahead is as good as unknown.
            self.due.retain(|_, due| *due > now);
        }
        if self.due.len() >= self.max_devices {
            self.due.clear();
        }
    }
}

#[cfg(test)]
mod tests;
