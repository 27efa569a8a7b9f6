use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use proptest::prelude::*;

use super::*;
use crate::decode::timestamps;

const HORIZON: i64 = 10_000_000;

fn rule() -> DedupRule {
    DedupRule { columns: vec!["key".into()], horizon: Duration::from_micros(HORIZON as u64) }
}

/// Rows of (key, arrival in microseconds), numbered from `first` on.
fn rows(events: &[(Option<&str>, i64)], first: i64) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("key", DataType::Utf8, true),
        Field::new(INGEST_TIME, iot_schemas::layout::timestamp_type(), false),
        Field::new(SEQ, DataType::Int64, false),
        Field::new(INDEX, DataType::Int32, false),
    ]);
    let numbers: Vec<i64> = (first..first + events.len() as i64).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(events.iter().map(|(key, _)| *key).collect::<StringArray>()),
        timestamps(events.iter().map(|(_, arrival)| *arrival).collect()),
        Arc::new(Int64Array::from(numbers)),
        Arc::new(Int32Array::from(vec![0; events.len()])),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

fn numbers(rows: &RecordBatch) -> Vec<i64> {
    positions(rows).1.values().to_vec()
}

/// The rows that are to be stored.
fn kept(window: &mut KeyWindow, events: &RecordBatch, exempt: &[Seq]) -> RecordBatch {
    let kept = window.kept(events, exempt).expect("a verdict for each row");
    arrow::compute::filter_record_batch(events, &kept).expect("filtered")
}

fn stored(window: &mut KeyWindow, events: RecordBatch) -> Vec<i64> {
    numbers(&kept(window, &events, &[]))
}

#[test]
fn a_copy_within_the_horizon_is_not_stored_and_one_after_it_is() {
    let mut window = KeyWindow::new(rule());
    let events = [
        (Some("a"), 0),
        (Some("b"), 1),
        (Some("a"), HORIZON),
        (None, HORIZON),
        (None, HORIZON),
        (Some("a"), HORIZON + 1),
        (Some("a"), HORIZON + 2),
    ];
    assert_eq!(stored(&mut window, rows(&events, 1)), [1, 2, 4, 5, 6]);
}

#[test]
fn a_replayed_dead_letter_is_stored_in_any_case_and_remembered() {
    let mut window = KeyWindow::new(rule());
    assert_eq!(stored(&mut window, rows(&[(Some("a"), 5)], 1)), [1]);
    assert_eq!(kept(&mut window, &rows(&[(Some("a"), 3)], 2), &[2]).num_rows(), 1, "it is kept");
    assert!(stored(&mut window, rows(&[(Some("a"), HORIZON + 5)], 3)).is_empty());
}

#[test]
fn keys_beyond_the_limit_are_forgotten_oldest_first() {
    let mut window = KeyWindow::with_limit(rule(), 2);
    let events = [(Some("a"), 0), (Some("b"), 0), (Some("c"), 0)];
    assert_eq!(stored(&mut window, rows(&events, 1)), [1, 2, 3]);
    assert_eq!(window.len(), 2);
    assert_eq!(stored(&mut window, rows(&[(Some("a"), 1), (Some("c"), 1)], 4)), [4]);
}

#[test]
fn a_clock_that_was_ahead_for_a_while_does_not_switch_it_off() {
    let mut window = KeyWindow::new(rule());
    let ahead = 100 * HORIZON;
    let events = [
        (Some("a"), ahead),
        (Some("b"), 0),
        (Some("b"), 1),
        (Some("a"), 2),
        (Some("b"), HORIZON + 1),
        (Some("b"), HORIZON + 2),
    ];
    assert_eq!(stored(&mut window, rows(&events, 1)), [1, 2, 5]);
    assert_eq!(stored(&mut window, rows(&[(Some("b"), ahead), (Some("c"), ahead + 3 * HORIZON)], 7)), [7, 8]);
    assert_eq!(window.len(), 1, "what is long over is forgotten in the end");
}

/// Up to 60 events with few keys and arrivals by a clock that is set ahead and back now and then, a little or far.
fn history() -> impl Strategy<Value = Vec<(Option<&'static str>, i64)>> {
    let key = prop::option::weighted(0.9, prop::sample::select(vec!["a", "b", "c", "d"]));
    let step = prop_oneof![
        12 => 0..HORIZON / 2,
        1 => -HORIZON / 4..0,
        1 => 3 * HORIZON..20 * HORIZON,
        1 => -20 * HORIZON..-3 * HORIZON,
    ];
    prop::collection::vec((key, step), 1..60).prop_map(|events| {
        let mut now = 0;
        let at = |(key, step): (_, i64)| {
            now += step;
            (key, now)
        };
        events.into_iter().map(at).collect()
    })
}

/// What [`KeyWindow::load`] reads of the table before the log is read again from after `after` on.
fn read_back(table: &RecordBatch, window: &KeyWindow, after: i64, arrival: i64) -> RecordBatch {
    let oldest = window.oldest(arrival);
    let (arrivals, numbers, _) = positions(table);
    let is_read = arrivals.values().iter().zip(numbers.values());
    let is_read: BooleanArray = is_read.map(|(at, seq)| Some(*at >= oldest || *seq > after)).collect();
    arrow::compute::filter_record_batch(table, &is_read).expect("filtered")
}

proptest! {
    /// Whatever of the log is in the table when a process dies, the next one decides as the first would have.
    #[test]
    fn a_window_read_back_from_the_table_decides_as_if_it_had_never_gone(
        events in history(),
        sealed in 0..60_usize,
        after in 0..60_usize,
    ) {
        let sealed = sealed.min(events.len());
        let after = after.min(sealed);
        let mut first = KeyWindow::new(rule());
        let all = rows(&events, 1);
        let expected = stored(&mut first, all.clone());

        let mut second = KeyWindow::new(rule());
        second.decided = sealed as Seq;
        let mut before = KeyWindow::new(rule());
        let table = kept(&mut before, &all.slice(0, sealed), &[]);
        let earliest = events[after..].iter().map(|(_, arrival)| *arrival).min().unwrap_or(i64::MAX);
        let table = read_back(&table, &second, after as i64, earliest);
        second.restore(&table, after as Seq).expect("restored");
        let again: Vec<i64> = expected.iter().copied().filter(|seq| *seq > after as i64).collect();
        prop_assert_eq!(stored(&mut second, all.slice(after, events.len() - after)), again);
    }

    /// Two events with one key that are both stored lie a horizon apart, unless the clock jumped ahead between them.
    #[test]
    fn a_copy_is_found_unless_the_clock_jumped_ahead_in_between(events in history()) {
        let mut window = KeyWindow::new(rule());
        let stored = stored(&mut window, rows(&events, 1));
        let stored: Vec<usize> = stored.into_iter().map(|seq| seq as usize - 1).collect();
        for (at, later) in stored.iter().enumerate() {
            for earlier in &stored[..at] {
                let ((key, first), (other, second)) = (events[*earlier], events[*later]);
                let between = events[*earlier..=*later].iter().map(|(_, arrival)| *arrival).max();
                let has_jumped = between.is_some_and(|newest| newest > first + 2 * HORIZON);
                prop_assert!(key.is_none() || key != other || second > first + HORIZON || has_jumped);
            }
        }
    }
}
