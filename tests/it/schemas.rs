//! Schemas through the whole line: the story of `docs/schemas.md`, from its page, and what it does not tell.

mod page;

use std::collections::BTreeSet;
use std::process::Command;

use iot_tests::{Server, python, workspace};
use serde_json::{Value, json};

use page::Page;

/// The page's commands give the page's answers; with a kill after each block too.
fn the_story(kills: bool) {
    let page = Page::open(&workspace().join("docs/schemas.md"), "## A story");
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let mut told = Vec::new();
    for block in page.blocks() {
        told.push(block.run(&server, dir.path()));
        if kills && block.is_console() {
            server = server.kill_and_restart();
        }
    }
    page.compare(&told);
    assert_eq!(server.verify(), 0);
}

#[test]
fn the_story_of_the_page_is_true() {
    the_story(false);
}

#[test]
fn the_story_of_the_page_is_true_with_a_kill_after_each_block() {
    the_story(true);
}

#[test]
fn the_page_has_the_table_of_rules_as_the_code_has_it() {
    let page = std::fs::read_to_string(workspace().join("docs/schemas.md")).expect("the page");
    let rules = iot_schemas::registry::rules::markdown();
    assert!(page.contains(&rules), "docs/schemas.md lacks:\n{rules}");
}

const V1: &str = "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\n\
                  fields: {old: bigint}\n";
const V2: &str = "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\n\
                  fields: {new: {type: double, unit: Cel, aliases: [old]}}\n";
const VIEW: &str = "---\nkind: view\nname: sums\nsql: SELECT device_id, count(*) AS n, sum(new) AS s FROM readings GROUP BY device_id\n\
                    batch: {every: 1d}\n";

fn publish(server: &Server, payloads: &[&str]) {
    let done = |status: &Value| {
        let count = |name: &str| status["ingest"][name].as_u64().unwrap_or_default();
        count("events") + count("dead_letters")
    };
    let before = done(&server.status());
    payloads.iter().for_each(|payload| server.publish("devices/a/telemetry", payload));
    server.wait_for("the decoder", |status| done(status) >= before + payloads.len() as u64);
}

/// Sealed and unsealed rows under the old name, rows under the new one: one column, in raw, in batch state, in views.
#[test]
fn old_rows_are_read_under_the_new_name_and_lack_new_columns() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(V1);
    publish(&server, &[r#"{"old": 1}"#, r#"{"old": 2}"#]);
    let server = server.stop_and_restart();
    publish(&server, &[r#"{"old": 4}"#]);
    server.apply(&format!("{V2}{VIEW}"));
    publish(&server, &[r#"{"old": 8.5}"#, r#"{"new": 16, "old": 16}"#, r#"{"new": 1, "old": 2}"#]);
    publish(&server, &[r#"{"new": 32, "found": "x"}"#]);
    let check = |server: &Server| {
        let rows = server.query("SELECT new, found FROM readings ORDER BY _seq");
        let new: Vec<f64> = rows.iter().map(|row| row["new"].as_f64().expect("a number")).collect();
        assert_eq!(new, [1.0, 2.0, 4.0, 8.5, 16.0, 32.0]);
        let found: Vec<&Value> = rows.iter().map(|row| &row["found"]).collect();
        let null = &Value::Null;
        assert_eq!(found, [null, null, null, null, null, &json!("x")]);
        let view = server.query("SELECT n, s FROM sums");
        assert_eq!(view, [json!({"n": 6, "s": 63.5})]);
        let dead = server.query("SELECT reason, schema_version FROM dead");
        assert_eq!(dead.len(), 1, "{dead:?}");
        assert_eq!(dead[0]["schema_version"], 2);
        assert!(dead[0]["reason"].as_str().is_some_and(|why| why.contains("different values")), "{dead:?}");
        assert_eq!(server.verify(), 0);
    };
    check(&server);
    let server = server.kill_and_restart();
    check(&server);
    server.wait_for_seal();
    server.batch(true);
    check(&server);
    assert_eq!(server.query_layer("SELECT n, s FROM sums", "batch"), [json!({"n": 6, "s": 63.5})]);

    // Programs that read the open table see both columns, and nulls where files are older than a column.
    let Some(python) = python("duckdb") else { return };
    let files = server.data_dir.join("raw/readings/**/*.parquet");
    let script = format!(
        "import duckdb, json\nprint(json.dumps(duckdb.sql(\"SELECT old, new, found FROM read_parquet('{}', \
         union_by_name = true, hive_partitioning = true) ORDER BY _seq\").fetchall()))",
        files.display()
    );
    let output = Command::new(python).args(["-c", &script]).output().expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(rows[0], json!([1, null, null]), "{rows}");
    assert_eq!(rows[5], json!([null, 32.0, "x"]), "{rows}");
}

/// Both `schema check` and `apply` refuse `catalog`, and say these words.
#[track_caller]
fn refused(server: &Server, catalog: &str, words: &[&str]) {
    for command in [&["schema", "check", "-"][..], &["apply", "-f", "-"]] {
        let ran = server.run(command, catalog);
        let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
        assert_eq!(ran.code, 1, "{command:?}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{command:?}: `{word}`: {said}"));
    }
}

#[test]
fn a_check_refuses_whatever_apply_refuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let stream = |fields: &str| V1.replace("{old: bigint}", fields);
    refused(&server, &stream("{temp: double, Temp: double}"), &["only by case"]);
    let many: Vec<String> = (0..1_001).map(|i| format!("c{i}: double")).collect();
    refused(&server, &stream(&format!("{{{}}}", many.join(", "))), &["more than 1000 columns"]);
    refused(&server, &format!("{V1}---\n{V2}"), &["`readings` is defined twice"]);
    refused(&server, &format!("{V1}{VIEW}"), &["new"]);
    refused(&server, "kind: rule\nname: r\non: nothing\nwhen: x > 1\n", &["nothing"]);
    server.apply(V1);
    server.iotctl(&["delete", "stream", "readings"]);
    refused(&server, &stream("{old: text}"), &["change type"]);
    let good = server.run(&["schema", "check", "-"], V1);
    assert_eq!(good.code, 0, "{}", good.stderr);
}

const RULE: &str = "---\nkind: rule\nname: hot\non: readings\nwhen: Found > 3\n";

#[test]
fn a_column_in_use_does_not_fall_silent() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let view = VIEW.replace("new", "old");
    server.apply(V1);
    publish(&server, &[r#"{"old": 1, "found": 2, "more": 3}"#]);
    server.apply(&format!("{V1}{view}{RULE}"));
    let ignoring = |fields: &str| {
        V1.replace("fields: {old: bigint}", &format!("unknown_fields: ignore\nfields: {{{fields}}}"))
    };
    let (by_view, by_rule) = ("view `sums` reads it", "rule `hot` reads it");
    refused(&server, &ignoring(""), &["stop filling a column in use", by_view, by_rule, "declare the field"]);
    refused(&server, &ignoring("old: bigint"), &[by_rule]);
    refused(&server, &ignoring("found: bigint").replace("ignore", "reject"), &[by_view]);
    // Nothing reads `more`, and what reads the others may do without them from then on.
    server.apply(&ignoring("old: bigint, found: bigint"));
    let rule = RULE.replace("Found", "old");
    server.apply(&format!("{}{rule}", ignoring("old: bigint")));
    assert_eq!(server.verify(), 0);
}

#[test]
fn a_column_that_is_renamed_twice_has_the_values_of_both_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(V1);
    publish(&server, &[r#"{"old": 1}"#]);
    server.apply(V2);
    publish(&server, &[r#"{"new": 2.5}"#, r#"{"old": 4}"#]);
    let server = server.stop_and_restart();
    let newest =
        |unit: &str| V2.replace("new:", "newest:").replace("[old]", "[old, new]").replace("Cel", unit);
    refused(&server, &newest("K"), &["change unit", "of `new` from `Cel` to `K`"]);
    server.apply(&newest("Cel"));
    publish(&server, &[r#"{"newest": 8}"#, r#"{"new": 16}"#, r#"{"old": 32}"#]);
    let check = |server: &Server| {
        let rows = server.query("SELECT newest FROM readings ORDER BY _seq");
        let values: Vec<f64> = rows.iter().map(|row| row["newest"].as_f64().expect("a number")).collect();
        assert_eq!(values, [1.0, 2.5, 4.0, 8.0, 16.0, 32.0]);
    };
    check(&server);
    server.apply(&newest("Cel"));
    let server = server.kill_and_restart();
    check(&server);
    server.wait_for_seal();
    check(&server);
}

#[test]
fn what_would_break_data_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let view = VIEW.replace("new", "old");
    server.apply(&format!("{V1}{view}"));
    let check = |catalog: &str, words: &[&str]| refused(&server, catalog, words);
    // The view would not get new values any more, and would not say so.
    check(V2, &["view `sums`", "read the new column"]);
    check(&V1.replace("bigint", "text"), &["change type", "field of another name"]);
    let both = format!("{V2}{VIEW}");
    let good = server.run(&["schema", "check", "-", "--format", "jsonl"], &both);
    assert_eq!(good.code, 0, "{}", good.stderr);
    server.apply(&both);
    server.apply(&both);
    check(&V1.replace("fields", "unknown_fields: ignore\nfields"), &["undo rename", "among the aliases"]);
    check(&V2.replace("Cel", "K"), &["change unit", "`Cel`", "`K`"]);
    let list = server.get("/v1/streams/readings/schemas");
    let numbers: Vec<&Value> =
        list["items"].as_array().expect("a list").iter().map(|v| &v["version"]).collect();
    assert_eq!(numbers, [2, 1], "neither a refusal nor the same again makes a version");
    assert_eq!(server.get("/v1/streams/readings/schema?version=1")["columns"][0]["name"], "old");
    assert_eq!(server.get_text("/v1/streams/readings/schema?version=9").0, 404);
    assert_eq!(server.get_text("/v1/streams/nobody/schema").0, 404);
    let ran = server.run(&["schema", "show", "nobody"], "");
    assert!(ran.code == 1 && ran.stderr.contains("schema list"), "{}", ran.stderr);
    let upcast = format!("{V2}upcast: [{{when: 'true', set: {{new: random()}}}}]\n");
    let ran = server.run(&["apply", "-f", "-"], &upcast);
    assert!(ran.code != 0 && ran.stderr.contains("another value the next time"), "{}", ran.stderr);
}

#[test]
fn many_inferred_versions_come_back_after_a_kill_as_they_were() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let payloads: Vec<String> = (0..12)
        .flat_map(|i| {
            [format!("{{\"f{i}\": 1}}"), format!("{{\"f{i}\": 1.5}}"), format!("{{\"f{i}\": \"x\"}}")]
        })
        .collect();
    publish(&server, &payloads.iter().map(String::as_str).collect::<Vec<_>>());
    let versions = |server: &Server| server.get("/v1/streams/events/schemas")["items"].clone();
    let dead = |server: &Server| server.query("SELECT _seq, reason, schema_version FROM dead ORDER BY _seq");
    let (list, letters) = (versions(&server), dead(&server));
    assert_eq!(list.as_array().map(Vec::len), Some(25), "{list}");
    let named: BTreeSet<i64> =
        letters.iter().filter_map(|letter| letter["schema_version"].as_i64()).collect();
    assert_eq!(named, (0..12).map(|i| 3 + 2 * i).collect(), "each letter names the version of its moment");
    let server = server.kill_and_restart();
    assert_eq!((versions(&server), dead(&server)), (list.clone(), letters.clone()));
    let server = server.stop_and_restart();
    assert_eq!((versions(&server), dead(&server)), (list, letters));
}

/// Asked for as everybody has it, it is a stream like any other, together with others and before them.
#[test]
fn the_stream_that_everybody_begins_with_stays_if_it_is_asked_for() {
    const EVENTS: &str = "kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\"]\n";
    const OTHER: &str = "kind: stream\nname: other\ntopics: [other]\n";
    let dir = tempfile::tempdir().expect("a directory");
    for (folder, applied) in
        [("both", &[[EVENTS, OTHER].join("---\n")][..]), ("one", &[EVENTS.into(), OTHER.into()])]
    {
        let server = Server::start(&dir.path().join(folder), &[]);
        applied.iter().for_each(|yaml| server.apply(yaml));
        let server = server.kill_and_restart();
        server.publish("devices/a/telemetry", "{\"v\":1}");
        server.wait_for("the decoder", |status| status["ingest"]["events"] == 1);
        assert_eq!(server.number("SELECT count(*) FROM events"), 1, "{folder}");
    }
    // Nobody has asked for it here, and nothing has come.
    let server = Server::start(&dir.path().join("none"), &[]);
    server.apply(OTHER);
    let streams = server.get("/v1/catalog/streams")["items"].clone();
    assert_eq!(streams.as_array().map(Vec::len), Some(1), "{streams}");
}
