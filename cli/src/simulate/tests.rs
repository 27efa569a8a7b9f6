//! What demonstrations and load tests rely on.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::*;

const START_US: i64 = 1_700_000_000_000_000;
const SECOND_US: i64 = 1_000_000;

fn config(seed: u64, devices: u32, rate: f64) -> FleetConfig {
    FleetConfig { seed, devices, rate, ..FleetConfig::default() }
}

/// Runs a fleet for so long, asked every `step_us`, and returns what it sent and when it was asked.
fn run(fleet: &mut Fleet, for_us: i64, step_us: i64) -> Vec<(i64, Publication)> {
    let mut sent = Vec::new();
    let mut now_us = 0;
    while now_us <= for_us {
        sent.extend(fleet.tick(START_US + now_us).into_iter().map(|publication| (now_us, publication)));
        now_us += step_us;
    }
    sent
}

fn reading(publication: &Publication) -> Value {
    serde_json::from_slice(&publication.payload).expect("a reading is JSON")
}

/// Seconds since the start and degrees, of all readings of the machine that is the first to pass 80 °C.
fn first_overheating(sent: &[(i64, Publication)]) -> Vec<(f64, f64)> {
    let temperature = |publication: &Publication| reading(publication)["temperature"].as_f64();
    let good: Vec<_> =
        sent.iter().map(|(_, publication)| publication).filter(|p| p.kind == Kind::Good).collect();
    let hot = good.iter().find(|p| temperature(p).is_some_and(|t| t > 80.0)).expect("a machine overheats");
    good.iter()
        .filter(|p| p.topic == hot.topic)
        .map(|p| {
            let s = (reading(p)["ts"].as_i64().expect("a time") - START_US / 1000) as f64 / 1000.0;
            (s, temperature(p).unwrap_or(f64::NAN))
        })
        .collect()
}

#[test]
fn the_first_overheating_keeps_its_timetable() {
    for seed in 0..20 {
        for (devices, rate) in [(1, 4.0), (12, 4.0), (12, 24.0), (100, 50.0), (50, 1000.0)] {
            let sent = run(&mut Fleet::new(config(seed, devices, rate)), 12 * SECOND_US, 50_000);
            let course = first_overheating(&sent);
            let at = |what: &dyn Fn(f64) -> bool, from: f64| {
                course.iter().find(|(s, t)| *s >= from && what(*t)).map(|(s, _)| *s).expect("it happens")
            };
            let hot = at(&|t| t > 80.0, 0.0);
            assert!((4.0..=5.0).contains(&hot), "seed {seed}, {devices} at {rate}: above 80 at {hot} s");
            let cool = at(&|t| t < 70.0, hot);
            assert!((8.0..=11.0).contains(&cool), "seed {seed}, {devices} at {rate}: below 70 at {cool} s");
            let above = course.iter().filter(|(_, t)| *t > 80.0).count();
            assert!(above >= 8, "seed {seed}, {devices} at {rate}: {above} readings above 80");
        }
    }
}

#[test]
fn others_follow_every_15_to_20_seconds_and_nothing_else_is_ever_hot() {
    let mut fleet = Fleet::new(config(5, 12, 24.0));
    let sent = run(&mut fleet, 300 * SECOND_US, SECOND_US);
    let overheatings = fleet.stats().overheatings;
    assert!((15..=20).contains(&overheatings), "{overheatings} in 300 s");
    let calm = FleetConfig { overheating: false, ..config(5, 12, 24.0) };
    let readings = run(&mut Fleet::new(calm), 86_400 * SECOND_US / 10, 60 * SECOND_US);
    let hottest = readings
        .iter()
        .filter(|(_, p)| p.kind == Kind::Good)
        .filter_map(|(_, p)| reading(p)["temperature"].as_f64())
        .fold(f64::MIN, f64::max);
    assert!(hottest < 70.0, "{hottest}");
    assert!(sent.len() > 6_000);
}

#[test]
fn how_often_it_is_asked_makes_no_difference() {
    let often = run(&mut Fleet::new(config(7, 9, 40.0)), 60 * SECOND_US, 10_000);
    let seldom = run(&mut Fleet::new(config(7, 9, 40.0)), 60 * SECOND_US, 20 * SECOND_US);
    let publications = |sent: Vec<(i64, Publication)>| sent.into_iter().map(|(_, p)| p).collect::<Vec<_>>();
    assert_eq!(publications(often), publications(seldom));
}

#[test]
fn another_seed_is_another_fleet() {
    let one = run(&mut Fleet::new(config(1, 3, 10.0)), SECOND_US, SECOND_US);
    let other = run(&mut Fleet::new(config(2, 3, 10.0)), SECOND_US, SECOND_US);
    assert_ne!(one, other);
}

#[test]
fn the_rate_is_kept_and_no_call_returns_too_much() {
    let mut fleet = Fleet::new(FleetConfig { faults: Faults::none(), ..config(1, 10, 50_000.0) });
    assert_eq!(fleet.tick(START_US).len(), 1);
    let mut total = 1;
    loop {
        let batch = fleet.tick(START_US + SECOND_US).len();
        assert!(batch <= MAX_PER_TICK);
        total += batch;
        if batch < MAX_PER_TICK {
            break;
        }
    }
    assert_eq!(total, 50_001);
}

#[test]
fn every_fault_happens_and_the_statistics_add_up() {
    let mut fleet = Fleet::new(config(3, 20, 500.0));
    let mut sent: Vec<Publication> =
        run(&mut fleet, 120 * SECOND_US, 100_000).into_iter().map(|(_, p)| p).collect();
    sent.extend(fleet.flush());
    let stats = fleet.stats();
    assert_eq!(stats.messages(), sent.len() as u64);
    let count = |kind: Kind| sent.iter().filter(|p| p.kind == kind).count() as u64;
    assert_eq!(
        (stats.good, stats.late, stats.duplicates, stats.broken),
        (count(Kind::Good), count(Kind::Late), count(Kind::Duplicate), count(Kind::Broken))
    );
    for (name, n) in [("late", stats.late), ("duplicate", stats.duplicates), ("broken", stats.broken)] {
        assert!(n > 50, "{n} {name} messages");
    }
    assert!(stats.incomplete > 50 && stats.silent > 50, "{stats:?}");
    assert!(fleet.flush().is_empty());
}

#[test]
fn a_duplicate_is_the_same_bytes_and_a_late_one_is_old() {
    let mut fleet = Fleet::new(config(4, 20, 500.0));
    let mut seen = HashSet::new();
    let mut newest: HashMap<String, i64> = HashMap::new();
    for (now_us, publication) in run(&mut fleet, 60 * SECOND_US, 10_000) {
        let key = (publication.topic.clone(), publication.payload.clone());
        match publication.kind {
            Kind::Broken => continue,
            Kind::Duplicate => assert!(seen.contains(&key), "a copy of nothing"),
            Kind::Good | Kind::Late => assert!(seen.insert(key), "a copy that does not say so"),
        }
        let ts = reading(&publication)["ts"].as_i64().expect("a time");
        let age_ms = (START_US + now_us) / 1000 - ts;
        match publication.kind {
            Kind::Late => assert!((2_000..=180_020).contains(&age_ms), "late by {age_ms} ms"),
            Kind::Good => {
                assert!((0..=20).contains(&age_ms), "a good reading is {age_ms} ms old");
                assert!(newest.insert(publication.topic.clone(), ts).is_none_or(|before| before <= ts));
            }
            Kind::Duplicate | Kind::Broken => {}
        }
    }
}

#[test]
fn warmer_air_is_drier() {
    let calm = FleetConfig { overheating: false, faults: Faults::none(), ..config(6, 1, 0.05) };
    let day = run(&mut Fleet::new(calm), 86_400 * SECOND_US, 600 * SECOND_US);
    let pairs: Vec<(f64, f64)> = day
        .iter()
        .map(|(_, p)| reading(p))
        .map(|r| (r["temperature"].as_f64().expect("a number"), r["humidity"].as_f64().expect("a number")))
        .collect();
    let n = pairs.len() as f64;
    let (mean_t, mean_h) = pairs.iter().fold((0.0, 0.0), |(t, h), pair| (t + pair.0 / n, h + pair.1 / n));
    let moment = |f: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / n;
    let covariance = moment(&|p| (p.0 - mean_t) * (p.1 - mean_h));
    let deviations = (moment(&|p| (p.0 - mean_t).powi(2)) * moment(&|p| (p.1 - mean_h).powi(2))).sqrt();
    assert!(covariance / deviations < -0.7, "correlation {}", covariance / deviations);
}

#[test]
fn machines_are_named_after_their_kind() {
    let fleet = Fleet::new(config(1, 7, 1.0));
    let names: Vec<&str> = fleet.devices().collect();
    assert_eq!(names, ["press-01", "pump-02", "oven-03", "mixer-04", "fan-05", "motor-06", "press-07"]);
}
