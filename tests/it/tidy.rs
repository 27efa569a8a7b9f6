//! The house: which crate may know which, and what lies at the top.

use std::collections::{BTreeMap, BTreeSet};

use iot_tests::workspace;

/// Each crate and those of ours that it may depend on. All edges point down to the vocabulary.
const EDGES: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("ingest", &["iot-schemas"]),
    ("speed-layer", &["iot-schemas"]),
    ("batch-layer", &["iot-schemas"]),
    ("serving", &["iot-schemas"]),
    ("cli", &["iot-schemas", "iot-ingest", "iot-speed-layer", "iot-batch-layer", "iot-serving"]),
];

/// What may lie at the top, beside dot files.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "cli",
    "ingest",
    "speed-layer",
    "batch-layer",
    "serving",
    "schemas",
    "tests",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "clippy.toml",
    "rustfmt.toml",
    "deny.toml",
    "docs",
    "deploy",
    "target",
    "data",
];

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let ours = |line: &str| {
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        (name.starts_with("iot-") || name == "iotctl").then(|| name.to_owned())
    };
    let section =
        manifest.split("\n[").find(|section| section.starts_with("dependencies]")).unwrap_or_default();
    section.lines().filter_map(ours).collect()
}

#[test]
fn the_crates_know_only_whom_they_may() {
    for (folder, allowed) in EDGES {
        let path = workspace().join(folder).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).expect("each crate has a manifest");
        let allowed: BTreeSet<String> = allowed.iter().map(ToString::to_string).collect();
        let found = dependencies(&manifest);
        assert!(found.is_subset(&allowed), "{folder} depends on {found:?}, it may depend on {allowed:?}");
    }
}

#[test]
fn the_top_level_is_clean() {
    for entry in std::fs::read_dir(workspace()).expect("the workspace") {
        let name = entry.expect("an entry").file_name().into_string().expect("utf-8");
        assert!(name.starts_with('.') || TOP.contains(&name.as_str()), "`{name}` does not belong at the top");
    }
}

#[test]
fn the_lock_file_has_one_version_of_what_must_fit_together() {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).expect("a lock file");
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(quoted) = line.strip_prefix("name = ") {
            name = quoted.trim_matches('"');
        } else if let Some(version) = line.strip_prefix("version = ") {
            versions.entry(name).or_default().insert(version.trim_matches('"'));
        }
    }
    for one in
        ["arrow", "arrow-array", "parquet", "datafusion", "object_store", "deltalake", "rustls", "axum"]
    {
        assert_eq!(versions.get(one).map(BTreeSet::len), Some(1), "{one}: {:?}", versions.get(one));
    }
}
