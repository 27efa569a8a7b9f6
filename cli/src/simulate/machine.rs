//! One machine: its site, its habits and its sensors.

use std::f64::consts::TAU;
use std::fmt::Write;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::overheating;

const HOUR_US: f64 = 3.6e9;
/// Batteries last so long.
const BATTERY_LIFE_H: f64 = 72.0;

/// Kinds of machines: name, temperature in degrees Celsius, vibration in mm/s.
const KINDS: [(&str, f64, f64); 6] = [
    ("press", 46.0, 4.5),
    ("pump", 38.0, 2.8),
    ("oven", 57.0, 0.6),
    ("mixer", 34.0, 3.4),
    ("fan", 29.0, 1.9),
    ("motor", 50.0, 2.2),
];
/// Sites: name, offset of the local time from UTC in hours.
const SITES: [(&str, f64); 3] = [("porto", 0.0), ("graz", 1.0), ("pune", 5.5)];

/// One machine.
#[derive(Debug)]
pub(super) struct Machine {
    id: String,
    topic: String,
    site: (&'static str, f64),
    temperature: f64,
    daily_swing: f64,
    humidity: f64,
    vibration: f64,
    battery_phase_h: f64,
    drift: f64,
    silent_until_us: i64,
}

/// A sensor whose value may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Temperature,
    Humidity,
    Vibration,
}

/// What the sensors say.
#[derive(Debug)]
pub(super) struct Reading {
    ts_ms: i64,
    site: &'static str,
    temperature: f64,
    humidity: f64,
    vibration: f64,
    battery: f64,
}

impl Machine {
    /// The machine with this number, a little different from all others.
    pub(super) fn new(number: u32, rng: &mut ChaCha8Rng) -> Self {
        let (kind, temperature, vibration) = KINDS[number as usize % KINDS.len()];
        let id = format!("{kind}-{:02}", u64::from(number) + 1);
        Self {
            topic: format!("devices/{id}/telemetry"),
            id,
            site: SITES[number as usize % SITES.len()],
            temperature: temperature + rng.random_range(-2.0..2.0),
            daily_swing: rng.random_range(1.5..4.0),
            humidity: rng.random_range(42.0..58.0),
            vibration: vibration * rng.random_range(0.9..1.1),
            battery_phase_h: rng.random_range(0.0..BATTERY_LIFE_H),
            drift: 0.0,
            silent_until_us: i64::MIN,
        }
    }

    /// Its name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where it publishes.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether it says nothing for the time being.
    pub(super) fn is_silent(&self, now_us: i64) -> bool {
        now_us < self.silent_until_us
    }

    /// It says nothing until then.
    pub(super) fn fall_silent_until(&mut self, until_us: i64) {
        self.silent_until_us = until_us;
    }

    /// It is not silent any more.
    pub(super) fn speak_again(&mut self) {
        self.silent_until_us = i64::MIN;
    }

    /// Reads the sensors. `hot_for_us` says for how long the machine has been overheating.
    pub(super) fn read(&mut self, now_us: i64, hot_for_us: Option<i64>, rng: &mut ChaCha8Rng) -> Reading {
        self.drift = 0.97 * self.drift + 0.25 * noise(rng);
        let warmth = self.daily_swing * self.daily_rhythm(now_us) + self.drift;
        let own = self.temperature + warmth;
        let heat = hot_for_us.and_then(overheating::temperature).map(|t| t + 0.1 * noise(rng));
        let temperature = heat.map_or(own, |heat| heat.max(own));
        let stress = (temperature - 75.0).max(0.0) / 10.0;
        let humidity = self.humidity - 1.4 * warmth - 6.0 * stress + 0.6 * noise(rng);
        Reading {
            ts_ms: now_us.div_euclid(1000),
            site: self.site.0,
            temperature,
            humidity: humidity.clamp(4.0, 96.0),
            vibration: self.vibration * (1.0 + 0.08 * noise(rng) + 0.6 * stress).max(0.05),
            battery: self.battery(now_us),
        }
    }

    /// From -1 before dawn to 1 in the afternoon, local time.
    fn daily_rhythm(&self, now_us: i64) -> f64 {
        let local_hour = now_us as f64 / HOUR_US + self.site.1;
        (TAU * (local_hour - 9.0) / 24.0).sin()
    }

    /// It falls, and is replaced when it is nearly empty.
    fn battery(&self, now_us: i64) -> f64 {
        let age_h = (now_us as f64 / HOUR_US + self.battery_phase_h).rem_euclid(BATTERY_LIFE_H);
        100.0 - 92.0 * age_h / BATTERY_LIFE_H
    }
}

impl Reading {
    /// The message, without the field that is missing.
    pub(super) fn to_json(&self, lacks: Option<Field>) -> Bytes {
        let mut json = format!("{{\"ts\":{}", self.ts_ms);
        let sensors = [
            (Field::Temperature, "temperature", self.temperature),
            (Field::Humidity, "humidity", self.humidity),
            (Field::Vibration, "vibration", self.vibration),
        ];
        for (field, name, value) in sensors {
            if lacks != Some(field) {
                // Writing to a string cannot fail.
                let _ = write!(json, ",\"{name}\":{value:.2}");
            }
        }
        let (status, battery, site) = (self.status(), self.battery, self.site);
        let _ = write!(json, ",\"status\":\"{status}\",\"battery\":{battery:.1},\"site\":\"{site}\"}}");
        json.into()
    }

    fn status(&self) -> &'static str {
        match self.temperature {
            t if t > 80.0 => "overheating",
            t if t > 70.0 => "warm",
            _ if self.battery < 15.0 => "battery low",
            _ => "ok",
        }
    }
}

/// About normally distributed: mean 0, deviation 1, never beyond 3.5.
fn noise(rng: &mut ChaCha8Rng) -> f64 {
    let sum: f64 = (0..4).map(|_| rng.random::<f64>()).sum();
    (sum - 2.0) * 3.0_f64.sqrt()
}
