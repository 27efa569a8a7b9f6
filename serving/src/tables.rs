//! What a query finds under a name: merged views, raw streams, system tables, each at one consistent moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::datasource::ViewTable;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::LogicalPlan;
use iot_schemas::Result;
use iot_schemas::alert::micros_rfc3339;
use iot_schemas::batch::Views;
use iot_schemas::raw::{RawSnapshot, RawStreams};
use iot_schemas::view::{Layer, ViewSnapshot};
use parking_lot::Mutex;

use crate::dead::letters;
use crate::query::{StreamMeta, ViewMeta};

/// The name of the dead-letter table.
const DEAD: &str = "dead";

/// Tables beyond views and streams, such as `alerts`.
#[async_trait]
pub trait SystemTables: Send + Sync + fmt::Debug {
    /// Their names.
    fn names(&self) -> Vec<String>;

    /// The rows of one now; `None` if there is no such table.
    async fn rows(&self, name: &str) -> Result<Option<LogicalPlan>>;
}

/// Where the rows of all tables come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The raw streams.
    pub raw: Arc<dyn RawStreams>,
    /// The merged views.
    pub views: Arc<dyn Views>,
    /// Everything else.
    pub system: Arc<dyn SystemTables>,
}

/// What one query has read: each name is resolved once, so that a query sees one moment of it.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    views: Mutex<BTreeMap<String, ViewSnapshot>>,
    streams: Mutex<BTreeMap<String, RawSnapshot>>,
}

impl Scope {
    /// The provenance of the views that were read.
    pub(crate) fn view_metas(&self) -> Vec<ViewMeta> {
        self.views.lock().iter().map(|(name, snapshot)| view_meta(name, snapshot)).collect()
    }

    /// The provenance of the streams that were read.
    pub(crate) fn stream_metas(&self) -> Vec<StreamMeta> {
        self.streams.lock().iter().map(|(name, snapshot)| stream_meta(name, snapshot)).collect()
    }
}

fn view_meta(name: &str, snapshot: &ViewSnapshot) -> ViewMeta {
    ViewMeta {
        name: name.to_owned(),
        batch_generation: snapshot.batch.generation(),
        batch_frontier: snapshot.batch.frontier().clone(),
        frontier: snapshot.frontier.clone(),
        speed_rows: snapshot.speed_rows(),
        batch_files: snapshot.batch.file_count() as u64,
        watermark: snapshot.watermark.map(micros_rfc3339::to_text),
        late_events: snapshot.late_events,
    }
}

fn stream_meta(name: &str, snapshot: &RawSnapshot) -> StreamMeta {
    StreamMeta {
        name: name.to_owned(),
        sealed_frontier: snapshot.sealed.frontier().clone(),
        frontier: snapshot.frontier(),
        unsealed_rows: snapshot.tail.iter().map(|batch| batch.rows.num_rows() as u64).sum(),
    }
}

/// The tables that a query finds in one SQL schema.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) sources: Sources,
    pub(crate) layer: Layer,
    pub(crate) scope: Arc<Scope>,
}

impl Tables {
    async fn find(&self, name: &str) -> Result<Option<LogicalPlan>> {
        if self.sources.views.names().iter().any(|view| &**view == name) {
            return Ok(Some(self.view(name)?.rows(self.layer).await?));
        }
        if name == DEAD {
            return Ok(Some(letters(self.stream(name)?.events().await?)?));
        }
        if self.sources.raw.definition(name).is_some() {
            return Ok(Some(self.stream(name)?.events().await?));
        }
        self.sources.system.rows(name).await
    }

    fn view(&self, name: &str) -> Result<ViewSnapshot> {
        if let Some(snapshot) = self.scope.views.lock().get(name) {
            return Ok(snapshot.clone());
        }
        let snapshot = self.sources.views.snapshot(name)?;
        Ok(self.scope.views.lock().entry(name.to_owned()).or_insert(snapshot).clone())
    }

    fn stream(&self, name: &str) -> Result<RawSnapshot> {
        if let Some(snapshot) = self.scope.streams.lock().get(name) {
            return Ok(snapshot.clone());
        }
        let snapshot = self.sources.raw.snapshot(name)?;
        Ok(self.scope.streams.lock().entry(name.to_owned()).or_insert(snapshot).clone())
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        let is_generated =
            |view: &Arc<str>| self.sources.views.compiled(view).is_ok_and(|(view, _)| view.def().generated);
        let (generated, views): (Vec<_>, Vec<_>) =
            self.sources.views.names().into_iter().partition(is_generated);
        let mut names: Vec<String> = views.iter().map(ToString::to_string).collect();
        names.extend(self.sources.raw.names().iter().map(ToString::to_string));
        names.push(DEAD.to_owned());
        names.extend(self.sources.system.names());
        // Nobody has named these: they come last where names are listed.
        names.extend(generated.iter().map(ToString::to_string));
        names
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let plan = self.find(name).await.map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(plan.map(|plan| Arc::new(ViewTable::new(plan, None)) as Arc<dyn TableProvider>))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|known| known == name)
    }
}
