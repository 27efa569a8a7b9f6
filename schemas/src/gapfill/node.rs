//! The logical node of gap filling.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{DFSchema, DFSchemaRef, Result, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::Fill;
use crate::functions::Windows;

/// Adds rows to its input; the columns are those of the input, by position.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GapFill {
    pub(super) input: LogicalPlan,
    /// The input's, but nullable where added rows may have nulls.
    pub(super) schema: DFSchemaRef,
    /// One per column, exactly one of them [`Fill::Time`].
    pub(super) fills: Vec<Fill>,
    pub(super) windows: Windows,
    /// The first bucket starts here, microseconds since 1970.
    pub(super) start: i64,
    /// The last bucket starts before.
    pub(super) finish: i64,
}

impl GapFill {
    pub(super) fn try_new(
        input: LogicalPlan,
        fills: Vec<Fill>,
        windows: Windows,
        (start, finish): (i64, i64),
    ) -> Result<Self> {
        let fields = input.schema().iter().zip(&fills).map(|((qualifier, field), fill)| {
            let nullable = field.is_nullable() || !matches!(fill, Fill::Key);
            (qualifier.cloned(), Arc::new(field.as_ref().clone().with_nullable(nullable)))
        });
        let schema = DFSchema::new_with_metadata(fields.collect(), input.schema().metadata().clone())?;
        Ok(Self { input, schema: Arc::new(schema), fills, windows, start, finish })
    }
}

impl PartialOrd for GapFill {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for GapFill {
    fn name(&self) -> &str {
        "GapFill"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    /// A condition on a series' key holds for all of its rows, so it may be tested before.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let filled = self.schema.fields().iter().zip(&self.fills).filter(|(_, fill)| **fill != Fill::Key);
        filled.map(|(field, _)| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "GapFill: {}", describe(self.start, self.finish, &self.fills))
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match inputs.pop() {
            Some(input) if input.schema().fields().len() == self.fills.len() => {
                Self::try_new(input, self.fills.clone(), self.windows, (self.start, self.finish))
            }
            _ => plan_err!("gap filling needs the columns that it was planned with"),
        }
    }
}

/// The words of EXPLAIN.
pub(super) fn describe(start: i64, finish: i64, fills: &[Fill]) -> String {
    let shown = |us: i64| {
        chrono::DateTime::from_timestamp_micros(us).map_or_else(|| us.to_string(), |time| time.to_rfc3339())
    };
    format!("from={}, to={}, columns={fills:?}", shown(start), shown(finish))
}
