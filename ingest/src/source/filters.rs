//! The filters of one session at a broker: which it has, and what must be said to it.
//!
//! A broker may send a message once for each filter that matches it. So a filter that another one covers is not
//! subscribed to; and where filters overlap in part, each subscription has an identifier of its own, by which [`super::copies`] tells
//! copies from messages. A filter that is subscribed to anew gets a new one: what is on its way under the old one
//! was routed when other filters were there.
//!
//! No I/O here: `subscriptions` says to the broker what [`Filters::plan`] answers.

use std::collections::{BTreeMap, VecDeque};

use ahash::HashMap;
use serde::{Deserialize, Serialize};

/// The largest identifier of a subscription in MQTT 5.
const MAX_ID: u32 = 0x0fff_ffff;
/// Filters that are remembered after they were left; the oldest are forgotten first.
const MAX_LEFT: usize = 4_096;

/// What one session has, as far as we know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filters {
    held: Vec<Held>,
    /// What was unsubscribed from. A broker that was killed comes back with an older store and may have it again.
    left: VecDeque<String>,
    last_id: u32,
    /// What the broker refuses, and how it says so.
    #[serde(skip)]
    refused: BTreeMap<String, String>,
    /// By the identifier of a subscription, those that overlap with it.
    #[serde(skip)]
    overlaps: HashMap<usize, Vec<(usize, String)>>,
}

/// A filter that the session has, or is to have or to lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    filter: String,
    id: u32,
    /// Whether the broker has said that it has it.
    is_confirmed: bool,
    /// Whether the broker was told to forget it.
    is_leaving: bool,
}

/// Why a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A connection was made: the broker is told everything again, as its store may be older than what it has said.
    Connected,
    /// The broker has answered, or the streams have changed.
    Changed,
    /// What was refused is tried again.
    Retry,
}

/// What is to be said to the broker: first the subscriptions, so that there is no gap where one takes the place of another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Identifier and filter.
    pub(super) subscribe: Vec<(u32, String)>,
    /// Identifier and filter; the identifier is 0 for what was left before.
    pub(super) leave: Vec<(u32, String)>,
}

impl Filters {
    /// Nothing is known of the session but that it may have `left`, which are not wanted. Identifiers follow `last_id`: those
    /// of an earlier process, of which messages may still come, should not be met again.
    pub(super) fn unknown(left: Vec<String>, last_id: u32) -> Self {
        Self { left: left.into(), last_id: last_id % MAX_ID, ..Self::default() }
    }

    /// A connection was made. In a new session nothing is there that was confirmed.
    ///
    /// In the old one the broker may have ended what was to be left, and its word for it may have been lost, so that no copies
    /// come by it.
    pub(super) fn connected(&mut self, session_present: bool) {
        if !session_present {
            self.left.clear();
            self.doubt();
        }
        self.held.iter_mut().filter(|held| held.is_leaving).for_each(|held| held.is_confirmed = false);
        self.compare();
    }

    /// What was confirmed may not be true.
    pub(super) fn doubt(&mut self) {
        self.held.iter_mut().for_each(|held| held.is_confirmed = false);
        self.compare();
    }

    /// What must be said so that the session has all that is wanted, each message by one filter where that can be.
    pub(super) fn plan(&mut self, wanted: &[String], occasion: Occasion) -> Plan {
        self.refused.retain(|filter, _| wanted.contains(filter));
        let mut plan = Plan::default();
        let superfluous: Vec<bool> = self.held.iter().map(|held| self.is_superfluous(held, wanted)).collect();
        for (held, is_superfluous) in self.held.iter_mut().zip(superfluous) {
            let was_leaving = held.is_leaving;
            held.is_leaving |= is_superfluous;
            let again = occasion == Occasion::Connected;
            match held.is_leaving {
                true if again || !was_leaving => plan.leave.push((held.id, held.filter.clone())),
                false if again => plan.subscribe.push((held.id, held.filter.clone())),
                _ => {}
            }
        }
        for filter in self.missing(wanted, occasion) {
            let id = self.ask(&filter);
            plan.leave.retain(|(_, leaving)| *leaving != filter);
            plan.subscribe.push((id, filter));
        }
        if occasion == Occasion::Connected {
            plan.leave.extend(self.left.iter().map(|filter| (0, filter.clone())));
        }
        plan
    }

    /// The broker has accepted the subscription `id`.
    pub(super) fn accepted(&mut self, id: u32) {
        if let Some(held) = self.held.iter_mut().find(|held| held.id == id) {
            held.is_confirmed = true;
            self.refused.remove(&held.filter);
            self.compare();
        }
    }

    /// The broker does not accept the subscription `id`, and says `why`. Returns its filter, if that is wanted still.
    pub(super) fn refused(&mut self, id: u32, why: &str) -> Option<String> {
        let at = self.held.iter().position(|held| held.id == id)?;
        let Held { filter, is_leaving, .. } = self.held.remove(at);
        self.compare();
        (!is_leaving).then(|| {
            self.refused.insert(filter.clone(), why.to_owned());
            filter
        })
    }

    /// The broker has ended the subscription `id`.
    pub(super) fn left(&mut self, id: u32) {
        if let Some(at) = self.held.iter().position(|held| held.id == id && held.is_leaving) {
            let held = self.held.remove(at);
            self.left.push_back(held.filter);
            while self.left.len() > MAX_LEFT {
                self.left.pop_front();
            }
            self.compare();
        }
    }

    /// What the broker refuses, with its reason.
    pub(super) fn first_refused(&self) -> Option<(&str, &str)> {
        self.refused.iter().next().map(|(filter, why)| (filter.as_str(), why.as_str()))
    }

    /// The other subscriptions by which a message of `topic` comes that came by these.
    ///
    /// None if it came without identifiers, as then nothing tells copies from messages, or with several, as then it is the
    /// only copy.
    pub(super) fn others(&self, topic: &str, ids: &[usize]) -> Vec<usize> {
        let [id] = ids else { return Vec::new() };
        let overlaps = self.overlaps.get(id).into_iter().flatten();
        overlaps.filter(|(_, filter)| covers(filter, topic)).map(|(other, _)| *other).collect()
    }

    /// Restores what follows from the rest.
    pub(super) fn compare(&mut self) {
        let confirmed = || self.held.iter().filter(|held| held.is_confirmed);
        let overlaps_of = |held: &Held| {
            let others =
                confirmed().filter(|other| other.id != held.id && overlap(&other.filter, &held.filter));
            others.map(|other| (other.id as usize, other.filter.clone())).collect()
        };
        let all = confirmed().map(|held| (held.id as usize, overlaps_of(held)));
        self.overlaps = all.filter(|(_, others): &(usize, Vec<_>)| !others.is_empty()).collect();
    }

    /// A filter goes when it is not wanted, or when one that covers it is there for certain.
    fn is_superfluous(&self, held: &Held, wanted: &[String]) -> bool {
        let stays = |other: &&Held| other.is_confirmed && !other.is_leaving && wanted.contains(&other.filter);
        !wanted.contains(&held.filter)
            || self.held.iter().filter(stays).any(|other| covers_more(&other.filter, &held.filter))
    }

    /// The wanted filters that are to be asked for now.
    fn missing(&self, wanted: &[String], occasion: Occasion) -> Vec<String> {
        let is_held = |filter: &String| self.held.iter().any(|it| it.filter == *filter && !it.is_leaving);
        let is_refused = |filter: &String| self.refused.contains_key(filter);
        let is_covered =
            |filter: &String| wanted.iter().any(|other| covers_more(other, filter) && !is_refused(other));
        let is_missing = |filter: &&String| {
            let may_be_asked = !is_refused(filter) || occasion != Occasion::Changed;
            !is_held(filter) && may_be_asked && !is_covered(filter)
        };
        wanted.iter().filter(is_missing).cloned().collect()
    }

    /// A new subscription.
    fn ask(&mut self, filter: &str) -> u32 {
        self.held.retain(|held| held.filter != filter);
        self.left.retain(|left| left != filter);
        self.last_id = self.last_id % MAX_ID + 1;
        let (filter, id) = (filter.to_owned(), self.last_id);
        self.held.push(Held { filter, id, is_confirmed: false, is_leaving: false });
        self.compare();
        id
    }
}

/// Whether everything that `other` matches is matched by `filter`. A topic is a filter that matches nothing but itself.
fn covers(filter: &str, other: &str) -> bool {
    if is_wild_at_first(filter) && other.starts_with('$') {
        return false;
    }
    let mut others = other.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        match others.next() {
            Some("#") | None => return false,
            Some(other) if level == "+" || level == other => {}
            Some(_) => return false,
        }
    }
    others.next().is_none()
}

/// Whether `other` is of no use beside `filter`. Those who share a subscription get only their part of it.
fn covers_more(filter: &str, other: &str) -> bool {
    let ((sharers, filter), (others, other)) = (sharers(filter), sharers(other));
    sharers == others && filter != other && covers(filter, other)
}

/// `$share/GROUP/`, if there is that, and the rest.
fn sharers(filter: &str) -> (&str, &str) {
    let group = filter.strip_prefix("$share/").and_then(|rest| rest.find('/'));
    group.map_or(("", filter), |end| filter.split_at("$share/".len() + end + 1))
}

/// Whether there are topics that both match.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    if is_wild_at_first(one) && other.starts_with('$') || is_wild_at_first(other) && one.starts_with('$') {
        return false;
    }
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    loop {
        match (ones.next(), others.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(one), Some(other)) if one == other || one == "+" || other == "+" => {}
            _ => return false,
        }
    }
}

/// Wildcards do not match a first level that begins with `$`.
fn is_wild_at_first(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

#[cfg(test)]
mod tests;
