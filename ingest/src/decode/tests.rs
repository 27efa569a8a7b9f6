mod bounds;
mod schema;

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use iot_schemas::catalog::{self, Definition};

use crate::message::{Message, Properties};
use crate::wal::record::{GroupWriter, records};

use super::*;

const ARRIVAL: i64 = 1_700_000_000_000_000;
const READINGS: &str = r#"
kind: stream
name: readings
topics: ["sites/{site}/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, count: bigint, ok: boolean, status: text, due: timestamp}
unknown_fields: reject
"#;
const EVENTS: &str = "kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\", \"anon\"]\n";

fn def(yaml: &str) -> Arc<StreamDef> {
    let documents = catalog::parse(yaml, "test").expect("the catalog parses");
    match &documents[0].def {
        Definition::Stream(def) => def.clone(),
        other => panic!("a stream, not {other:?}"),
    }
}

/// A type as the catalog names it.
pub(super) struct Shown<'a>(pub(super) &'a DataType);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(column::Kind::of(self.0).map_or("?", column::Kind::word))
    }
}

pub(super) struct Bench {
    pub(super) def: Arc<StreamDef>,
    decoder: StreamDecoder,
    seq: Seq,
}

impl Bench {
    pub(super) fn new(yaml: &str) -> Self {
        let def = def(yaml);
        let decoder = StreamDecoder::new(&def, &Schema::empty()).expect("a decoder");
        Self { def, decoder, seq: 0 }
    }

    pub(super) fn take(&mut self, topic: &str, payload: impl AsRef<[u8]>) -> Result<usize, String> {
        self.take_with(topic, payload, Properties::default())
    }

    /// Takes a message as it comes out of the log.
    fn take_with(
        &mut self,
        topic: &str,
        payload: impl AsRef<[u8]>,
        properties: Properties,
    ) -> Result<usize, String> {
        self.seq += 1;
        let pattern = self.def.topics.iter().find(|pattern| pattern.capture(topic).is_some());
        let captures = self.decoder.capture(pattern.expect("a match"), topic).expect("a match");
        let mut log = GroupWriter::new(1 << 20);
        log.push(&Message { properties: properties.boxed(), ..Message::new(topic, &b""[..]) }, ARRIVAL, None);
        let body = log.finish();
        let record = records(&body).and_then(|mut records| records.next()).expect("a record");
        let (content_type, user_properties) = (record.content_type, record.user_properties);
        let plain = Origin::plain(topic, &captures, ARRIVAL, self.seq);
        let taken = self.decoder.decode(payload.as_ref(), Origin { content_type, user_properties, ..plain });
        assert!(!taken.as_ref().is_err_and(|reason| super::is_defect(reason)), "{taken:?}");
        taken
    }

    /// The rows since the last call as text, without provenance.
    pub(super) fn rows(&mut self) -> String {
        let Some(batch) = self.decoder.finish("n") else { return String::new() };
        let shown = batch.num_columns() - 5;
        let options = FormatOptions::default().with_null("-");
        let columns: Vec<_> = batch.columns()[..shown]
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).expect("printable"))
            .collect();
        let line = |row: usize| {
            columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")
        };
        (0..batch.num_rows()).map(line).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn columns(&self) -> Vec<(String, DataType)> {
        let fields = self.decoder.schema().fields();
        let own = &fields[2..fields.len() - 5];
        own.iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    }
}

fn check_events(payload: &str, expect: &str) {
    let mut bench = Bench::new(EVENTS);
    let outcome = bench.take("devices/a/telemetry", payload);
    let rows = outcome.map_or_else(|reason| format!("dead: {reason}"), |_| bench.rows());
    assert_eq!(rows, expect, "{payload}");
}

fn check_readings(payload: &str, expect: &str) {
    let mut bench = Bench::new(READINGS);
    let outcome = bench.take("sites/s1/d1/telemetry", payload);
    let rows = outcome.map_or_else(|reason| format!("dead: {reason}"), |_| bench.rows());
    assert_eq!(rows, expect, "{payload}");
}

#[test]
fn events_from_the_future_are_kept_or_refused_as_the_stream_says() {
    let check = |settings: &str, ahead_ms: i64, expect: Result<usize, ()>| {
        let mut bench = Bench::new(&format!("{READINGS}{settings}"));
        let payload = format!(r#"{{"ts":{}}}"#, ARRIVAL / 1_000 + ahead_ms);
        let outcome = bench.take("sites/s1/d1/telemetry", payload);
        if let Err(reason) = &outcome {
            assert!(reason.contains("`max_future`") && reason.contains("2023-11-14T22:13:20Z"), "{reason}");
        }
        assert_eq!(outcome.map_err(|_| ()), expect, "{settings} {ahead_ms}");
    };
    check("max_future: 1s\n", 1_000_000, Ok(1));
    check("max_future: 1s\nfuture_events: dead_letter\n", 1_000, Ok(1));
    check("max_future: 1s\nfuture_events: dead_letter\n", 1_001, Err(()));
    check("future_events: dead_letter\n", 3_600_000, Ok(1));
    check("future_events: dead_letter\n", 3_600_001, Err(()));
}

#[test]
fn declared_fields_take_their_types_and_refuse_others() {
    let time = "2023-11-14T22:13:20Z | d1";
    let ok = |rest: &str| format!("{time} | s1 | {rest}");
    // Columns: site, then the declared fields by name: count, due, ok, status, temperature.
    for (payload, expect) in [
        (r#"{"ts":1700000000000}"#, ok("- | - | - | - | -")),
        (r#"{"ts":1700000000000,"temperature":21}"#, ok("- | - | - | - | 21.0")),
        (r#"{"ts":1700000000000,"temperature":-2.5e1}"#, ok("- | - | - | - | -25.0")),
        (r#"{"ts":1700000000000,"temperature":null}"#, ok("- | - | - | - | -")),
        (r#"{"ts":"2023-11-14T23:13:20+01:00","count":7}"#, ok("7 | - | - | - | -")),
        (r#"{"ts":1700000000000,"count":7.0}"#, ok("7 | - | - | - | -")),
        (r#"{"ts":1700000000000,"ok":true,"status":"a\tb"}"#, ok("- | - | true | a\tb | -")),
        (r#"{"ts":1700000000000,"due":1700000001000}"#, ok("- | 2023-11-14T22:13:21Z | - | - | -")),
        (r#"{"ts":1700000000000,"status":[1,{"b":[]}]}"#, ok(r#"- | - | - | [1,{"b":[]}] | -"#)),
        (r#"{"ts":1700000000000,"device_id":"other","site":5,"count":1}"#, ok("1 | - | - | - | -")),
    ] {
        check_readings(payload, &expect);
    }
    for (payload, reason) in [
        (r#"{"temperature":21}"#, "the event time is missing"),
        (r#"{"ts":null}"#, "the event time is missing"),
        (
            r#"{"ts":"noon"}"#,
            "field `ts`: expected a time, as RFC 3339 text or a number since 1970, found text `noon`",
        ),
        (r#"{"ts":[1]}"#, "field `ts`: expected a time, found an array"),
        (r#"{"ts":-5}"#, "the event time `-5000` (in microseconds) is not between 1970 and 2262"),
        (
            r#"{"ts":9e18}"#,
            "field `ts`: expected a time, as RFC 3339 text or a number since 1970, found number `9000000000000000000`",
        ),
        (r#"{"ts":1,"temperature":"warm"}"#, "field `temperature`: expected double, found text `warm`"),
        (r#"{"ts":1,"temperature":{"c":1}}"#, "field `temperature`: expected double, found an object"),
        (r#"{"ts":1,"temperature":[1]}"#, "field `temperature`: expected double, found an array"),
        (r#"{"ts":1,"count":7.5}"#, "field `count`: expected bigint, found number `7.5`"),
        (
            r#"{"ts":1,"count":9223372036854775808}"#,
            "field `count`: expected bigint, found integer `9223372036854775808`",
        ),
        (r#"{"ts":1,"count":true}"#, "field `count`: expected bigint, found boolean `true`"),
        (r#"{"ts":1,"ok":1}"#, "field `ok`: expected boolean, found integer `1`"),
        (r#"{"ts":1,"status":3}"#, "field `status`: expected text, found integer `3`"),
        (r#"{"ts":1,"due":-1}"#, "field `due`: expected timestamp, found integer `-1`"),
        (
            r#"{"ts":1,"count":123456789012345678901234567890}"#,
            "field `count`: expected bigint, found integer `123456789012345680000000000000`, which has more than 64 bits",
        ),
        (r#"{"ts":1,"count":1,"count":2}"#, "field `count` is given twice"),
        (r#"{"ts":1,"extra":2}"#, "field `extra` is not declared and the stream rejects unknown fields"),
    ] {
        check_readings(payload, &format!("dead: {reason}"));
    }
    check_readings(
        r#"{"ts":1,"temperature":NaN}"#,
        "dead: not usable as JSON: expected value at line 1 column 23",
    );
    check_readings(
        r#"{"ts":1,"temperature":1e999}"#,
        "dead: not usable as JSON: number out of range at line 1 column 28",
    );
}

#[test]
fn doubles_are_those_of_the_sender_to_the_last_bit() {
    let mut bench = Bench::new(READINGS);
    let literals =
        ["0.30000000000000004", "0.13436424411240122", "8.474337369372327E2", "123456789.12345679", "5e-324"];
    for literal in literals {
        bench
            .take("sites/s1/d1/telemetry", format!("{{\"ts\":1,\"temperature\":{literal}}}"))
            .expect("a number");
    }
    let rows = bench.decoder.finish("n").expect("rows");
    let taken = rows.column_by_name("temperature").expect("a column").as_primitive::<Float64Type>();
    let expect: Vec<f64> = literals.iter().map(|literal| literal.parse().expect("a number")).collect();
    assert_eq!(taken.values().to_vec(), expect);
}

#[test]
fn unknown_fields_become_columns() {
    let time = "2023-11-14T22:13:20Z | a";
    for (payload, expect) in [
        ("{}", time.to_owned()),
        (r#"{"ts":1000}"#, "1970-01-01T00:00:01Z | a".into()),
        (r#"{"v":1,"w":1.5,"x":"t","y":false,"z":null}"#, format!("{time} | 1 | 1.5 | t | false")),
        (r#"[{"v":1},{"v":2.5},{"w":"t"}]"#, format!("{time} | 1.0 | -\n{time} | 2.5 | -\n{time} | - | t")),
        (r#"{"gps":{"lat":1.5,"fix":{"ok":true}},"a":[1, 2]}"#, format!("{time} | 1.5 | true | [1,2]")),
        (
            r#"{"a":[ 1.50, "x \" ]", 18446744073709551616, {"b": 0.1234567890123456789} ]}"#,
            format!(r#"{time} | [1.50,"x \" ]",18446744073709551616,{{"b":0.1234567890123456789}}]"#),
        ),
        (r#"{"air temp":3}"#, format!("{time} | 3")),
        (r#"{"1st":1}"#, format!("{time} | 1")),
        ("[]", String::new()),
    ] {
        check_events(payload, &expect);
    }
    let hint = "rename it in the payload, or set `unknown_fields: ignore`";
    for (payload, reason) in [
        ("", "the payload is empty".to_owned()),
        ("5", "not usable as JSON: invalid type: integer `5`, expected an object or an array of objects at line 1 column 1".into()),
        ("[5]", "not usable as JSON: invalid type: integer `5`, expected an object in the array at line 1 column 2".into()),
        ("{\"v\":1", "not usable as JSON: EOF while parsing an object at line 1 column 6".into()),
        ("{} {}", "not usable as JSON: trailing characters at line 1 column 4".into()),
        (r#"{"_":1}"#, format!("field `_` cannot be a column name; {hint}")),
        (r#"{"event_time":1}"#, format!("field `event_time` has a name that the system uses itself; {hint}")),
        (r#"{"a b":1,"a-b":2}"#, "the fields `a b` and `a-b` would be the same column".into()),
        (r#"{"temp":1,"Temp":2}"#, "the fields `temp` and `Temp` would be the same column".into()),
        (r#"{"v":1,"v":1}"#, "field `v` is given twice".into()),
        (r#"[{"v":1},{"v":"t"}]"#, "field `v`: expected bigint, found text `t`".into()),
        (r#"{"v":18446744073709551615}"#, "field `v`: expected bigint, found integer `18446744073709551615`".into()),
        (r#"{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}}}"#, "field `a_a_a_a_a_a_a_a`: expected objects at most 8 deep, found a deeper one".into()),
    ] {
        check_events(payload, &format!("dead: {reason}"));
    }
}

#[test]
fn the_content_type_chooses_the_decoder_where_the_stream_says_so() {
    let as_type = |content_type: &str| {
        let mut properties = Properties::default();
        properties.set_content_type(content_type);
        properties
    };
    let mut bench = Bench::new(&format!("{EVENTS}format: auto\n"));
    let mut take = |content_type: &str, payload: &str| {
        bench.take_with("devices/a/telemetry", payload, as_type(content_type))
    };
    assert_eq!(take("application/json; charset=utf-8", r#"{"ts":1000,"v":1}"#), Ok(1));
    assert_eq!(take("text/csv", "ts,v\n2000,2\n3000,3\n"), Ok(2));
    assert_eq!(take("application/vnd.influx.line-protocol", "m v=4i 4000000000\n"), Ok(1));
    assert_eq!(
        take("application/cbor", "\u{0}"),
        Err("not usable as CBOR: expected an object or an array of objects, found a number".into())
    );
    assert_eq!(take("image/png", "{}"), Err("no format has the content type `image/png`".into()));
    assert_eq!(bench.take("devices/a/telemetry", r#"{"ts":5000,"v":5}"#), Ok(1), "JSON if nothing is said");
    let expect = [(1, "-"), (2, "-"), (3, "-"), (4, "m"), (5, "-")];
    let expect = expect.map(|(v, m)| format!("1970-01-01T00:00:0{v}Z | a | {v} | {m}")).join("\n");
    assert_eq!(bench.rows(), expect);
    let mut bench = Bench::new(EVENTS);
    let payload = r#"{"ts":1000}"#;
    assert_eq!(
        bench.take_with("devices/a/telemetry", payload, as_type("text/csv")),
        Ok(1),
        "it is not asked"
    );
}

#[test]
fn user_properties_are_columns_where_the_stream_names_them() {
    let mut bench = Bench::new(&format!("{EVENTS}properties: [site, fw-version]\n"));
    let mut properties = Properties::default();
    for (name, value) in [("site", "north"), ("site", "south"), ("other", "x"), ("fw-version", "1.2")] {
        properties.add_user(name, value);
    }
    let payload = r#"[{"v":1,"site":"payload"},{"v":2}]"#;
    bench.take_with("devices/a/telemetry", payload, properties).expect("good");
    bench.take("devices/a/telemetry", r#"{"v":3}"#).expect("good");
    let time = "2023-11-14T22:13:20Z | a";
    let expect = format!("{time} | north | 1.2 | 1\n{time} | north | 1.2 | 2\n{time} | - | - | 3");
    assert_eq!(bench.rows(), expect);
    let mut many = Properties::default();
    (0..100).for_each(|i| many.add_user(&i.to_string(), ""));
    let why = bench.take_with("devices/a/telemetry", "{}", many.clone()).expect_err("`site` may be missing");
    assert_eq!(why, "there are more user properties than 64, or more than 16384 bytes of them");
    Bench::new(EVENTS).take_with("devices/a/telemetry", "{}", many).expect("nobody asks for them");
}

#[test]
fn a_message_is_taken_whole_or_not_at_all() {
    let mut bench = Bench::new(EVENTS);
    bench.take("devices/a/telemetry", r#"[{"v":1},{"new":1,"v":"no"}]"#).expect_err("a conflict");
    assert_eq!(bench.columns(), []);
    assert_eq!(bench.rows(), "");
    bench.take("devices/a/telemetry", r#"{"v":1}"#).expect("good");
    bench.take("devices/a/telemetry", r#"[{"v":1.5},{"v":true}]"#).expect_err("a conflict");
    assert_eq!(bench.columns(), [("v".into(), DataType::Int64)], "the refused fraction has not widened it");
}

#[test]
fn columns_appear_and_widen_in_the_middle_of_a_batch() {
    let mut bench = Bench::new(EVENTS);
    bench.take("devices/a/telemetry", r#"{"v":1}"#).expect("good");
    bench.take("devices/b/telemetry", r#"{"v":2.5,"w":"x"}"#).expect("good");
    bench.take("devices/c/telemetry", r#"{"v":3}"#).expect("good");
    let time = "2023-11-14T22:13:20Z";
    assert_eq!(bench.rows(), format!("{time} | a | 1.0 | -\n{time} | b | 2.5 | x\n{time} | c | 3.0 | -"));
    assert_eq!(bench.rows(), "");
    bench.take("devices/a/telemetry", r#"{"V":1}"#).expect_err("differs only by case");
    bench.take("devices/a/telemetry", r#"{"v":4.0}"#).expect("good");
    assert_eq!(bench.rows(), format!("{time} | a | 4.0 | -"));
}

#[test]
fn the_device_comes_from_the_topic_or_from_the_payload() {
    let mut bench = Bench::new(EVENTS);
    bench.take("anon", r#"{"device_id":"x","v":1}"#).expect("good");
    bench.take("anon", r#"{"device_id":17}"#).expect("good");
    let missing = "no `device_id`: neither a topic level nor a field of the payload gives it";
    assert_eq!(bench.take("anon", r#"{"v":1}"#), Err(missing.into()));
    assert_eq!(bench.take("anon", r#"{"device_id":""}"#), Err(missing.into()));
    assert_eq!(bench.take("devices//telemetry", r#"{"device_id":"x"}"#), Err(missing.into()));
    bench.take("anon", r#"{"device_id":1.5}"#).expect_err("no text");
    assert_eq!(bench.rows(), "2023-11-14T22:13:20Z | x | 1\n2023-11-14T22:13:20Z | 17 | -");
}

#[test]
fn ignored_fields_leave_no_trace_but_nested_declared_ones_do() {
    let yaml = format!("{EVENTS}fields: {{gps_lat: double}}\nunknown_fields: ignore\n");
    let mut bench = Bench::new(&yaml);
    let payload = r#"{"gps":{"lat":1,"lon":2},"_x":[[]],"y":{"z":3},"event_date":1}"#;
    bench.take("devices/a/telemetry", payload).expect("good");
    assert_eq!(bench.rows(), "2023-11-14T22:13:20Z | a | 1.0");
}

#[test]
fn long_names_of_objects_and_columns_cost_no_time() {
    let long = "x".repeat(1 << 20);
    let began = std::time::Instant::now();
    let mut bench = Bench::new(&format!("{EVENTS}unknown_fields: ignore\n"));
    let payload = format!(r#"{{"{long}":{{{}}}}}"#, vec![r#""a":1"#; 100_000].join(","));
    bench.take("devices/a/telemetry", payload).expect("ignored");
    let mut bench = Bench::new(&format!("{EVENTS}format: csv\nunknown_fields: ignore\n"));
    let payload = format!("{long}\n{}", "1\n".repeat(100_000));
    bench.take("devices/a/telemetry", payload).expect("ignored");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn a_declared_event_time_counts_in_the_units_of_the_stream() {
    for (unit, ts) in [("s", "1700000000"), ("ns", "1700000000000000000"), ("ms", "\"2023-11-14T22:13:20Z\"")]
    {
        let settings = format!("event_time: {{field: ts, unit: {unit}}}\nfields: {{ts: timestamp}}\n");
        let mut bench = Bench::new(&format!("{EVENTS}{settings}"));
        bench.take("devices/a/telemetry", format!("{{\"ts\":{ts}}}")).expect("a time");
        assert_eq!(bench.rows(), "2023-11-14T22:13:20Z | a | 2023-11-14T22:13:20Z", "{unit}");
    }
}

#[test]
fn a_field_that_nobody_wants_cannot_spoil_its_message() {
    let deep = format!("{}1{}", "{\"x\":".repeat(20), "}".repeat(20));
    let payload =
        format!("{{\"v\":1,\"iccid\":89014103211118510720,\"n\":18446744073709551615,\"deep\":{deep}}}");
    let mut bench = Bench::new(&format!("{EVENTS}unknown_fields: ignore\nfields: {{v: bigint}}\n"));
    assert_eq!(bench.take("devices/a/telemetry", &payload), Ok(1));
    let reason =
        Bench::new(EVENTS).take("devices/a/telemetry", &payload).expect_err("columns of it would be wrong");
    assert!(reason.contains("`iccid`: expected bigint, found integer `89014103211118510000`"), "{reason}");
}

#[test]
fn a_message_has_the_same_outcome_whatever_came_before() {
    let mut bench = Bench::new(&format!("{EVENTS}format: csv\nfields: {{serial_no: text}}\n"));
    for _ in 0..2 {
        assert_eq!(bench.take("devices/a/telemetry", "serial no\n12\n"), Ok(1));
    }
}

#[test]
fn no_integer_column_takes_what_may_be_another_integer() {
    let mut bench = Bench::new(&format!("{EVENTS}fields: {{n: bigint}}\n"));
    for (value, expect) in [
        ("9007199254740992.0", Ok(1)),
        ("9007199254740994.0", Err(())),
        ("12345678901234567.5", Err(())),
        ("1e300", Err(())),
    ] {
        let outcome = bench.take("devices/a/telemetry", format!("{{\"n\":{value}}}"));
        assert_eq!(outcome.map_err(drop), expect, "{value}");
    }
}

#[test]
fn a_stream_that_rejects_unknown_fields_takes_line_protocol() {
    let mut bench = Bench::new(&format!(
        "{EVENTS}format: line_protocol\nunknown_fields: reject\nfields: {{v: double}}\n"
    ));
    assert_eq!(bench.take("devices/a/telemetry", "m v=1 1700000000000000000"), Ok(1));
    assert!(bench.take("devices/a/telemetry", "m,site=x v=1").is_err());
}

#[test]
fn a_decoder_goes_on_from_the_columns_of_the_table() {
    let mut first = Bench::new(EVENTS);
    first.take("devices/a/telemetry", r#"{"v":1.5,"t":"x"}"#).expect("good");
    let mut table = first.decoder.schema().fields().to_vec();
    table.push(Arc::new(arrow::datatypes::Field::new("event_date", DataType::Date32, true)));
    let decoder = StreamDecoder::new(&first.def, &Schema::new(table)).expect("a decoder");
    let mut second = Bench { decoder, ..first };
    assert_eq!(second.columns(), [("v".into(), DataType::Float64), ("t".into(), DataType::Utf8)]);
    second.take("devices/a/telemetry", r#"{"v":2}"#).expect("good");
    assert_eq!(second.rows(), "2023-11-14T22:13:20Z | a | 2.0 | -");
}

#[test]
fn a_definition_that_does_not_fit_the_table_is_refused() {
    let schema =
        |name: &str, data_type| Schema::new(vec![arrow::datatypes::Field::new(name, data_type, true)]);
    let with = |fields: &str| def(&format!("{EVENTS}fields: {{{fields}}}\n"));
    let refuse = |fields: &str, table: &Schema| {
        StreamDecoder::new(&with(fields), table).expect_err("it does not fit").to_string()
    };
    assert!(refuse("v: text", &schema("v", DataType::Int64)).contains("is bigint in the table"));
    assert!(refuse("v: bigint", &schema("v", DataType::Float64)).contains("declare it as double"));
    assert!(refuse("v: double", &schema("V", DataType::Float64)).contains("only by case"));
    assert!(refuse("v: double, V: double", &Schema::empty()).contains("only by case"));
    StreamDecoder::new(&with("v: double"), &schema("v", DataType::Int64)).expect("integers become doubles");
}

#[test]
fn damaged_payloads_never_panic_and_good_ones_in_between_are_unharmed() {
    let samples: [&[u8]; 6] = [
        br#"{"ts":1700000000000,"temperature":21.5,"count":3,"ok":true,"status":"fine"}"#,
        br#"[{"ts":1,"v":1},{"ts":2,"v":2.5,"gps":{"lat":1.0,"lon":[1,2,{"x":null}]}}]"#,
        br#"{"a":"\u00e9\ud83d\ude00","b":-0.0,"c":1e10,"d":123456789012345678901}"#,
        b"\xff\xfe\x00binary",
        b"{\"\":{\"\":{\"\":[]}}}",
        br#"{"due":"2024-01-01T00:00:00Z","x y":1,"X_Y":2,"_":0}"#,
    ];
    let mut bench = Bench::new(EVENTS);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let (mut good, mut sum) = (0, 0.0);
    for i in 0..100_000 {
        let mut payload = samples[next() % samples.len()].to_vec();
        for _ in 0..next() % 4 {
            let at = next() % payload.len();
            match next() % 3 {
                0 => payload[at] = next() as u8,
                1 => _ = payload.remove(at),
                _ => payload.insert(at, b"{}[]\",:0e-\\"[next() % 11]),
            }
            if payload.is_empty() {
                break;
            }
        }
        _ = bench.take("devices/a/telemetry", &payload);
        if i % 1_000 == 0 {
            bench.take("devices/a/telemetry", r#"{"the_good_one":1.5}"#).expect("unharmed");
            good += 1;
        }
        if i % 10_000 == 9_999
            && let Some(batch) = bench.decoder.finish("n")
            && let Some(column) = batch.column_by_name("the_good_one")
        {
            sum += arrow::compute::sum(column.as_primitive::<Float64Type>()).unwrap_or(0.0);
        }
    }
    assert_eq!(sum, 1.5 * f64::from(good));
}

#[test]
#[ignore = "a measurement: cargo test --release -- --ignored --nocapture decode_speed"]
fn decode_speed() {
    let mut bench = Bench::new(EVENTS);
    let payload = br#"{"ts":1700000000000,"temperature":21.5,"humidity":40.25,"rpm":1500,"st":"ok"}"#;
    let captures = Captures { device: Some("device-17".into()), ..Captures::default() };
    // CPU time, so that the figure means something on a busy machine.
    let cpu_ns = || -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("linux");
        stat.split(' ').next().expect("a field").parse().expect("a number")
    };
    let began = cpu_ns();
    let (rounds, size) = (200, 8_192);
    for round in 0..rounds {
        for i in 0..size {
            let seq = round * size + i;
            let origin = Origin::plain("devices/device-17/telemetry", &captures, ARRIVAL, seq);
            bench.decoder.decode(payload, origin).expect("good");
        }
        bench.decoder.finish("n").expect("rows");
    }
    let rate = (rounds * size) as f64 / (cpu_ns() - began) as f64 * 1e9;
    println!("{} bytes a message, {:.2} M messages per CPU-second", payload.len(), rate / 1e6);
}
