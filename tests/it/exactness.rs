//! Real readings through real brokers: at every moment of a view's life, each count, sum, minimum, maximum and
//! average per device and window is the one that DuckDB computes from the file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use iot_tests::{Mosquitto, PATIENCE, Server, iotctl, python, shared, wait_a_little, workspace};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// The views, with the length of their windows in microseconds.
const VIEWS: [(&str, &str, u64); 2] =
    [("by_minute", "1 minute", 60_000_000), ("by_hour", "1 hour", 3_600_000_000)];
/// Epochs are sealed sooner than in earnest, so that there are many of them, and the schedule never runs.
const CONFIG: &str = "ingest: {seal_age: 400ms}\n";
/// How often a part of the file is sent again, amid batch runs and followed by one: one more than compaction needs.
const ROUNDS: u64 = 11;

#[test]
fn truck_readings_through_mosquitto() {
    let (Some(trucks), Some(mosquitto)) = (trucks(), Mosquitto::start()) else { return };
    Run::scenario(trucks, Some(mosquitto), &[]);
}

#[test]
fn truck_readings_through_the_embedded_broker_a_fifth_of_them_late() {
    let Some(trucks) = trucks() else { return };
    Run::scenario(trucks, None, &["--shuffle-late", "0.2", "--seed", "7"]);
}

#[test]
fn room_climate_through_mosquitto_a_fifth_of_it_late() {
    let (Some(room), Some(mosquitto)) = (room(), Mosquitto::start()) else { return };
    Run::scenario(room, Some(mosquitto), &["--shuffle-late", "0.2", "--seed", "8"]);
}

#[test]
fn room_climate_through_the_embedded_broker() {
    let Some(room) = room() else { return };
    Run::scenario(room, None, &[]);
}

#[test]
fn numbers_with_all_their_digits_through_the_embedded_broker() {
    let dir = tempfile::tempdir().expect("a directory");
    Run::scenario(random_numbers(dir.path()), None, &["--batch", "7"]);
}

/// A file of readings, and how DuckDB reads it.
struct Readings {
    file: PathBuf,
    rows: u64,
    /// SQL that yields `device_id`, `event_us` and the columns, as the replay publishes them.
    source: String,
    /// The columns that are aggregated, and the types that the stream declares for them.
    columns: &'static [(&'static str, &'static str)],
    /// How many rows are sent again in each round.
    part: u64,
}

fn trucks() -> Option<Readings> {
    let file = shared("data/tsbs_iot/readings_20trucks_72h_60s.csv.gz")?;
    let source = format!(
        "SELECT coalesce(name, 'unknown') AS device_id, time::BIGINT * 1000 AS event_us, * \
         FROM read_csv('{}', all_varchar = true)",
        file.display()
    );
    let columns = &[
        ("latitude", "double"),
        ("longitude", "double"),
        ("elevation", "double"),
        ("velocity", "bigint"),
        ("heading", "bigint"),
        ("grade", "double"),
        ("fuel_consumption", "double"),
    ];
    Some(Readings { file, rows: 77_841, source, columns, part: 1_500 })
}

fn room() -> Option<Readings> {
    let file = shared("data/sensors/occupancy_datatraining.csv")?;
    let source = format!(
        "SELECT 'occupancy_datatraining' AS device_id, epoch_us(date::TIMESTAMP) AS event_us, * \
         FROM read_csv('{}', all_varchar = true, header = false, skip = 1, names = \
         ['row', 'date', 'temperature', 'humidity', 'light', 'co2', 'humidityratio', 'occupancy'])",
        file.display()
    );
    let columns = &[
        ("temperature", "double"),
        ("humidity", "double"),
        ("light", "double"),
        ("co2", "double"),
        ("humidityratio", "double"),
        ("occupancy", "bigint"),
    ];
    Some(Readings { file, rows: 8_143, source, columns, part: 300 })
}

/// Doubles of 17 significant digits, of very different sizes, and large integers.
fn random_numbers(dir: &Path) -> Readings {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut csv = "sensor,ts,x,y,big\n".to_owned();
    let rows = 4_000;
    for i in 0..rows {
        let (x, scale): (f64, i32) = (rng.random(), rng.random_range(-12..12));
        let (y, big): (f64, i64) = (rng.random(), rng.random_range(0..1 << 52));
        let ts = 1_700_000_000_000_i64 + i * 777 - rng.random_range(0..90_000);
        writeln!(csv, "s{},{ts},{:?},{y},{big}", i % 5, x * 10_f64.powi(scale)).expect("written to memory");
    }
    let file = dir.join("numbers.csv");
    std::fs::write(&file, csv).expect("written");
    let source = format!(
        "SELECT sensor AS device_id, ts::BIGINT * 1000 AS event_us, * FROM read_csv('{}', all_varchar = true)",
        file.display()
    );
    Readings {
        file,
        rows: rows as u64,
        source,
        columns: &[("x", "double"), ("y", "double"), ("big", "bigint")],
        part: 200,
    }
}

impl Readings {
    /// A stream with the declared columns, and a view for each length of window.
    fn catalog(&self) -> String {
        let fields: Vec<String> = self.columns.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        let aggregate = |(name, _): &(&str, &str)| {
            let one = |function: &str| format!("{function}({name}) AS {name}_{function}");
            ["count", "sum", "min", "max", "avg"].map(one).join(", ")
        };
        let aggregates: Vec<String> = self.columns.iter().map(aggregate).collect();
        let mut yaml = format!(
            "kind: stream\nname: readings\ntopics: [\"devices/{{device_id}}/telemetry\"]\n\
             event_time: {{field: ts, unit: ms}}\nfields: {{{}}}\n",
            fields.join(", ")
        );
        for (view, size, _) in VIEWS {
            write!(
                yaml,
                "---\nkind: view\nname: {view}\nsql: |\n  SELECT device_id, tumble(event_time, INTERVAL '{size}') \
                 AS window_start, count(*) AS n, {} FROM readings GROUP BY device_id, window_start\n\
                 batch: {{every: 1d}}\n",
                aggregates.join(", ")
            )
            .expect("written to memory");
        }
        yaml
    }
}

/// A server, what it was sent, and who knows better.
struct Run {
    readings: Readings,
    mosquitto: Option<Mosquitto>,
    server: Server,
    python: PathBuf,
    dir: tempfile::TempDir,
    /// How often the first rows of the file were sent again.
    again: u64,
    started: Instant,
}

impl Run {
    /// The life of two views, from the first event to a recomputation, with a look at every turn.
    fn scenario(readings: Readings, mosquitto: Option<Mosquitto>, how: &[&str]) {
        let Some(mut run) = Self::start(readings, mosquitto) else { return };
        run.replay(how);
        run.wait_for_events();
        run.check("before any batch run");

        run.batch(false);
        run.check("after a batch run");
        let rows = run.readings.rows as i64;
        for view in ["by_minute", "by_hour"] {
            let sum = format!("SELECT sum(n) AS n FROM {view}");
            assert_eq!(
                run.server.query_layer(&sum, "batch")[0]["n"],
                rows,
                "the batch layer alone has everything"
            );
            assert_eq!(
                run.server.query_layer(&sum, "speed")[0]["n"],
                Value::Null,
                "the speed layer has nothing left"
            );
        }

        for _ in 0..ROUNDS {
            run.replay_part_amid_batch_runs();
            run.wait_for_events();
            run.batch(false);
        }
        run.check("after many batch runs over late events");

        run.wait_for_compaction();
        run.check("after compaction");

        run.replay_part();
        run = run.kill_and_restart();
        run.wait_for_events();
        run.check("after SIGKILL and a restart");

        run.batch(true);
        run.check("after a full recomputation");
        run.verify();
        run.check_table();
    }

    fn start(readings: Readings, mosquitto: Option<Mosquitto>) -> Option<Self> {
        let python = python("duckdb")?;
        let dir = tempfile::tempdir().expect("a directory");
        let (config, catalog) = (dir.path().join("config.yaml"), dir.path().join("catalog.yaml"));
        std::fs::write(&config, CONFIG).expect("written");
        std::fs::write(&catalog, readings.catalog()).expect("written");
        let broker = mosquitto.as_ref().map(Mosquitto::url);
        let mut extra = vec!["--config", text(&config), "--catalog", text(&catalog)];
        extra.extend(broker.iter().flat_map(|url| ["--broker", url]));
        let server = Server::start(&dir.path().join("data"), &extra);
        Some(Self { readings, mosquitto, server, python, dir, again: 0, started: Instant::now() })
    }

    fn kill_and_restart(self) -> Self {
        Self { server: self.server.kill_and_restart(), ..self }
    }

    /// Publishes the file, and waits until the broker has acknowledged all of it.
    fn replay(&self, how: &[&str]) {
        let broker = match &self.mosquitto {
            Some(mosquitto) => mosquitto.url(),
            None => self.server.broker(),
        };
        let mut args = vec!["replay", text(&self.readings.file), "--mqtt", &broker];
        args.extend(how);
        let said = iotctl(&args);
        let (published, acknowledged) = said.trim().split_once(", ").expect("two counts");
        let count = |text: &str| text.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        assert_eq!(count(published), count(acknowledged), "{said}");
    }

    /// Publishes the first rows once more, in random order: all of them are late.
    fn replay_part(&mut self) {
        self.again += 1;
        let (rows, seed) = (self.readings.part.to_string(), self.again.to_string());
        self.replay(&["--limit", &rows, "--shuffle-late", "0.8", "--seed", &seed]);
    }

    fn replay_part_amid_batch_runs(&mut self) {
        let server = &self.server.url();
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    iotctl(&["batch", "run", "--url", server]);
                }
            });
            self.replay_part();
            over.store(true, Ordering::Relaxed);
        });
    }

    fn events(&self) -> u64 {
        self.readings.rows + self.again * self.readings.part
    }

    /// Waits until all events are in the raw table, and then, which is a moment later, in the views.
    fn wait_for_events(&self) {
        let deadline = Instant::now() + PATIENCE;
        let counts = VIEWS.map(|(view, ..)| format!("SELECT coalesce(sum(n), 0) FROM {view}"));
        for sql in ["SELECT count(*) FROM readings".to_owned()].into_iter().chain(counts) {
            self.wait_for_count(&sql, deadline);
        }
    }

    fn wait_for_count(&self, sql: &str, deadline: Instant) {
        let expect = self.events() as i64;
        loop {
            let count = self.server.number(sql);
            assert!(count <= expect, "{sql}: {count} events, only {expect} were sent");
            if count == expect {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {count} of {expect} events have arrived");
            wait_a_little();
        }
    }

    /// Waits until everything is sealed and has a batch run over it.
    fn batch(&self, full: bool) {
        self.server.wait_for_seal();
        let mut args = vec!["batch", "run", "--format", "json"];
        args.extend(full.then_some("--full"));
        let reports: Vec<Value> = serde_json::from_str(&self.server.iotctl(&args)).expect("JSON");
        assert_eq!(reports.len(), VIEWS.len() + 1, "the views and the stream's last values");
        for report in reports.iter().filter(|_| full) {
            assert_eq!(report["events"], self.events(), "{report}");
        }
    }

    /// The number of times that a table was compacted, by its own log.
    fn compactions(&self, table: &str) -> usize {
        let log =
            std::fs::read_dir(self.server.data_dir.join(table).join("_delta_log")).expect("a Delta table");
        let commits = log.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        commits.filter(|commit| commit.contains("\"operation\":\"OPTIMIZE\"")).count()
    }

    fn files_of_state(&self, view: &str) -> u64 {
        let described = self.server.get(&format!("/v1/catalog/view/{view}"));
        described["batch"]["files"].as_u64().unwrap_or_else(|| panic!("{described}"))
    }

    fn wait_for_compaction(&self) {
        let deadline = Instant::now() + PATIENCE;
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            while !done() {
                assert!(Instant::now() < deadline, "{what}");
                wait_a_little();
            }
        };
        for table in ["raw/readings", "views/by_minute", "views/by_hour"] {
            wait(&format!("{table} was not compacted"), &|| self.compactions(table) > 0);
        }
        for (view, ..) in VIEWS {
            wait(&format!("{view} still has many files"), &|| self.files_of_state(view) < ROUNDS - 1);
        }
    }

    /// The heart: all rows of the merged views against DuckDB's.
    fn check(&self, moment: &str) {
        let mut answers = Vec::new();
        for (view, _, window_us) in VIEWS {
            let file = self.dir.path().join(view).with_extension("parquet");
            self.server.iotctl(&["query", &format!("SELECT * FROM {view}"), "-o", text(&file)]);
            answers.push(json!({ "window_us": window_us, "file": file }));
        }
        let findings = self.ask_duckdb("compare", json!({ "answers": answers }));
        for (view, found) in VIEWS.iter().zip(findings.as_array().expect("one for each view")) {
            assert!(found["rows"].as_u64() > Some(0), "{found}");
            assert_eq!(found["wrong"], json!([]), "{moment}, the view {} is wrong", view.0);
        }
        println!(
            "{:>5.1} s: {} events are right {moment}",
            self.started.elapsed().as_secs_f64(),
            self.events()
        );
    }

    /// `iotctl verify` says the same of its own answers.
    fn verify(&self) {
        let reports = self.server.iotctl(&["verify", "--format", "json"]);
        let reports: Vec<Value> = serde_json::from_str(&reports).expect("JSON");
        assert_eq!(reports.len(), VIEWS.len() + 1, "the views and the stream's last values");
        for report in &reports {
            assert_eq!(
                (&report["differences"], &report["events"]),
                (&json!(0), &json!(self.events())),
                "{report}"
            );
        }
    }

    /// The raw table, read by DuckDB without us: the same events, each of them once, in fewer files than were written.
    fn check_table(&self) {
        self.server.wait_for_seal();
        let path = self.server.data_dir.join("raw/readings");
        let found = self.ask_duckdb("table", json!({ "path": path }));
        let number = |name: &str| found[name].as_u64().expect("a number");
        assert_eq!(found["wrong"], json!([]));
        assert_eq!(number("events"), self.events());
        assert_eq!(number("events"), self.server.number("SELECT count(*) FROM readings") as u64);
        assert_eq!(number("positions"), number("events"), "an event is stored twice");
        assert_eq!(number("misplaced"), 0, "an event is in the partition of another day");
        assert!(number("files") < number("files_ever"), "{found}");
        println!("{:>5.1} s: {found}", self.started.elapsed().as_secs_f64());
    }

    fn ask_duckdb(&self, what: &str, mut task: Value) -> Value {
        let columns: Vec<&str> = self.readings.columns.iter().map(|(name, _)| *name).collect();
        task["do"] = what.into();
        task["source"] = self.readings.source.clone().into();
        task["again"] = json!([self.readings.part, self.again]);
        task["columns"] = json!(columns);
        let script = workspace().join("tests/it/exactness/oracle.py");
        let output =
            Command::new(&self.python).arg(script).arg(task.to_string()).output().expect("python starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the script prints JSON")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}
