//! The proof of the lambda equation: the merged view against the same SQL over all raw events.
//!
//! Both sides are computed for exactly the same positions, while events go on coming in.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::Column;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast};
use datafusion::prelude::SessionContext;
use iot_schemas::Result;
use iot_schemas::control::VerifyReport;
use iot_schemas::session::context;
use iot_schemas::view::{CompiledView, Layer};

use crate::tables::Sources;

/// Sums of doubles may differ by this part of their size: the order of addition is another.
const RELATIVE: f64 = 1e-9;
/// ... and near zero by this much.
const ABSOLUTE: f64 = 1e-9;
/// Sketches that depend on the parts that were merged may differ by this part: they state an error of their own.
const SKETCH: f64 = 0.05;
/// How many differences are put into words.
const EXAMPLES: usize = 10;

/// Recomputes one view and compares.
pub async fn verify_view(sources: &Sources, view: &str, runtime: Arc<RuntimeEnv>) -> Result<VerifyReport> {
    // The view first: raw has every position that the view has taken in.
    let snapshot = sources.views.snapshot(view)?;
    let compiled = snapshot.view.clone();
    let raw = sources.raw.snapshot(compiled.stream())?;
    let session = context(2, runtime);
    let merged = session.execute_logical_plan(snapshot.rows(Layer::Merged).await?).await?.collect().await?;

    let events =
        raw.events_between(&iot_schemas::position::Frontier::empty(), Some(&snapshot.frontier)).await?;
    let count = session.execute_logical_plan(events.clone()).await?.count().await? as u64;
    let recomputed = recompute(&session, &compiled, &events).await?;
    let schema = &relaxed(compiled.output_schema());
    let differences =
        compare(&compiled, &concat_batches(schema, &merged)?, &concat_batches(schema, &recomputed)?)?;
    Ok(VerifyReport {
        view: view.to_owned(),
        generated: compiled.def().generated,
        frontier: snapshot.frontier,
        rows: recomputed.iter().map(|batch| batch.num_rows() as u64).sum(),
        events: count,
        differences: differences.len() as u64,
        examples: differences.into_iter().take(EXAMPLES).collect(),
    })
}

async fn recompute(
    session: &SessionContext,
    view: &CompiledView,
    events: &LogicalPlan,
) -> Result<Vec<RecordBatch>> {
    let events = as_the_view_knows(view, events)?;
    let rows = session.execute_logical_plan(view.whole_plan(&events)?).await?.collect().await?;
    let schema = relaxed(view.output_schema());
    // Nullability may differ between the two plans; names and types may not.
    rows.iter().map(|batch| Ok(RecordBatch::try_new(schema.clone(), batch.columns().to_vec())?)).collect()
}

/// Events whose columns have the types that the view knows. A column that has just been widened had none but narrow
/// values up to where the view has come.
fn as_the_view_knows(view: &CompiledView, events: &LogicalPlan) -> Result<LogicalPlan> {
    let known = |name: &str| view.input_schema().field_with_name(name).map(|field| field.data_type().clone());
    let columns = events.schema().iter().map(|(relation, field)| {
        let column = Expr::Column(Column::new(relation.cloned(), field.name()));
        match known(field.name()) {
            Ok(known) if known != *field.data_type() => cast(column, known).alias(field.name()),
            _ => column,
        }
    });
    let columns = columns.collect::<Vec<_>>();
    Ok(LogicalPlanBuilder::from(events.clone()).project(columns)?.build()?)
}

/// The schema with every column nullable.
fn relaxed(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()))
}

/// The differences in words.
fn compare(view: &CompiledView, merged: &RecordBatch, recomputed: &RecordBatch) -> Result<Vec<String>> {
    let keys = key_columns(view);
    let (left, right) = (index(merged, &keys)?, index(recomputed, &keys)?);
    let columns = (0..merged.num_columns())
        .map(|at| {
            ColumnPair::new(merged.schema_ref().field(at).name(), merged.column(at), recomputed.column(at))
        })
        .collect::<Result<Vec<_>>>()?;
    let sketches = uses_sketches(view);
    let mut differences = Vec::new();
    for (key, row) in &right {
        match left.get(key) {
            None => differences.push(format!("missing in the merged view: {}", describe(recomputed, *row)?)),
            Some(merged_row) => {
                let unequal = columns.iter().filter(|pair| !pair.equal(*merged_row, *row, sketches));
                differences.extend(unequal.map(|pair| {
                    let what = describe_keys(recomputed, &keys, *row);
                    format!(
                        "{what}: `{}` is {} merged, {} recomputed",
                        pair.name,
                        pair.left_text(*merged_row),
                        pair.right_text(*row)
                    )
                }));
            }
        }
    }
    for (key, row) in &left {
        if !right.contains_key(key) {
            differences.push(format!("only in the merged view: {}", describe(merged, *row)?));
        }
    }
    differences.sort();
    Ok(differences)
}

/// The columns that tell rows apart: the group keys if all are shown, else everything but doubles.
fn key_columns(view: &CompiledView) -> Vec<usize> {
    let schema = view.output_schema();
    let shown: Option<Vec<usize>> = view
        .groups()
        .iter()
        .map(|group| group.output.as_ref().and_then(|name| schema.index_of(name).ok()))
        .collect();
    let shown = shown.filter(|_| view.is_flat());
    shown.unwrap_or_else(|| {
        let exact = |at: &usize| {
            let data_type = schema.field(*at).data_type();
            !data_type.is_floating() && !data_type.is_nested()
        };
        (0..schema.fields().len()).filter(exact).collect()
    })
}

/// DataFusion's t-digests. (`approx_distinct` and `approx_percentile` are the same in any parts.)
fn uses_sketches(view: &CompiledView) -> bool {
    let sql = view.def().sql.to_lowercase();
    ["approx_median", "approx_percentile_cont"].iter().any(|name| sql.contains(name))
}

/// The encoded key columns of a row, and its number among the rows with the same.
type RowKey = (Box<[u8]>, usize);

/// Rows by key; the n-th row of an equal key is told apart by n.
fn index(batch: &RecordBatch, keys: &[usize]) -> Result<HashMap<RowKey, usize>> {
    let mut rows = HashMap::with_capacity(batch.num_rows());
    let mut seen: HashMap<Box<[u8]>, usize> = HashMap::new();
    let columns: Vec<ArrayRef> = keys.iter().map(|at| batch.column(*at).clone()).collect();
    let converter =
        RowConverter::new(columns.iter().map(|c| SortField::new(c.data_type().clone())).collect())?;
    let converted = if columns.is_empty() { None } else { Some(converter.convert_columns(&columns)?) };
    for row in 0..batch.num_rows() {
        let key: Box<[u8]> =
            converted.as_ref().map_or_else(|| Box::from([]), |c| Box::from(c.row(row).as_ref()));
        let n = seen.entry(key.clone()).or_insert(0);
        rows.insert((key, *n), row);
        *n += 1;
    }
    Ok(rows)
}

struct ColumnPair<'a> {
    name: &'a str,
    left: ArrayRef,
    right: ArrayRef,
    left_format: ArrayFormatter<'a>,
    right_format: ArrayFormatter<'a>,
}

impl<'a> ColumnPair<'a> {
    fn new(name: &'a str, left: &'a ArrayRef, right: &'a ArrayRef) -> Result<Self> {
        static OPTIONS: FormatOptions<'static> = FormatOptions::new().with_null("NULL");
        Ok(Self {
            name,
            left: left.clone(),
            right: right.clone(),
            left_format: ArrayFormatter::try_new(left.as_ref(), &OPTIONS)?,
            right_format: ArrayFormatter::try_new(right.as_ref(), &OPTIONS)?,
        })
    }

    fn equal(&self, left: usize, right: usize, sketches: bool) -> bool {
        if self.left.is_null(left) || self.right.is_null(right) {
            return self.left.is_null(left) && self.right.is_null(right);
        }
        if *self.left.data_type() == DataType::Float64 {
            let a = self.left.as_primitive::<Float64Type>().value(left);
            let b = self.right.as_primitive::<Float64Type>().value(right);
            return close(a, b, sketches);
        }
        self.left_text(left) == self.right_text(right)
    }

    fn left_text(&self, row: usize) -> String {
        self.left_format.value(row).to_string()
    }

    fn right_text(&self, row: usize) -> String {
        self.right_format.value(row).to_string()
    }
}

/// Whether two doubles are the same number up to rounding.
fn close(a: f64, b: f64, sketches: bool) -> bool {
    let relative = if sketches { SKETCH } else { RELATIVE };
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= relative * a.abs().max(b.abs()) + ABSOLUTE
}

fn describe(batch: &RecordBatch, row: usize) -> Result<String> {
    Ok(describe_keys(batch, &(0..batch.num_columns()).collect::<Vec<_>>(), row))
}

fn describe_keys(batch: &RecordBatch, columns: &[usize], row: usize) -> String {
    let cell = |at: &usize| {
        let text = arrow::util::display::array_value_to_string(batch.column(*at), row);
        format!("{}={}", batch.schema_ref().field(*at).name(), text.unwrap_or_else(|e| e.to_string()))
    };
    columns.iter().map(cell).collect::<Vec<_>>().join(" ")
}
