//! One rule, a few samples, and what comes out.

use super::*;

/// Samples of device `a` as `minute:temperature`, `_` for NULL; transitions as `minute state`.
fn check(lines: &str, samples: &str, expect: &[&str]) {
    let parsed: Vec<Sample<'_>> = samples
        .split_whitespace()
        .map(|sample| {
            let (minute, temp) = sample.split_once(':').expect("minute:temperature");
            ("a", minute.parse().expect("a minute"), temp.parse().ok())
        })
        .collect();
    // All in one batch, and each alone: batching must not show.
    let whole = set(lines).evaluate("s", &rows(&parsed), &at(1));
    let mut single = set(lines);
    let one_by_one: Vec<_> =
        parsed.iter().flat_map(|sample| single.evaluate("s", &rows(&[*sample]), &at(1))).collect();
    assert_eq!(whole, one_by_one, "{lines}: {samples}");
    let told: Vec<String> =
        told(&whole).iter().map(|line| line.trim_start_matches("a ").to_owned()).collect();
    assert_eq!(told, expect, "{lines}: {samples}");
}

#[test]
fn without_hold_the_first_true_sample_fires() {
    check("when: temp > 80", "0:70 1:90 2:95 3:80 4:81", &["1 firing", "3 resolved", "4 firing"]);
}

#[test]
fn a_hold_is_reached_when_it_has_passed_in_event_time() {
    check("when: temp > 80\nfor: 2m", "0:90 1:90 2:90 3:70", &["0 pending", "2 firing", "3 resolved"]);
    check("when: temp > 80\nfor: 2m", "0:90 9:90", &["0 pending", "9 firing"]);
    check("when: temp > 80\nfor: 2m", "0:90 1:70 2:90 3:90", &["0 pending", "1 inactive", "2 pending"]);
}

#[test]
fn only_clear_when_ends_an_alert_that_has_it() {
    let lines = "when: temp > 80\nclear_when: temp < 75";
    check(lines, "0:90 1:78 2:80 3:74 4:78", &["0 firing", "3 resolved"]);
    check(&format!("{lines}\nfor: 2m"), "0:90 1:78 2:78 3:74", &["0 pending", "2 firing", "3 resolved"]);
    check(&format!("{lines}\nfor: 5m"), "0:90 1:78 2:74 3:78", &["0 pending", "2 inactive"]);
}

#[test]
fn when_wins_over_clear_when() {
    check("when: temp > 80\nclear_when: temp > 0", "0:90 1:91 2:79", &["0 firing", "2 resolved"]);
}

#[test]
fn null_says_nothing() {
    check("when: temp > 80\nfor: 2m", "0:90 1:_ 2:_ 3:90 4:_ 5:70", &["0 pending", "3 firing", "5 resolved"]);
    check("when: temp > 80\nclear_when: temp is null", "0:90 1:70 2:_", &["0 firing", "2 resolved"]);
}

#[test]
fn a_true_sample_while_kept_firing_goes_on_with_the_episode() {
    let lines = "when: temp > 80\nkeep_firing_for: 2m";
    check(lines, "0:90 1:70 2:90 3:70 4:70 5:70", &["0 firing", "5 resolved"]);
    check(lines, "0:90 1:70 2:70 9:70", &["0 firing", "9 resolved"]);
    check(&format!("{lines}\nfor: 1m"), "0:90 1:70", &["0 pending", "1 inactive"]);
}

#[test]
fn late_samples_change_nothing() {
    check("when: temp > 80", "5:90 4:70 5:91 6:70", &["5 firing", "6 resolved"]);
    check("when: temp > 80", "5:90 6:70 5:95 6:95", &["5 firing", "6 resolved", "6 firing"]);
    let mut set = set("when: temp > 80");
    set.evaluate("s", &rows(&[("a", 5, Some(90.0)), ("a", 4, Some(1.0)), ("b", 1, Some(1.0))]), &at(1));
    assert_eq!(set.stats()["r"].late, 1);
}

#[test]
fn the_row_of_an_open_window_may_change_its_mind() {
    let lines = "when: temp > 80\nfor: 1m";
    check(
        lines,
        "0:90 0:70 0:90 1:90 1:60",
        &["0 pending", "0 inactive", "0 pending", "1 firing", "1 resolved"],
    );
}

#[test]
fn a_kept_alert_of_a_silent_device_ends_as_event_time_passes() {
    let mut set = set("when: temp > 80\nkeep_firing_for: 2m");
    set.evaluate("s", &rows(&[("a", 0, Some(90.0)), ("b", 0, Some(90.0)), ("a", 1, Some(70.0))]), &at(1));
    let mut advance = |minute| told(&set.advance("s", &GroupPosition { now: minute * MINUTE, ..at(2) }));
    assert!(advance(2).is_empty());
    assert_eq!(advance(5), ["a 3 resolved"]);
    assert!(advance(9).is_empty(), "b has not ended");
}
