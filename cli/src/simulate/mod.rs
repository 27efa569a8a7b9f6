//! A fleet of machines that behaves like one: daily rhythm, noise, and everything that goes wrong on the way.
//!
//! [`Fleet`] does no I/O and reads no clock. What it publishes, and when, follows from its configuration and the
//! moment of the first [`Fleet::tick`] alone; how often it is asked makes no difference.
//!
//! The promise that demonstrations rest on: two seconds after the start a machine begins to overheat. It passes
//! 80 °C between the fourth and the fifth second, is below 70 °C before the tenth, and its readings meanwhile are
//! frequent and free of faults. Others follow every 15 to 20 seconds. (This needs four readings per second or more.)

mod fault;
mod machine;
mod overheating;
mod schedule;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use fault::Faults;

use fault::Fault;
use machine::Machine;
use overheating::Overheating;
use schedule::Schedule;

/// The most that one call of [`Fleet::tick`] returns. The rest comes with the next call, at once.
const MAX_PER_TICK: usize = 10_000;
/// How many late messages and duplicates may wait to be sent. At the limit messages are sent in time.
const MAX_HELD: usize = 100_000;

/// What a fleet is like.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetConfig {
    /// Fleets of the same seed do the same.
    pub seed: u64,
    /// How many machines there are; at least one.
    pub devices: u32,
    /// Readings per second of the whole fleet.
    pub rate: f64,
    /// What goes wrong, how often.
    pub faults: Faults,
    /// Whether machines overheat every now and then.
    pub overheating: bool,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self { seed: 1, devices: 12, rate: 24.0, faults: Faults::realistic(), overheating: true }
    }
}

/// What kind of message it is. The receiver has to find out for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A reading, sent in time.
    Good,
    /// A reading, sent seconds or minutes after it was taken.
    Late,
    /// A reading that was sent before, byte for byte.
    Duplicate,
    /// Bytes that are no reading.
    Broken,
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// `devices/{device_id}/telemetry`
    pub topic: String,
    /// A JSON object, unless it is broken.
    pub payload: Bytes,
    /// The quality of service.
    pub qos: u8,
    /// What kind of message it is.
    pub kind: Kind,
}

/// What a fleet has sent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetStats {
    /// Readings sent in time.
    pub good: u64,
    /// Readings sent late. Good and late ones together are all readings there are.
    pub late: u64,
    /// Readings sent once more.
    pub duplicates: u64,
    /// Messages that are no readings.
    pub broken: u64,
    /// Readings among the good and late ones that lack a field.
    pub incomplete: u64,
    /// Readings that were not taken because the machine was silent.
    pub silent: u64,
    /// How often a machine has begun to overheat.
    pub overheatings: u64,
}

impl FleetStats {
    /// All messages.
    pub fn messages(&self) -> u64 {
        self.good + self.late + self.duplicates + self.broken
    }
}

/// The machines and their messages.
#[derive(Debug)]
pub struct Fleet {
    rng: ChaCha8Rng,
    machines: Vec<Machine>,
    next_machine: usize,
    faults: Faults,
    overheating: Option<Overheating>,
    readings: Option<Schedule>,
    rate: f64,
    held: fault::Held,
    stats: FleetStats,
}

impl Fleet {
    /// A fleet that starts with the first [`Self::tick`].
    pub fn new(config: FleetConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let machines: Vec<Machine> = (0..config.devices.max(1)).map(|n| Machine::new(n, &mut rng)).collect();
        let overheating = config.overheating.then(|| Overheating::new(machines.len()));
        Self {
            rng,
            machines,
            next_machine: 0,
            faults: config.faults,
            overheating,
            readings: None,
            rate: config.rate,
            held: fault::Held::default(),
            stats: FleetStats::default(),
        }
    }

    /// The messages that are due up to `now_us` (microseconds since 1970), in the order in which they are due.
    ///
    /// The first call is the start. If more are due than fit, the next call returns more.
    pub fn tick(&mut self, now_us: i64) -> Vec<Publication> {
        let mut due = Vec::new();
        let rate = self.rate;
        let mut readings = self.readings.take().unwrap_or_else(|| Schedule::new(now_us, rate));
        while due.len() < MAX_PER_TICK {
            let reading_us = readings.next_due();
            match self.held.next_due() {
                Some(held_us) if held_us <= now_us && held_us <= reading_us => due.extend(self.held.pop()),
                _ if reading_us <= now_us => {
                    readings.advance();
                    due.extend(self.take_reading(reading_us, readings.start()));
                }
                _ => break,
            }
        }
        self.readings = Some(readings);
        due.iter().for_each(|publication| self.count(publication.kind));
        due
    }

    /// Everything that is held back, at once: for an end without loss.
    pub fn flush(&mut self) -> Vec<Publication> {
        let rest: Vec<Publication> = std::iter::from_fn(|| self.held.pop()).collect();
        rest.iter().for_each(|publication| self.count(publication.kind));
        rest
    }

    /// What was sent so far.
    pub fn stats(&self) -> FleetStats {
        self.stats
    }

    /// The names of the machines.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.machines.iter().map(|machine| machine.id())
    }

    /// Takes the reading that is due at `now_us`. `None` if the machine is silent or the message is held back.
    fn take_reading(&mut self, now_us: i64, start_us: i64) -> Option<Publication> {
        let heat = self.advance_overheating(now_us, start_us);
        let index = match heat {
            Some(heat) if heat.wants_reading => heat.machine,
            _ => self.next_in_turn(),
        };
        let hot = heat.filter(|heat| heat.machine == index);
        if let (Some(_), Some(overheating)) = (hot, &mut self.overheating) {
            overheating.was_read(now_us);
        }
        let machine = &mut self.machines[index];
        let fault = match hot {
            Some(_) => Fault::None,
            None => self.faults.draw(machine.is_silent(now_us), &mut self.rng),
        };
        if let Fault::Silence { for_us } = fault {
            machine.fall_silent_until(now_us + for_us);
        }
        if hot.is_none() && machine.is_silent(now_us) {
            self.stats.silent += 1;
            return None;
        }
        let reading = machine.read(now_us, hot.map(|heat| heat.since_us), &mut self.rng);
        self.send(now_us, index, reading, fault)
    }

    fn send(
        &mut self,
        now_us: i64,
        index: usize,
        reading: machine::Reading,
        fault: Fault,
    ) -> Option<Publication> {
        let lacks = if let Fault::MissingField(field) = fault { Some(field) } else { None };
        self.stats.incomplete += u64::from(lacks.is_some());
        let whole = reading.to_json(lacks);
        let topic = self.machines[index].topic().to_owned();
        let publication = |payload: Bytes, kind| Publication { topic: topic.clone(), payload, qos: 1, kind };
        match fault {
            Fault::Late { by_us } if self.held.len() < MAX_HELD => {
                self.held.push(now_us + by_us, publication(whole, Kind::Late));
                None
            }
            Fault::Duplicate { after_us } if self.held.len() < MAX_HELD => {
                self.held.push(now_us + after_us, publication(whole.clone(), Kind::Duplicate));
                Some(publication(whole, Kind::Good))
            }
            Fault::Broken => Some(publication(fault::break_payload(&whole, &mut self.rng), Kind::Broken)),
            _ => Some(publication(whole, Kind::Good)),
        }
    }

    fn advance_overheating(&mut self, now_us: i64, start_us: i64) -> Option<overheating::Heat> {
        let overheating = self.overheating.as_mut()?;
        if let Some(machine) = overheating.advance(now_us, start_us, &mut self.rng) {
            self.stats.overheatings += 1;
            self.machines[machine].speak_again();
        }
        overheating.heat(now_us)
    }

    fn next_in_turn(&mut self) -> usize {
        let index = self.next_machine;
        self.next_machine = (index + 1) % self.machines.len();
        index
    }

    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Good => self.stats.good += 1,
            Kind::Late => self.stats.late += 1,
            Kind::Duplicate => self.stats.duplicates += 1,
            Kind::Broken => self.stats.broken += 1,
        }
    }
}

/// Whether something happens that has this chance. What has none draws no number.
fn happens(chance: f64, rng: &mut ChaCha8Rng) -> bool {
    chance > 0.0 && rng.random_bool(chance.min(1.0))
}

#[cfg(test)]
mod tests;
