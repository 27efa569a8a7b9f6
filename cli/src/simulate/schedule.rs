//! When readings are due: evenly, at a rate, without drift.

/// The slowest that a fleet can be, so that a next reading always exists.
const MIN_RATE: f64 = 1e-6;

/// The due times of readings.
#[derive(Debug)]
pub(super) struct Schedule {
    start_us: i64,
    interval_us: f64,
    taken: u64,
}

impl Schedule {
    /// Readings from `start_us` on, `rate` per second.
    pub(super) fn new(start_us: i64, rate: f64) -> Self {
        Self { start_us, interval_us: 1e6 / rate.max(MIN_RATE), taken: 0 }
    }

    /// The start.
    pub(super) fn start(&self) -> i64 {
        self.start_us
    }

    /// When the next reading is due. Computed from the start, so that rounding does not add up.
    pub(super) fn next_due(&self) -> i64 {
        self.start_us.saturating_add((self.taken as f64 * self.interval_us) as i64)
    }

    /// The next reading is taken.
    pub(super) fn advance(&mut self) {
        self.taken += 1;
    }
}
