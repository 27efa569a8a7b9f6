//! The catalog: the YAML documents that say what streams, views and rules exist.

mod column_name;
mod device;
mod rule;
mod stream;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use column_name::{column_name, is_column_name};
pub use device::DeviceDef;
pub use rule::{RuleDef, Severity};
pub use stream::{
    Compression, CsvDef, EventTimeDef, FieldDef, FieldType, Format, FutureEvents, OnPressure, RateLimit,
    SPARKPLUG_COLUMNS, StatusDef, StreamDef, TimeLimits, TimeUnitName, UnknownFields, UpcastDef, Words,
};
pub use view::{BatchSchedule, ViewDef};

use crate::error::{Error, Result};
use crate::topic::is_name;
use crate::view::last_values_name;

/// What a document defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A typed table of raw events.
    Stream,
    /// A windowed aggregate over a stream.
    View,
    /// An alert condition.
    Rule,
    /// A device that is known before it sends anything.
    Device,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::View => "view",
            Self::Rule => "rule",
            Self::Device => "device",
        })
    }
}

/// One parsed document together with the text it came from, which is what the store keeps.
#[derive(Debug, Clone)]
pub struct Document {
    /// The definition.
    pub def: Definition,
    /// The YAML text, without the `---` around it.
    pub text: String,
}

/// A parsed definition.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// `kind: stream`
    Stream(Arc<StreamDef>),
    /// `kind: view`
    View(Arc<ViewDef>),
    /// `kind: rule`
    Rule(Arc<RuleDef>),
    /// `kind: device`
    Device(Arc<DeviceDef>),
}

impl Definition {
    /// What it defines.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Stream(_) => Kind::Stream,
            Self::View(_) => Kind::View,
            Self::Rule(_) => Kind::Rule,
            Self::Device(_) => Kind::Device,
        }
    }

    /// Its name, unique within its kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Stream(def) => &def.name,
            Self::View(def) => &def.name,
            Self::Rule(def) => &def.name,
            Self::Device(def) => &def.name,
        }
    }
}

/// All definitions in force.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    documents: BTreeMap<(Kind, String), Document>,
}

impl Catalog {
    /// The catalog of a server that was given none: the stream `events`.
    pub fn with_default_stream() -> Self {
        let documents = parse(DEFAULT_CATALOG, "the default catalog").expect("the default catalog parses");
        let mut catalog = Self::default();
        for document in documents {
            catalog.put(document);
        }
        catalog
    }

    /// Adds or replaces a definition.
    pub fn put(&mut self, document: Document) {
        let key = (document.def.kind(), document.def.name().to_owned());
        self.documents.insert(key, document);
    }

    /// Takes a definition out.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Option<Document> {
        self.documents.remove(&(kind, name.to_owned()))
    }

    /// Looks a definition up.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Document> {
        self.documents.get(&(kind, name.to_owned()))
    }

    /// All documents: streams, then views, then rules, then devices, each by name.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.documents.values()
    }

    /// The streams by name.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<StreamDef>> {
        self.documents().filter_map(|d| if let Definition::Stream(def) = &d.def { Some(def) } else { None })
    }

    /// The streams of which a last-value view is kept: all that want it, unless another definition has its name.
    pub fn last_values(&self) -> impl Iterator<Item = &Arc<StreamDef>> {
        let taken =
            |name: &str| [Kind::Stream, Kind::View].iter().any(|kind| self.get(*kind, name).is_some());
        self.streams().filter(move |stream| stream.last_values && !taken(&last_values_name(&stream.name)))
    }

    /// The views by name.
    pub fn views(&self) -> impl Iterator<Item = &Arc<ViewDef>> {
        self.documents().filter_map(|d| if let Definition::View(def) = &d.def { Some(def) } else { None })
    }

    /// The rules by name.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<RuleDef>> {
        self.documents().filter_map(|d| if let Definition::Rule(def) = &d.def { Some(def) } else { None })
    }

    /// The declared devices by name.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<DeviceDef>> {
        self.documents().filter_map(|d| if let Definition::Device(def) = &d.def { Some(def) } else { None })
    }
}

const DEFAULT_CATALOG: &str = "\
kind: stream
name: events
topics: [\"devices/{device_id}/telemetry\"]
format: json
unknown_fields: add
";

/// Parses a file of documents, separated by lines of `---`. `origin` names the file in errors.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (first_line, chunk) in split(text) {
        if chunk.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        let def = parse_one(chunk)
            .map_err(|why| Error::invalid(format!("{origin}, document at line {first_line}: {why}")))?;
        documents.push(Document { def, text: chunk.trim_matches('\n').to_owned() + "\n" });
    }
    Ok(documents)
}

/// The chunks between `---` lines, each with the number of its first line.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" {
            chunks.push((start_line, &text[start..offset]));
            start = offset + line.len();
            start_line = number + 2;
        }
        offset += line.len();
    }
    chunks.push((start_line, &text[start..]));
    chunks
}

fn parse_one(text: &str) -> Result<Definition, String> {
    #[derive(Deserialize)]
    struct Head {
        kind: Option<String>,
        name: Option<String>,
    }
    let head: Head = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let kind = head.kind.ok_or("`kind` is missing; it is one of stream, view, rule, device")?;
    let name = head.name.ok_or_else(|| format!("the {kind} has no `name`"))?;
    if kind == "device" {
        device::check_name(&name)?;
    } else if !is_name(&name) {
        return Err(format!("`{name}` is no name; use letters, digits and `_`, not starting with a digit"));
    }
    let context = |e: serde_saphyr::Error| format!("{kind} `{name}`: {e}");
    let def = match kind.as_str() {
        "stream" => {
            let def: StreamDef = serde_saphyr::from_str(text).map_err(context)?;
            Definition::Stream(Arc::new(def.complete()))
        }
        "view" => Definition::View(Arc::new(serde_saphyr::from_str(text).map_err(context)?)),
        "rule" => Definition::Rule(Arc::new(serde_saphyr::from_str(text).map_err(context)?)),
        "device" => Definition::Device(Arc::new(serde_saphyr::from_str(text).map_err(context)?)),
        other => return Err(format!("`{other}` is no kind; it is one of stream, view, rule, device")),
    };
    let checked = match &def {
        Definition::Stream(def) => def.check(),
        Definition::View(def) => def.check(),
        Definition::Rule(def) => def.check(),
        Definition::Device(def) => def.check(),
    };
    checked.map_err(|why| format!("{kind} `{name}`: {why}"))?;
    Ok(def)
}

/// Durations as people write them: `10s`, `5m`, `400d`.
pub mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Reads `10s`, `1m 30s`, `400d`.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        let text: Option<String> = Option::deserialize(d)?;
        text.map(|text| {
            humantime::parse_duration(&text).map_err(|e| {
                serde::de::Error::custom(format!("`{text}` is no duration ({e}); write 30s, 5m, 400d"))
            })
        })
        .transpose()
    }

    /// Writes what [`deserialize`] reads.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => s.serialize_str(&humantime::format_duration(*duration).to_string()),
            None => s.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]      # MQTT filter with named levels
format: json
event_time: {field: ts, unit: ms}
fields: {temperature: double, humidity: double, status: text}
unknown_fields: add
dedup: [device_id, event_time]
cadence: 10s
allowed_lateness: 1m
retention: 30d
---
kind: view
name: climate_1m
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start,
         count(*) AS n FROM readings GROUP BY device_id, window_start
batch: {every: 5m}
retention: 400d
---
kind: rule
name: overheating
on: climate_1m
when: avg_temperature > 80
clear_when: avg_temperature < 75
for: 2m
keep_firing_for: 1m
severity: critical
labels: {team: plant}
annotations: {summary: "{device_id} at {avg_temperature} C"}
notify: [ops-webhook]
"#;

    #[test]
    fn the_documents_of_the_manual_parse() {
        let documents = parse(CONTRACT, "test").expect("they parse");
        let kinds: Vec<_> = documents.iter().map(|d| (d.def.kind(), d.def.name().to_owned())).collect();
        assert_eq!(
            kinds,
            [
                (Kind::Stream, "readings".into()),
                (Kind::View, "climate_1m".into()),
                (Kind::Rule, "overheating".into())
            ]
        );
        let Definition::Rule(rule) = &documents[2].def else { panic!("a rule") };
        assert_eq!(rule.hold, Some(std::time::Duration::from_secs(120)));
    }

    #[test]
    fn the_limits_of_event_time_have_defaults() {
        let limits = |more: &str| {
            let text = format!("kind: stream\nname: a\ntopics: [x]\n{more}");
            let documents = parse(&text, "test").expect("it parses");
            let Definition::Stream(def) = &documents[0].def else { panic!("a stream") };
            def.time_limits()
        };
        let seconds = |lateness, idle, future, lag| {
            [lateness, idle, future, lag].map(|seconds: i64| seconds * 1_000_000)
        };
        let check = |more: &str, expect: [i64; 4]| {
            let got = limits(more);
            assert_eq!([got.lateness, got.idle, got.future, got.lag], expect, "{more}");
        };
        check("", seconds(0, 60, 3_600, 86_400));
        check("cadence: 1s", seconds(0, 60, 3_600, 86_400));
        check("cadence: 30s\nallowed_lateness: 5s", seconds(5, 300, 3_600, 86_400));
        check("idle_timeout: 2s\ncadence: 30s\nmax_future: 1s\nmax_lag: 1m", seconds(0, 2, 1, 60));
    }

    #[test]
    fn settings_of_payloads_are_checked() {
        let check = |more: &str, expect: &[&str]| {
            let text = format!("kind: stream\nname: a\ntopics: [\"x/{{site}}\"]\n{more}");
            let outcome = parse(&text, "test").map_err(|e| e.to_string());
            match (&outcome, expect) {
                (Ok(_), []) => {}
                (Err(e), words) if !words.is_empty() => {
                    words.iter().for_each(|word| assert!(e.contains(word), "{more}: {e}"));
                }
                _ => panic!("{more}: {outcome:?}"),
            }
        };
        for format in Format::ALL.into_iter().filter(|format| *format != Format::SparkplugB) {
            check(&format!("format: {}", format.word()), &[]);
        }
        let all = Format::ALL.map(Format::word);
        check("format: xml", &[&["xml"], &all[..]].concat());
        check("compression: lz4", &["lz4", "auto", "gzip", "zstd", "none"]);
        check("format: cbor\nrows: readings", &[]);
        check("format: csv\nrows: readings", &["`rows`", "json, cbor, msgpack and auto", "`csv`"]);
        check("format: csv\ncsv: {columns: [ts, v], delimiter: \";\"}", &[]);
        check("format: csv\ncsv: {delimiter: \"||\"}", &["||"]);
        check("format: csv\ncsv: {delimiter: \"\\\"\"}", &["delimiter"]);
        check("csv: {columns: [a]}", &["`csv`", "csv and auto"]);
        check("format: senml_json\nevent_time: {field: t}", &["SenML", "event_time"]);
        check("format: line_protocol\nevent_time: {unit: s}", &[]);
        check("properties: [plant, x-unit]\ndedup: [plant, x_unit]", &[]);
        check("properties: [site]", &["property `site` collides"]);
        check("properties: [a-b, a b]", &["property `a b` collides with the column `a_b`"]);
        check("properties: [9]", &[]);
        check("properties: [\"-\"]", &["property `-` cannot be a column name"]);
        check("properties: [event_time]", &["collides"]);
        let aliases = |aliases: &str, expect: &[&str]| {
            let fields = format!("fields: {{v: {{type: double, aliases: [{aliases}]}}, w: bigint}}");
            check(&format!("properties: [plant]\n{fields}"), expect);
        };
        aliases("V, val, a-b", &[]);
        aliases("w", &["alias `w` of `v` leads to `w`"]);
        aliases("W", &["leads to `w`"]);
        aliases("v", &["the name of a column"]);
        aliases("site", &["the name of a column"]);
        aliases("plant", &["the name of a column"]);
        aliases("_seq", &["the name of a column"]);
        aliases("ts", &["event time"]);
        aliases("9, \"5700\"", &[]);
        aliases("\"-\"", &["the name of no field"]);
        check("fields: {v: {type: text, aliases: [x]}, w: {type: text, aliases: [X]}}", &["leads to `v`"]);
        check("fields: {v: {type: double, unit: \" \"}}", &["cannot be empty"]);
        let upcast = |step: &str, expect: &[&str]| {
            check(&format!("fields: {{v: double}}\nupcast: [{{when: \"version = 1\", {step}}}]"), expect);
        };
        upcast("set: {v: f / 2}, drop: [f]", &[]);
        upcast("set: {v: random()}", &["step 1", "another value the next time"]);
        upcast("set: {w: f}", &["`w`", "no declared field"]);
        upcast("set: {v: f +}", &["step 1, `v`"]);
        check("format: auto\nupcast: [{when: a, drop: [a]}]", &[]);
    }

    #[test]
    fn a_sparkplug_stream_needs_no_topics_and_takes_no_times() {
        let parse =
            |more: &str| parse(&format!("kind: stream\nname: a\nformat: sparkplug_b\n{more}"), "test");
        let documents = parse("").expect("it parses");
        let Definition::Stream(def) = &documents[0].def else { panic!("a stream") };
        assert_eq!(def.topics.iter().map(ToString::to_string).collect::<Vec<_>>(), ["spBv1.0/#"]);
        parse("topics: [\"spBv1.0/{group_id}/+/{edge_node}/#\"]")
            .expect("levels may have the names they have");
        for (more, word) in [
            ("topics: [\"a/#\"]", "must begin with `spBv1.0/`"),
            ("topics: [\"spBv1.0/g/+/{device_id}\"]", "`device_id`"),
            ("event_time: {field: ts}", "`event_time`"),
            ("fields: {group_id: text}", "`group_id`"),
        ] {
            let error = parse(more).expect_err(more).to_string();
            assert!(error.contains(word) && error.contains("sparkplug_b"), "{error}");
        }
    }

    #[test]
    fn devices_may_have_the_names_that_devices_have() {
        let parse = |text: &str| parse(text, "test").map_err(|e| e.to_string());
        let several = "kind: device\nname: plant/n 1/π\nlabels: {site: north}\ncadence: 10s\n---\nkind: device\nname: \"42\"\nstream: a\n";
        let documents = parse(several).expect("they parse");
        let Definition::Device(def) = &documents[0].def else { panic!("a device") };
        assert_eq!((def.name.as_str(), def.labels["site"].as_str()), ("plant/n 1/π", "north"));
        assert!(def.is_in("anything"));
        let Definition::Device(def) = &documents[1].def else { panic!("a device") };
        assert!(def.is_in("a") && !def.is_in("b"));
        let error = |text: &str, word: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word), "{error}");
        };
        error("kind: device\nname: \"\"\n", "bytes");
        error("kind: device\nname: \"a\\tb\"\n", "control character");
        error(&format!("kind: device\nname: {}\n", "x".repeat(513)), "513");
        error("kind: device\nname: a\ncadence: 0s\n", "`cadence`");
        error("kind: device\nname: a\nlabel: {}\n", "label");
        error("kind: view\nname: a/b\nsql: SELECT 1\n", "`a/b` is no name");
    }

    #[test]
    fn an_error_names_file_line_and_cause() {
        let text = "kind: stream\nname: a\ntopics: [x]\n---\nkind: view\nname: b\nsqk: oops\n";
        let error = parse(text, "c.yaml").expect_err("a typo").to_string();
        assert!(error.contains("c.yaml, document at line 5") && error.contains("sqk"), "{error}");
    }

    #[test]
    fn a_server_without_catalog_has_the_stream_events() {
        let catalog = Catalog::with_default_stream();
        assert_eq!(catalog.streams().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["events"]);
    }
}
