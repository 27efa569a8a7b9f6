//! A batch run: raw events after a frontier become state rows, committed together with the new frontier.
//!
//! The run reads the raw table at one version. The frontier of that version is what the run covers: the seal
//! that wrote the rows committed it with them. So whatever happens meanwhile, the state that is committed is the
//! state of exactly these positions, and the speed layer drops exactly what they cover.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use arrow::record_batch::RecordBatch;
use datafusion::common::Column;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use futures::TryStreamExt;
use iot_schemas::batch::{BatchReport, BatchRequest, BatchRunner, Views};
use iot_schemas::position::Frontier;
use iot_schemas::raw::{RawSnapshot, RawStreams};
use iot_schemas::session::context;
use iot_schemas::table::{Commit, Table};
use iot_schemas::view::{CompiledView, storage};
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Reports that are remembered.
const HISTORY: usize = 256;

/// Runs batch jobs, one at a time.
#[derive(Debug)]
pub struct BatchLayer {
    raw: Arc<dyn RawStreams>,
    views: Arc<dyn Views>,
    runtime: Arc<RuntimeEnv>,
    partitions: usize,
    turn: tokio::sync::Mutex<()>,
    history: Mutex<VecDeque<BatchReport>>,
}

impl BatchLayer {
    /// A batch layer that works in `partitions` parallel parts within the memory of `runtime`.
    pub fn new(
        raw: Arc<dyn RawStreams>,
        views: Arc<dyn Views>,
        runtime: Arc<RuntimeEnv>,
        partitions: usize,
    ) -> Self {
        Self {
            raw,
            views,
            runtime,
            partitions,
            turn: tokio::sync::Mutex::default(),
            history: Mutex::default(),
        }
    }

    /// Runs one view. Holds no other run up for longer than its own takes.
    pub async fn run_view(&self, view: &str, full: bool, dry_run: bool) -> Result<BatchReport> {
        let _turn = self.turn.lock().await;
        let failed = |source| Error::Run { view: view.to_owned(), source };
        let report = self.run_in_turn(view, full, dry_run).await.map_err(failed)?;
        if !dry_run && report.elapsed_ms > 0 {
            let mut history = self.history.lock();
            history.truncate(HISTORY - 1);
            history.push_front(report.clone());
        }
        Ok(report)
    }

    /// The runs of this process that committed something, newest first.
    pub fn history(&self) -> Vec<BatchReport> {
        self.history.lock().iter().cloned().collect()
    }

    async fn run_in_turn(&self, name: &str, full: bool, dry_run: bool) -> iot_schemas::Result<BatchReport> {
        let started = Instant::now();
        let (view, table, raw) = self.view_and_events(name)?;
        let before = table.snapshot();
        let to = raw.sealed.frontier().clone();
        let from = if full { Frontier::empty() } else { before.frontier().clone() };
        let mut report = BatchReport {
            view: name.to_owned(),
            generation: before.generation(),
            full,
            from: from.clone(),
            to: to.clone(),
            events: 0,
            state_rows: 0,
            elapsed_ms: 0,
        };
        if from.covers_all(&to) && !full {
            return Ok(report);
        }
        let events = raw.sealed_between(&from, Some(&to)).await?;
        let (states, read) = match events {
            Some(events) => self.states(&view, events, dry_run).await?,
            None => (Vec::new(), 0),
        };
        report.events = read;
        report.state_rows = states.iter().map(|batch| batch.num_rows() as u64).sum();
        if !dry_run {
            report.generation += 1;
            self.commit(&view, &table, &states, &report).await?;
            self.views.batch_committed(name);
        }
        report.elapsed_ms = (started.elapsed().as_millis() as u64).max(1);
        Ok(report)
    }

    /// A view, its table, and a snapshot of its stream whose sealed events have no column that the view does not know:
    /// the speed layer gives a view the columns that it follows before an event that has them can be sealed.
    fn view_and_events(
        &self,
        name: &str,
    ) -> iot_schemas::Result<(Arc<CompiledView>, Arc<Table>, RawSnapshot)> {
        let (mut view, _) = self.views.compiled(name)?;
        loop {
            let raw = self.raw.snapshot(view.stream())?;
            let (now, table) = self.views.compiled(name)?;
            if Arc::ptr_eq(&view, &now) {
                return Ok((view, table, raw));
            }
            view = now;
        }
    }

    /// State rows as they are stored, and the number of events that they come from.
    async fn states(
        &self,
        view: &CompiledView,
        events: LogicalPlan,
        dry_run: bool,
    ) -> iot_schemas::Result<(Vec<RecordBatch>, u64)> {
        let session = context(self.partitions, self.runtime.clone());
        let count = session.execute_logical_plan(events.clone()).await?.count().await? as u64;
        if dry_run {
            return Ok((Vec::new(), count));
        }
        let columns = view.input_schema().fields().iter();
        let columns = columns.map(|f| Expr::Column(Column::new_unqualified(f.name()))).collect::<Vec<_>>();
        let events = LogicalPlanBuilder::from(events).project(columns)?.build()?;
        let mut plan = LogicalPlanBuilder::from(view.state_plan(events)?);
        // Sorted by key, so that a query for one device reads few row groups.
        let keys =
            view.keys().iter().map(|key| Expr::Column(Column::new_unqualified(&key.name)).sort(true, true));
        let keys = keys.collect::<Vec<_>>();
        if !keys.is_empty() {
            plan = plan.sort(keys)?;
        }
        let mut rows = session.execute_logical_plan(plan.build()?).await?.execute_stream().await?;
        let mut states = Vec::new();
        while let Some(batch) = rows.try_next().await? {
            states.push(storage::to_storage(&batch, view.storage_schema())?);
        }
        Ok((states, count))
    }

    async fn commit(
        &self,
        view: &CompiledView,
        table: &Table,
        states: &[RecordBatch],
        report: &BatchReport,
    ) -> iot_schemas::Result<()> {
        let commit = Commit {
            frontier: report.to.clone(),
            generation: Some(report.generation),
            definition: Some(view.fingerprint()),
        };
        if view.def().generated && table.snapshot().definition() == Some(view.fingerprint()) {
            // It may have got columns since the last run.
            table.evolve(view.storage_schema()).await?;
        }
        if report.full {
            table.replace(states, commit).await?;
        } else {
            table.append(states, commit).await?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl BatchRunner for BatchLayer {
    async fn run(&self, request: BatchRequest) -> iot_schemas::Result<Vec<BatchReport>> {
        let views = if request.views.is_empty() {
            self.views.names().iter().map(ToString::to_string).collect()
        } else {
            request.views
        };
        let mut reports = Vec::with_capacity(views.len());
        for view in &views {
            reports.push(self.run_view(view, request.full, request.dry_run).await?);
        }
        Ok(reports)
    }
}
