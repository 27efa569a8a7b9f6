//! Every payload below `ingest/golden` against the rows that it must give, or the reason why it gives none.
//!
//! A folder is a stream (`stream.yaml`); beside a payload stands what becomes of it (`.expect`). With `IOT_BLESS=1`
//! the test writes these files, to be read before they are committed.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use iot_schemas::layout::DEVICE_ID;

use super::tests::{Bench, Shown};

fn folder(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

fn outcome(stream: &str, payload: &[u8]) -> String {
    let mut bench = Bench::new(stream);
    let topic = bench.def.topics[0].to_string().replace("{device_id}", "dev-1");
    if let Err(reason) = bench.take(&topic, payload) {
        return format!("dead: {reason}\n");
    }
    let mut text = format!("event_time | {DEVICE_ID}");
    for (name, data_type) in bench.columns() {
        write!(text, " | {name} {}", Shown(&data_type)).expect("text grows");
    }
    text + "\n" + &bench.rows() + "\n"
}

#[test]
fn golden_payloads_give_the_rows_that_they_must() {
    let bless = std::env::var_os("IOT_BLESS").is_some_and(|value| value == "1");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let (mut payloads, mut different) = (0, Vec::new());
    // Sparkplug's are a story, in which each message depends on those before; it is told beside its decoder.
    for dir in folder(&root).iter().filter(|path| path.is_dir() && !path.ends_with("sparkplug")) {
        let stream = fs::read_to_string(dir.join("stream.yaml")).expect("a folder has a stream");
        for path in folder(dir) {
            if path.extension().is_some_and(|extension| extension == "yaml" || extension == "expect") {
                continue;
            }
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let found = outcome(&stream, &fs::read(&path).expect("a readable file"));
            assert_eq!(found.starts_with("dead: "), name.starts_with("dead_"), "{}: {found}", path.display());
            let expect = path.with_file_name(name + ".expect");
            if bless {
                fs::write(&expect, &found).expect("a writable folder");
            }
            if fs::read_to_string(&expect).unwrap_or_default() != found {
                different.push(format!("{}\n{found}", path.display()));
            }
            payloads += 1;
        }
    }
    assert!(different.is_empty(), "not as expected:\n{}", different.join("\n"));
    assert!(payloads > 100, "only {payloads} payloads were found");
}
