//! The control side of a server: the catalog and its changes, status, and the proof of its answers.

use std::sync::Arc;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use iot_schemas::alert::{AlertFeed, AlertState, micros_rfc3339};
use iot_schemas::batch::Views;
use iot_schemas::catalog::{Catalog, Definition, Document, Kind, ViewDef, parse};
use iot_schemas::control::{Applied, Change, Control, VerifyReport};
use iot_schemas::raw::RawStreams;
use iot_schemas::replay::{ReplayReport, ReplayRequest};
use iot_schemas::session::context;
use iot_schemas::view::{Layer, source_of};
use iot_schemas::{Error, Result};
use iot_serving::query::{Queries, QueryRequest};
use iot_serving::verify::verify_view;
use serde_json::{Map, Value, json};

use super::Line;
use super::judge::with;

#[async_trait]
impl Control for Line {
    async fn apply(&self, yaml: &str, origin: &str) -> Result<Vec<Applied>> {
        let documents = in_order(parse(yaml, origin)?);
        let mut catalog = self.catalog.lock().await;
        self.check(&catalog, &documents).await?;
        let plan = changes(&catalog, &documents);
        let mut done: Vec<(&Document, Option<Document>)> = Vec::new();
        let future = with(&catalog, &documents);
        let implied = self.keep_implied_stream(&catalog, &plan)?;
        let mut streams_are_put = false;
        for (document, applied) in documents.iter().zip(&plan) {
            if applied.kind != Kind::Stream && !std::mem::replace(&mut streams_are_put, true) {
                // A view that takes the name of a last-value view takes its place.
                self.keep_last_values(&future).await;
            }
            if applied.change == Change::Unchanged {
                continue;
            }
            let before = catalog.get(applied.kind, &applied.name).cloned();
            if let Err(e) = self.put(document).await {
                self.undo(done).await;
                if let Some(implied) = &implied {
                    self.forget_implied_stream(implied)?;
                }
                self.keep_last_values(&catalog).await;
                return Err(e);
            }
            done.push((document, before));
        }
        for (document, _) in done {
            // Those of streams are written: see `put`.
            if document.def.kind() != Kind::Stream {
                self.catalog_store.put(document)?;
            }
            catalog.put(document.clone());
        }
        self.problems.lock().clear();
        if let Some(implied) = implied {
            self.retire_implied_stream(&mut catalog, &implied).await?;
        }
        self.keep_last_values(&catalog).await;
        Ok(plan)
    }

    async fn diff(&self, yaml: &str, origin: &str) -> Result<Vec<Applied>> {
        let documents = in_order(parse(yaml, origin)?);
        let catalog = self.catalog.lock().await;
        self.check(&catalog, &documents).await?;
        Ok(changes(&catalog, &documents))
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<Applied> {
        let mut catalog = self.catalog.lock().await;
        if catalog.get(kind, name).is_none() {
            return Err(self.no_definition(kind, name));
        }
        self.check_unused(&catalog, kind, name)?;
        self.take_out(kind, name).await?;
        self.catalog_store.remove(kind, name)?;
        catalog.remove(kind, name);
        self.keep_last_values(&catalog).await;
        Ok(Applied { kind, name: name.to_owned(), change: Change::Deleted })
    }

    async fn list(&self, what: &str) -> Result<Vec<Map<String, Value>>> {
        match what {
            "streams" => Ok(self.stream_rows()),
            "views" => self.view_rows(false),
            "all-views" => self.view_rows(true),
            "rules" => Ok(self.rule_rows(&*self.catalog.lock().await)),
            "batches" => Ok(self.batch.history().iter().map(to_map).collect()),
            "devices" => self.device_rows().await,
            other => Err(Error::invalid(format!(
                "`{other}` cannot be listed; it is one of streams, views, all-views, rules, devices, batches"
            ))),
        }
    }

    async fn describe(&self, kind: Kind, name: &str) -> Result<Value> {
        let catalog = self.catalog.lock().await;
        if kind == Kind::Device {
            let definition = catalog.get(kind, name).map(|document| document.text.as_str());
            return self.describe_device(name, definition);
        }
        let mut described = match (catalog.get(kind, name), self.generated(kind, name)) {
            (Some(document), _) => json!({ "kind": kind, "name": name, "definition": document.text }),
            (None, Some(def)) => {
                json!({ "kind": kind, "name": name, "definition": def.sql, "generated": true })
            }
            (None, None) => return Err(not_found(kind, name)),
        };
        let more = match kind {
            Kind::Stream => self.describe_stream(name)?,
            Kind::View => self.describe_view(name).await?,
            Kind::Rule => {
                json!({ "alerts": self.alerts.current().iter().filter(|a| a.rule == name).count() })
            }
            Kind::Device => Value::Null,
        };
        if let (Some(described), Value::Object(more)) = (described.as_object_mut(), more) {
            described.extend(more);
        }
        Ok(described)
    }

    async fn status(&self) -> Result<Value> {
        let current = self.alerts.current();
        let in_state = |state| current.iter().filter(|alert| alert.state == state).count();
        let ingest = self.ingest.stats();
        let now = self.clock.now_micros();
        let speed = self.speed.stats();
        let newest = self.ingest.names().iter().filter_map(|s| self.speed.progress(s).newest_arrival).max();
        let streams: Vec<Value> = ingest
            .streams
            .iter()
            .map(|(name, stats)| json!({ "name": name, "events": stats.events, "dead_letters": stats.dead_letters }))
            .collect();
        Ok(json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs_f64(),
            "freshness_ms": newest.map(|newest| (now - newest).max(0) / 1000),
            "devices": speed.registered_devices,
            "ingest": ingest,
            "speed": speed,
            "streams": streams,
            "views": self.view_rows(false)?,
            "alerts": { "firing": in_state(AlertState::Firing), "pending": in_state(AlertState::Pending),
                        "latest": *self.alerts.latest().borrow() },
            "broker": self.subscriber.lock().as_ref().map(|subscriber| subscriber.stats()),
            "problems": *self.problems.lock(),
        }))
    }

    async fn verify(&self, view: Option<&str>) -> Result<Vec<VerifyReport>> {
        let views = match view {
            Some(view) => vec![Arc::from(view)],
            None => self.speed.names(),
        };
        let mut reports = Vec::with_capacity(views.len());
        for view in views {
            let report = verify_view(self.queries.sources(), &view, self.queries.runtime().clone()).await;
            let named = |e: Error| match e.is_users() {
                true => Error::invalid(format!("view `{view}`: {e}")),
                false => e,
            };
            reports.push(report.map_err(named)?);
        }
        Ok(reports)
    }

    async fn replay(&self, request: ReplayRequest) -> Result<ReplayReport> {
        self.replay_history(request).await
    }

    fn not_ready(&self) -> Option<String> {
        let broker = self.subscriber.lock().as_ref().map(|subscriber| subscriber.stats());
        let broker = broker.and_then(|stats| match stats.connected {
            true => stats.refused,
            false => {
                let why = stats.last_error.unwrap_or_else(|| "not yet".to_owned());
                Some(format!("no connection to the broker: {why}"))
            }
        });
        self.ingest.not_ready().or_else(|| self.speed.not_ready()).or(broker)
    }

    fn metrics(&self) -> Vec<(&'static str, &'static str, f64)> {
        let (ingest, speed) = (self.ingest.stats(), self.speed.stats());
        let progress = self.ingest.names().into_iter().map(|stream| self.speed.progress(&stream));
        let (late, future) = progress.fold((0.0, 0.0), |(late, future), stream| {
            (late + stream.late_events as f64, future + stream.future_events as f64)
        });
        vec![
            ("iot_ingest_messages_total", "Messages that became durable.", ingest.messages as f64),
            ("iot_ingest_events_total", "Events that they held.", ingest.events as f64),
            (
                "iot_ingest_dead_letters_total",
                "Messages that could not be decoded.",
                ingest.dead_letters as f64,
            ),
            ("iot_ingest_redelivered_total", "Copies that were recognised.", ingest.redelivered as f64),
            ("iot_ingest_ignored_total", "Messages that no stream wants.", ingest.ignored as f64),
            (
                "iot_ingest_unauthorized_total",
                "Messages refused because their sender may not publish to their topic.",
                ingest.unauthorized as f64,
            ),
            ("iot_ingest_fsyncs_total", "Group fsyncs.", ingest.fsyncs as f64),
            ("iot_ingest_log_bytes", "Size of the write-ahead log.", ingest.log_bytes as f64),
            (
                "iot_ingest_unsealed_bytes",
                "Memory of events not yet in tables.",
                ingest.unsealed_bytes as f64,
            ),
            ("iot_ingest_seals_total", "Epochs sealed into tables.", ingest.seals as f64),
            ("iot_ingest_position", "The last durable position.", ingest.last_seq as f64),
            ("iot_ingest_log_failures_total", "Failed writes of the log.", ingest.log_failures as f64),
            ("iot_ingest_seal_failures_total", "Failed seals.", ingest.seal_failures as f64),
            ("iot_speed_events_total", "Events taken in by the speed layer.", speed.events as f64),
            ("iot_speed_state_rows", "State rows in memory.", speed.state_rows as f64),
            ("iot_speed_state_bytes", "Bytes of state in memory.", speed.state_bytes as f64),
            ("iot_late_events_total", "Events that were before the watermark when they came.", late),
            ("iot_future_events_total", "Events too far in the future to be believed.", future),
            ("iot_speed_failures_total", "Steps that failed.", speed.failures as f64),
            ("iot_alerts_latest", "The newest alert transition.", *self.alerts.latest().borrow() as f64),
        ]
    }
}

impl Line {
    /// Writes down the stream `events`, which everybody begins with, if it is in force and in no file, and streams come: after a
    /// crash the file of another stream alone would take it away with what it has taken in. Answers with it unless it is
    /// among those that come: then it is a stream like any other.
    fn keep_implied_stream(&self, catalog: &Catalog, plan: &[Applied]) -> Result<Option<Document>> {
        let mut streams = plan.iter().filter(|applied| applied.kind == Kind::Stream).peekable();
        let implied = Catalog::with_default_stream().documents().next().cloned().filter(|implied| {
            let name = implied.def.name();
            let is_in_force = catalog.get(Kind::Stream, name).is_some();
            is_in_force && !self.catalog_store.has(Kind::Stream, name) && streams.peek().is_some()
        });
        let Some(implied) = implied else { return Ok(None) };
        self.catalog_store.put(&implied)?;
        let is_asked_for = streams.any(|applied| applied.name == implied.def.name());
        Ok((!is_asked_for).then_some(implied))
    }

    /// Takes the file away again if the other streams have not come to be.
    fn forget_implied_stream(&self, implied: &Document) -> Result<()> {
        let name = implied.def.name();
        let is_alone = self.catalog_store.load()?.streams().all(|stream| stream.name == name);
        if is_alone {
            self.catalog_store.remove(Kind::Stream, name)?;
        }
        Ok(())
    }

    /// A server that was given streams of its own does not need the stream `events`: it goes if it is empty, unused and as
    /// everybody has it, and becomes a stream like any other if it is not.
    async fn retire_implied_stream(&self, catalog: &mut Catalog, implied: &Document) -> Result<()> {
        let name = implied.def.name();
        if catalog.get(Kind::Stream, name).is_none_or(|known| known.def != implied.def) {
            return Ok(());
        }
        let snapshot = self.ingest.snapshot(name)?;
        let empty = snapshot.sealed.file_count() == 0 && snapshot.tail.is_empty();
        if empty && self.check_unused(catalog, Kind::Stream, name).is_ok() {
            catalog.remove(Kind::Stream, name);
            self.keep_last_values(catalog).await;
            self.ingest.remove_stream(name).await?;
            self.catalog_store.remove(Kind::Stream, name)?;
        }
        Ok(())
    }

    /// Puts a definition in force. The file of a stream's is written on the way, at the position from which the log is
    /// decoded by it; all others are written when everything is in force.
    async fn put(&self, document: &Document) -> Result<()> {
        match &document.def {
            Definition::Stream(def) => {
                let (files, document) = (self.catalog_store.clone(), document.clone());
                self.put_stream(def, move || files.put(&document)).await
            }
            Definition::View(def) => Ok(self.speed.put_view(def.clone()).await?),
            Definition::Rule(def) => Ok(self.speed.put_rule(def.clone()).await?),
            Definition::Device(def) => {
                self.speed.put_device(def.clone());
                Ok(())
            }
        }
    }

    async fn take_out(&self, kind: Kind, name: &str) -> Result<()> {
        match kind {
            Kind::Stream => self.ingest.remove_stream(name).await,
            Kind::View => Ok(self.speed.remove_view(name).await?),
            Kind::Rule => Ok(self.speed.remove_rule(name).await?),
            Kind::Device => {
                self.speed.remove_device(name);
                Ok(())
            }
        }
    }

    /// Takes back what an `apply` that failed had done, newest first.
    async fn undo(&self, done: Vec<(&Document, Option<Document>)>) {
        for (document, before) in done.into_iter().rev() {
            let (kind, name) = (document.def.kind(), document.def.name());
            let undone = match before {
                Some(before) => self.put(&before).await,
                None => match self.take_out(kind, name).await {
                    Ok(()) => self.catalog_store.remove(kind, name),
                    Err(e) => Err(e),
                },
            };
            if let Err(e) = undone {
                tracing::error!("taking back {kind} `{name}`: {e}");
            }
        }
    }

    fn check_unused(&self, catalog: &Catalog, kind: Kind, name: &str) -> Result<()> {
        let in_use =
            |by: String| Err(Error::invalid(format!("{kind} `{name}` is used by {by}; delete that first")));
        if matches!(kind, Kind::Rule | Kind::Device) {
            return Ok(());
        }
        if let Some(rule) = catalog.rules().find(|rule| rule.on == name) {
            return in_use(format!("rule `{}`", rule.name));
        }
        if let Some(device) = catalog.devices().find(|device| device.stream.as_deref() == Some(name)) {
            return in_use(format!("device `{}`", device.name));
        }
        if let Some(view) = catalog.views().find(|view| source_of(view).is_ok_and(|source| source == name)) {
            return in_use(format!("view `{}`", view.name));
        }
        Ok(())
    }

    fn stream_rows(&self) -> Vec<Map<String, Value>> {
        let stats = self.ingest.stats();
        let row = |name: &Arc<str>| {
            let def = self.ingest.definition(name)?;
            let snapshot = self.ingest.snapshot(name).ok()?;
            let counts = stats.streams.get(name).copied().unwrap_or_default();
            let topics: Vec<String> = def.topics.iter().map(ToString::to_string).collect();
            let progress = self.speed.progress(name);
            Some(to_map(&json!({
                "name": name,
                "topics": topics.join(" "),
                "columns": snapshot.schema.fields().len(),
                "sealed_rows": snapshot.sealed.row_count(),
                "unsealed_rows": snapshot.tail.iter().map(|batch| batch.rows.num_rows()).sum::<usize>(),
                "files": snapshot.sealed.file_count(),
                "dead_letters": counts.dead_letters,
                "late_events": progress.late_events,
                "future_events": progress.future_events,
                "watermark": progress.watermark.map(micros_rfc3339::to_text),
                "newest_event": progress.newest_event.map(micros_rfc3339::to_text),
            })))
        };
        self.ingest.names().iter().filter_map(row).collect()
    }

    /// The views of the catalog, or `all` with those that the system keeps of its own accord, which say so.
    fn view_rows(&self, all: bool) -> Result<Vec<Map<String, Value>>> {
        let row = |name: &Arc<str>| {
            let snapshot = self.speed.snapshot(name)?;
            let generated = snapshot.view.def().generated;
            let mut row = to_map(&json!({
                "name": name,
                "stream": snapshot.view.stream(),
                "batch_generation": snapshot.batch.generation(),
                "batch_frontier": snapshot.batch.frontier().to_string(),
                "frontier": snapshot.frontier.to_string(),
                "batch_rows": snapshot.batch.row_count(),
                "speed_rows": snapshot.speed_rows(),
                "batch_every": humantime::format_duration(snapshot.view.def().batch.interval()).to_string(),
            }));
            if all {
                row.insert("generated".to_owned(), generated.into());
            }
            Ok((all || !generated).then_some(row))
        };
        self.speed.names().iter().filter_map(|name| row(name).transpose()).collect()
    }

    fn rule_rows(&self, catalog: &Catalog) -> Vec<Map<String, Value>> {
        let current = self.alerts.current();
        let count = |rule: &str, state| current.iter().filter(|a| a.rule == rule && a.state == state).count();
        let row = |rule: &Arc<iot_schemas::catalog::RuleDef>| {
            to_map(&json!({
                "name": rule.name,
                "on": rule.on,
                "when": rule.when,
                "severity": rule.severity,
                "pending": count(&rule.name, AlertState::Pending),
                "firing": count(&rule.name, AlertState::Firing),
            }))
        };
        catalog.rules().map(row).collect()
    }

    async fn device_rows(&self) -> Result<Vec<Map<String, Value>>> {
        let request = QueryRequest {
            sql: "SELECT * FROM devices ORDER BY stream, device_id".to_owned(),
            layer: Default::default(),
            max_rows: Some(10_000),
        };
        let answer = self.queries.execute(request).await?;
        super::devices::objects(&answer.batches.iter().collect::<Vec<_>>())
    }

    fn describe_stream(&self, name: &str) -> Result<Value> {
        let snapshot = self.ingest.snapshot(name)?;
        let columns: Vec<Value> = snapshot
            .schema
            .fields()
            .iter()
            .map(|f| json!({ "name": f.name(), "type": type_name(f.data_type()) }))
            .collect();
        Ok(json!({
            "columns": columns,
            "sealed": { "rows": snapshot.sealed.row_count(), "files": snapshot.sealed.file_count(),
                        "frontier": snapshot.sealed.frontier(), "table_version": snapshot.sealed.version() },
            "unsealed_rows": snapshot.tail.iter().map(|batch| batch.rows.num_rows()).sum::<usize>(),
            "progress": self.speed.progress(name),
        }))
    }

    async fn describe_view(&self, name: &str) -> Result<Value> {
        let snapshot = self.speed.snapshot(name)?;
        let groups = snapshot.view.merge_plan(snapshot.states(Layer::Merged).await?)?;
        let session = context(1, self.queries.runtime().clone());
        let groups = session.execute_logical_plan(groups).await?.count().await? as u64;
        let files = snapshot.batch.files();
        let batch_rows: u64 = files.iter().map(|file| file.rows).sum();
        let batch_bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let (speed_rows, speed_bytes) = (snapshot.speed_rows(), snapshot.speed_bytes());
        let state: Vec<Value> = snapshot
            .view
            .state_schema()
            .fields()
            .iter()
            .map(|f| json!({ "name": f.name(), "type": f.data_type().to_string() }))
            .collect();
        Ok(json!({
            "stream": snapshot.view.stream(),
            "reads_state_of": snapshot.view.state_owner(),
            "state": state,
            "groups": groups,
            "bytes_per_group": { "disk": batch_bytes.checked_div(groups),
                                 "memory": speed_bytes.checked_div(groups) },
            "batch": { "generation": snapshot.batch.generation(), "frontier": snapshot.batch.frontier(),
                       "rows": batch_rows, "bytes": batch_bytes, "files": files.len(),
                       "bytes_per_row": batch_bytes.checked_div(batch_rows) },
            "speed": { "rows": speed_rows, "bytes": speed_bytes,
                       "bytes_per_row": speed_bytes.checked_div(speed_rows) },
            "frontier": snapshot.frontier,
            "watermark": snapshot.watermark.map(micros_rfc3339::to_text),
            "late_events": snapshot.late_events,
        }))
    }
}

/// Streams, then the views on them, then the rules on both, then devices, whatever the order in the file; a view after the view
/// that it reads.
fn in_order(mut documents: Vec<Document>) -> Vec<Document> {
    let views: Vec<Arc<ViewDef>> = documents
        .iter()
        .filter_map(|document| match &document.def {
            Definition::View(def) => Some(def.clone()),
            _ => None,
        })
        .collect();
    documents.sort_by_cached_key(|document| {
        let depth = match &document.def {
            Definition::View(def) => super::depth(def, &views),
            _ => 0,
        };
        (document.def.kind(), depth)
    });
    documents
}

fn changes(catalog: &Catalog, documents: &[Document]) -> Vec<Applied> {
    let change = |document: &Document| {
        let (kind, name) = (document.def.kind(), document.def.name().to_owned());
        let change = match catalog.get(kind, &name) {
            None => Change::Created,
            Some(before) if before.def == document.def => Change::Unchanged,
            Some(_) => Change::Changed,
        };
        Applied { kind, name, change }
    };
    documents.iter().map(change).collect()
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Float64 => "double".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Utf8 => "text".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        other => other.to_string(),
    }
}

pub(super) fn not_found(kind: Kind, name: &str) -> Error {
    let kind = match kind {
        Kind::Stream => "stream",
        Kind::View => "view",
        Kind::Rule => "rule",
        Kind::Device => "device",
    };
    Error::NotFound { kind, name: name.to_owned(), hint: format!("; `iotctl get {kind}s` lists them") }
}

fn to_map(value: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}
