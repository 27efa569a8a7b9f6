//! One view's speed state: state rows in memory for the positions after the batch frontier.
//!
//! State is kept by *epoch*, the stretch of positions that one seal of the raw table covers. A batch run covers
//! whole epochs, so when it commits, exactly the epochs that it covers are dropped. Within the open epoch state
//! is merged as it grows, so that memory follows the number of groups and not the number of events.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use iot_schemas::micro_batch::MicroBatch;
use iot_schemas::position::{Frontier, NodeId, Seq};
use iot_schemas::raw::RawSnapshot;
use iot_schemas::session::{context, small_context};
use iot_schemas::table::{Table, TableSnapshot, cast_to};
use iot_schemas::view::{
    BatchPlan, CompiledView, SortedStates, ViewSnapshot, bytes_of, plan_over_batches, reshape_states,
};
use parking_lot::RwLock;

use crate::error::Result;

/// The open epoch is merged once it holds this many unmerged batches and they are not dwarfed by what is merged.
const MERGE_AFTER_BATCHES: usize = 32;
/// ... or this many, whatever their size.
const MERGE_AT_LATEST: usize = 256;

/// Events that no rule and no reader waits for are turned into state this many rows at a time: large batches have
/// fewer groups per event. A query turns those that are waiting into state itself.
const FLUSH_ROWS: usize = 65_536;

/// Fewer state rows than this are looked through as fast as they are searched.
const SETTLE_ROWS: usize = 2_048;

/// A view in force: what it makes of its state, and the state, which it may share with the views that read it.
#[derive(Debug)]
pub(crate) struct LiveView {
    view: Arc<CompiledView>,
    finish: BatchPlan,
    state: Arc<ViewState>,
}

/// The state of a view.
#[derive(Debug)]
struct ViewState {
    /// The view that the state was made for; others may read it.
    owner: Arc<CompiledView>,
    table: Arc<Table>,
    aggregate: BatchPlan,
    merge: BatchPlan,
    live: RwLock<Live>,
    /// The newest batch state that was made under this definition. The table may have moved on to another.
    batch: RwLock<TableSnapshot>,
}

#[derive(Debug, Default)]
struct Live {
    epochs: VecDeque<Epoch>,
    /// Everything up to here is in the batch state or in `epochs`.
    position: Frontier,
}

/// The state of one stretch of positions of one node.
#[derive(Debug)]
struct Epoch {
    node: NodeId,
    /// The last position; `None` while the epoch is open.
    end: Option<Seq>,
    /// State rows; the first `merged` batches have one row per group.
    states: Vec<RecordBatch>,
    merged: usize,
    /// In place of them, once the epoch has ended.
    settled: Option<Arc<SortedStates>>,
    /// Events that are not in `states` yet.
    pending: Vec<RecordBatch>,
}

impl LiveView {
    /// A view without speed state. [`Self::seed`] comes next.
    pub(crate) async fn new(view: Arc<CompiledView>, table: Arc<Table>) -> Result<Self> {
        let session = small_context();
        let aggregate =
            plan_over_batches(&session, view.input_schema(), |rows| view.state_plan(rows)).await?;
        let merge = plan_over_batches(&session, view.state_schema(), |rows| view.merge_plan(rows)).await?;
        let finish = plan_over_batches(&session, view.state_schema(), |rows| view.finish_plan(rows)).await?;
        let batch = RwLock::new(table.snapshot());
        let owner = view.clone();
        let state = Arc::new(ViewState { owner, table, aggregate, merge, live: RwLock::default(), batch });
        Ok(Self { view, finish, state })
    }

    /// A view that reads the state of this one, whose fingerprint it must have.
    pub(crate) async fn sharing(&self, view: Arc<CompiledView>) -> Result<Self> {
        debug_assert_eq!(view.fingerprint(), self.view.fingerprint());
        let plan = |rows| view.finish_plan(rows);
        let finish = plan_over_batches(&small_context(), view.state_schema(), plan).await?;
        Ok(Self { view, finish, state: self.state.clone() })
    }

    /// This view, a last-value view, in the shape that `view` says: with the columns that its stream has now. What
    /// was taken in stays in, and no event is read again. The shape before goes on answering whoever holds it.
    ///
    /// Costs the planning of the view and, per batch of state, a column of empty states for each new column.
    pub(crate) async fn reshaped(&self, view: Arc<CompiledView>) -> Result<Self> {
        debug_assert_eq!(view.fingerprint(), self.view.fingerprint());
        let reshaped = Self::new(view, self.state.table.clone()).await?;
        let live = self.state.live.read().reshaped(&reshaped.view)?;
        *reshaped.state.live.write() = live;
        Ok(reshaped)
    }

    /// Whether both have the same state.
    pub(crate) fn shares_state_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// The view's plans.
    pub(crate) fn view(&self) -> &Arc<CompiledView> {
        &self.view
    }

    /// The table of its batch state.
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.state.table
    }

    /// The newest batch state under this definition.
    fn batch(&self) -> TableSnapshot {
        let newest = self.state.table.snapshot();
        if newest.definition() == Some(self.state.owner.fingerprint()) {
            self.state.batch.write().clone_from(&newest);
            return newest;
        }
        self.state.batch.read().clone()
    }

    /// Computes the state of what the batch state does not cover, from raw: the sealed rows in one go, and those
    /// in the tail that are not after `processed`, epoch by epoch (`ends` are the ends of epochs known so far).
    pub(crate) async fn seed(
        &self,
        raw: &RawSnapshot,
        processed: &Frontier,
        ends: &[(NodeId, Seq)],
    ) -> Result<()> {
        let covered = self.batch().frontier().clone();
        let sealed = raw.sealed.frontier().clone();
        let mut live = Live { epochs: VecDeque::new(), position: covered.clone() };
        live.position.join(&sealed);
        if !covered.covers_all(&sealed)
            && let Some(events) = raw.sealed_between(&covered, Some(&sealed)).await?
        {
            let session = context(2, small_context().runtime_env());
            let plan = self.state.owner.state_plan(project_to(events, &self.state.owner)?)?;
            let states = session.execute_logical_plan(plan).await?.collect().await?;
            for (node, end) in sealed.iter() {
                // State does not say which node it came from; a frontier of several nodes is covered as a whole.
                live.epochs.push_back(Epoch::new(node.clone(), Some(end)));
            }
            if let Some(last) = live.epochs.back_mut() {
                last.states = states;
                last.settle(&self.state.owner)?;
            }
        }
        *self.state.live.write() = live;
        let mut ends: VecDeque<(NodeId, Seq)> =
            ends.iter().filter(|(node, end)| !sealed.covers(node, *end)).cloned().collect();
        // What is not processed yet comes to the engine, as part of the same batches perhaps.
        for batch in raw.tail.iter().filter_map(|batch| batch.between(&Frontier::empty(), Some(processed))) {
            while ends.front().is_some_and(|(_, end)| *end < batch.first_seq) {
                if let Some((node, end)) = ends.pop_front() {
                    self.close_epoch(&node, end).await?;
                }
            }
            self.apply(&batch, false).await?;
        }
        for (node, end) in ends {
            self.close_epoch(&node, end).await?;
        }
        self.state.live.write().position.join(processed);
        Ok(())
    }

    /// Takes in the events of one group and returns their state rows; `None` if they are in already. If nobody is
    /// `eager` to see the state rows, none are returned, and they may be made later.
    pub(crate) async fn apply(&self, batch: &MicroBatch, eager: bool) -> Result<Option<Vec<RecordBatch>>> {
        if self.state.live.read().position.covers(&batch.node, batch.last_seq) {
            return Ok(None);
        }
        let rows = cast_to(&batch.rows, self.state.owner.input_schema())?;
        if !eager {
            let full = {
                let mut live = self.state.live.write();
                live.position.advance(&batch.node, batch.last_seq);
                let epoch = live.open_epoch(&batch.node);
                epoch.pending.push(rows);
                epoch.pending_rows() >= FLUSH_ROWS
            };
            if full {
                self.flush(&batch.node).await?;
            }
            return Ok(Some(Vec::new()));
        }
        let states = self.state.aggregate.run(vec![rows]).await?;
        let crowded = {
            let mut live = self.state.live.write();
            live.position.advance(&batch.node, batch.last_seq);
            live.open_epoch(&batch.node).add(&states)
        };
        if crowded {
            self.merge_open_epoch(&batch.node).await?;
        }
        Ok(Some(states))
    }

    /// The state of these events of the stream alone.
    pub(crate) async fn states_of(&self, rows: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let rows = cast_to(rows, self.state.owner.input_schema())?;
        Ok(self.state.aggregate.run(vec![rows]).await?)
    }

    /// Turns the waiting events of the open epoch into state. A batch that cannot be computed is left out, like one
    /// that nobody had let wait: the others count, and nothing piles up behind it.
    async fn flush(&self, node: &NodeId) -> Result<()> {
        let pending = self.open_epoch_of(node, |epoch| epoch.pending.clone());
        if pending.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        let states = match self.state.aggregate.run(pending.clone()).await {
            Ok(states) => states,
            Err(_) => {
                let mut states = Vec::new();
                for batch in &pending {
                    match self.state.aggregate.run(vec![batch.clone()]).await {
                        Ok(more) => states.extend(more),
                        Err(e) => failure = Some(e),
                    }
                }
                states
            }
        };
        // Only the engine adds to the open epoch, and the engine is here: nothing has come in between.
        let crowded = {
            let mut live = self.state.live.write();
            let epoch = live.open_epoch(node);
            epoch.pending.drain(..pending.len());
            epoch.add(&states)
        };
        if crowded {
            Box::pin(self.merge_open_epoch(node)).await?;
        }
        failure.map_or(Ok(()), |e| Err(e.into()))
    }

    fn open_epoch_of(&self, node: &NodeId, what: impl Fn(&Epoch) -> Vec<RecordBatch>) -> Vec<RecordBatch> {
        let live = self.state.live.read();
        live.epochs.iter().find(|e| e.end.is_none() && e.node == *node).map(what).unwrap_or_default()
    }

    /// Notes that a group without events for this view has passed.
    pub(crate) fn skip_to(&self, node: &NodeId, seq: Seq) {
        self.state.live.write().position.advance(node, seq);
    }

    /// Ends the open epoch of `node`.
    pub(crate) async fn close_epoch(&self, node: &NodeId, end: Seq) -> Result<()> {
        let flushed = self.flush(node).await;
        let merged = self.merge_open_epoch(node).await;
        // The epoch ends whatever has failed: what it holds is of the positions up to here.
        let mut live = self.state.live.write();
        let epoch = live.epochs.iter_mut().find(|e| e.end.is_none() && e.node == *node);
        let settled = epoch.map_or(Ok(()), |epoch| {
            epoch.end = Some(end);
            epoch.settle(&self.state.owner)
        });
        flushed.and(merged).and(settled)
    }

    /// Drops the epochs that the batch state covers now.
    pub(crate) fn drop_covered(&self) {
        let frontier = self.batch().frontier().clone();
        self.state.live.write().epochs.retain(|epoch| !epoch.covered_by(&frontier));
    }

    /// Speed state first, then batch state, then away with what both have: in that order no moment exists at
    /// which an event is in neither or in both.
    pub(crate) fn snapshot(&self) -> ViewSnapshot {
        let (epochs, position) = {
            let live = self.state.live.read();
            let epochs: Vec<_> = live
                .epochs
                .iter()
                .map(|e| (e.node.clone(), e.end, e.settled.clone(), e.states.clone(), e.pending.clone()))
                .collect();
            (epochs, live.position.clone())
        };
        let batch = self.batch();
        let covered = batch.frontier();
        // An open epoch may have been closed, sealed and covered in the meantime; it ended at the position then.
        let after = epochs
            .into_iter()
            .filter(|(node, end, ..)| !covered.covers(node, end.unwrap_or_else(|| position.get(node))));
        let (mut settled, mut speed, mut pending) = (Vec::new(), Vec::new(), Vec::new());
        for (_, _, sorted, states, events) in after {
            settled.extend(sorted);
            speed.extend(states);
            pending.extend(events);
        }
        let mut frontier = position;
        frontier.join(covered);
        ViewSnapshot {
            view: self.view.clone(),
            batch,
            speed,
            settled,
            pending,
            frontier,
            watermark: None,
            late_events: 0,
        }
    }

    /// Merges state rows to one per group.
    pub(crate) async fn merge(&self, states: Vec<RecordBatch>) -> Result<RecordBatch> {
        let merged = self.state.merge.run(states).await?;
        Ok(concat_batches(self.view.state_schema(), &merged)?)
    }

    /// Turns state rows, one per group, into the view's rows.
    pub(crate) async fn finish(&self, states: RecordBatch) -> Result<RecordBatch> {
        let rows = self.finish.run(vec![states]).await?;
        Ok(concat_batches(self.view.output_schema(), &rows)?)
    }

    /// State rows in memory, and the bytes of these and of waiting events. Nothing if another view has the state.
    pub(crate) fn size(&self) -> (usize, usize) {
        if self.view.state_owner() != self.view.name() {
            return (0, 0);
        }
        let live = self.state.live.read();
        let settled = live.epochs.iter().flat_map(|epoch| &epoch.settled).map(|states| states.rows());
        let states = live.epochs.iter().flat_map(|epoch| &epoch.states).chain(settled);
        let (rows, bytes) =
            states.fold((0, 0), |(rows, bytes), b| (rows + b.num_rows(), bytes + bytes_of(b)));
        let pending = live.epochs.iter().flat_map(|epoch| &epoch.pending);
        (rows, bytes + pending.map(bytes_of).sum::<usize>())
    }

    async fn merge_open_epoch(&self, node: &NodeId) -> Result<()> {
        let unmerged = |epoch: &Epoch| {
            if epoch.states.len() > epoch.merged { epoch.states.clone() } else { Vec::new() }
        };
        let states = self.open_epoch_of(node, unmerged);
        if states.is_empty() {
            return Ok(());
        }
        // Only the engine adds to the open epoch, and the engine is here: nothing has come in between.
        let merged = self.state.merge.run(states).await?;
        let mut live = self.state.live.write();
        let epoch = live.open_epoch(node);
        epoch.merged = merged.len();
        epoch.states = merged;
        Ok(())
    }
}

/// Only the columns that the view reads.
pub(crate) fn project_to(
    events: datafusion::logical_expr::LogicalPlan,
    view: &CompiledView,
) -> Result<datafusion::logical_expr::LogicalPlan> {
    use datafusion::common::Column;
    use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
    let columns =
        view.input_schema().fields().iter().map(|f| Expr::Column(Column::new_unqualified(f.name())));
    Ok(LogicalPlanBuilder::from(events).project(columns.collect::<Vec<_>>())?.build()?)
}

impl Live {
    fn open_epoch(&mut self, node: &NodeId) -> &mut Epoch {
        let open = self.epochs.iter().position(|e| e.end.is_none() && e.node == *node);
        let index = open.unwrap_or_else(|| {
            self.epochs.push_back(Epoch::new(node.clone(), None));
            self.epochs.len() - 1
        });
        &mut self.epochs[index]
    }
}

impl Live {
    fn reshaped(&self, view: &CompiledView) -> Result<Self> {
        let epochs = self.epochs.iter().map(|epoch| epoch.reshaped(view)).collect::<Result<_>>()?;
        Ok(Self { epochs, position: self.position.clone() })
    }
}

impl Epoch {
    fn reshaped(&self, view: &CompiledView) -> Result<Self> {
        let states = |batch: &RecordBatch| reshape_states(batch, view.state_schema());
        let settled = self.settled.as_ref().map(|settled| settled.with_states(states)).transpose()?;
        let pending = self.pending.iter().map(|events| cast_to(events, view.input_schema()));
        Ok(Self {
            node: self.node.clone(),
            end: self.end,
            states: self.states.iter().map(states).collect::<Result<_, _>>()?,
            merged: self.merged,
            settled: settled.map(Arc::new),
            pending: pending.collect::<Result<_, _>>()?,
        })
    }

    fn new(node: NodeId, end: Option<Seq>) -> Self {
        Self { node, end, states: Vec::new(), merged: 0, settled: None, pending: Vec::new() }
    }

    fn pending_rows(&self) -> usize {
        self.pending.iter().map(RecordBatch::num_rows).sum()
    }

    /// Adds state rows; says whether it is time to merge.
    fn add(&mut self, states: &[RecordBatch]) -> bool {
        self.states.extend(states.iter().filter(|s| s.num_rows() > 0).cloned());
        self.is_crowded()
    }

    /// Sorts the state rows of an epoch that has ended, if that is worth it. If it fails they stay as they are.
    fn settle(&mut self, view: &CompiledView) -> Result<()> {
        let rows: usize = self.states.iter().map(RecordBatch::num_rows).sum();
        if view.keys().is_empty() || rows < SETTLE_ROWS {
            return Ok(());
        }
        let states = concat_batches(view.state_schema(), &self.states)?;
        self.settled = Some(Arc::new(SortedStates::new(&states, view.keys().len())?));
        (self.states, self.merged) = (Vec::new(), 0);
        Ok(())
    }

    fn covered_by(&self, frontier: &Frontier) -> bool {
        self.end.is_some_and(|end| frontier.covers(&self.node, end))
    }

    fn is_crowded(&self) -> bool {
        let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        let fresh = self.states.len() - self.merged;
        fresh >= MERGE_AT_LATEST
            || (fresh >= MERGE_AFTER_BATCHES
                && 2 * rows(&self.states[self.merged..]) >= rows(&self.states[..self.merged]))
    }
}
