//! What a view groups by: its keys in state rows, and the columns of its rows that show them.

use std::collections::HashSet;

use arrow::datatypes::Schema;
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::normal::NormalForm;
use crate::functions::bucket;
use crate::window::{WindowCall, names};

/// A key of a view's state rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its column in state rows.
    pub name: String,
    /// The column of the view's rows that shows it unchanged, if any.
    pub output: Option<String>,
    /// The window length in microseconds if it is the start of a window.
    pub window_micros: Option<i64>,
}

/// Something that a view groups by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupColumn {
    /// The column of the view's rows that shows it unchanged, if any.
    pub output: Option<String>,
    /// What it says.
    pub role: GroupRole,
}

/// What a group column says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupRole {
    /// Which thing: a device, a place, a kind.
    Label,
    /// When the window starts, and how long it lasts (microseconds) if that is fixed.
    WindowStart(Option<i64>),
    /// When the window ends.
    WindowEnd,
    /// Something else about the window.
    WindowPart,
}

/// What the query groups by, in the order of the aggregation's columns.
pub(super) fn group_columns(normal: &NormalForm, output: &Schema) -> Vec<GroupColumn> {
    let columns = normal.groups.iter().enumerate().map(|(i, expr)| {
        let (relation, field) = normal.aggregate.schema.qualified_field(i);
        let shown = output_of(&normal.above, Column::new(relation.cloned(), field.name()), output);
        GroupColumn { output: shown, role: role(expr) }
    });
    columns.collect()
}

/// The state keys of the groups that depend on no window that has to be expanded, and their expressions.
pub(super) fn key_columns(groups: &[Expr], columns: &[GroupColumn]) -> (Vec<KeyColumn>, Vec<Expr>) {
    let plain = groups.iter().zip(columns).enumerate().filter(|(_, (expr, _))| !depends_on_window(expr));
    let mut taken = HashSet::new();
    plain
        .map(|(i, (expr, column))| {
            let telling = telling_name(expr).filter(|name| taken.insert(name.clone()));
            let name = telling.unwrap_or_else(|| format!("key_{i}"));
            let window_micros = match column.role {
                GroupRole::WindowStart(size) => size,
                _ => None,
            };
            (KeyColumn { name, output: column.output.clone(), window_micros }, expr.clone())
        })
        .unzip()
}

/// What a key is called in state rows. It depends on the key alone, so that two views which differ only in what they
/// make of the groups have the same state.
fn telling_name(key: &Expr) -> Option<String> {
    let name = match key {
        Expr::Column(column) => column.name.as_str(),
        Expr::ScalarFunction(call) if ["tumble", "time_bucket"].contains(&call.func.name()) => names::START,
        Expr::ScalarFunction(call) if call.func.name() == "tumble_end" => names::END,
        _ => return None,
    };
    (!name.starts_with("state_") && !name.starts_with("key_")).then(|| name.to_owned())
}

fn depends_on_window(expr: &Expr) -> bool {
    crate::window::find_call(std::slice::from_ref(expr)).is_ok_and(|call| call.is_some())
}

fn role(expr: &Expr) -> GroupRole {
    let Expr::ScalarFunction(function) = expr else { return GroupRole::Label };
    let call = function.args.first().and_then(|arg| WindowCall::read(arg).ok().flatten());
    match (function.func.name(), call) {
        ("tumble" | "time_bucket", _) => GroupRole::WindowStart(tumble_micros(expr)),
        ("tumble_end", _) | (names::END, Some(_)) => GroupRole::WindowEnd,
        (names::START, Some(call)) => GroupRole::WindowStart(call.kind.size()),
        _ if depends_on_window(expr) => GroupRole::WindowPart,
        _ => GroupRole::Label,
    }
}

/// The output column that is exactly the aggregation's column `column`.
fn output_of(above: &[LogicalPlan], column: Column, output: &Schema) -> Option<String> {
    let mut column = column;
    for node in above.iter().rev() {
        match node {
            LogicalPlan::Projection(projection) => {
                let position = projection
                    .expr
                    .iter()
                    .position(|e| e.clone().unalias() == Expr::Column(column.clone()))?;
                let (relation, field) = projection.schema.qualified_field(position);
                column = Column::new(relation.cloned(), field.name());
            }
            LogicalPlan::SubqueryAlias(node) => {
                let position = node.input.schema().maybe_index_of_column(&column)?;
                let (relation, field) = node.schema.qualified_field(position);
                column = Column::new(relation.cloned(), field.name());
            }
            LogicalPlan::Filter(_) => {}
            _ => return None,
        }
    }
    output.index_of(&column.name).is_ok().then_some(column.name)
}

/// The length of the longest window of a call with constant arguments: `tumble(time, size)`, `time_bucket(size, time)`.
fn tumble_micros(expr: &Expr) -> Option<i64> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let function = call.func.name();
    let size_at = bucket::size_position(function)?;
    let constant = |arg: &Expr| crate::window::constant(arg).ok().flatten();
    let size = constant(call.args.get(size_at)?)?;
    let extras = call.args.get(2..)?.iter().map(constant).collect::<Option<Vec<_>>>()?;
    bucket::windows(function, &size, &extras).ok().map(|windows| windows.longest_micros())
}
