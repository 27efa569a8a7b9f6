//! Events over HTTP: line protocol as InfluxDB's clients send it, JSON lines, and what becomes of bad ones.

use std::path::Path;
use std::process::Command;

use iot_tests::{Server, external, wait_a_little};
use serde_json::json;

const CATALOG: &str = "kind: stream\nname: readings\ntopics: ['sites/{site}/{device_id}/telemetry']\n\
    event_time: {field: ts, unit: ms}\nfields: {temperature: double}\n\
    ---\nkind: view\nname: by_site\nsql: SELECT site, count(*) AS n, max(temperature) AS hottest FROM readings GROUP BY site\n";

/// The status of a POST of the file.
fn post(server: &Server, curl: &Path, path: &str, headers: &[&str], file: &Path) -> String {
    let mut command = Command::new(curl);
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary"]);
    command.arg(format!("@{}", file.display()));
    headers.iter().for_each(|header| _ = command.args(["-H", header]));
    let done = command.arg(format!("{}{path}", server.url())).output().expect("curl runs");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn wait_for(server: &Server, sql: &str, expect: i64) {
    let deadline = std::time::Instant::now() + iot_tests::PATIENCE;
    while server.number(sql) != expect {
        assert!(std::time::Instant::now() < deadline, "{sql}: {} and not {expect}", server.number(sql));
        wait_a_little();
    }
}

#[test]
fn events_are_written_over_http_and_outlast_a_kill() {
    let Some(curl) = external("curl") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(CATALOG);
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let lines = file(
        "lines",
        "m,site=north,device_id=a temperature=21.5 1760000000\nm,site=south,device_id=b temperature=22i 1760000001\n",
    );
    let gzip = Command::new("gzip").arg("-k").arg(&lines).status().expect("gzip runs");
    assert!(gzip.success());
    let zipped = lines.with_extension("gz");
    let text = &["Content-Type: text/plain; charset=utf-8"][..];
    let of_telegraf =
        &["Content-Type: text/plain; charset=utf-8", "Content-Encoding: gzip", "Authorization: Token x"];
    assert_eq!(
        post(&server, &curl, "/api/v2/write?org=o&bucket=readings&precision=s", of_telegraf, &zipped),
        "204"
    );
    assert_eq!(post(&server, &curl, "/v1/write?stream=readings&precision=s", text, &lines), "204");
    let json = file(
        "json",
        "{\"ts\":1760000002000,\"device_id\":\"c\",\"site\":\"north\",\"temperature\":30}\n\n{\"ts\":1760000003000,\"device_id\":\"c\"}\n",
    );
    let ndjson = &["Content-Type: application/x-ndjson"][..];
    assert_eq!(post(&server, &curl, "/v1/write?stream=readings", ndjson, &json), "204");
    // Acknowledged is durable.
    let server = server.kill_and_restart();
    wait_for(&server, "SELECT count(*) FROM readings", 6);
    wait_for(&server, "SELECT coalesce(sum(n), 0) FROM by_site", 6);
    assert_eq!(
        server.query("SELECT site, n, hottest FROM by_site ORDER BY site"),
        [
            json!({"site": "north", "n": 3, "hottest": 30.0}),
            json!({"site": "south", "n": 2, "hottest": 22.0}),
            json!({"site": null, "n": 1, "hottest": null}),
        ]
    );
    let first =
        server.query("SELECT device_id, event_time, _topic FROM readings ORDER BY _seq, _index LIMIT 1");
    assert_eq!(
        first,
        [json!({"device_id": "a", "event_time": "2025-10-09T08:53:20Z", "_topic": "#write/readings"})]
    );
    // A message of MQTT afterwards has its site from the topic again.
    server.publish("sites/west/d/telemetry", r#"{"ts":1760000004000,"site":"east","temperature":1}"#);
    wait_for(&server, "SELECT count(*) FROM readings WHERE site = 'west' AND device_id = 'd'", 1);

    // Telegraf says nothing of its times, which are nanoseconds whatever the stream's own events count in.
    let ns = file("ns", "m,site=north,device_id=t temperature=20 1760000006000000000\n");
    for path in ["/api/v2/write?org=o&bucket=readings", "/write?db=readings", "/v1/write?stream=readings"] {
        assert_eq!(post(&server, &curl, path, text, &ns), "204");
    }
    let then = "SELECT count(*) FROM readings WHERE device_id = 't' AND event_time = '2025-10-09T08:53:26Z'";
    wait_for(&server, then, 3);
    let brotli = &["Content-Encoding: br"][..];
    assert_eq!(post(&server, &curl, "/v1/write?stream=readings", brotli, &ns), "415");

    // All lines of a body or none, and the reason can be read.
    let bad = file("bad", "m,site=north,device_id=a temperature=1 1760000005\nm,site=north temperature=1\n");
    assert_eq!(post(&server, &curl, "/v1/write?stream=readings&precision=s", text, &bad), "204");
    wait_for(&server, "SELECT count(*) FROM dead", 1);
    let reason = server.query("SELECT reason, content_type FROM dead").pop().expect("one");
    assert!(reason["reason"].as_str().is_some_and(|reason| reason.contains("device_id")), "{reason}");
    assert_eq!(reason["content_type"], "application/vnd.influx.line-protocol; precision=s");
    // Nothing has changed, so the replay fails again; it finds its way to the stream.
    let again = server.post_text("/v1/dead/replay", &json!({"stream": "readings", "by": "test"}).to_string());
    assert_eq!((&again["done"], &again["dead_again"]), (&json!(1), &json!(1)), "{again}");
    assert_eq!(post(&server, &curl, "/v1/write?stream=nowhere", text, &lines), "404");
    // The log would keep only its beginning, so it is not acknowledged.
    let large = file("large", &"m,device_id=a temperature=1\n".repeat(200_000));
    assert_eq!(post(&server, &curl, "/v1/write?stream=readings", text, &large), "413");
    assert_eq!(server.verify(), 0);
}
