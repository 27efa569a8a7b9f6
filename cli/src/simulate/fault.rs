//! What goes wrong between a sensor and the broker.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::machine::Field;
use super::{Publication, happens};

/// How long a silent machine says nothing.
const SILENCE_US: std::ops::Range<i64> = 5_000_000..30_000_000;
/// How late a late message is, at least and at most. Most are a few seconds late, a few are minutes late.
const LATE_US: (f64, f64) = (2e6, 180e6);
/// How long after the first copy a duplicate comes.
const DUPLICATE_AFTER_US: std::ops::Range<i64> = 0..2_000_000;

/// What goes wrong, as chances per reading between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// It is held back and sent later.
    pub late: f64,
    /// It is sent twice.
    pub duplicate: f64,
    /// Its bytes are no reading any more.
    pub broken: f64,
    /// One of its fields is missing.
    pub missing_field: f64,
    /// The machine falls silent for a while.
    pub silence: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self { late: 0.0, duplicate: 0.0, broken: 0.0, missing_field: 0.0, silence: 0.0 }
    }

    /// About what a plant with a radio network sees.
    pub fn realistic() -> Self {
        Self { late: 0.02, duplicate: 0.01, broken: 0.004, missing_field: 0.01, silence: 0.001 }
    }
}

/// What goes wrong with one reading.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    None,
    Late { by_us: i64 },
    Duplicate { after_us: i64 },
    Broken,
    MissingField(Field),
    Silence { for_us: i64 },
}

impl Faults {
    /// Draws what goes wrong with the next reading: at most one thing.
    pub(super) fn draw(&self, is_silent: bool, rng: &mut ChaCha8Rng) -> Fault {
        if is_silent {
            return Fault::None;
        }
        if happens(self.late, rng) {
            let (least, most) = LATE_US;
            return Fault::Late { by_us: (least * (most / least).powf(rng.random::<f64>().powi(2))) as i64 };
        }
        if happens(self.duplicate, rng) {
            return Fault::Duplicate { after_us: rng.random_range(DUPLICATE_AFTER_US) };
        }
        if happens(self.broken, rng) {
            return Fault::Broken;
        }
        if happens(self.missing_field, rng) {
            let fields = [Field::Temperature, Field::Humidity, Field::Vibration];
            return Fault::MissingField(fields[rng.random_range(0..fields.len())]);
        }
        if happens(self.silence, rng) {
            return Fault::Silence { for_us: rng.random_range(SILENCE_US) };
        }
        Fault::None
    }
}

/// What a message looks like when something has gone wrong with its bytes.
pub(super) fn break_payload(whole: &Bytes, rng: &mut ChaCha8Rng) -> Bytes {
    match rng.random_range(0..5) {
        0 => whole.slice(..rng.random_range(1..whole.len())),
        1 => {
            let mut noise = vec![0xff, 0x00];
            noise.extend((0..rng.random_range(1..64)).map(|_| rng.random::<u8>()));
            noise.into()
        }
        2 => Bytes::from_static(b"{\"temperature\":\"hot\",\"humidity\":[]}"),
        3 => Bytes::from_static(b"{\"temperature\":NaN}"),
        _ => Bytes::from_static(b"sensor rebooted"),
    }
}

/// Messages that wait for their time.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: BTreeMap<(i64, u64), Publication>,
    pushed: u64,
}

impl Held {
    /// Holds a message back until `due_us`.
    pub(super) fn push(&mut self, due_us: i64, publication: Publication) {
        self.waiting.insert((due_us, self.pushed), publication);
        self.pushed += 1;
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<i64> {
        self.waiting.first_key_value().map(|((due_us, _), _)| *due_us)
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Publication> {
        self.waiting.pop_first().map(|(_, publication)| publication)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}
