//! When a view's windows end: what the watermark must pass for a window to be closed.
//!
//! All that closes windows goes through [`WindowEnds`]; other kinds of windows than `tumble` need nothing else.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, lit};

use super::CompiledView;

/// The windows of one view. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowEnds {
    /// The column of state rows with the start of the window.
    state_column: usize,
    state_name: String,
    /// The column of the view's rows that shows it.
    output: Option<String>,
    size: i64,
}

impl WindowEnds {
    /// `None` if the view's rows belong to no window of time.
    pub fn of(view: &CompiledView) -> Option<Self> {
        let is_instant =
            |at: usize| matches!(view.state_schema().field(at).data_type(), DataType::Timestamp(..));
        view.keys().iter().enumerate().find_map(|(state_column, key)| {
            let size = key.window_micros.filter(|_| is_instant(state_column))?;
            Some(Self { state_column, state_name: key.name.clone(), output: key.output.clone(), size })
        })
    }

    /// The end of the window that starts at `start`; a time at the end is no longer in it.
    pub fn window_end_of(&self, start: i64) -> i64 {
        start.saturating_add(self.size)
    }

    /// The column of the view's rows that shows the start of the window.
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }

    /// The starts of the windows of state rows.
    pub fn starts(&self, states: &RecordBatch) -> Vec<Option<i64>> {
        instants(states, self.state_column)
    }

    /// The starts of the windows of the view's rows; all `None` if the view does not show them.
    pub fn starts_of_rows(&self, rows: &RecordBatch) -> Vec<Option<i64>> {
        match self.output.as_ref().and_then(|name| rows.schema_ref().index_of(name).ok()) {
            Some(column) => instants(rows, column),
            None => vec![None; rows.num_rows()],
        }
    }

    /// The condition on state rows that their windows end after `after` and not after `up_to`.
    pub fn end_between(&self, after: Option<i64>, up_to: i64) -> Expr {
        let not_after = self.start().lt_eq(instant(up_to.saturating_sub(self.size)));
        match after {
            Some(after) => self.start().gt(instant(after.saturating_sub(self.size))).and(not_after),
            None => not_after,
        }
    }

    /// The condition on state rows that their windows start at one of `starts`.
    pub fn start_in(&self, starts: &[i64]) -> Expr {
        self.start().in_list(starts.iter().map(|start| instant(*start)).collect(), false)
    }

    /// The condition on state rows that their windows start within these bounds, both included.
    pub fn start_within(&self, first: i64, last: i64) -> Expr {
        self.start().gt_eq(instant(first)).and(self.start().lt_eq(instant(last)))
    }

    fn start(&self) -> Expr {
        Expr::Column(Column::new_unqualified(&self.state_name))
    }
}

fn instants(rows: &RecordBatch, column: usize) -> Vec<Option<i64>> {
    let Some(times) = rows.column(column).as_primitive_opt::<TimestampMicrosecondType>() else {
        return vec![None; rows.num_rows()];
    };
    (0..times.len()).map(|row| times.is_valid(row).then(|| times.value(row))).collect()
}

fn instant(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}
