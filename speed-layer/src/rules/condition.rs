//! A SQL condition, compiled once for a schema and evaluated on whole batches.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, BooleanBuilder};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, SchemaError};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;

use crate::error::{Error, Result};

/// Where a condition stands in its rule, so that errors can say it.
#[derive(Debug, Clone, Copy)]
pub struct Clause<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// `when` or `clear_when`.
    pub name: &'static str,
    /// What the rule watches.
    pub on: &'a str,
    /// The SQL text.
    pub text: &'a str,
}

impl Clause<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::invalid_rule(self.rule, format!("`{}: {}`: {why}", self.name, self.text.trim()))
    }
}

/// A boolean SQL expression over the columns of one schema.
///
/// Its value depends on the row alone: functions of the clock and of chance are refused, because the same
/// events must give the same alerts again.
#[derive(Debug, Clone)]
pub struct Condition {
    expr: Arc<dyn PhysicalExpr>,
}

/// What a condition says about each row of a batch.
#[derive(Debug, Clone)]
pub struct Verdicts {
    /// True, false or unknown (NULL).
    pub values: BooleanArray,
    /// Rows on which the expression failed (a division by zero, say). Their value is NULL.
    pub failed: usize,
    /// One of the failures, in words.
    pub error: Option<String>,
}

impl Condition {
    /// Compiles `clause` for rows of `schema`.
    ///
    /// Fails if the text is no expression, names an unknown column, is not boolean, aggregates, or depends on
    /// anything but the row.
    pub fn compile(state: &SessionState, schema: &SchemaRef, clause: Clause<'_>) -> Result<Self> {
        let df_schema = DFSchema::try_from(schema.clone()).map_err(|e| clause.refuse(plain(&e)))?;
        let parsed = state.create_logical_expr(clause.text, &df_schema).map_err(|e| explain(&clause, &e))?;
        check_nodes(&clause, &parsed)?;
        let simplified = simplify(state, parsed, &df_schema).map_err(|e| explain(&clause, &e))?;
        let expr = state.create_physical_expr(simplified, &df_schema).map_err(|e| explain(&clause, &e))?;
        match expr.data_type(schema).map_err(|e| clause.refuse(plain(&e)))? {
            DataType::Boolean => Ok(Self { expr }),
            other => Err(clause.refuse(format!("it must be true or false, but its type is {other}"))),
        }
    }

    /// Evaluates all rows; `rows` must have the schema that the condition was compiled for.
    ///
    /// A row on which the expression fails does not harm the others: halves of the batch are tried again
    /// until the failing rows stand alone.
    pub fn evaluate(&self, rows: &RecordBatch) -> Verdicts {
        match self.evaluate_strictly(rows) {
            Ok(values) => Verdicts { values, failed: 0, error: None },
            Err(e) => {
                let mut values = BooleanBuilder::with_capacity(rows.num_rows());
                let mut failed = 0;
                self.evaluate_by_halves(rows, &mut values, &mut failed);
                Verdicts { values: values.finish(), failed, error: Some(plain(&e)) }
            }
        }
    }

    fn evaluate_strictly(&self, rows: &RecordBatch) -> Result<BooleanArray, DataFusionError> {
        let values = self.expr.evaluate(rows)?.into_array(rows.num_rows())?;
        Ok(values.as_boolean().clone())
    }

    /// For a batch whose evaluation has failed as a whole.
    fn evaluate_by_halves(&self, rows: &RecordBatch, values: &mut BooleanBuilder, failed: &mut usize) {
        if rows.num_rows() <= 1 {
            *failed += rows.num_rows();
            values.append_nulls(rows.num_rows());
            return;
        }
        let middle = rows.num_rows() / 2;
        for half in [rows.slice(0, middle), rows.slice(middle, rows.num_rows() - middle)] {
            match self.evaluate_strictly(&half) {
                Ok(good) => good.iter().for_each(|value| values.append_option(value)),
                Err(_) => self.evaluate_by_halves(&half, values, failed),
            }
        }
    }
}

fn simplify(state: &SessionState, expr: Expr, schema: &DFSchema) -> Result<Expr, DataFusionError> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(state.config_options().clone())
        .build();
    let simplifier = ExprSimplifier::new(context);
    let coerced = simplifier.coerce(expr, schema)?;
    simplifier.simplify(coerced)
}

/// Refuses what has no value for a single row, or another value the next time.
fn check_nodes(clause: &Clause<'_>, expr: &Expr) -> Result<()> {
    let mut reason = None;
    let visited = expr.exists(|node| {
        reason = refusal(node);
        Ok(reason.is_some())
    });
    visited.map_err(|e| clause.refuse(plain(&e)))?;
    reason.map_or(Ok(()), |why| Err(clause.refuse(why)))
}

fn refusal(node: &Expr) -> Option<String> {
    match node {
        Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
            Some(format!(
                "{}() has another value the next time; an alert must come out the same when its events are replayed",
                call.func.name()
            ))
        }
        Expr::AggregateFunction(_) | Expr::WindowFunction(_) => {
            Some("a rule sees one row at a time; aggregate in a view and watch the view".to_owned())
        }
        Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
            Some("subqueries are not possible in a rule".to_owned())
        }
        Expr::Placeholder(_) => Some("there is nothing to bind a placeholder to".to_owned()),
        _ => None,
    }
}

/// The error in the user's words: an unknown column comes with the columns that there are.
fn explain(clause: &Clause<'_>, error: &DataFusionError) -> Error {
    let DataFusionError::SchemaError(cause, _) = error.find_root() else {
        return clause.refuse(plain(error));
    };
    let SchemaError::FieldNotFound { field, valid_fields } = cause.as_ref() else {
        return clause.refuse(plain(error));
    };
    let names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
    let wanted = field.name.as_str();
    let on = clause.on;
    let hint = match names.iter().find(|name| name.eq_ignore_ascii_case(wanted)) {
        Some(name) => format!("write \"{name}\" in double quotes, capitals need them"),
        None => {
            "if the column is yet to come, declare it under `fields` of the stream or apply the rule later"
                .into()
        }
    };
    clause.refuse(format!("`{on}` has no column `{wanted}`; it has {}; {hint}", names.join(", ")))
}

/// The root cause on one line, without the backtrace that DataFusion may append.
fn plain(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}
