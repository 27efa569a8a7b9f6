use arrow::array::ArrayRef;
use iot_schemas::device::Via;
use iot_schemas::layout::DEVICE_ID;
use iot_schemas::micro_batch::MicroBatch;
use proptest::prelude::*;

use super::super::fleet::FIXED_BYTES;
use super::super::link::{Reason, State};
use super::*;

/// Streams that begin with `spb` have births; devices must send every ten.
struct Fixed;

/// One of them.
struct FixedStream(bool);

impl Terms for Fixed {
    fn of<'a>(&'a self, stream: &'a str) -> impl StreamTerms {
        FixedStream(stream.starts_with("spb"))
    }
}

impl StreamTerms for FixedStream {
    fn has_births(&self) -> bool {
        self.0
    }

    fn max_future(&self) -> i64 {
        1_000
    }

    fn silence_limit(&self, _: &str) -> Option<i64> {
        Some(30)
    }
}

fn take(registry: &mut Registry, group: &LogGroup) {
    let devices: Vec<_> = group.batches.iter().map(|batch| BatchDevices::of(&batch.rows)).collect();
    registry.take(group, &devices, &Fixed);
}

/// Device, event time, arrival, number, word of Sparkplug, whether it is historical.
type Event<'a> = (&'a str, i64, i64, i64, &'a str, bool);

fn batch(stream: &str, events: &[Event<'_>]) -> MicroBatch {
    let instants =
        |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
    let texts = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    let rows = RecordBatch::try_from_iter([
        (EVENT_TIME, instants(events.iter().map(|event| event.1).collect())),
        (DEVICE_ID, texts(events.iter().map(|event| event.0).collect())),
        (INGEST_TIME, instants(events.iter().map(|event| event.2).collect())),
        (SEQ, Arc::new(events.iter().map(|event| event.3).collect::<Int64Array>()) as ArrayRef),
        (MESSAGE_TYPE, texts(events.iter().map(|event| event.4).collect())),
        (
            IS_HISTORICAL,
            Arc::new(events.iter().map(|event| Some(event.5)).collect::<BooleanArray>()) as ArrayRef,
        ),
    ]);
    let last = events.iter().map(|event| event.3).max().unwrap_or(0) as Seq;
    MicroBatch {
        stream: stream.into(),
        node: "n".into(),
        first_seq: 1,
        last_seq: last,
        rows: rows.expect("rows"),
    }
}

fn status(stream: &str, device: &str, is_online: bool, arrival: i64, seq: Seq) -> DeviceStatus {
    DeviceStatus { stream: stream.into(), device: device.into(), is_online, arrival, seq, via: Via::Live }
}

fn group(last_seq: Seq, batches: Vec<MicroBatch>, statuses: Vec<DeviceStatus>) -> LogGroup {
    LogGroup { node: "n".into(), first_seq: 1, last_seq, batches, statuses, replayed: Vec::new() }
}

fn device<'a>(registry: &'a Registry, stream: &str, name: &str) -> &'a Device {
    registry.streams[stream].devices.iter().find(|(of, _)| &***of == name).expect("it is registered").1
}

fn events(registry: &Registry, stream: &str, name: &str) -> u64 {
    device(registry, stream, name).seen.as_ref().map_or(0, |seen| seen.events)
}

fn state(registry: &Registry, stream: &str, name: &str) -> (State, Option<i64>, Option<Reason>) {
    device(registry, stream, name).link.standing(0, Some(10))
}

#[test]
fn a_group_counts_once_however_often_it_comes() {
    let mut registry = Registry::default();
    let one = group(3, vec![batch("s", &[("a", 10, 10, 1, "", false), ("a", 20, 20, 3, "", false)])], vec![]);
    take(&mut registry, &one);
    take(&mut registry, &one);
    assert_eq!(events(&registry, "s", "a"), 2);
    let stored = serde_json::to_string(&registry).expect("JSON");
    let mut restored: Registry = serde_json::from_str(&stored).expect("what was written");
    take(&mut restored, &one);
    assert_eq!(events(&restored, "s", "a"), 2);
    take(&mut restored, &group(4, vec![batch("s", &[("a", 30, 30, 4, "", false)])], vec![]));
    assert_eq!(events(&restored, "s", "a"), 3);
}

#[test]
fn what_was_in_the_table_is_not_counted_again_when_the_log_comes() {
    let mut registry = Registry::default();
    let seen = Seen::between(7, (Some(1), Some(9)), (1, 9));
    registry.begin("s".into(), [("n".into(), 3)].into_iter().collect(), [("a".into(), seen)]);
    let covered = batch("s", &[("a", 9, 9, 3, "", false)]);
    take(&mut registry, &group(3, vec![covered], vec![status("s", "a", false, 9, 2)]));
    assert_eq!((events(&registry, "s", "a"), state(&registry, "s", "a").0), (7, State::Offline));
    take(&mut registry, &group(4, vec![batch("s", &[("a", 12, 12, 4, "", false)])], vec![]));
    assert_eq!((events(&registry, "s", "a"), state(&registry, "s", "a").0), (8, State::Online));
}

#[test]
fn within_a_group_the_last_word_counts() {
    let check = |said_at: Seq, expect: State| {
        let mut registry = Registry::default();
        let rows = batch("s", &[("a", 5, 5, 5, "", false)]);
        take(&mut registry, &group(9, vec![rows], vec![status("s", "a", false, 5, said_at)]));
        assert_eq!(state(&registry, "s", "a").0, expect, "{said_at}");
    };
    check(4, State::Online);
    check(6, State::Offline);
}

#[test]
fn a_device_that_has_only_said_that_it_is_there_is_registered() {
    let mut registry = Registry::default();
    take(&mut registry, &group(1, vec![], vec![status("s", "a", true, 7, 1)]));
    assert_eq!(state(&registry, "s", "a"), (State::Online, Some(7), Some(Reason::Status)));
    assert_eq!(device(&registry, "s", "a").seen, None);
}

#[test]
fn what_was_measured_long_ago_does_not_show_that_a_device_is_there() {
    let mut registry = Registry::default();
    take(&mut registry, &group(1, vec![], vec![status("s", "a", false, 7, 1)]));
    take(&mut registry, &group(2, vec![batch("s", &[("a", 3, 20, 2, "", true)])], vec![]));
    assert_eq!((events(&registry, "s", "a"), state(&registry, "s", "a").0), (1, State::Offline));
}

#[test]
fn the_death_of_a_node_takes_its_devices_along_and_no_others() {
    let mut registry = Registry::default();
    let births = batch(
        "spb",
        &[
            ("g/n", 1, 1, 1, "NBIRTH", false),
            ("g/n/d", 2, 2, 2, "DBIRTH", false),
            ("g/n/e", 3, 3, 3, "DBIRTH", false),
            ("g/n2", 4, 4, 4, "NBIRTH", false),
            ("g/n2/d", 5, 5, 5, "DBIRTH", false),
            ("g/n/e", 6, 6, 6, "DDEATH", false),
        ],
    );
    take(&mut registry, &group(6, vec![births], vec![]));
    assert_eq!(state(&registry, "spb", "g/n/e"), (State::Offline, Some(6), Some(Reason::Death)));
    take(&mut registry, &group(7, vec![batch("spb", &[("g/n", 8, 8, 7, "NDEATH", false)])], vec![]));
    for (device, since) in [("g/n", 8), ("g/n/d", 8), ("g/n/e", 6)] {
        assert_eq!(
            state(&registry, "spb", device),
            (State::Offline, Some(since), Some(Reason::Death)),
            "{device}"
        );
    }
    for device in ["g/n2", "g/n2/d"] {
        assert_eq!(state(&registry, "spb", device).2, Some(Reason::Birth), "{device}");
    }
    // Elsewhere such a column is a field like any other.
    take(&mut registry, &group(8, vec![batch("other", &[("g/n", 9, 9, 8, "NDEATH", false)])], vec![]));
    assert_eq!(state(&registry, "other", "g/n").0, State::Online);
}

#[test]
fn a_node_that_is_born_again_takes_its_devices_offline_until_they_are_born_too() {
    let mut registry = Registry::default();
    let first = batch(
        "spb",
        &[
            ("g/n", 1, 1, 1, "NBIRTH", false),
            ("g/n/d", 2, 2, 2, "DBIRTH", false),
            ("g/n/e", 3, 3, 3, "DBIRTH", false),
            ("g/n2/d", 4, 4, 4, "DBIRTH", false),
        ],
    );
    take(&mut registry, &group(4, vec![first], vec![]));
    let again = batch("spb", &[("g/n", 10, 10, 10, "NBIRTH", false), ("g/n/d", 11, 11, 11, "DBIRTH", false)]);
    take(&mut registry, &group(11, vec![again], vec![]));
    assert_eq!(state(&registry, "spb", "g/n"), (State::Online, Some(1), Some(Reason::Birth)));
    assert_eq!(state(&registry, "spb", "g/n/d"), (State::Online, Some(11), Some(Reason::Birth)));
    assert_eq!(state(&registry, "spb", "g/n/e"), (State::Offline, Some(10), Some(Reason::Rebirth)));
    assert_eq!(state(&registry, "spb", "g/n2/d"), (State::Online, Some(4), Some(Reason::Birth)));
    let late = batch("spb", &[("g/n/e", 12, 12, 12, "DBIRTH", false)]);
    take(&mut registry, &group(12, vec![late], vec![]));
    assert_eq!(state(&registry, "spb", "g/n/e"), (State::Online, Some(12), Some(Reason::Birth)));
}

#[test]
fn a_birth_that_was_a_dead_letter_does_not_wake_the_dead() {
    let mut registry = Registry::default();
    let lives = batch(
        "spb",
        &[
            ("g/n", 1, 1, 1, "NBIRTH", false),
            ("g/n/d", 2, 2, 2, "DBIRTH", false),
            ("g/n/e", 3, 3, 3, "DBIRTH", false),
            ("g/n/d", 8, 8, 4, "DDEATH", false),
            ("g/n/e", 9, 9, 5, "DDATA", false),
        ],
    );
    take(&mut registry, &group(5, vec![lives], vec![]));
    let old = batch(
        "spb",
        &[
            ("g/n/d", 6, 6, 6, "DBIRTH", false),
            ("g/n", 7, 7, 7, "NBIRTH", false),
            ("g/n/e", 7, 7, 8, "DDEATH", false),
        ],
    );
    take(&mut registry, &LogGroup { replayed: vec![6, 7, 8], ..group(8, vec![old], vec![]) });
    assert_eq!(state(&registry, "spb", "g/n/d"), (State::Offline, Some(8), Some(Reason::Death)));
    assert_eq!(state(&registry, "spb", "g/n/e"), (State::Online, Some(3), Some(Reason::Birth)));
    assert_eq!(events(&registry, "spb", "g/n/d"), 3, "its values are events all the same");
}

#[test]
fn what_does_not_fit_is_counted_and_takes_no_room() {
    let mut registry = Registry::with_limit(2 * (FIXED_BYTES + 1));
    let rows: Vec<Event<'_>> = ["a", "b", "c", "a", "c"].map(|device| (device, 1, 1, 1, "", false)).to_vec();
    take(&mut registry, &group(1, vec![batch("s", &rows)], vec![status("s", "d", true, 1, 1)]));
    assert_eq!((registry.len(), registry.unregistered()), (2, 3));
    assert_eq!(events(&registry, "s", "a"), 2);
}

proptest! {
    #[test]
    fn saved_and_restored_anywhere_it_comes_to_the_same(
        steps in prop::collection::vec((0u8..3, -20i64..20, 0i64..60, 0u8..4), 1..40),
        split in 0usize..40,
    ) {
        let mut arrival = 0;
        let groups: Vec<LogGroup> = steps.iter().zip(1..).map(|((device, jitter, pause, kind), seq)| {
            arrival += pause;
            let name = format!("d{device}");
            match kind {
                0 => group(seq, vec![], vec![status("s", &name, *jitter > 0, arrival, seq)]),
                _ => group(seq, vec![batch("s", &[(&name, arrival + jitter, arrival, seq as i64, "", *kind == 1)])], vec![]),
            }
        }).collect();
        let mut straight = Registry::default();
        groups.iter().for_each(|group| take(&mut straight, group));
        let split = split.min(groups.len());
        let mut registry = Registry::default();
        groups[..split].iter().for_each(|group| take(&mut registry, group));
        let stored = serde_json::to_string(&registry).expect("JSON");
        let mut restored: Registry = serde_json::from_str(&stored).expect("what was written");
        // The log is replayed from anywhere before.
        groups[split / 2..].iter().for_each(|group| take(&mut restored, group));
        prop_assert_eq!(serde_json::to_string(&restored).expect("JSON"), serde_json::to_string(&straight).expect("JSON"));
    }

    #[test]
    fn how_the_log_was_cut_into_groups_does_not_matter(
        steps in prop::collection::vec((0u8..4, -20i64..20, 0i64..60, 0u8..7, any::<bool>()), 1..60),
    ) {
        const WORDS: [&str; 6] = ["", "", "DBIRTH", "DDEATH", "NDEATH", "NBIRTH"];
        let (mut apart, mut together) = (Registry::with_limit(3 * (FIXED_BYTES + 4)), Registry::with_limit(3 * (FIXED_BYTES + 4)));
        let (mut arrival, mut rows, mut said) = (0, Vec::new(), Vec::new());
        let names = ["n", "n/a", "n/b", "m"];
        let last = steps.len() as Seq;
        for ((device, jitter, pause, kind, ends), seq) in steps.into_iter().zip(1..) {
            arrival += pause;
            let name = names[device as usize];
            let (event, status) = match WORDS.get(kind as usize) {
                Some(word) => (Some((name, arrival + jitter, arrival, seq as i64, *word, jitter > 15)), None),
                None => (None, Some(status("spb", name, jitter > 0, arrival, seq))),
            };
            take(&mut apart, &group(seq, event.iter().map(|event| batch("spb", &[*event])).collect(), status.clone().into_iter().collect()));
            rows.extend(event);
            said.extend(status);
            if ends || seq == last {
                let batches = if rows.is_empty() { vec![] } else { vec![batch("spb", &rows)] };
                take(&mut together, &group(seq, batches, std::mem::take(&mut said)));
                rows.clear();
            }
        }
        prop_assert_eq!(serde_json::to_string(&together).expect("JSON"), serde_json::to_string(&apart).expect("JSON"));
    }
}
