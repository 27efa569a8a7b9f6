//! The machine that overheats every now and then, on a timetable that demonstrations can rely on.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The first overheating begins so long after the start.
const FIRST_AFTER_US: i64 = 2_000_000;
/// The next one begins so long after the one before.
const NEXT_AFTER_US: std::ops::Range<i64> = 15_000_000..20_000_000;
/// A hot machine reports at least so often, as far as the fleet's rate allows.
const READ_EVERY_US: i64 = 250_000;
/// The course of the temperature: seconds since the beginning, degrees Celsius. Before and after, and where the
/// machine is warmer by itself, it has its own temperature.
const COURSE: [(f64, f64); 5] = [(0.0, 48.0), (2.5, 80.5), (4.0, 94.0), (5.5, 94.0), (8.0, 66.0)];

/// The timetable.
#[derive(Debug)]
pub(super) struct Overheating {
    machines: usize,
    next_start_us: Option<i64>,
    current: Option<Episode>,
}

#[derive(Debug)]
struct Episode {
    machine: usize,
    start_us: i64,
    last_read_us: i64,
}

/// A machine that is hot now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heat {
    /// Which one.
    pub(super) machine: usize,
    /// For how long.
    pub(super) since_us: i64,
    /// Whether its last reading is too old.
    pub(super) wants_reading: bool,
}

impl Overheating {
    /// A timetable for so many machines.
    pub(super) fn new(machines: usize) -> Self {
        Self { machines, next_start_us: None, current: None }
    }

    /// Moves to `now_us`. Returns the machine that begins to overheat, if one does.
    pub(super) fn advance(&mut self, now_us: i64, start_us: i64, rng: &mut ChaCha8Rng) -> Option<usize> {
        let next = *self.next_start_us.get_or_insert(start_us + FIRST_AFTER_US);
        if now_us < next {
            return None;
        }
        let machine = rng.random_range(0..self.machines);
        self.current = Some(Episode { machine, start_us: next, last_read_us: i64::MIN });
        self.next_start_us = Some(next + rng.random_range(NEXT_AFTER_US));
        Some(machine)
    }

    /// The machine that is hot at `now_us`.
    pub(super) fn heat(&self, now_us: i64) -> Option<Heat> {
        let episode = self.current.as_ref()?;
        let since_us = now_us - episode.start_us;
        let wants_reading = now_us.saturating_sub(episode.last_read_us) >= READ_EVERY_US;
        temperature(since_us).map(|_| Heat { machine: episode.machine, since_us, wants_reading })
    }

    /// The hot machine has given a reading.
    pub(super) fn was_read(&mut self, now_us: i64) {
        if let Some(episode) = &mut self.current {
            episode.last_read_us = now_us;
        }
    }
}

/// The temperature of an overheating, so long after it began; `None` when it is over.
pub(super) fn temperature(since_us: i64) -> Option<f64> {
    let s = since_us as f64 / 1e6;
    COURSE.windows(2).find_map(|leg| {
        let [(from_s, from), (to_s, to)] = [leg[0], leg[1]];
        (from_s <= s && s <= to_s).then(|| from + (to - from) * (s - from_s) / (to_s - from_s))
    })
}
