//! A speed layer of its own, to which history is played.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Int64Type, SchemaRef};
use datafusion::common::{Column, ScalarValue};
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use futures::StreamExt;
use iot_schemas::alert::{AlertFeed, Transition};
use iot_schemas::catalog::StreamDef;
use iot_schemas::layout::{EVENT_TIME, INDEX, SEQ};
use iot_schemas::micro_batch::{LogGroup, MicroBatch};
use iot_schemas::position::{Frontier, Seq};
use iot_schemas::raw::{Checkpoint, RawSnapshot, RawStreams};
use iot_schemas::session::spilling_context;
use iot_schemas::table::{Store, Table, TableSpec, cast_to};
use tokio::sync::OwnedMutexGuard;

use super::ReplayPlan;
use crate::alert_log::{AlertLog, AlertLogLimits};
use crate::engine::{Engine, EngineConfig, SpeedLayer};
use crate::error::Result;

/// Messages that are read, and put in order, at a time.
const SLICE: Seq = 100_000;
/// What that may take up; a longer slice spills to disk.
const SORT_BYTES: usize = 256 << 20;
/// Transitions that a replay may find, and the bytes of their records.
const MAX_TRANSITIONS: u64 = 200_000;
const MAX_TRANSITION_BYTES: u64 = 128 << 20;
/// The alert log of the rehearsal, which keeps them all.
const ALERTS: AlertLogLimits = AlertLogLimits { max_bytes: 4 << 30, recent: 1, ended: 1, is_durable: false };
/// State rows of the open epoch at which it is closed, and the share of all state rows that it must have at least: few
/// enough epochs to search, and no state that is merged for ever.
const EPOCH_ROWS: usize = 65_536;
const EPOCH_SHARE: usize = 4;
/// Messages between two looks at how large the epoch is.
const EPOCH_CHECK: u64 = 256;
/// No message takes that long, unless the disk is full.
const LONG_STEP: Duration = Duration::from_secs(60);

/// An engine with the rules of a replay and the views that they watch, which has seen nothing before.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub(super) engine: Engine,
    alerts: Arc<AlertLog>,
    /// Events up to here have been played.
    pub(super) covered: Frontier,
    pub(super) messages: u64,
    pub(super) events: u64,
    /// What the rules have found, in the order in which they did, up to the last call of [`Self::collect`].
    pub(super) found: Vec<Transition>,
    /// State rows when the last epoch was closed.
    closed_rows: usize,
    stream: Arc<str>,
    schema: SchemaRef,
    range: (Option<i64>, Option<i64>),
    /// Goes with the rehearsal, and before the next one may begin.
    _scratch: Scratch,
    _turn: OwnedMutexGuard<()>,
}

/// A directory that is removed when this is dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes what a replay has left that was killed.
pub(in crate::engine) fn remove(scratch: &Path) {
    match std::fs::remove_dir_all(scratch) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(dir = %scratch.display(), error = %e, "cannot remove what a replay has left");
        }
        _ => {}
    }
}

/// The streams, of which nothing has come yet.
#[derive(Debug)]
struct Beginning {
    raw: Arc<dyn RawStreams>,
    empty: Table,
}

impl RawStreams for Beginning {
    fn names(&self) -> Vec<Arc<str>> {
        self.raw.names()
    }

    fn definition(&self, stream: &str) -> Option<Arc<StreamDef>> {
        self.raw.definition(stream)
    }

    fn snapshot(&self, stream: &str) -> iot_schemas::Result<RawSnapshot> {
        let now = self.raw.snapshot(stream)?;
        Ok(RawSnapshot { sealed: self.empty.snapshot(), tail: Vec::new(), ..now })
    }
}

impl Rehearsal {
    pub(super) async fn begin(
        speed: &SpeedLayer,
        plan: &ReplayPlan,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Self> {
        remove(&speed.scratch);
        let scratch = Scratch(speed.scratch.clone());
        std::fs::create_dir_all(&scratch.0)
            .map_err(|e| iot_schemas::Error::io(format!("creating {}", scratch.0.display()), e))?;
        let store = Store::local(&scratch.0)?;
        let schema = speed.raw.snapshot(&plan.stream)?.schema;
        let spec = TableSpec {
            path: "empty".to_owned(),
            schema: schema.clone(),
            partition_by: Vec::new(),
            stats_columns: Vec::new(),
            nodes: vec![speed.node.clone()],
        };
        let raw = Beginning { raw: speed.raw.clone(), empty: Table::open(&store, spec).await? };
        let alerts = Arc::new(AlertLog::open(&scratch.0.join("alerts"), ALERTS)?);
        let checkpoint_path = scratch.0.join("rules.ckpt");
        let config = EngineConfig { node: speed.node.clone(), checkpoint_path, store };
        let (mut engine, _) = Engine::new(
            config,
            Arc::new(raw),
            alerts.clone(),
            Arc::new(Checkpoint::default()),
            speed.clock.clone(),
        );
        for view in &plan.views {
            engine.put_view(view.clone()).await?;
        }
        for rule in &plan.rules {
            engine.put_rule(rule.clone()).await?;
        }
        Ok(Self {
            engine,
            alerts,
            covered: Frontier::empty(),
            messages: 0,
            events: 0,
            found: Vec::new(),
            closed_rows: 0,
            stream: plan.stream.clone(),
            schema,
            range: (plan.from, plan.to),
            _scratch: scratch,
            _turn: turn,
        })
    }

    /// Plays the events up to `up_to` that have not been played, each message as a group of its own.
    pub(super) async fn play(&mut self, raw: &RawSnapshot, up_to: &Frontier) -> Result<()> {
        self.check_columns(&raw.schema)?;
        let node = self.engine.config.node.clone();
        let last = up_to.get(&node);
        let at = |seq: Seq| [(node.clone(), seq)].into_iter().collect::<Frontier>();
        let mut next = self.first_in_range(raw, &at(last)).await?;
        while let Some(first) = next.filter(|first| *first <= last) {
            let end = last.min(first + SLICE - 1);
            self.play_slice(raw, &at(first - 1), &at(end)).await?;
            next = Some(end + 1);
        }
        self.covered.join(&at(last));
        let failures = self.engine.shared.stats().failures;
        if failures > 0 {
            let why = std::io::Error::other("steps have failed; the server's log says why");
            return Err(iot_schemas::Error::io(format!("replaying: {failures} times"), why).into());
        }
        Ok(())
    }

    /// The first position to be played, so that nothing of before the range is read for long.
    async fn first_in_range(&self, raw: &RawSnapshot, up_to: &Frontier) -> Result<Option<Seq>> {
        if self.covered.covers_all(up_to) {
            return Ok(None);
        }
        let events = self.in_range(raw.events_between(&self.covered, Some(up_to)).await?)?;
        let first = events.aggregate(Vec::<Expr>::new(), [min(column(SEQ))])?.build()?;
        let found = spilling_context(SORT_BYTES)?.execute_logical_plan(first).await?.collect().await?;
        let first = found.first().and_then(|rows| rows.column(0).as_primitive_opt::<Int64Type>());
        Ok(first.filter(|first| !first.is_empty() && first.is_valid(0)).map(|first| first.value(0) as Seq))
    }

    /// Plays the events after `after` and up to `up_to`.
    async fn play_slice(&mut self, raw: &RawSnapshot, after: &Frontier, up_to: &Frontier) -> Result<()> {
        let events = self.in_range(raw.events_between(after, Some(up_to)).await?)?;
        let order = [SEQ, INDEX].map(|name| column(name).sort(true, false));
        let plan = events.sort(order)?.build()?;
        let mut rows =
            spilling_context(SORT_BYTES)?.execute_logical_plan(plan).await?.execute_stream().await?;
        let mut messages = Messages::new(raw.schema.clone());
        while let Some(batch) = rows.next().await {
            for message in messages.split(&batch?)? {
                self.take(message).await?;
            }
        }
        match messages.rest.take() {
            Some(message) => self.take(message).await,
            None => Ok(()),
        }
    }

    /// State that was made of narrower columns, or of columns that are called otherwise now, cannot go on.
    fn check_columns(&self, now: &SchemaRef) -> Result<()> {
        let is_other = |field: &&Arc<Field>| {
            now.field_with_name(field.name()).ok().is_none_or(|now| now.data_type() != field.data_type())
        };
        match self.schema.fields().iter().find(is_other) {
            Some(field) => {
                let (column, stream) = (field.name(), &self.stream);
                let why = format!(
                    "column `{column}` of stream `{stream}` was changed while history was replayed; try again"
                );
                Err(iot_schemas::Error::invalid(why).into())
            }
            None => Ok(()),
        }
    }

    fn in_range(&self, events: LogicalPlan) -> Result<LogicalPlanBuilder> {
        let time = |micros: i64| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        let mut events = LogicalPlanBuilder::from(events);
        if let Some(from) = self.range.0 {
            events = events.filter(column(EVENT_TIME).gt_eq(time(from)))?;
        }
        if let Some(to) = self.range.1 {
            events = events.filter(column(EVENT_TIME).lt(time(to)))?;
        }
        Ok(events)
    }

    async fn take(&mut self, rows: RecordBatch) -> Result<()> {
        let Some(seq) = seqs(&rows).and_then(|seqs| seqs.first()).map(|seq| *seq as Seq) else {
            return Ok(());
        };
        self.messages += 1;
        self.events += rows.num_rows() as u64;
        let node = self.engine.config.node.clone();
        let stream = self.stream.clone();
        let batch = MicroBatch { stream, node: node.clone(), first_seq: seq, last_seq: seq, rows };
        let (batches, statuses, replayed) = (vec![batch], Vec::new(), Vec::new());
        let group = LogGroup { node, first_seq: seq, last_seq: seq, batches, statuses, replayed };
        if tokio::time::timeout(LONG_STEP, self.engine.take(group)).await.is_err() {
            let trouble = self.engine.shared.not_ready().unwrap_or_else(|| "it takes too long".to_owned());
            return Err(iot_schemas::Error::io("replaying", std::io::Error::other(trouble)).into());
        }
        tokio::task::consume_budget().await;
        if self.messages.is_multiple_of(EPOCH_CHECK) {
            self.close_large_epoch(seq).await?;
        }
        let found = self.alerts.stats();
        if found.latest > MAX_TRANSITIONS || found.bytes > MAX_TRANSITION_BYTES {
            return Err(iot_schemas::Error::invalid(format!(
                "history has more than {MAX_TRANSITIONS} alert transitions of these rules, or {} MiB of them; replay a shorter range, or one rule at a time (`--rule`)",
                MAX_TRANSITION_BYTES >> 20
            ))
            .into());
        }
        Ok(())
    }

    /// Ends the open epoch of all views once it is large: what is in it is merged again and again.
    async fn close_large_epoch(&mut self, seq: Seq) -> Result<()> {
        let rows = self.engine.shared.stats().state_rows;
        let open = rows.saturating_sub(self.closed_rows);
        if open >= EPOCH_ROWS && open * EPOCH_SHARE >= self.closed_rows {
            for live in self.engine.all_views() {
                live.close_epoch(&self.engine.config.node, seq).await?;
            }
            self.closed_rows = self.engine.shared.stats().state_rows;
        }
        Ok(())
    }

    /// Reads what has been found since the last call.
    pub(super) fn collect(&mut self) -> Result<()> {
        let known = self.found.last().map_or(0, |last| last.id);
        self.found.extend(self.alerts.read_after(known, usize::MAX)?);
        Ok(())
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Rows in log order, message by message.
#[derive(Debug)]
struct Messages {
    schema: SchemaRef,
    /// The last message, which may have more rows.
    rest: Option<RecordBatch>,
}

impl Messages {
    fn new(schema: SchemaRef) -> Self {
        Self { schema, rest: None }
    }

    /// The messages that are complete.
    fn split(&mut self, rows: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let mut rows = cast_to(rows, &self.schema)?;
        let last_of = |rows: &RecordBatch| seqs(rows).and_then(|seqs| seqs.last().copied());
        let mut complete = Vec::new();
        if let Some(rest) = self.rest.take() {
            if last_of(&rest) == seqs(&rows).and_then(|seqs| seqs.first().copied()) {
                rows = concat_batches(&self.schema, [&rest, &rows])?;
            } else {
                complete.push(rest);
            }
        }
        let mut from = 0;
        for message in seqs(&rows).unwrap_or_default().chunk_by(|a, b| a == b) {
            complete.push(rows.slice(from, message.len()));
            from += message.len();
        }
        self.rest = complete.pop();
        Ok(complete)
    }
}

fn seqs(rows: &RecordBatch) -> Option<&[i64]> {
    Some(rows.column_by_name(SEQ)?.as_primitive_opt::<Int64Type>()?.values())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn messages_are_put_together_across_batches() {
        let batch = |seqs: &[i64]| {
            let column: ArrayRef = Arc::new(Int64Array::from(seqs.to_vec()));
            RecordBatch::try_from_iter([(SEQ, column)]).expect("one column")
        };
        let mut messages = Messages::new(batch(&[]).schema());
        let mut found = Vec::new();
        for part in [&[1, 1, 2][..], &[2, 2], &[2, 3], &[], &[4], &[5, 5]] {
            found.extend(messages.split(&batch(part)).expect("it splits"));
        }
        found.extend(messages.rest.take());
        let found: Vec<Vec<i64>> = found.iter().map(|rows| seqs(rows).unwrap_or_default().to_vec()).collect();
        assert_eq!(found, [vec![1, 1], vec![2, 2, 2, 2], vec![3], vec![4], vec![5, 5]]);
    }
}
