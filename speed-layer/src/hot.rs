//! The rows of a view that have just changed, as rules need them: merged over both layers, at the price of what
//! changed and not of what there is.
//!
//! For each set of labels (the group keys other than the window) the newest window's merged state is kept. A
//! group's state rows are merged into it; rows of older windows are left out, because a rule looks at the
//! newest. Only labels that are not known yet (after a start, a new device) are looked up in the merged view.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, lit};
use iot_schemas::session::small_context;
use iot_schemas::view::{CompiledView, Layer};

use crate::error::Result;
use crate::live_view::LiveView;

/// The arena of kept rows is rewritten once it holds this many times more rows than are in use.
const SLACK: usize = 3;
/// Labels that are kept at most; when there are more, all are forgotten and looked up again as they come.
const MAX_LABELS: usize = 1_000_000;

/// The newest merged state row of each set of labels of one view.
#[derive(Debug)]
pub(crate) struct HotRows {
    labels: Vec<usize>,
    window: Option<usize>,
    converter: RowConverter,
    newest: HashMap<Box<[u8]>, Place>,
    arena: Vec<RecordBatch>,
}

/// The values of a row's labels, encoded.
type Labels = Box<[u8]>;

#[derive(Debug, Clone, Copy)]
struct Place {
    window: i64,
    batch: usize,
    row: usize,
}

impl HotRows {
    pub(crate) fn new(view: &CompiledView) -> Result<Self> {
        let keys = view.keys();
        let window = keys
            .iter()
            .position(|key| key.window_micros.is_some())
            .filter(|at| matches!(view.state_schema().field(*at).data_type(), DataType::Timestamp(..)));
        let labels: Vec<usize> = (0..keys.len()).filter(|at| Some(*at) != window).collect();
        let fields =
            labels.iter().map(|at| SortField::new(view.state_schema().field(*at).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        Ok(Self { labels, window, converter, newest: HashMap::new(), arena: Vec::new() })
    }

    /// Takes in the state rows of one group, which `live` has taken in already, and returns the merged state of
    /// the touched labels: one row per label and window, windows in order, none older than the label's newest
    /// before.
    pub(crate) async fn update(
        &mut self,
        live: &LiveView,
        states: &[RecordBatch],
    ) -> Result<Option<RecordBatch>> {
        let delta = concat_batches(live.view().state_schema(), states)?;
        if delta.num_rows() == 0 {
            return Ok(None);
        }
        let (keys, windows) = self.keys_and_windows(&delta)?;
        let known: Vec<Option<Place>> = keys.iter().map(|key| self.newest.get(key).copied()).collect();
        let current: BooleanArray = known
            .iter()
            .zip(&windows)
            .map(|(place, window)| Some(place.is_some_and(|place| place.window <= *window)))
            .collect();
        let mut parts = vec![filter_record_batch(&delta, &current)?];
        parts.extend(self.kept_rows(known.iter().zip(&windows))?);
        let unknown: Vec<usize> = (0..keys.len()).filter(|i| known[*i].is_none()).collect();
        if !unknown.is_empty() {
            parts.extend(self.look_up(live, &unknown, &keys, &windows).await?);
        }
        let merged = sort_by_window(live.merge(parts).await?, self.window)?;
        self.keep(&merged)?;
        Ok(Some(merged))
    }

    /// Those of the rows that `update` has returned whose labels and window are among `states`.
    pub(crate) fn touched_by(&mut self, rows: &RecordBatch, states: &[RecordBatch]) -> Result<RecordBatch> {
        let mut touched = HashSet::new();
        for states in states {
            let (keys, windows) = self.keys_and_windows(states)?;
            touched.extend(keys.into_iter().zip(windows));
        }
        let (keys, windows) = self.keys_and_windows(rows)?;
        let mask: BooleanArray =
            keys.into_iter().zip(windows).map(|row| Some(touched.contains(&row))).collect();
        Ok(filter_record_batch(rows, &mask)?)
    }

    /// The kept rows that belong to the same window as the changed row.
    fn kept_rows<'a>(
        &self,
        touched: impl Iterator<Item = (&'a Option<Place>, &'a i64)>,
    ) -> Result<Option<RecordBatch>> {
        let places: Vec<(usize, usize)> = touched
            .filter_map(|(place, window)| place.filter(|place| place.window == *window))
            .map(|place| (place.batch, place.row))
            .collect();
        if places.is_empty() {
            return Ok(None);
        }
        let arena: Vec<&RecordBatch> = self.arena.iter().collect();
        Ok(Some(interleave_record_batch(&arena, &places)?))
    }

    /// The merged state of labels that are not known yet, in the windows that were touched.
    async fn look_up(
        &mut self,
        live: &LiveView,
        unknown: &[usize],
        keys: &[Box<[u8]>],
        windows: &[i64],
    ) -> Result<Option<RecordBatch>> {
        let wanted: HashSet<(&[u8], i64)> = unknown.iter().map(|i| (&*keys[*i], windows[*i])).collect();
        let oldest = unknown.iter().map(|i| windows[*i]).min().unwrap_or(i64::MIN);
        let snapshot = live.snapshot();
        let mut plan = LogicalPlanBuilder::from(snapshot.states(Layer::Merged).await?);
        if let Some(window) = self.window {
            let name = live.view().state_schema().field(window).name();
            let oldest = ScalarValue::TimestampMicrosecond(Some(oldest), Some("UTC".into()));
            let column = Expr::Column(Column::new_unqualified(name));
            plan = plan.filter(column.gt_eq(lit(oldest)))?;
        }
        let plan = live.view().merge_plan(plan.build()?)?;
        let frame = small_context().execute_logical_plan(plan).await?;
        let found = frame.collect().await?;
        let found = concat_batches(live.view().state_schema(), &found)?;
        let (found_keys, found_windows) = self.keys_and_windows(&found)?;
        let pairs = found_keys.iter().zip(&found_windows);
        let mask: BooleanArray =
            pairs.map(|(key, window)| Some(wanted.contains(&(&**key, *window)))).collect();
        Ok(Some(filter_record_batch(&found, &mask)?))
    }

    fn keep(&mut self, rows: &RecordBatch) -> Result<()> {
        if self.newest.len() > MAX_LABELS {
            self.newest.clear();
            self.arena.clear();
        }
        let (keys, windows) = self.keys_and_windows(rows)?;
        let batch = self.arena.len();
        self.arena.push(rows.clone());
        for (row, (key, window)) in keys.into_iter().zip(windows).enumerate() {
            let newer = self.newest.get(&key).is_none_or(|kept| kept.window <= window);
            if newer {
                self.newest.insert(key, Place { window, batch, row });
            }
        }
        let total: usize = self.arena.iter().map(RecordBatch::num_rows).sum();
        if total > SLACK * self.newest.len() + 1024 {
            self.compact(rows.schema_ref())?;
        }
        Ok(())
    }

    fn compact(&mut self, schema: &Arc<arrow::datatypes::Schema>) -> Result<()> {
        let arena: Vec<&RecordBatch> = self.arena.iter().collect();
        let places: Vec<(usize, usize)> =
            self.newest.values().map(|place| (place.batch, place.row)).collect();
        let kept = interleave_record_batch(&arena, &places)?;
        debug_assert_eq!(kept.schema_ref(), schema);
        for (row, place) in self.newest.values_mut().enumerate() {
            *place = Place { batch: 0, row, ..*place };
        }
        self.arena = vec![kept];
        Ok(())
    }

    fn keys_and_windows(&mut self, rows: &RecordBatch) -> Result<(Vec<Labels>, Vec<i64>)> {
        let columns: Vec<ArrayRef> = self.labels.iter().map(|at| rows.column(*at).clone()).collect();
        let keys = if columns.is_empty() {
            vec![Box::from([]); rows.num_rows()]
        } else {
            let converted = self.converter.convert_columns(&columns)?;
            converted.iter().map(|row| Box::from(row.as_ref())).collect()
        };
        let windows = match self.window {
            Some(at) => {
                let windows = rows.column(at).as_primitive::<TimestampMicrosecondType>();
                (0..windows.len())
                    .map(|i| if windows.is_valid(i) { windows.value(i) } else { i64::MIN })
                    .collect()
            }
            None => vec![0; rows.num_rows()],
        };
        Ok((keys, windows))
    }
}

/// Rows in the order in which rules must see them: by window, then by labels, whatever the hash table did.
fn sort_by_window(rows: RecordBatch, window: Option<usize>) -> Result<RecordBatch> {
    use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
    let sortable = |at: &usize| !rows.column(*at).data_type().is_nested();
    let order: Vec<usize> = window
        .into_iter()
        .chain((0..rows.num_columns()).filter(|at| Some(*at) != window))
        .filter(sortable)
        .collect();
    if order.is_empty() {
        return Ok(rows);
    }
    let columns: Vec<SortColumn> =
        order.iter().map(|at| SortColumn { values: rows.column(*at).clone(), options: None }).collect();
    let indices = lexsort_to_indices(&columns, None)?;
    Ok(take_record_batch(&rows, &indices)?)
}
