//! The schema registry of a server: what `iotctl schema` and the table `iot.schemas` show, and what `apply` refuses.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, SchemaRef};
use async_trait::async_trait;
use iot_ingest::Ingest;
use iot_schemas::alert::micros_rfc3339;
use iot_schemas::catalog::{Catalog, Definition, Document, RuleDef, StreamDef, ViewDef, column_name, parse};
use iot_schemas::layout::{RESERVED, raw_schema};
use iot_schemas::raw::RawStreams;
use iot_schemas::registry::{Change, Column, Finding, History, RuleId, Schemas, Step, Version};
use iot_schemas::view::{CompiledView, lineage};
use iot_schemas::{Error, Result};
use serde_json::{Map, Value, json};

use super::Line;

#[async_trait]
impl Schemas for Line {
    fn list(&self, stream: Option<&str>) -> Result<Vec<Map<String, Value>>> {
        if let Some(stream) = stream {
            let history = self.history(stream)?;
            let mut rows: Vec<_> = history.walk().map(|step| row(stream, &step)).collect();
            rows.reverse();
            return Ok(rows);
        }
        let mut rows = Vec::new();
        for stream in self.ingest.names() {
            let history = self.ingest.schema_history(&stream)?;
            rows.extend(history.walk().last().map(|step| row(&stream, &step)));
        }
        Ok(rows)
    }

    fn show(&self, stream: &str, number: Option<u32>) -> Result<Value> {
        let history = self.history(stream)?;
        let newest = history.versions().len() as u32;
        let number = number.unwrap_or(newest);
        let step = history.version(number).ok_or_else(|| Error::NotFound {
            kind: "version",
            name: number.to_string(),
            hint: format!(" of the schema of `{stream}`; they are 1 to {newest}"),
        })?;
        let mut shown = Value::Object(row(stream, &step));
        shown["newest"] = newest.into();
        shown["unknown_fields"] = step.version.unknown_fields.word().into();
        shown["changes"] = step.changes.iter().map(described).collect();
        shown["columns"] = step.columns.iter().map(described_column).collect();
        Ok(shown)
    }

    async fn check(&self, yaml: &str, origin: &str) -> Result<Vec<Finding>> {
        let documents = parse(yaml, origin)?;
        let catalog = self.catalog.lock().await.clone();
        self.judge(&catalog, &documents).await
    }
}

/// Refuses definitions that would break data, with all reasons.
pub(super) fn refuse_incompatible(findings: &[Finding]) -> Result<()> {
    let refusals: Vec<String> = findings.iter().filter(|finding| !finding.compatible).map(refusal).collect();
    if refusals.is_empty() {
        return Ok(());
    }
    let all = refusals.join("; ");
    Err(Error::invalid(format!("{all}. `iotctl schema check` lists all changes")))
}

impl Line {
    /// Puts a stream in force, and keeps its definition on the way; when this returns after a rename, nothing is on its
    /// way under the old name.
    pub(super) async fn put_stream(
        &self,
        def: &Arc<StreamDef>,
        keep: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let renames = |history: History| history.renames().len();
        let before = renames(self.ingest.schema_history(&def.name)?);
        self.ingest.put_stream(def.clone(), keep).await?;
        if renames(self.ingest.schema_history(&def.name)?) != before {
            self.settle().await;
        }
        Ok(())
    }

    fn history(&self, stream: &str) -> Result<History> {
        let history = self.ingest.schema_history(stream)?;
        if history.newest().is_some() {
            return Ok(history);
        }
        let hint = "; `iotctl schema list` lists them".to_owned();
        Err(Error::NotFound { kind: "schema of a stream", name: stream.to_owned(), hint })
    }

    /// What the documents would change about the schemas of their streams.
    pub(super) async fn findings(&self, future: &Catalog, documents: &[Document]) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for document in documents {
            let Definition::Stream(def) = &document.def else { continue };
            let history = self.ingest.schema_history(&def.name)?;
            let changes = history.plan(def)?.into_iter().chain(self.in_use(future, def, &history).await?);
            findings.extend(changes.map(|change| Finding::of(&def.name, change)));
        }
        Ok(findings)
    }

    /// The views and rules that read columns which nothing would fill any more, with the rule that refuses it.
    async fn in_use(&self, future: &Catalog, def: &StreamDef, history: &History) -> Result<Vec<Change>> {
        let silenced = history.silenced(def);
        if silenced.is_empty() {
            return Ok(Vec::new());
        }
        let mut readers = self.reading_views(future, def, &silenced).await;
        readers.extend(reading_rules(future, def, &silenced));
        let aliases: HashSet<String> =
            def.fields.values().flat_map(|field| &field.aliases).map(|alias| column_name(alias)).collect();
        let change = |(column, reader): (&String, String)| {
            let rule = if aliases.contains(column) { RuleId::InUse } else { RuleId::StopFilling };
            Change { rule, column: Some(column.clone()), detail: format!("{reader} reads it") }
        };
        Ok(readers.into_iter().map(change).collect())
    }

    /// The columns among `columns` that views read, each with the view.
    async fn reading_views<'c>(
        &self,
        future: &Catalog,
        def: &StreamDef,
        columns: &'c [String],
    ) -> Vec<(&'c String, String)> {
        let mut readers = Vec::new();
        let Some(schema) = self.future_schema(future, &def.name) else { return readers };
        for view in future.views() {
            let find = |name: &str| future.views().find(|view| view.name == name).cloned();
            let Ok((bases, source)) = lineage(view, find) else { continue };
            if source == def.name {
                let read = columns_read((view, bases.as_slice(), source.as_str()), &schema, columns).await;
                readers.extend(read.into_iter().map(|column| (column, format!("view `{}`", view.name))));
            }
        }
        readers
    }
}

/// A view, the views through which it reads a stream, and the stream.
type Lineage<'a> = (&'a Arc<ViewDef>, &'a [Arc<ViewDef>], &'a str);

/// The columns among `columns` without which a view does not compile.
async fn columns_read<'c>(view: Lineage<'_>, schema: &SchemaRef, columns: &'c [String]) -> Vec<&'c String> {
    let mut read = Vec::new();
    // Most views read none of them. What does not compile with them either is refused for its own reasons.
    if compiles(view, &without(schema, columns)).await || !compiles(view, schema).await {
        return read;
    }
    for column in columns {
        if !compiles(view, &without(schema, std::slice::from_ref(column))).await {
            read.push(column);
        }
    }
    read
}

async fn compiles((view, bases, source): Lineage<'_>, schema: &SchemaRef) -> bool {
    CompiledView::compile_over(view.clone(), bases.to_vec(), source, schema).await.is_ok()
}

/// The columns among `columns` that the rules on the stream itself name, each with the rule.
fn reading_rules<'c>(future: &Catalog, def: &StreamDef, columns: &'c [String]) -> Vec<(&'c String, String)> {
    let mut readers = Vec::new();
    for rule in future.rules().filter(|rule| rule.on == def.name) {
        let named = columns.iter().filter(|column| names(rule, column));
        readers.extend(named.map(|column| (column, format!("rule `{}`", rule.name))));
    }
    readers
}

fn without(schema: &SchemaRef, columns: &[String]) -> SchemaRef {
    let is_left =
        |field: &&Arc<Field>| !columns.contains(field.name()) && !RESERVED.contains(&field.name().as_str());
    raw_schema(schema.fields().iter().filter(is_left).map(|field| field.as_ref().clone()))
}

/// Whether a condition or an annotation of a rule names the column.
fn names(rule: &RuleDef, column: &str) -> bool {
    let mut conditions = std::iter::once(&rule.when).chain(&rule.clear_when);
    let placeholder = format!("{{{column}}}");
    conditions.any(|condition| mentions(condition, column))
        || rule.annotations.values().any(|text| text.contains(&placeholder))
}

/// Whether a condition has the word `name` in it. SQL does not tell `Temp` from `temp`, nor do columns.
fn mentions(condition: &str, name: &str) -> bool {
    let mut words = condition.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.any(|word| word.eq_ignore_ascii_case(name))
}

fn refusal(finding: &Finding) -> String {
    let Finding { stream, column, change, detail, reason, instead, .. } = finding;
    let column = column.as_ref().map(|column| format!(", `{column}`")).unwrap_or_default();
    let instead = instead.as_ref().map(|instead| format!("; {instead}")).unwrap_or_default();
    format!("stream `{stream}`{column}: {change} ({detail}): {reason}{instead}")
}

/// What a list says about a version.
fn row(stream: &str, step: &Step<'_>) -> Map<String, Value> {
    let Step { version, columns, changes } = step;
    let changes: Vec<String> = changes.iter().map(in_words).collect();
    let row = json!({
        "stream": stream,
        "version": version.number,
        "since": micros_rfc3339::to_text(version.at),
        "position": format!("{}:{}", version.node, version.seq),
        "why": version.why.word(),
        "columns": columns.len(),
        "changes": changes.join("; "),
    });
    match row {
        Value::Object(row) => row,
        _ => Map::new(),
    }
}

fn in_words(change: &Change) -> String {
    let Change { rule, column, detail } = change;
    let column = column.as_ref().map(|column| format!(" `{column}`")).unwrap_or_default();
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    format!("{}{column}{detail}", rule.rule().name)
}

fn described(change: &Change) -> Value {
    json!({ "change": change.rule.rule().name, "column": change.column, "detail": change.detail })
}

fn described_column(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.r#type.word(),
        "source": column.source.word(),
        "unit": column.unit,
        "aliases": column.aliases.join(", "),
        "deprecated": column.deprecated,
        "renamed_from": column.renamed_from.join(", "),
    })
}

/// The table `iot.schemas`: a row per stream, version and column.
pub(super) fn rows(ingest: &Ingest) -> Result<RecordBatch> {
    let mut found: Vec<(Arc<str>, Arc<Version>, Column)> = Vec::new();
    for stream in ingest.names() {
        let history = ingest.schema_history(&stream)?;
        for Step { version, columns, .. } in history.walk() {
            found.extend(columns.into_iter().map(|column| (stream.clone(), version.clone(), column)));
        }
    }
    let text = |of: &dyn Fn(&Version, &Column) -> Option<String>| -> ArrayRef {
        Arc::new(found.iter().map(|(_, version, column)| of(version, column)).collect::<StringArray>())
    };
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join(", "));
    let streams: StringArray = found.iter().map(|(stream, ..)| Some(stream.to_string())).collect();
    let numbers: Int64Array = found.iter().map(|(_, version, _)| Some(i64::from(version.number))).collect();
    let since: TimestampMicrosecondArray = found.iter().map(|(_, version, _)| Some(version.at)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("stream", Arc::new(streams)),
        ("version", Arc::new(numbers)),
        ("since", Arc::new(since.with_timezone("UTC"))),
        ("position", text(&|version, _| Some(format!("{}:{}", version.node, version.seq)))),
        ("why", text(&|version, _| Some(version.why.word().to_owned()))),
        ("column_name", text(&|_, column| Some(column.name.clone()))),
        ("type", text(&|_, column| Some(column.r#type.word().to_owned()))),
        ("source", text(&|_, column| Some(column.source.word().to_owned()))),
        ("unit", text(&|_, column| column.unit.clone())),
        ("aliases", text(&|_, column| list(&column.aliases))),
        ("deprecated", text(&|_, column| column.deprecated.clone())),
        ("renamed_from", text(&|_, column| list(&column.renamed_from))),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}
