//! `dedup`: a later copy of an event with the same key is not stored.
//!
//! Whether an event is a copy follows from what is stored alone: it is one if an event with its key was stored before
//! it and arrived at most the horizon earlier. So the decision is the same when the log is replayed after a
//! crash: of what the table has, it has said itself which rows were kept; for the rest, the keys of the horizon are
//! read back from the table. Nothing else is saved.
//!
//! An event that lacks a value for part of the key is always stored, and so is one that comes out of a replayed dead
//! letter, whose arrival lies in the past. Beyond [`MAX_KEYS`] keys of a stream the oldest are forgotten.

use std::collections::VecDeque;
use std::time::Duration;

use ahash::{HashMap, HashSet, RandomState};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Column;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, lit};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;

use iot_schemas::Result;
use iot_schemas::catalog::StreamDef;
use iot_schemas::layout::{INDEX, INGEST_TIME, NODE, SEQ};
use iot_schemas::position::{Frontier, NodeId, Seq};
use iot_schemas::raw::RawSnapshot;

/// Keys that are remembered per stream, about 60 bytes each.
pub(crate) const MAX_KEYS: usize = 1_000_000;

/// What `dedup` of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DedupRule {
    columns: Vec<String>,
    horizon: Duration,
}

impl DedupRule {
    /// The rule of a stream, if it has one.
    pub(crate) fn of(def: &StreamDef) -> Option<Self> {
        let horizon = def.dedup_horizon();
        (!def.dedup.is_empty()).then(|| Self { columns: def.dedup.clone(), horizon })
    }
}

/// The keys of one stream.
#[derive(Debug)]
pub(crate) struct KeyWindow {
    rule: DedupRule,
    /// In microseconds.
    horizon: i64,
    /// When the newest stored event of each key arrived.
    known: HashMap<u128, i64>,
    /// Keys in the order in which their events were stored.
    order: VecDeque<(u128, i64)>,
    max_keys: usize,
    /// Up to here the table says what was kept, and these are the events, by number and index, that it has.
    decided: Seq,
    kept: HashSet<(i64, i32)>,
    hashers: [RandomState; 2],
}

impl KeyWindow {
    pub(crate) fn new(rule: DedupRule) -> Self {
        Self::with_limit(rule, MAX_KEYS)
    }

    fn with_limit(rule: DedupRule, max_keys: usize) -> Self {
        Self {
            horizon: i64::try_from(rule.horizon.as_micros()).unwrap_or(i64::MAX),
            rule,
            known: HashMap::default(),
            order: VecDeque::new(),
            max_keys,
            decided: 0,
            kept: HashSet::default(),
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    /// The window as it was after the last event of `raw`, for a log that is read again from after `after` on and
    /// whose earliest message, not always the first, arrived at `arrival` (microseconds).
    ///
    /// Reads the key columns of the horizon, and of what is read again.
    pub(crate) async fn load(
        rule: DedupRule,
        raw: &RawSnapshot,
        node: &NodeId,
        after: Seq,
        arrival: i64,
    ) -> Result<Self> {
        let mut window = Self::new(rule);
        window.decided = raw.frontier().get(node);
        let oldest = window.oldest(arrival);
        let mut columns: Vec<Expr> = window.rule.columns.iter().map(|name| column(name)).collect();
        // No stream has fields of these names.
        columns.extend([INGEST_TIME, SEQ, INDEX].map(column));
        let instant = ScalarValue::TimestampMicrosecond(Some(oldest), Some("UTC".into()));
        let recent = column(INGEST_TIME).gt_eq(lit(instant)).or(column(SEQ).gt(lit(after as i64)));
        // The newest if there are too many, then in the order of the log.
        let newest_first = vec![column(SEQ).sort(false, false), column(INDEX).sort(false, false)];
        let in_order = vec![column(SEQ).sort(true, false), column(INDEX).sort(true, false)];
        let plan = LogicalPlanBuilder::from(raw.events_between(&Frontier::empty(), None).await?)
            .filter(column(NODE).eq(lit(&**node)).and(recent))?
            .project(columns)?
            .sort_with_limit(newest_first, Some(MAX_KEYS))?
            .sort(in_order)?
            .build()?;
        let mut rows = SessionContext::new().execute_logical_plan(plan).await?.execute_stream().await?;
        while let Some(batch) = rows.try_next().await? {
            window.restore(&batch, after)?;
        }
        Ok(window)
    }

    /// Whether it goes by this rule, so that it can go on when a definition changes.
    pub(crate) fn goes_by(&self, rule: &DedupRule) -> bool {
        self.rule == *rule
    }

    /// How many keys are remembered.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Takes in rows of the table.
    fn restore(&mut self, rows: &RecordBatch, after: Seq) -> Result<()> {
        let keys = self.keys(rows)?;
        let (arrival, seq, index) = positions(rows);
        for (i, key) in keys.into_iter().enumerate() {
            if seq.value(i) > after as i64 {
                self.kept.insert((seq.value(i), index.value(i)));
            }
            if let Some(key) = key {
                self.remember(key, arrival.value(i));
            }
        }
        Ok(())
    }

    /// Which rows are to be stored. `exempt` are messages that are stored in any case.
    pub(crate) fn kept(&mut self, rows: &RecordBatch, exempt: &[Seq]) -> Result<BooleanArray> {
        let keys = self.keys(rows)?;
        let (arrival, seq, index) = positions(rows);
        let mut keep = Vec::with_capacity(rows.num_rows());
        for (i, key) in keys.into_iter().enumerate() {
            let (arrival, seq, index) = (arrival.value(i), seq.value(i), index.value(i));
            keep.push(if seq as Seq <= self.decided {
                self.kept.contains(&(seq, index))
            } else {
                self.take(key, arrival, exempt.contains(&(seq as Seq)))
            });
        }
        if seq.values().last().is_some_and(|last| *last as Seq > self.decided) {
            self.kept = HashSet::default();
        }
        Ok(BooleanArray::from(keep))
    }

    fn take(&mut self, key: Option<u128>, arrival: i64, is_exempt: bool) -> bool {
        let Some(key) = key else { return true };
        let oldest = arrival.saturating_sub(self.horizon);
        if !is_exempt && self.known.get(&key).is_some_and(|known| *known >= oldest) {
            return false;
        }
        self.remember(key, arrival);
        true
    }

    fn remember(&mut self, key: u128, arrival: i64) {
        let known = self.known.entry(key).or_insert(arrival);
        *known = arrival.max(*known);
        self.order.push_back((key, arrival));
        // As seen from this event and from no other one: a clock that was ahead for a while has no say in what is
        // forgotten afterwards.
        let oldest = self.oldest(arrival);
        while let Some((key, arrival)) = self.order.front().copied()
            && (self.order.len() > self.max_keys || arrival < oldest)
        {
            self.order.pop_front();
            if self.known.get(&key) == Some(&arrival) {
                self.known.remove(&key);
            }
        }
    }

    /// What arrived before that need not be known when an event arrives at `arrival`: twice the horizon, so that a clock that
    /// is set back a little changes nothing.
    fn oldest(&self, arrival: i64) -> i64 {
        arrival.saturating_sub(self.horizon.saturating_mul(2))
    }

    /// The key of each row, `None` if it lacks part of it.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<Option<u128>>> {
        let columns: Vec<Option<&ArrayRef>> =
            self.rule.columns.iter().map(|name| rows.column_by_name(name)).collect();
        // A column that nobody has sent yet.
        let Some(columns) = columns.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(vec![None; rows.num_rows()]);
        };
        let columns: Vec<ArrayRef> = columns.into_iter().cloned().collect();
        let types = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let encoded = RowConverter::new(types)?.convert_columns(&columns)?;
        let key = |(i, row): (usize, arrow::row::Row<'_>)| {
            let has_all = columns.iter().all(|column| column.is_valid(i));
            has_all.then(|| {
                let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(row.as_ref()));
                u128::from(high) << 64 | u128::from(low)
            })
        };
        Ok(encoded.iter().enumerate().map(key).collect())
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

type Positions<'a> = (
    &'a arrow::array::PrimitiveArray<TimestampMicrosecondType>,
    &'a arrow::array::PrimitiveArray<Int64Type>,
    &'a arrow::array::PrimitiveArray<Int32Type>,
);

/// Arrival, number and index of raw rows.
fn positions(rows: &RecordBatch) -> Positions<'_> {
    let column = |name| rows.column_by_name(name).expect("raw rows have the columns of every stream");
    (column(INGEST_TIME).as_primitive(), column(SEQ).as_primitive(), column(INDEX).as_primitive())
}

#[cfg(test)]
mod tests;
