//! Count windows: so many events of one key in a row, whatever time they span.
//!
//! "In a row" is the order of positions: the sequence number, then the place within the message, then the node. With
//! one ingest node that is the order of arrival, so a full window never changes again. A late event counts when it
//! comes, not where its time would put it.
//!
//! Which window an event lies in depends on how many events of its key came before, so state is kept for each event
//! and numbered when it is read. That is exact whichever layer a row comes from; it takes a state row per event.

use arrow::datatypes::DataType;
use datafusion::common::{Column, Result};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, cast, lit};

use super::expand::WINDOW;
use crate::layout::{INDEX, NODE, SEQ};

/// The columns of an event's position, in the order in which they are compared.
pub(crate) const POSITION: [&str; 3] = [SEQ, INDEX, NODE];

/// The rows of `input` with the number of their window, from 0 on, in the column [`WINDOW`]: `size` rows of the same
/// `keys` each, in the order of `position`.
pub(crate) fn with_numbers(
    input: LogicalPlan,
    keys: &[Expr],
    position: &[Expr],
    size: i64,
) -> Result<LogicalPlan> {
    let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    let order = position.iter().map(|column| column.clone().sort(true, true)).collect();
    let row = "__row";
    let count = row_number().partition_by(keys.to_vec()).order_by(order).build()?.alias(row);
    let before = cast(Expr::Column(Column::new_unqualified(row)), DataType::Int64) - lit(1i64);
    let number = (before / lit(size)).alias(WINDOW);
    LogicalPlanBuilder::from(input).window(vec![count])?.project(columns.into_iter().chain([number]))?.build()
}
