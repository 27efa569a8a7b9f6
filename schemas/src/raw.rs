//! Raw streams as their readers see them: sealed rows in the table, unsealed ones in memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast as cast_array, is_not_null};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};

use crate::catalog::StreamDef;
use crate::error::Result;
use crate::layout::{NODE, SEQ};
use crate::micro_batch::MicroBatch;
use crate::position::{Frontier, NodeId, Seq};
use crate::registry::Renames;
use crate::table::{TableSnapshot, cast_to};

/// One stream at one moment: the table up to a frontier and the events after it, none missing, none twice.
#[derive(Debug, Clone)]
pub struct RawSnapshot {
    /// The schema of the raw rows; the table and the tail may have fewer or narrower columns.
    pub schema: SchemaRef,
    /// The sealed rows. Their frontier is [`TableSnapshot::frontier`].
    pub sealed: TableSnapshot,
    /// The durable events after that frontier, in log order.
    pub tail: Vec<MicroBatch>,
    /// Columns that have been renamed: where the new one of a sealed row has no value, that of the old one is read. The
    /// tail is as if it had always been called so ([`under_new_names`]).
    pub renames: Renames,
}

impl RawSnapshot {
    /// Everything up to here is in this snapshot.
    pub fn frontier(&self) -> Frontier {
        let mut frontier = self.sealed.frontier().clone();
        for batch in &self.tail {
            frontier.advance(&batch.node, batch.last_seq);
        }
        frontier
    }
}

/// Where the other layers read raw streams. Implemented by ingest.
pub trait RawStreams: Send + Sync + std::fmt::Debug {
    /// The names of all streams of the catalog.
    fn names(&self) -> Vec<Arc<str>>;

    /// The definition of a stream of the catalog.
    fn definition(&self, stream: &str) -> Option<Arc<StreamDef>>;

    /// A consistent snapshot of one stream, or of the dead letters (`dead`); cheap, no I/O.
    ///
    /// The tail is read before the table and what the table covers is dropped from it, so that no moment
    /// exists at which an event is in neither or in both.
    fn snapshot(&self, stream: &str) -> Result<RawSnapshot>;
}

/// How far the speed layer has made its own state durable. Ingest seals and trims the log only up to there.
#[derive(Debug)]
pub struct Checkpoint {
    sender: tokio::sync::watch::Sender<Frontier>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { sender: tokio::sync::watch::Sender::new(Frontier::empty()) }
    }
}

impl Checkpoint {
    /// Reports that everything up to `seq` of `node` is durable in the speed layer.
    pub fn advance(&self, node: &NodeId, seq: Seq) {
        self.sender.send_modify(|frontier| frontier.advance(node, seq));
    }

    /// Waits until `seq` of `node` is durable.
    pub async fn reached(&self, node: &str, seq: Seq) {
        let mut receiver = self.sender.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = receiver.wait_for(|frontier| frontier.covers(node, seq)).await;
    }

    /// The durable frontier now.
    pub fn frontier(&self) -> Frontier {
        self.sender.borrow().clone()
    }
}

impl RawSnapshot {
    /// The events of this snapshot as a plan over [`Self::schema`].
    pub async fn events(&self) -> Result<LogicalPlan> {
        self.events_between(&Frontier::empty(), None).await
    }

    /// The events after `after` and, if given, not after `up_to`. A node that `up_to` does not list has none.
    pub async fn events_between(&self, after: &Frontier, up_to: Option<&Frontier>) -> Result<LogicalPlan> {
        let tail = self.tail_between(after, up_to)?;
        match self.sealed_between(after, up_to).await? {
            Some(sealed) => Ok(LogicalPlanBuilder::from(sealed).union(tail)?.build()?),
            None => Ok(tail),
        }
    }

    /// Only the sealed part of [`Self::events_between`]; `None` if the table is empty.
    pub async fn sealed_between(
        &self,
        after: &Frontier,
        up_to: Option<&Frontier>,
    ) -> Result<Option<LogicalPlan>> {
        if self.sealed.file_count() == 0 {
            return Ok(None);
        }
        let provider = self.sealed.provider().await?;
        let scan = LogicalPlanBuilder::scan("events", provider_as_source(provider), None)?;
        let scan = match positions(after, up_to) {
            Some(positions) => scan.filter(positions)?,
            None => scan,
        };
        let stored = scan.schema().clone();
        let old = |name: &str| {
            let pairs = self.renames.iter().filter(|(new, _)| new == name);
            pairs.map(|(_, old)| old.as_str()).collect::<Vec<_>>()
        };
        let column = |field: &Arc<Field>| as_field(&stored, field, &old(field.name()));
        let columns = self.schema.fields().iter().map(column).collect::<Vec<_>>();
        Ok(Some(scan.project(columns)?.build()?))
    }

    fn tail_between(&self, after: &Frontier, up_to: Option<&Frontier>) -> Result<LogicalPlan> {
        let wanted = self.tail.iter().filter_map(|batch| batch.between(after, up_to));
        let batches = wanted.map(|batch| cast_to(&batch.rows, &self.schema)).collect::<Result<Vec<_>>>()?;
        let table = MemTable::try_new(self.schema.clone(), vec![batches])?;
        let scan = LogicalPlanBuilder::scan("events", provider_as_source(Arc::new(table)), None)?;
        let columns = self.schema.fields().iter().map(|f| column(f.name())).collect::<Vec<_>>();
        Ok(scan.project(columns)?.build()?)
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// The column `field` of a table that may not have it yet, or in a narrower type, or under one of the names `old`.
fn as_field(stored: &DFSchema, field: &Field, old: &[&str]) -> Expr {
    let named = |name: &str| Expr::Column(Column::new(Some("events"), name));
    let mut values: Vec<Expr> = std::iter::once(field.name().as_str())
        .chain(old.iter().copied())
        .filter_map(|name| {
            let have = stored.field_with_unqualified_name(name).ok()?;
            let is_same = have.data_type() == field.data_type();
            Some(if is_same { named(name) } else { cast(named(name), field.data_type().clone()) })
        })
        .collect();
    match values.pop() {
        None => {
            let null = ScalarValue::try_new_null(field.data_type()).unwrap_or(ScalarValue::Null);
            lit(null).alias_qualified(Some("events"), field.name())
        }
        Some(plain @ Expr::Column(_)) if values.is_empty() && plain == named(field.name()) => plain,
        Some(only) if values.is_empty() => only.alias_qualified(Some("events"), field.name()),
        Some(last) => {
            values.push(last);
            coalesce(values).alias_qualified(Some("events"), field.name())
        }
    }
}

/// `rows` as if their columns had always been called as they are now. Costs nothing where there are no renames.
pub fn under_new_names(rows: &RecordBatch, renames: &Renames) -> Result<RecordBatch> {
    let mut fields = rows.schema_ref().fields().to_vec();
    let mut columns = rows.columns().to_vec();
    for (new, old) in renames.iter() {
        let Some((old, values)) = rows.schema_ref().fields().find(old).map(|(at, f)| (f, rows.column(at)))
        else {
            continue;
        };
        match fields.iter().position(|field| field.name() == new) {
            None => {
                fields.push(Arc::new(old.as_ref().clone().with_name(new)));
                columns.push(values.clone());
            }
            Some(at) => {
                // The first of several old columns may have been the narrower one.
                if (fields[at].data_type(), values.data_type()) == (&DataType::Int64, &DataType::Float64) {
                    fields[at] = Arc::new(fields[at].as_ref().clone().with_data_type(DataType::Float64));
                    columns[at] = cast_array(&columns[at], &DataType::Float64)?;
                }
                let values = cast_array(values, fields[at].data_type())?;
                let has_value = is_not_null(&columns[at])?;
                columns[at] = zip(&has_value, &columns[at], &values)?;
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The condition "after `after` and not after `up_to`"; `None` if everything is wanted.
///
/// Written so that the statistics of a file (its lowest and highest node and number) can rule it out.
fn positions(after: &Frontier, up_to: Option<&Frontier>) -> Option<Expr> {
    let later =
        |(node, seq): (&NodeId, Seq)| column(NODE).not_eq(lit(&**node)).or(column(SEQ).gt(lit(seq as i64)));
    let within =
        |(node, seq): (&NodeId, Seq)| column(NODE).eq(lit(&**node)).and(column(SEQ).lt_eq(lit(seq as i64)));
    let lower = after.iter().filter(|(_, seq)| *seq > 0).map(later).reduce(Expr::and);
    let upper = up_to.map(|up_to| up_to.iter().map(within).reduce(Expr::or).unwrap_or_else(|| lit(false)));
    [lower, upper].into_iter().flatten().reduce(Expr::and)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
    use arrow::datatypes::Float64Type;

    use super::*;

    #[test]
    fn a_column_with_two_old_names_is_as_wide_as_the_wider() {
        let first: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, None]));
        let second: ArrayRef = Arc::new(Float64Array::from(vec![None, Some(2.5), None]));
        let rows = RecordBatch::try_from_iter([("first", first), ("second", second)]).expect("rows");
        let renames = |old: [&str; 2]| -> Renames { old.map(|old| ("new".into(), old.into())).into() };
        for old in [["first", "second"], ["second", "first"]] {
            let renamed = under_new_names(&rows, &renames(old)).expect("they are numbers");
            let new = renamed.column_by_name("new").expect("it is there").as_primitive::<Float64Type>();
            assert_eq!(new.iter().collect::<Vec<_>>(), [Some(1.0), Some(2.5), None], "{old:?}");
        }
    }
}
