//! Readings that come late: some are held back and let go in random order, the most of them at the end.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Reading;

/// How many readings may be held back. Beyond that one of them is let go for each that comes.
const MAX_HELD: usize = 200_000;

/// Holds readings back.
#[derive(Debug)]
pub(super) struct Late {
    fraction: f64,
    rng: ChaCha8Rng,
    held: Vec<Reading>,
}

impl Late {
    /// Holds back this fraction of the readings.
    pub(super) fn new(fraction: f64, seed: u64) -> Self {
        Self { fraction: fraction.clamp(0.0, 1.0), rng: ChaCha8Rng::seed_from_u64(seed), held: Vec::new() }
    }

    /// Takes a reading; returns the one to send now, if any, and whether this one was held back.
    pub(super) fn pass(&mut self, reading: Reading) -> (Option<Reading>, bool) {
        if self.fraction <= 0.0 || !self.rng.random_bool(self.fraction) {
            return (Some(reading), false);
        }
        self.held.push(reading);
        if self.held.len() <= MAX_HELD {
            return (None, true);
        }
        let index = self.rng.random_range(0..self.held.len());
        (Some(self.held.swap_remove(index)), true)
    }

    /// All that is held back, in random order.
    pub(super) fn drain(&mut self) -> Vec<Reading> {
        let mut held = std::mem::take(&mut self.held);
        held.shuffle(&mut self.rng);
        held
    }
}
