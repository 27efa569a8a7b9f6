//! A speed layer of its own, to which history is played.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, SchemaRef};
use datafusion::common::{Column, ScalarValue};
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

use super::ReplayPlan;
use crate::alert_log::{AlertLog, AlertLogLimits};
use crate::engine::{Engine, EngineConfig, SpeedLayer};
use crate::error::{Error, Result};

/// What putting the events in order may take up; a longer history spills to disk.
const SORT_BYTES: usize = 256 << 20;
/// Transitions that a replay may find.
const MAX_TRANSITIONS: u64 = 200_000;
/// The alert log of the rehearsal, which keeps them all.
const ALERTS: AlertLogLimits = AlertLogLimits { max_bytes: 4 << 30, recent: 1, ended: 1 };

/// An engine with the rules of a replay and the views that they watch, which has seen nothing before.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub(super) engine: Engine,
    alerts: Arc<AlertLog>,
    /// Events up to here have been played.
    pub(super) covered: Frontier,
    pub(super) messages: u64,
    pub(super) events: u64,
    stream: Arc<str>,
    range: (Option<i64>, Option<i64>),
    /// Goes with the rehearsal.
    _scratch: Scratch,
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
    pub(super) async fn begin(speed: &SpeedLayer, plan: &ReplayPlan) -> Result<Self> {
        remove(&speed.scratch);
        let scratch = Scratch(speed.scratch.clone());
        std::fs::create_dir_all(&scratch.0)
            .map_err(|e| iot_schemas::Error::io(format!("creating {}", scratch.0.display()), e))?;
        let store = Store::local(&scratch.0)?;
        let spec = TableSpec {
            path: "empty".to_owned(),
            schema: speed.raw.snapshot(&plan.stream)?.schema,
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
            stream: plan.stream.clone(),
            range: (plan.from, plan.to),
            _scratch: scratch,
        })
    }

    /// Plays the events up to `up_to` that have not been played, each message as a group of its own.
    pub(super) async fn play(&mut self, raw: &RawSnapshot, up_to: &Frontier) -> Result<()> {
        let node = self.engine.config.node.clone();
        let up_to: Frontier = [(node.clone(), up_to.get(&node))].into_iter().collect();
        if self.covered.covers_all(&up_to) {
            return Ok(());
        }
        let plan = self.in_order(raw.events_between(&self.covered, Some(&up_to)).await?)?;
        let session = spilling_context(SORT_BYTES)?;
        let mut rows = session.execute_logical_plan(plan).await?.execute_stream().await?;
        let mut messages = Messages::new(raw.schema.clone());
        while let Some(batch) = rows.next().await {
            for message in messages.split(&batch?)? {
                self.take(message).await?;
            }
        }
        if let Some(message) = messages.rest.take() {
            self.take(message).await?;
        }
        let failures = self.engine.shared.stats().failures;
        if failures > 0 {
            let why = format!("{failures} steps of the replay have failed; the server's log says why");
            return Err(iot_schemas::Error::invalid(why).into());
        }
        self.covered = up_to;
        Ok(())
    }

    fn in_order(&self, events: LogicalPlan) -> Result<LogicalPlan> {
        let column = |name: &str| Expr::Column(Column::new_unqualified(name));
        let time = |micros: i64| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        let mut events = LogicalPlanBuilder::from(events);
        if let Some(from) = self.range.0 {
            events = events.filter(column(EVENT_TIME).gt_eq(time(from)))?;
        }
        if let Some(to) = self.range.1 {
            events = events.filter(column(EVENT_TIME).lt(time(to)))?;
        }
        let order = [SEQ, INDEX].map(|name| column(name).sort(true, false));
        Ok(events.sort(order)?.build()?)
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
        let statuses = Vec::new();
        self.engine
            .take(LogGroup { node, first_seq: seq, last_seq: seq, batches: vec![batch], statuses })
            .await;
        tokio::task::consume_budget().await;
        if self.alerts.stats().latest > MAX_TRANSITIONS {
            return Err(iot_schemas::Error::invalid(format!(
                "history has more than {MAX_TRANSITIONS} alert transitions of these rules; replay a shorter range, or one rule at a time (`--rule`)"
            ))
            .into());
        }
        Ok(())
    }

    /// What the rules have found, in the order in which they did.
    pub(super) fn found(&self) -> Result<Vec<Transition>> {
        self.alerts.read_after(0, usize::MAX).map_err(Error::from)
    }
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
