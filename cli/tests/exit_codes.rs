//! The program itself: what scripts rely on before any server runs.

use std::process::{Command, Output};

fn iotctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iotctl"))
        .args(args)
        .env_remove("IOTCTL_URL")
        .output()
        .expect("the program starts")
}

fn check(args: &[&str], code: i32, says: &str) {
    let output = iotctl(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(says), "{args:?} should say `{says}`: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: only results go to stdout");
}

#[test]
fn a_wrong_command_line_is_usage() {
    check(&["frobnicate"], 2, "frobnicate");
    check(&["query", "--format", "xls", "SELECT 1"], 2, "xls");
    check(&["demo", "--for", "often"], 2, "often");
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    check(&["status", "--url", "http://127.0.0.1:1"], 69, "iotctl serve");
}

#[test]
fn a_wrong_catalog_is_bad_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("catalog.yaml");
    std::fs::write(&file, "kind: stream\nname: s\ntopicz: [a]\n").expect("written");
    check(&["validate", file.to_str().expect("utf-8")], 78, "topicz");
}

#[test]
fn an_address_that_others_can_reach_needs_consent() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().to_str().expect("utf-8");
    check(&["serve", "--data-dir", data, "--http", "0.0.0.0:0"], 78, "--insecure");
}
