//! The rows of a merged view that have changed, or whose windows have ended, and their text.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use iot_schemas::layout::DEVICE_ID;
use iot_schemas::session::context;
use iot_schemas::table::cast_to;
use iot_schemas::view::{CompiledView, KeySet, Layer, ViewSnapshot, WindowEnds, states_in_memory};
use iot_schemas::{Error, Result};

use super::mailbox::{Row, RowState};
use crate::http::encode::json_lines;

/// Windows that are looked up one by one; more of them are looked up as a range.
const MAX_LISTED_WINDOWS: usize = 32;
/// Names that the columns of a view must leave to what is told about a row.
const TOLD: [&str; 3] = ["closed", "correction", "revision"];

/// Looks up rows of one view.
pub(super) struct ViewRows {
    view: Arc<CompiledView>,
    ends: Option<WindowEnds>,
    session: SessionContext,
    key_schema: SchemaRef,
    /// The columns of the view's rows that show its keys.
    key_columns: Vec<String>,
    converter: Option<RowConverter>,
}

impl ViewRows {
    /// Refuses views whose rows cannot be told apart, or could be mistaken for what is told about them.
    pub(super) fn new(view: Arc<CompiledView>, runtime: Arc<RuntimeEnv>) -> Result<Self> {
        let name = view.name();
        if let Some(taken) = TOLD.iter().find(|told| view.output_schema().field_with_name(told).is_ok()) {
            let why = format!(
                "view `{name}` has a column `{taken}`, which the stream says of every row; rename it"
            );
            return Err(Error::invalid(why));
        }
        if !view.is_row_wise() {
            let why = format!(
                "view `{name}` cannot be followed: its windows overlap or join, or its rows combine several groups; query it, or follow a view with tumbling windows"
            );
            return Err(Error::invalid(why));
        }
        let hidden = |key: &str| {
            Error::invalid(format!(
                "view `{name}` does not show its group key `{key}`, so its rows cannot be told apart; add it to the SELECT list"
            ))
        };
        let shown = view.keys().iter().map(|key| key.output.clone().ok_or_else(|| hidden(&key.name)));
        let key_columns = shown.collect::<Result<Vec<_>>>()?;
        let fields = key_columns
            .iter()
            .map(|name| Ok(SortField::new(view.output_schema().field_with_name(name)?.data_type().clone())))
            .collect::<Result<Vec<_>>>()?;
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        let keys = &view.state_schema().fields()[..view.keys().len()];
        let key_schema = Arc::new(Schema::new(keys.to_vec()));
        let (ends, session) = (WindowEnds::of(&view), context(1, runtime));
        Ok(Self { view, ends, session, key_schema, key_columns, converter })
    }

    /// The view that it looks up.
    pub(super) fn view(&self) -> &Arc<CompiledView> {
        &self.view
    }

    /// The rows with one of these keys as they are now. Costs a look at the touched windows.
    pub(super) async fn with_keys(
        &self,
        snapshot: &ViewSnapshot,
        keys: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>> {
        let mut wanted = KeySet::new(&self.key_schema)?;
        for batch in keys {
            wanted.extend(&cast_to(batch, &self.key_schema)?)?;
        }
        let mut plan = LogicalPlanBuilder::from(snapshot.states(Layer::Merged).await?);
        if let Some(windows) = self.windows_of(keys) {
            plan = plan.filter(windows)?;
        }
        let key_indices: Vec<usize> = (0..self.view.keys().len()).collect();
        let mut states = Vec::new();
        for batch in self.collect(plan.build()?).await? {
            let batch = cast_to(&batch, self.view.state_schema())?;
            let mask = wanted.contains(&batch.project(&key_indices)?)?;
            states.push(filter_record_batch(&batch, &mask)?);
        }
        let states = states_in_memory(self.view.state_schema(), states)?;
        self.collect(self.view.finish_plan(states)?).await
    }

    /// The rows whose windows end after `after` and not after `up_to`, by window. None if there are no windows.
    pub(super) async fn ending(
        &self,
        snapshot: &ViewSnapshot,
        after: Option<i64>,
        up_to: i64,
    ) -> Result<Vec<RecordBatch>> {
        let Some(ends) = &self.ends else { return Ok(Vec::new()) };
        let states = LogicalPlanBuilder::from(snapshot.states(Layer::Merged).await?);
        let states = states.filter(ends.end_between(after, up_to))?.build()?;
        let rows = self.view.finish_plan(states)?;
        let columns = rows.schema().columns();
        let order = ends.output().into_iter().chain(self.key_columns.iter().map(String::as_str));
        let order = order.filter_map(|name| columns.iter().find(|column| column.name == name));
        let order: Vec<_> = order.map(|column| Expr::Column(column.clone()).sort(true, false)).collect();
        self.collect(LogicalPlanBuilder::from(rows).sort(order)?.build()?).await
    }

    /// The end of each row's window.
    pub(super) fn window_ends(&self, rows: &RecordBatch) -> Vec<Option<i64>> {
        match &self.ends {
            Some(ends) => {
                ends.starts_of_rows(rows).into_iter().map(|start| Some(ends.window_end_of(start?))).collect()
            }
            None => vec![None; rows.num_rows()],
        }
    }

    /// The start of each row's window, by which revisions are known.
    pub(super) fn window_starts(&self, rows: &RecordBatch) -> Vec<Option<i64>> {
        self.ends.as_ref().map_or_else(|| vec![None; rows.num_rows()], |ends| ends.starts_of_rows(rows))
    }

    /// The rows as readers get them. `state` says where each is in its life, `None` leaves it out.
    pub(super) fn rows(
        &self,
        batch: &RecordBatch,
        state: impl Fn(usize) -> Option<RowState>,
    ) -> Result<Vec<Row>> {
        let text = json_lines(std::slice::from_ref(batch))?;
        let keys = self.keys(batch)?;
        let (devices, ends) = (devices(batch)?, self.window_ends(batch));
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let row = |(at, line): (usize, &[u8])| {
            Some(Row {
                key: keys[at].clone(),
                device: devices.as_ref().and_then(|devices| devices[at].clone()),
                window_end: ends[at],
                json: String::from_utf8_lossy(line).into(),
                state: state(at)?,
            })
        };
        Ok(lines.enumerate().filter_map(row).collect())
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Vec<Arc<[u8]>>> {
        let Some(converter) = &self.converter else { return Ok(vec![Arc::from([]); batch.num_rows()]) };
        let columns =
            self.key_columns.iter().map(|name| Ok(batch.column(batch.schema().index_of(name)?).clone()));
        let rows = converter.convert_columns(&columns.collect::<Result<Vec<_>>>()?)?;
        Ok(rows.iter().map(|row| row.as_ref().into()).collect())
    }

    fn windows_of(&self, keys: &[RecordBatch]) -> Option<Expr> {
        let ends = self.ends.as_ref()?;
        let starts: Option<Vec<i64>> = keys.iter().flat_map(|batch| ends.starts(batch)).collect();
        let mut starts = starts?;
        starts.sort_unstable();
        starts.dedup();
        let (first, last) = (*starts.first()?, *starts.last()?);
        Some(match starts.len() {
            ..=MAX_LISTED_WINDOWS => ends.start_in(&starts),
            _ => ends.start_within(first, last),
        })
    }

    async fn collect(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
        let batches = self.session.execute_logical_plan(plan).await?.collect().await?;
        Ok(batches.into_iter().filter(|batch| batch.num_rows() > 0).collect())
    }
}

/// The device of each row as text; `None` if the view shows none.
fn devices(batch: &RecordBatch) -> Result<Option<Vec<Option<Arc<str>>>>> {
    let Some(column) = batch.column_by_name(DEVICE_ID) else { return Ok(None) };
    let text = cast(column, &DataType::Utf8)?;
    let text = text.as_string::<i32>();
    Ok(Some((0..text.len()).map(|at| text.is_valid(at).then(|| text.value(at).into())).collect()))
}
