//! Every payload format through the whole line: published, acknowledged, stored, asked for; and again after a kill.

use std::fs;

use iot_tests::{PATIENCE, Server, pause, workspace};
use iotctl::mqtt::{Message, Publisher, PublisherOptions};
use serde_json::{Value, json};

const CATALOG: &str = r#"
kind: stream
name: wrapped
topics: ["json/{device_id}"]
rows: data.readings
---
kind: stream
name: lines
topics: [lines]
format: line_protocol
---
kind: stream
name: cbor
topics: ["cbor/{device_id}"]
format: cbor
---
kind: stream
name: msgpack
topics: ["msgpack/{device_id}"]
format: msgpack
---
kind: stream
name: senml_json
topics: [senml/json]
format: senml_json
---
kind: stream
name: senml_cbor
topics: [senml/cbor]
format: senml_cbor
---
kind: stream
name: csv
topics: [csv]
format: csv
fields: {due: timestamp}
---
kind: stream
name: mixed
topics: ["mixed/{device_id}"]
format: auto
properties: [site]
fields: {v: bigint}
---
kind: view
name: mixed_by_site
sql: SELECT site, count(*) AS n, sum(v) AS s FROM mixed GROUP BY site
"#;

fn golden(path: &str) -> Vec<u8> {
    let path = workspace().join("ingest/golden").join(path);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A message of a gateway that says what it sends and where it stands.
fn labelled(content_type: &str, site: &str, payload: Vec<u8>) -> Message {
    Message {
        topic: "mixed/m".into(),
        payload: payload.into(),
        qos: 1,
        content_type: Some(content_type.into()),
        properties: vec![("site".into(), site.into())],
        ..Message::default()
    }
}

fn messages() -> Vec<Message> {
    let plain = |(topic, path): (&str, &str)| Message {
        topic: topic.into(),
        payload: golden(path).into(),
        qos: 1,
        ..Message::default()
    };
    let mut messages: Vec<Message> = [
        ("json/a", "json_rows/readings.json"),
        ("lines", "line_protocol/lines.txt"),
        ("cbor/a", "cbor/array.cbor"),
        ("cbor/a", "cbor/dead_cut.cbor"),
        ("msgpack/a", "msgpack/timestamp_64.msgpack"),
        ("senml/json", "senml_json/by_sensor.json"),
        ("senml/cbor", "senml_cbor/rfc_8428_section_6.cbor"),
        ("csv", "csv/header.csv"),
        ("mixed/m", "compressed/zstd.json.zst"),
    ]
    .map(plain)
    .into();
    messages.push(labelled("text/csv", "north", b"ts,v\n1700000002000,3\n".to_vec()));
    messages.push(labelled("application/json", "south", golden("compressed/gzip.json.gz")));
    messages.push(labelled("image/png", "south", b"\x89PNG".to_vec()));
    messages
}

fn publish(server: &Server, messages: Vec<Message>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address = server.mqtt.expect("the broker is embedded").to_string();
        let options = PublisherOptions::open(&address).expect("an address");
        let mut publisher = Publisher::connect(options).await.expect("the broker is there");
        for message in messages {
            publisher.publish(message).await.expect("it is on its way");
        }
        publisher.finish(PATIENCE).await.expect("all are acknowledged, what is no event too");
    });
}

fn check(server: &Server, sql: &str, expect: Value) {
    assert_eq!(Value::from(server.query(sql)), expect, "{sql}");
}

fn check_all(server: &Server) {
    server.wait_for("the speed layer, which follows the decoder", |status| {
        status["speed"]["processed"]["local"] == status["ingest"]["last_seq"]
    });
    let seconds = "date_part('second', event_time) AS t";
    check(
        server,
        &format!("SELECT {seconds}, device_id, fw, data_unit, n FROM wrapped ORDER BY t"),
        json!([
            {"t": 20, "device_id": "a", "fw": "1.2", "data_unit": "C", "n": 0.0},
            {"t": 21, "device_id": "a", "fw": "1.3", "data_unit": "C", "n": 1.0},
            {"t": 22, "device_id": "a", "fw": "1.2", "data_unit": "C", "n": 2.5},
        ]),
    );
    check(
        server,
        &format!(
            "SELECT {seconds}, device_id, measurement, watts FROM lines WHERE event_time < '2024-01-01' ORDER BY t"
        ),
        json!([
            {"t": 20, "device_id": "dev-1", "measurement": "weather", "watts": null},
            {"t": 21, "device_id": "dev-2", "measurement": "power", "watts": 300},
        ]),
    );
    check(
        server,
        &format!("SELECT {seconds}, temperature, n, ok, status FROM cbor ORDER BY t"),
        json!([
            {"t": 20, "temperature": 21.5, "n": 3, "ok": true, "status": "fine"},
            {"t": 21, "temperature": null, "n": -7, "ok": null, "status": null},
        ]),
    );
    let both = "SELECT event_time = to_timestamp_micros(1700000000250000) AS a, due = to_timestamp_micros(1700000001000001) AS b FROM msgpack";
    check(server, both, json!([{"a": true, "b": true}]));
    check(
        server,
        &format!("SELECT {seconds}, device_id, \"t\" AS x, h FROM senml_json ORDER BY event_time"),
        json!([
            {"t": 20, "device_id": "d", "x": 1.0, "h": 3.0},
            {"t": 21, "device_id": "d", "x": 2.0, "h": 4.0},
        ]),
    );
    check(
        server,
        "SELECT count(*) AS n, max(\"current\") AS c, max(voltage) AS v, min(voltage_unit) AS u FROM senml_cbor",
        json!([{"n": 6, "c": 1.7, "v": 120.1, "u": "V"}]),
    );
    check(
        server,
        "SELECT device_id, n, ok, label FROM csv ORDER BY device_id",
        json!([
            {"device_id": "dev-1", "n": 3.0, "ok": true, "label": "007"},
            {"device_id": "dev-2", "n": 4.5, "ok": false, "label": "-01"},
        ]),
    );
    check(
        server,
        "SELECT site, n, s FROM mixed_by_site ORDER BY site",
        json!([
            {"site": "north", "n": 1, "s": 3},
            {"site": "south", "n": 2, "s": 3},
            {"site": null, "n": 2, "s": 3},
        ]),
    );
    check(
        server,
        "SELECT stream, reason FROM dead ORDER BY stream",
        json!([
            {"stream": "cbor", "reason": "not usable as CBOR: at byte 49 a length of 4 is given, but only 1 bytes follow"},
            {"stream": "mixed", "reason": "no format has the content type `image/png`"},
        ]),
    );
}

#[test]
fn every_format_comes_out_as_rows_before_and_after_a_kill() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(CATALOG);
    publish(&server, messages());
    // The decoder follows the acknowledgement at once, but not before it.
    server.wait_for("the decoder", |status| {
        status["ingest"]["events"].as_u64() >= Some(24) && status["ingest"]["dead_letters"] == 2
    });
    check_all(&server);
    // Nothing is sealed yet: content types and properties come back out of the log.
    let server = server.kill_and_restart();
    check_all(&server);
    assert_eq!(server.verify(), 0);
    assert!(server.stop(), "the server did not end well");
}

#[test]
fn a_format_that_does_not_exist_is_refused_with_those_that_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let catalog = "kind: stream\nname: a\ntopics: [a]\nformat: protobuf\n";
    let ran = server.run(&["apply", "-f", "-"], catalog);
    assert_ne!(ran.code, 0);
    for word in
        ["protobuf", "json", "line_protocol", "cbor", "msgpack", "senml_json", "senml_cbor", "csv", "auto"]
    {
        assert!(ran.stderr.contains(word), "`{word}` is not in: {}", ran.stderr);
    }
    // `publish` can say what a payload is.
    server.apply("kind: stream\nname: a\ntopics: [\"a/{device_id}\"]\nformat: auto\nproperties: [site]\n");
    let broker = server.broker();
    let arguments = ["--content-type", "text/csv", "--property", "site=north", "--mqtt", &broker];
    iot_tests::iotctl(&[&["publish", "a/x", "v\n7\n"], &arguments[..]].concat());
    server.wait_for("the decoder", |status| status["ingest"]["events"] == 1);
    pause(std::time::Duration::from_millis(50));
    check(&server, "SELECT device_id, site, v FROM a", json!([{"device_id": "x", "site": "north", "v": 7}]));
}

#[test]
fn names_that_are_no_words_of_sql_are_columns_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = "kind: stream\nname: plant\ntopics: [\"plant/{device_id}\"]\nfields: {温度: double, x5700: double}\n---\n\
         kind: view\nname: warmest\nsql: SELECT device_id, max(温度) AS 最高, max(x5700) AS x5700 FROM plant GROUP BY device_id\n";
    let server = Server::with_catalog(dir.path(), "ingest: {seal_age: 200ms}\n", catalog, &[]);
    server.publish("plant/a", r#"{"温度": 20.5, "druck ä": 1, "5700": 21.5, "_id": 7}"#);
    server.publish("plant/a", r#"{"温度": 22, "druck è": 2}"#);
    let all = "SELECT 温度, druck_ä, druck_è, x5700, x_id FROM plant ORDER BY _seq";
    let rows = json!([
        {"温度": 20.5, "druck_ä": 1, "druck_è": null, "x5700": 21.5, "x_id": 7},
        {"温度": 22.0, "druck_ä": null, "druck_è": 2, "x5700": null, "x_id": null},
    ]);
    server.wait_for("the decoder", |status| status["ingest"]["events"] == 2);
    check(&server, all, rows.clone());
    server.wait_for_seal();
    server.batch(false);
    let server = server.kill_and_restart();
    check(&server, all, rows);
    check(&server, "SELECT * FROM warmest", json!([{"device_id": "a", "最高": 22.0, "x5700": 21.5}]));
    check(&server, "SELECT 温度, druck_è FROM plant_last", json!([{"温度": 22.0, "druck_è": 2}]));
    assert_eq!(server.verify(), 0);
}
