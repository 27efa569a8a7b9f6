//! Determinism: however the samples are split, and wherever the state is stored and read back.

use proptest::prelude::*;

use super::*;

const RULES: [(&str, &str); 4] = [
    ("at_once", "when: temp > 5"),
    ("held", "when: temp > 5\nfor: 3m\nannotations: {summary: \"{device_id} at {temp}\"}"),
    ("kept", "when: temp > 5\nclear_when: temp < 3\nkeep_firing_for: 2m"),
    ("all", "when: temp > 6\nclear_when: temp < 4\nfor: 2m\nkeep_firing_for: 3m\nlabels: {team: x}"),
];

fn fresh() -> RuleSet {
    // A small limit, so that shedding and forgetting are split as well.
    let mut set = RuleSet::new(3);
    for (name, lines) in RULES {
        set.put(named(name, lines), stream(), &at(0)).expect("a good rule");
    }
    set
}

fn groups() -> impl Strategy<Value = Vec<Vec<(u8, i64, Option<u8>)>>> {
    let sample = (0u8..5, -3i64..3, prop::option::weighted(0.9, 0u8..10));
    prop::collection::vec(prop::collection::vec(sample, 0..8), 1..30)
}

/// The batch of group `index`; event time moves on by a minute a group, with jitter.
fn batch(index: usize, group: &[(u8, i64, Option<u8>)]) -> RecordBatch {
    let devices: Vec<String> = group.iter().map(|sample| format!("d{}", sample.0)).collect();
    let samples: Vec<Sample<'_>> = group
        .iter()
        .zip(&devices)
        .map(|((_, jitter, temp), device)| (device.as_str(), index as i64 + jitter, temp.map(f64::from)))
        .collect();
    rows(&samples)
}

fn run(set: &mut RuleSet, groups: &[Vec<(u8, i64, Option<u8>)>], from: usize) -> Vec<Transition> {
    let mut found = Vec::new();
    for (index, group) in groups.iter().enumerate().skip(from) {
        let position = GroupPosition { now: (index as i64 - 3) * MINUTE, ..at(index as u64 + 1) };
        found.extend(set.evaluate("s", &batch(index, group), &position));
        found.extend(set.advance("s", &position));
    }
    found
}

proptest! {
    #[test]
    fn a_restored_checkpoint_goes_on_as_if_nothing_had_happened(groups in groups(), split in 0usize..30) {
        let split = split.min(groups.len());
        let mut straight = fresh();
        let expect = run(&mut straight, &groups, 0);

        let mut first = fresh();
        let mut found = run(&mut first, &groups[..split], 0);
        let stored = serde_json::to_string(&first.checkpoint()).expect("JSON");
        let checkpoint: RulesCheckpoint = serde_json::from_str(&stored).expect("what was written");
        prop_assert_eq!(&checkpoint, &first.checkpoint());
        let mut second = fresh();
        prop_assert!(second.restore(checkpoint, &at(split as u64)).expect("its own version").is_empty());
        found.extend(run(&mut second, &groups, split));

        prop_assert_eq!(found, expect);
        prop_assert_eq!(second.checkpoint(), straight.checkpoint());
    }

    #[test]
    fn a_life_is_one_of_the_allowed_ones(groups in groups()) {
        let mut states = std::collections::HashMap::new();
        for transition in run(&mut fresh(), &groups, 0) {
            let before = states.insert((transition.rule.clone(), transition.labels.clone()), transition.state);
            let open = before.filter(|state| matches!(state, AlertState::Pending | AlertState::Firing));
            prop_assert_eq!(transition.previous, open, "{:?}", transition);
            let allowed = matches!(
                (transition.previous, transition.state),
                (None, AlertState::Pending | AlertState::Firing)
                    | (Some(AlertState::Pending), AlertState::Firing | AlertState::Inactive)
                    | (Some(AlertState::Firing), AlertState::Resolved)
            );
            prop_assert!(allowed, "{:?}", transition);
        }
    }
}

#[test]
fn an_unknown_version_is_refused() {
    let mut stored = serde_json::to_value(fresh().checkpoint()).expect("JSON");
    stored["version"] = 99.into();
    let checkpoint = serde_json::from_value(stored).expect("a checkpoint");
    let error = fresh().restore(checkpoint, &at(1)).expect_err("another version").to_string();
    assert!(error.contains("99"), "{error}");
}
