//! Files of every shape that occurs, as the messages that they become.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;

use super::*;
use crate::exit::{Code, Failure};

/// The messages of a file of this name and content, as `topic payload`.
fn messages_of(name: &str, content: &[u8], change: impl FnOnce(&mut ReplayOptions)) -> Result<Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(name);
    std::fs::write(&file, content).expect("written");
    let mut options = ReplayOptions::new(file);
    change(&mut options);
    let text = |message: ReplayMessage| {
        format!("{} {}", message.topic, String::from_utf8(message.payload.to_vec()).expect("UTF-8"))
    };
    Replay::open(options)?.map(|message| message.map(text)).collect()
}

fn check(name: &str, content: &str, expect: &[&str]) {
    assert_eq!(messages_of(name, content.as_bytes(), |_| {}).expect("it replays"), expect, "{name}");
}

fn failure(result: Result<Vec<String>>) -> Failure {
    result.expect_err("it fails").downcast_ref::<Failure>().expect("a failure").clone()
}

const TRUCKS: &str = "time,name,fleet,latitude,load,version\n\
    1451606400000,truck_0,South,52.31854,,v2.3\n\
    1451606400000,,East,18.11037,150,\n";

#[test]
fn trucks_are_named_by_their_column_and_empty_cells_are_absent() {
    check(
        "readings.csv",
        TRUCKS,
        &[
            r#"devices/truck_0/telemetry {"ts":1451606400000,"fleet":"South","latitude":52.31854,"version":"v2.3"}"#,
            r#"devices/unknown/telemetry {"ts":1451606400000,"fleet":"East","latitude":18.11037,"load":150}"#,
        ],
    );
}

#[test]
fn a_header_with_one_name_too_few_has_the_row_number_first() {
    check(
        "occupancy.csv",
        "\"date\",\"Temperature\",\"HumidityRatio\"\n\"1\",\"2015-02-04 17:51:00\",23.18,0.00479298817650529\n",
        &[
            r#"devices/occupancy/telemetry {"ts":1423072260000,"row":1,"temperature":23.18,"humidityratio":0.00479298817650529}"#,
        ],
    );
}

#[test]
fn names_that_sql_would_not_like_are_tidied() {
    check(
        "river.csv",
        "Time,Water flow [l/s]\n2022-03-20T11:00:00+01:00,100.59\n",
        &[r#"devices/river/telemetry {"ts":1647770400000,"water_flow_l_s":100.59}"#],
    );
}

#[test]
fn a_file_that_names_no_device_is_one() {
    check(
        "ec2_cpu.csv",
        "timestamp,value\r\n2014-02-14 14:30:00,0.132\r\n2014-02-14 14:35:00,74.93588199999998\r\n",
        &[
            r#"devices/ec2_cpu/telemetry {"ts":1392388200000,"value":0.132}"#,
            r#"devices/ec2_cpu/telemetry {"ts":1392388500000,"value":74.93588199999998}"#,
        ],
    );
}

#[test]
fn json_lines_keep_their_values_as_they_are() {
    check(
        "a.jsonl",
        "{\"ts\":\"2026-01-01T00:00:00.000001Z\",\"device\":\"d\",\"x\":1.10,\"nested\":{\"a\":[1]},\"n\":null}\n\n{\"x\":2}\n",
        &[
            r#"devices/d/telemetry {"ts":"2026-01-01T00:00:00.000001Z","x":1.10,"nested":{"a":[1]}}"#,
            r#"devices/unknown/telemetry {"x":2}"#,
        ],
    );
}

#[test]
fn parquet_replays_without_the_columns_of_the_system() {
    let times = TimestampMicrosecondArray::from(vec![1_500_000]).with_timezone("UTC");
    let batch = RecordBatch::try_from_iter([
        ("event_time", Arc::new(times) as ArrayRef),
        ("device_id", Arc::new(StringArray::from(vec!["d1"])) as ArrayRef),
        ("x", Arc::new(Float64Array::from(vec![0.1 + 0.2])) as ArrayRef),
        ("_index", Arc::new(Int32Array::from(vec![0])) as ArrayRef),
    ])
    .expect("a batch");
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    let bytes = writer.into_inner().expect("a file");
    let messages = messages_of("part-0.parquet", &bytes, |_| {}).expect("it replays");
    assert_eq!(messages, [r#"devices/d1/telemetry {"ts":1500,"x":0.30000000000000004}"#]);
}

#[test]
fn a_packed_file_is_unpacked() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"timestamp,value\n2014-02-14 14:30:00,1\n").expect("packed");
    let packed = encoder.finish().expect("packed");
    let messages = messages_of("cpu.csv.gz", &packed, |_| {}).expect("it replays");
    assert_eq!(messages, [r#"devices/cpu/telemetry {"ts":1392388200000,"value":1}"#]);
}

#[test]
fn the_topic_takes_any_columns_which_the_reading_then_lacks() {
    let messages = messages_of("t.csv", TRUCKS.as_bytes(), |options| {
        options.mapping.topic = "{fleet}/{name}".parse().expect("a topic");
        options.limit = Some(1);
    });
    assert_eq!(
        messages.expect("it replays"),
        [r#"South/truck_0 {"ts":1451606400000,"latitude":52.31854,"version":"v2.3"}"#]
    );
    let messages = messages_of("t.csv", TRUCKS.as_bytes(), |options| {
        options.mapping.device = Device::Constant("all".to_owned());
        options.mapping.time_as = "time".to_owned();
        options.limit = Some(1);
    });
    let expect = r#"devices/all/telemetry {"time":1451606400000,"name":"truck_0","fleet":"South","latitude":52.31854,"version":"v2.3"}"#;
    assert_eq!(messages.expect("it replays"), [expect]);
}

#[test]
fn a_column_that_does_not_exist_is_a_usage_error_that_lists_the_others() {
    let failure = failure(messages_of("t.csv", TRUCKS.as_bytes(), |options| {
        options.mapping.device = Device::Column("truck".to_owned());
    }));
    assert_eq!(failure.code, Code::Usage);
    assert!(failure.hint.expect("a hint").contains("name, fleet"));
}

#[test]
fn a_value_that_is_no_time_is_named_with_its_line() {
    let failure = failure(messages_of("t.csv", b"time,x\n1451606400000,1\nnoon,2\n", |_| {}));
    assert!(failure.message.contains("line 3") && failure.message.contains("noon"), "{}", failure.message);
}

#[test]
fn readings_of_one_topic_are_joined() {
    let content = "device,x\na,1\nb,2\na,3\na,4\n";
    let messages = messages_of("t.csv", content.as_bytes(), |options| options.batch = 2).expect("it replays");
    let expect = [
        r#"devices/a/telemetry [{"x":1},{"x":3}]"#,
        r#"devices/a/telemetry {"x":4}"#,
        r#"devices/b/telemetry {"x":2}"#,
    ];
    assert_eq!(messages, expect);
}

#[test]
fn late_readings_come_at_the_end_in_an_order_that_the_seed_decides() {
    let content = (0..1000).fold("device,x\n".to_owned(), |content, x| format!("{content}a,{x}\n"));
    let messages = |seed: u64| {
        messages_of("t.csv", content.as_bytes(), |options| {
            options.late_fraction = 0.2;
            options.seed = seed;
        })
        .expect("it replays")
    };
    let (one, same, other) = (messages(1), messages(1), messages(2));
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), 1000, "each exactly once");
    let xs: Vec<u32> = one
        .iter()
        .map(|message| {
            message.rsplit_once(':').expect("x").1.trim_end_matches('}').parse().expect("a number")
        })
        .collect();
    let in_time = xs.windows(2).take_while(|pair| pair[0] < pair[1]).count();
    assert!((700..900).contains(&in_time), "{in_time} readings in time");
    assert!(!xs[in_time + 1..].is_sorted(), "the late ones are in random order");
}
