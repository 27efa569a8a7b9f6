//! Whether a device is there, as far as anything has said so.
//!
//! The newest word counts, in the order of the log: a status message, a birth or a death, or an event, which shows
//! that the device is there after all. An event that was measured long ago and sent late on purpose shows nothing,
//! nor does one that arrived before the device went offline. A word that was a dead letter, and is read again, counts as
//! of its arrival: what has been said or shown since is newer. Live words are in order, whatever the clock says.

use iot_schemas::device::Via;
use serde::{Deserialize, Serialize};

/// A device is silent for too long after so many intervals without an event.
pub(super) const MISSED: i64 = 3;

/// Why a device is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    /// The broker has published its last will.
    Will,
    /// It was born (Sparkplug).
    Birth,
    /// It, or its node, has died (Sparkplug).
    Death,
    /// Its node was born again, and it has not been since (Sparkplug).
    Rebirth,
    /// It has said so.
    Status,
    /// It has sent an event.
    Event,
    /// It has sent none for too long.
    Silence,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Will => "will",
            Self::Birth => "birth",
            Self::Death => "death",
            Self::Rebirth => "rebirth",
            Self::Status => "status",
            Self::Event => "event",
            Self::Silence => "silence",
        }
    }
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Online,
    Offline,
    Stale,
    NeverSeen,
    Unknown,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Stale => "stale",
            Self::NeverSeen => "never_seen",
            Self::Unknown => "unknown",
        }
    }
}

/// A state, since when (microseconds since 1970) and why, where that is known.
pub(super) type Standing = (State, Option<i64>, Option<Reason>);

/// What has been said about the connection of a device. Times are arrivals, microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Link {
    /// The last word: whether it is there, since when, and who said so.
    word: Option<(bool, i64, Reason)>,
    /// When it last showed that it is there.
    heard: Option<i64>,
    /// When the last word came, also if it only said again how things are. `None` in files of older versions.
    spoken: Option<i64>,
    /// What its last status message said.
    status: Option<bool>,
}

impl Link {
    /// A device of which nothing is known but when its last event arrived.
    pub(super) fn heard_at(arrival: i64) -> Self {
        let word = Some((true, arrival, Reason::Event));
        Self { word, heard: Some(arrival), spoken: Some(arrival), status: None }
    }

    /// A status message. A copy that the broker had kept changes nothing if it says what the device said last: it is
    /// the same message again.
    pub(super) fn said(&mut self, is_online: bool, arrival: i64, via: Via) {
        let is_copy = via == Via::Retained && self.status == Some(is_online);
        if !is_copy && !self.is_outdated(is_online, arrival, via) {
            self.status = Some(is_online);
            let reason = if via == Via::Will { Reason::Will } else { Reason::Status };
            self.enter(is_online, arrival, reason);
        }
    }

    /// A birth.
    pub(super) fn born(&mut self, arrival: i64, via: Via) {
        self.told(true, arrival, Reason::Birth, via);
    }

    /// A death of its own or of its node.
    pub(super) fn died(&mut self, arrival: i64, via: Via) {
        self.told(false, arrival, Reason::Death, via);
    }

    /// A birth of its node: nothing is known of the device until it is born, too.
    pub(super) fn node_born(&mut self, arrival: i64, via: Via) {
        self.told(false, arrival, Reason::Rebirth, via);
    }

    fn told(&mut self, is_online: bool, arrival: i64, reason: Reason, via: Via) {
        if !self.is_outdated(is_online, arrival, via) {
            self.enter(is_online, arrival, reason);
        }
    }

    /// Whether a word that is read again arrived before what has been said since, or before an event that shows that the
    /// device did not go away.
    fn is_outdated(&self, is_online: bool, arrival: i64, via: Via) -> bool {
        let shown = if is_online { None } else { self.heard };
        via == Via::Replay && self.last_word().max(shown) > Some(arrival)
    }

    /// When the last word came.
    fn last_word(&self) -> Option<i64> {
        self.spoken.or(self.word.map(|(_, since, _)| since))
    }

    /// An event. After a silence of more than `limit` (microseconds) it begins a new stretch of being online.
    pub(super) fn sent(&mut self, arrival: i64, limit: impl FnOnce() -> Option<i64>) {
        match self.word {
            Some((false, ..)) if Some(arrival) < self.last_word() => {}
            Some((true, ..)) => {
                let gap = self.heard.map_or(0, |heard| arrival.saturating_sub(heard));
                if gap >= LEAST_GAP && limit().is_some_and(|limit| gap > limit) {
                    self.word = Some((true, arrival, Reason::Event));
                }
                self.heard = self.heard.max(Some(arrival));
            }
            Some((false, ..)) | None => self.enter(true, arrival, Reason::Event),
        }
    }

    fn enter(&mut self, is_online: bool, arrival: i64, reason: Reason) {
        self.spoken = Some(arrival);
        if is_online {
            self.heard = self.heard.max(Some(arrival));
        }
        // What only says again how things are does not begin anew.
        if self.word.is_none_or(|(was_online, ..)| was_online != is_online) {
            self.word = Some((is_online, arrival, reason));
        }
    }

    /// Where the device stands at `now`, if it should be heard of every `cadence` (microseconds).
    ///
    /// A device of which there are events only, and no cadence, may be there or not: nobody can tell.
    pub(super) fn standing(&self, now: i64, cadence: Option<i64>) -> Standing {
        let Some((is_online, since, reason)) = self.word else { return (State::Unknown, None, None) };
        if !is_online {
            return (State::Offline, Some(since), Some(reason));
        }
        let limit = cadence.map(silence_limit);
        if let (Some(limit), Some(heard)) = (limit, self.heard)
            && now.saturating_sub(heard) > limit
        {
            return (State::Stale, Some(heard.saturating_add(limit)), Some(Reason::Silence));
        }
        if limit.is_none() && reason == Reason::Event && self.status.is_none() {
            return (State::Unknown, None, None);
        }
        (State::Online, Some(since), Some(reason))
    }
}

/// No cadence is so short that a gap of less than this (microseconds) is silence; it saves looking cadences up.
const LEAST_GAP: i64 = 1_000;

/// How long a device with this cadence may be silent, in microseconds.
pub(super) fn silence_limit(cadence: i64) -> i64 {
    cadence.saturating_mul(MISSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const NONE: fn() -> Option<i64> = || None;

    #[track_caller]
    fn check(link: &Link, now: i64, cadence: Option<i64>, expect: (State, i64, Reason)) {
        let (state, since, reason) = expect;
        assert_eq!(
            link.standing(now * SECOND, cadence),
            (state, Some(since * SECOND), Some(reason)),
            "{link:?}"
        );
    }

    #[test]
    fn events_alone_tell_nothing_without_a_cadence() {
        let mut link = Link::default();
        assert_eq!(link.standing(0, Some(SECOND)), (State::Unknown, None, None));
        link.sent(SECOND, NONE);
        assert_eq!(link.standing(2 * SECOND, None), (State::Unknown, None, None));
        check(&link, 4, Some(SECOND), (State::Online, 1, Reason::Event));
        check(&link, 5, Some(SECOND), (State::Stale, 4, Reason::Silence));
    }

    #[test]
    fn silence_ends_with_the_next_event() {
        let mut link = Link::default();
        let limit = || Some(3 * SECOND);
        link.sent(SECOND, limit);
        link.sent(3 * SECOND, limit);
        check(&link, 3, Some(SECOND), (State::Online, 1, Reason::Event));
        link.sent(10 * SECOND, limit);
        check(&link, 10, Some(SECOND), (State::Online, 10, Reason::Event));
        // An event that comes out of order does not.
        link.sent(5 * SECOND, limit);
        check(&link, 10, Some(SECOND), (State::Online, 10, Reason::Event));
    }

    #[test]
    fn the_newest_word_counts() {
        let mut link = Link::default();
        link.said(true, SECOND, Via::Live);
        check(&link, 100, None, (State::Online, 1, Reason::Status));
        link.said(true, 2 * SECOND, Via::Live);
        check(&link, 100, None, (State::Online, 1, Reason::Status));
        link.said(false, 3 * SECOND, Via::Will);
        check(&link, 100, Some(SECOND), (State::Offline, 3, Reason::Will));
        // What arrived before it went away, or is from the past, does not bring it back.
        link.sent(2 * SECOND, NONE);
        check(&link, 100, None, (State::Offline, 3, Reason::Will));
        link.sent(4 * SECOND, NONE);
        check(&link, 100, None, (State::Online, 4, Reason::Event));
        link.died(5 * SECOND, Via::Live);
        check(&link, 100, None, (State::Offline, 5, Reason::Death));
        link.born(6 * SECOND, Via::Live);
        check(&link, 100, None, (State::Online, 6, Reason::Birth));
    }

    #[test]
    fn a_copy_that_was_kept_says_nothing_new() {
        let mut link = Link::default();
        link.said(false, SECOND, Via::Live);
        link.sent(2 * SECOND, NONE);
        link.said(false, 3 * SECOND, Via::Retained);
        check(&link, 100, None, (State::Online, 2, Reason::Event));
        link.said(true, 4 * SECOND, Via::Retained);
        link.said(false, 5 * SECOND, Via::Retained);
        check(&link, 100, None, (State::Offline, 5, Reason::Status));
        link.said(true, 4 * SECOND, Via::Replay);
        check(&link, 100, None, (State::Offline, 5, Reason::Status));
    }

    #[test]
    fn a_word_that_was_a_dead_letter_changes_nothing_that_is_newer() {
        let mut link = Link::default();
        link.said(false, SECOND, Via::Live);
        link.said(false, 3 * SECOND, Via::Live);
        link.born(2 * SECOND, Via::Replay);
        link.said(true, 2 * SECOND, Via::Replay);
        link.sent(2 * SECOND, NONE);
        check(&link, 100, None, (State::Offline, 1, Reason::Status));
        link.born(3 * SECOND, Via::Replay);
        check(&link, 100, None, (State::Online, 3, Reason::Birth));
        link.sent(5 * SECOND, NONE);
        link.said(false, 4 * SECOND, Via::Replay);
        link.died(4 * SECOND, Via::Replay);
        link.node_born(4 * SECOND, Via::Replay);
        check(&link, 100, None, (State::Online, 3, Reason::Birth));
        link.died(5 * SECOND, Via::Replay);
        check(&link, 100, None, (State::Offline, 5, Reason::Death));
    }

    #[test]
    fn live_words_are_in_order_also_when_the_clock_is_set_back() {
        let mut link = Link::default();
        link.born(10 * SECOND, Via::Live);
        link.sent(11 * SECOND, NONE);
        link.died(9 * SECOND, Via::Live);
        check(&link, 100, None, (State::Offline, 9, Reason::Death));
        link.born(8 * SECOND, Via::Live);
        check(&link, 100, None, (State::Online, 8, Reason::Birth));
        link.node_born(8 * SECOND, Via::Live);
        check(&link, 100, None, (State::Offline, 8, Reason::Rebirth));
    }

    #[test]
    fn what_an_older_version_wrote_is_read() {
        let old = r#"{"word": [false, 5000000, "will"], "heard": 4000000, "status": false}"#;
        let mut link: Link = serde_json::from_str(old).expect("a link");
        link.sent(4 * SECOND, NONE);
        link.said(true, 4 * SECOND, Via::Replay);
        check(&link, 100, None, (State::Offline, 5, Reason::Will));
    }

    #[test]
    fn a_device_that_says_it_is_there_must_be_heard_of_too() {
        let mut link = Link::default();
        link.said(true, SECOND, Via::Live);
        check(&link, 4, Some(SECOND), (State::Online, 1, Reason::Status));
        check(&link, 5, Some(SECOND), (State::Stale, 4, Reason::Silence));
    }
}
