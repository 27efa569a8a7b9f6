//! Whether definitions can be put in force: everything that can be said about them before anything is changed.
//!
//! `apply`, `diff` and `schema check` judge alike, as they all ask here.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef};

use iot_schemas::catalog::{Catalog, Definition, Document, Kind, StreamDef, ViewDef};
use iot_schemas::layout::{RESERVED, raw_schema};
use iot_schemas::raw::RawStreams;
use iot_schemas::registry::Finding;
use iot_schemas::view::{CompiledView, lineage};
use iot_schemas::{Error, Result};

use super::schemas::refuse_incompatible;
use super::{Line, last_values};

impl Line {
    /// Checks everything that can be checked before anything is changed.
    pub(super) async fn check(&self, catalog: &Catalog, documents: &[Document]) -> Result<()> {
        refuse_incompatible(&self.judge(catalog, documents).await?)
    }

    /// What `documents` would change about schemas. Fails if they are wrong in another way; if a change is
    /// incompatible, what is wrong within definitions is not looked for.
    pub(super) async fn judge(&self, catalog: &Catalog, documents: &[Document]) -> Result<Vec<Finding>> {
        let future = with(catalog, documents);
        check_names(&future, documents)?;
        last_values::check_readers(&future)?;
        let findings = self.findings(&future, documents).await?;
        if findings.iter().all(|finding| finding.compatible) {
            self.check_definitions(&future, documents).await?;
        }
        Ok(findings)
    }

    async fn check_definitions(&self, future: &Catalog, documents: &[Document]) -> Result<()> {
        for document in documents {
            if let Definition::Stream(def) = &document.def {
                self.ingest.check_stream(def)?;
            }
        }
        for view in future.views() {
            self.check_view(future, view, documents).await?;
        }
        documents.iter().try_for_each(|document| check_target(future, &document.def))
    }

    /// Checks a view that is among `documents`, or reads one that is.
    async fn check_view(&self, future: &Catalog, def: &Arc<ViewDef>, documents: &[Document]) -> Result<()> {
        let changes = |name: &str| {
            documents.iter().any(|document| document.def.kind() == Kind::View && document.def.name() == name)
        };
        let find = |name: &str| future.views().find(|view| view.name == name).cloned();
        let (bases, source) = match lineage(def, find) {
            Err(_) if !changes(&def.name) => return Ok(()),
            found => found?,
        };
        if !changes(&def.name) && !bases.iter().any(|base| changes(&base.name)) {
            return Ok(());
        }
        let schema = self.future_schema(future, &source).ok_or_else(|| {
            let known: Vec<&str> = future.streams().map(|stream| stream.name.as_str()).collect();
            let hint = format!("; view `{}` reads it; the streams are: {}", def.name, known.join(", "));
            Error::NotFound { kind: "stream", name: source.clone(), hint }
        })?;
        CompiledView::compile_over(def.clone(), bases, &source, &schema).await?;
        Ok(())
    }

    /// The columns that a stream will have: those it has, and those that it declares.
    pub(super) fn future_schema(&self, future: &Catalog, stream: &str) -> Option<SchemaRef> {
        let document = future.get(Kind::Stream, stream)?;
        let Definition::Stream(def) = &document.def else { return None };
        let mut own: Vec<Field> = declared_fields(def);
        if let Ok(snapshot) = self.ingest.snapshot(stream) {
            let declared: HashSet<String> = own.iter().map(|field| field.name().clone()).collect();
            let reserved = |name: &str| RESERVED.contains(&name);
            let have = snapshot
                .schema
                .fields()
                .iter()
                .filter(|f| !declared.contains(f.name()) && !reserved(f.name()));
            own.extend(have.map(|field| field.as_ref().clone()));
        }
        Some(raw_schema(own))
    }
}

/// The catalog that `documents` would make of it.
pub(super) fn with(catalog: &Catalog, documents: &[Document]) -> Catalog {
    let mut future = catalog.clone();
    documents.iter().for_each(|document| future.put(document.clone()));
    future
}

/// Refuses documents of the same name.
fn check_names(future: &Catalog, documents: &[Document]) -> Result<()> {
    let mut seen = HashSet::new();
    for document in documents {
        let (kind, name) = (document.def.kind(), document.def.name());
        if !seen.insert((kind, name)) {
            return Err(Error::invalid(format!("{kind} `{name}` is defined twice")));
        }
    }
    match future.views().find(|view| future.get(Kind::Stream, &view.name).is_some()) {
        Some(view) => Err(Error::invalid(format!("`{}` is both a stream and a view; rename one", view.name))),
        None => Ok(()),
    }
}

/// Refuses a rule on nothing, and a device in no stream.
fn check_target(future: &Catalog, def: &Definition) -> Result<()> {
    let is_there = |kinds: &[Kind], name: &str| kinds.iter().any(|kind| future.get(*kind, name).is_some());
    match def {
        Definition::Rule(def) if !is_there(&[Kind::Stream, Kind::View], &def.on) => {
            let hint = format!("; rule `{}` watches it with `on`", def.name);
            Err(Error::NotFound { kind: "stream or view", name: def.on.clone(), hint })
        }
        Definition::Device(def) => {
            match def.stream.as_deref().filter(|stream| !is_there(&[Kind::Stream], stream)) {
                Some(stream) => {
                    let hint = format!("; device `{}` is declared in it", def.name);
                    Err(Error::NotFound { kind: "stream", name: stream.to_owned(), hint })
                }
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn declared_fields(def: &StreamDef) -> Vec<Field> {
    let topic = def.topic_columns().into_iter().map(str::to_owned);
    let outside = topic.chain(def.property_columns()).map(|name| Field::new(name, DataType::Utf8, true));
    let own = def.fields.iter().map(|(name, field)| Field::new(name, field.data_type(), true));
    outside.chain(own).collect()
}
