//! The answers of Prometheus for threshold rules.

use std::path::Path;

use serde_json::Value;

use super::*;

/// How far back an evaluation of Prometheus looks for a sample, in minutes.
const LOOKBACK: usize = 5;

#[test]
fn threshold_rules_agree_with_promtool() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/alerts_promtool.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: no golden file at {}", path.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let mut checked = 0;
    for case in golden["cases"].as_array().expect("cases") {
        match check(case) {
            Ok(minutes) => checked += minutes,
            Err(why) => println!("skipped `{}`: {why}", case["name"]),
        }
    }
    for case in golden["prometheus_own_tests"].as_array().expect("cases") {
        match check_series(case) {
            Ok(states) => checked += states,
            Err(why) => println!("skipped `{}`: {why}", case["name"]),
        }
    }
    println!("{checked} minutes agree with promtool");
    assert!(checked > 50);
}

/// Compares minute by minute and returns how many minutes that were.
///
/// Prometheus evaluates each minute the newest sample within its lookback, so that is what the rule is given. A
/// series that is absent altogether ends its alert there; here absence is a rule of its own. The comparison
/// therefore ends where the series does, unless nothing is active by then.
fn check(case: &Value) -> Result<usize, String> {
    let expr = case["expr"].as_str().ok_or("no expression")?;
    let when = expr.replace("==", "=");
    let mut lines = format!("when: {when}\n");
    for name in ["for", "keep_firing_for"] {
        if let Some(duration) = case[name].as_str() {
            lines.push_str(&format!("{name}: {duration}\n"));
        }
    }
    let mut set = RuleSet::default();
    set.put(rule(&lines), stream(), &at(0)).map_err(|e| format!("`{expr}` is no threshold rule: {e}"))?;
    let samples = case["samples"].as_array().ok_or("no samples")?;
    let mut state = "inactive";
    let mut checked = 0;
    for (minute, expect) in case["state_by_minute"].as_array().ok_or("no states")?.iter().enumerate() {
        match seen_at(samples, minute) {
            Some(value) => {
                let batch = rows(&[("d1", minute as i64, Some(value))]);
                state = set.evaluate("s", &batch, &at(minute as u64)).last().map_or(state, reported);
            }
            None if state != "inactive" => {
                println!("`{}`: compared up to minute {minute}, where the series ends", case["name"]);
                break;
            }
            None => {}
        }
        assert_eq!(state, expect, "{} at minute {minute}", case["name"]);
        checked += 1;
    }
    Ok(checked)
}

/// A case with several series in one rule, and the states at some minutes; a series that is not listed is inactive.
fn check_series(case: &Value) -> Result<usize, String> {
    let (Some(expr), Some(series)) = (case["expr"].as_str(), case["series"].as_object()) else {
        return Err("it is about several rules or labels".to_owned());
    };
    let (_, condition) = expr.split_once(' ').ok_or("no comparison")?;
    let hold = case["for"].as_str().unwrap_or("0s");
    let mut set = set(&format!("when: temp {condition}\nfor: {hold}"));
    let expected = case["expected"].as_object().ok_or("no states")?;
    let mut minutes: Vec<i64> =
        expected.keys().map(|minute| minute.trim_end_matches('m').parse().expect("minutes")).collect();
    minutes.sort_unstable();
    let mut states = std::collections::BTreeMap::new();
    for (step, minute) in minutes.into_iter().enumerate() {
        let samples: Vec<Sample<'_>> =
            series.iter().map(|(name, values)| (name.as_str(), minute, values[step].as_f64())).collect();
        for transition in set.evaluate("s", &rows(&samples), &at(minute as u64)) {
            states.insert(transition.labels["device_id"].clone(), reported(&transition));
        }
        for name in series.keys() {
            let expect = expected[&format!("{minute}m")][name].as_str().unwrap_or("inactive");
            let state = states.get(name).copied().unwrap_or("inactive");
            assert_eq!(state, expect, "{} {name} at minute {minute}", case["name"]);
        }
    }
    Ok(series.len() * expected.len())
}

/// The newest sample that an evaluation at `minute` sees.
fn seen_at(samples: &[Value], minute: usize) -> Option<f64> {
    let newest = (minute.saturating_sub(LOOKBACK)..=minute)
        .rev()
        .find_map(|m| samples.get(m).filter(|s| !s.is_null()));
    newest.and_then(Value::as_f64)
}

fn reported(transition: &Transition) -> &'static str {
    match transition.state {
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
        AlertState::Resolved | AlertState::Inactive => "inactive",
    }
}
