//! Several readings of one topic in one message.

use std::collections::BTreeMap;

use super::{Reading, ReplayMessage};

/// How many readings may wait for others of their topic. At the limit all messages are sent as they are.
const MAX_WAITING: usize = 100_000;

/// Joins readings.
#[derive(Debug)]
pub(super) struct Batcher {
    size: usize,
    waiting: BTreeMap<String, Vec<Reading>>,
    count: usize,
}

impl Batcher {
    /// Joins `size` readings to a message.
    pub(super) fn new(size: usize) -> Self {
        Self { size: size.max(1), waiting: BTreeMap::new(), count: 0 }
    }

    /// Takes a reading and returns the messages that are ready.
    pub(super) fn push(&mut self, reading: Reading) -> Vec<ReplayMessage> {
        if self.size == 1 {
            return vec![message(reading.topic.clone(), &[reading])];
        }
        let topic = reading.topic.clone();
        let waiting = self.waiting.entry(topic.clone()).or_default();
        waiting.push(reading);
        self.count += 1;
        if waiting.len() == self.size {
            self.count -= self.size;
            let readings = std::mem::take(waiting);
            return vec![message(topic, &readings)];
        }
        if self.count >= MAX_WAITING { self.flush() } else { Vec::new() }
    }

    /// All readings that still wait, as messages.
    pub(super) fn flush(&mut self) -> Vec<ReplayMessage> {
        self.count = 0;
        let waiting =
            std::mem::take(&mut self.waiting).into_iter().filter(|(_, readings)| !readings.is_empty());
        waiting.map(|(topic, readings)| message(topic, &readings)).collect()
    }
}

fn message(topic: String, readings: &[Reading]) -> ReplayMessage {
    let time_us = readings.iter().filter_map(|reading| reading.time_us).max();
    let objects: Vec<&str> = readings.iter().map(|reading| reading.object.as_str()).collect();
    let payload = match objects.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("[{}]", several.join(",")),
    };
    ReplayMessage { topic, payload: payload.into(), time_us, readings: readings.len() as u64 }
}
