//! What a payload may take up, and what becomes of one on which a decoder fails.

use super::{Bench, EVENTS};

const TOO_MUCH: &str = "the events would take up more than 134217728 bytes; send fewer at once";

#[test]
fn millions_of_empty_objects_are_refused_before_they_are_all_taken() {
    let mut bench = Bench::new(&format!("{EVENTS}format: cbor\n"));
    let payload = [&b"\x9f"[..], &vec![0xa0; 4_000_000], b"\xff"].concat();
    assert_eq!(bench.take("devices/a/telemetry", payload), Err(TOO_MUCH.into()));
    assert_eq!(bench.take("devices/a/telemetry", b"\x81\xa0"), Ok(1));
}

#[test]
fn a_field_that_many_rows_share_cannot_take_up_all_memory() {
    let mut bench = Bench::new(&format!("{EVENTS}rows: rows\n"));
    let payload = format!(r#"{{"a":"{}","rows":[{}]}}"#, "x".repeat(1 << 20), vec!["{}"; 1_000].join(","));
    let reason = bench.take("devices/a/telemetry", payload).expect_err("a gigabyte of text");
    assert_eq!(reason, TOO_MUCH);
    let wide: Vec<String> = (0..400).map(|i| format!("\"c{i}\":{i}")).collect();
    let payload = format!(r#"{{{},"rows":[{}]}}"#, wide.join(","), vec!["{}"; 300_000].join(","));
    bench.take("devices/a/telemetry", payload).expect_err("gigabytes of numbers");
    bench.take("devices/a/telemetry", r#"{"v":1,"rows":[{}]}"#).expect("good");
    assert_eq!(bench.rows(), "2023-11-14T22:13:20Z | a | 1");
}

#[test]
fn senml_packs_have_a_limit() {
    let mut bench = Bench::new(&format!("{EVENTS}format: senml_json\n"));
    let pack = |records: usize| format!("[{}]", vec![r#"{"v":1}"#; records].join(","));
    bench.take("devices/a/telemetry", pack(1_000)).expect("good");
    let reason = bench.take("devices/a/telemetry", pack(100_001)).expect_err("too many");
    assert_eq!(reason, "record 100001: a pack may have 100000 records; send smaller ones");
    for label in ["bn", "n", "bu", "u"] {
        let long = format!(r#"[{{"{label}":"{}","v":1}}]"#, "x".repeat(1_025));
        let reason = bench.take("anon", long).expect_err("it would be repeated with every record");
        assert_eq!(reason, format!("record 1: `{label}` may have 1024 bytes, found 1025"));
    }
}

#[test]
fn a_bottomless_array_is_refused() {
    let nested = |depth| format!(r#"{{"v":{}"[\"[["{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let mut bench = Bench::new(EVENTS);
    bench.take("devices/a/telemetry", nested(100)).expect("kept as text");
    let reason = bench.take("devices/a/telemetry", nested(101)).expect_err("too deep");
    assert_eq!(reason, "field `v`: expected arrays at most 100 deep, found a deeper one");
    bench.take("devices/a/telemetry", nested(10_000)).expect_err("much too deep");
}

#[test]
fn a_stream_has_at_most_1000_columns() {
    let mut bench = Bench::new(EVENTS);
    for i in 0..1_000 {
        bench.take("devices/a/telemetry", format!("{{\"c{i}\":1}}")).expect("room");
    }
    let reason = bench.take("devices/a/telemetry", r#"{"one_more":1}"#).expect_err("no room");
    assert!(reason.contains("beyond the 1000"), "{reason}");
    bench.take("devices/a/telemetry", r#"{"c499":2}"#).expect("known columns go on");
}

#[test]
fn events_cannot_take_up_far_more_than_their_message() {
    let mut bench = Bench::new(EVENTS);
    let wide: Vec<String> = (0..400).map(|i| format!("\"c{i}\":{i}")).collect();
    bench.take("devices/a/telemetry", format!("{{{}}}", wide.join(","))).expect("good");
    let empty = format!("[{}]", vec!["{}"; 300_000].join(","));
    let reason = bench.take("devices/a/telemetry", empty).expect_err("a gigabyte");
    assert!(reason.starts_with("300000 events would take up"), "{reason}");
    bench.take("devices/a/telemetry", format!("[{}]", vec!["{}"; 1_000].join(","))).expect("good");
}

#[test]
fn messages_without_events_never_add_up_to_too_much() {
    let mut bench = Bench::new("kind: stream\nname: idle\ntopics: [\"d/{device_id}\"]\nrows: r\n");
    let idle = format!(r#"{{"gateway":"{}","r":[]}}"#, "x".repeat(16 << 20));
    for _ in 0..20 {
        assert_eq!(bench.take("d/a", &idle), Ok(0));
        assert_eq!(bench.rows(), "");
    }
    assert_eq!(bench.take("d/a", r#"{"r":[{"n":1}]}"#), Ok(1));
}

#[test]
fn a_decoder_that_panics_costs_the_message_alone() {
    let refused = super::super::caught(|| -> Result<(), String> { panic!("index {} is out of range", 7) });
    let reason = refused.expect_err("nothing was decoded");
    assert!(super::super::is_defect(&reason) && reason.contains("index 7 is out of range"), "{reason}");
    assert_eq!(super::super::caught(|| Ok(1)), Ok(1));
}
