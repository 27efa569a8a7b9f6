//! The life of one alert instance: a rule applied to one key, from its first true sample to its end.
//!
//! ```text
//!            on, held for `for`          off, and `keep_firing_for` over
//! pending ------------------------> firing -----------------------------> resolved
//!    |                                |  ^
//!    | off                        off |  | on
//!    v                                v  |
//! inactive                          keeping (still reported as firing)
//! ```
//!
//! All times are event time. `clear_when` makes the condition a latch: once on, it stays on until it is
//! cleared, and `for` and `keep_firing_for` apply to what comes out of the latch. A sample older than the
//! instance's newest is late and changes nothing. A sample of the same time does count: it is the same window's
//! row again, with more events in it.

use iot_schemas::alert::AlertState;
use serde::{Deserialize, Serialize};

/// What one sample says about its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `when` is true.
    On,
    /// Neither is true: a latch that is on stays on, one that is off stays off.
    Hold,
    /// The condition is over: `clear_when` is true, or, without one, `when` is false.
    Off,
}

/// The durations of a rule, in microseconds of event time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// How long the condition must hold before the alert fires; 0: it fires at once.
    pub hold: i64,
    /// How long the alert goes on firing, counted from the first sample at which the condition was over.
    pub keep: i64,
}

/// An instance that is pending or firing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The time of the sample that began the episode.
    started_at: i64,
    /// The time of its newest sample.
    last_time: i64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Pending,
    Firing,
    /// The condition is over since then, but the alert is kept firing.
    Keeping(i64),
}

/// What a sample did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was older than the newest sample of the instance.
    Late,
    /// The reported state stays.
    Stay,
    /// The instance entered this state. After `Resolved` and `Inactive` it is over.
    Entered(AlertState),
}

impl Instance {
    /// The first true sample: the instance is pending, or firing at once if there is no hold.
    pub fn start(time: i64, timing: Timing) -> Self {
        let phase = if timing.hold > 0 { Phase::Pending } else { Phase::Firing };
        Self { started_at: time, last_time: time, phase }
    }

    /// The state that is reported.
    pub fn state(&self) -> AlertState {
        match self.phase {
            Phase::Pending => AlertState::Pending,
            Phase::Firing | Phase::Keeping(_) => AlertState::Firing,
        }
    }

    /// When the episode began.
    pub fn started_at(&self) -> i64 {
        self.started_at
    }

    /// The time of the newest sample.
    pub fn last_time(&self) -> i64 {
        self.last_time
    }

    /// When the instance will be resolved if no true sample comes, if it is past its condition.
    pub fn ends_at(&self, timing: Timing) -> Option<i64> {
        match self.phase {
            Phase::Keeping(since) => Some(since.saturating_add(timing.keep)),
            Phase::Pending | Phase::Firing => None,
        }
    }

    /// Takes one sample.
    pub fn apply(&mut self, time: i64, signal: Signal, timing: Timing) -> Step {
        if time < self.last_time {
            return Step::Late;
        }
        self.last_time = time;
        match (self.phase, signal) {
            (Phase::Pending, Signal::Off) => Step::Entered(AlertState::Inactive),
            (Phase::Pending, Signal::On | Signal::Hold) if elapsed(self.started_at, time) >= timing.hold => {
                self.phase = Phase::Firing;
                Step::Entered(AlertState::Firing)
            }
            (Phase::Firing, Signal::Off) if timing.keep == 0 => Step::Entered(AlertState::Resolved),
            (Phase::Firing, Signal::Off) => {
                self.phase = Phase::Keeping(time);
                Step::Stay
            }
            (Phase::Keeping(_), Signal::On) => {
                self.phase = Phase::Firing;
                Step::Stay
            }
            (Phase::Keeping(since), Signal::Hold | Signal::Off) if elapsed(since, time) >= timing.keep => {
                Step::Entered(AlertState::Resolved)
            }
            _ => Step::Stay,
        }
    }
}

fn elapsed(from: i64, to: i64) -> i64 {
    to.saturating_sub(from)
}
