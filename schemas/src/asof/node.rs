//! The logical node of an `ASOF JOIN`.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{DFSchema, DFSchemaRef, JoinType, Result, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator, UserDefinedLogicalNodeCore, build_join_schema};

/// Each row of `left` with the row of `right` that has equal keys and the nearest time on the side that `op` says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AsofJoin {
    pub(super) left: LogicalPlan,
    pub(super) right: LogicalPlan,
    /// Equal expressions over left and right.
    pub(super) keys: Vec<(Expr, Expr)>,
    /// The times, over left and right.
    pub(super) times: (Expr, Expr),
    /// `>=`, `>`, `<=` or `<`, with the left time on its left.
    pub(super) op: Operator,
    /// Whether rows of the left side without a match are kept.
    pub(super) keeps_left: bool,
    pub(super) schema: DFSchemaRef,
}

impl AsofJoin {
    pub(super) fn try_new(
        (left, right): (LogicalPlan, LogicalPlan),
        keys: Vec<(Expr, Expr)>,
        times: (Expr, Expr),
        op: Operator,
        keeps_left: bool,
    ) -> Result<Self> {
        let join_type = if keeps_left { JoinType::Left } else { JoinType::Inner };
        let schema = Arc::new(build_join_schema(left.schema(), right.schema(), &join_type)?);
        Ok(Self { left, right, keys, times, op, keeps_left, schema })
    }

    /// The same join of other sides.
    pub(super) fn over(&self, left: LogicalPlan, right: LogicalPlan) -> Result<Self> {
        Self::try_new((left, right), self.keys.clone(), self.times.clone(), self.op, self.keeps_left)
    }
}

impl PartialOrd for AsofJoin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for AsofJoin {
    fn name(&self) -> &str {
        "AsofJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let pairs = self.keys.iter().chain([&self.times]);
        pairs.flat_map(|(left, right)| [left.clone(), right.clone()]).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kept = if self.keeps_left { "left" } else { "inner" };
        write!(f, "AsofJoin: {kept}, {} {} {}", self.times.0, self.op, self.times.1)?;
        for (left, right) in &self.keys {
            write!(f, ", {left} = {right}")?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Ok([left, right]) = <[LogicalPlan; 2]>::try_from(inputs) else {
            return plan_err!("an ASOF JOIN has two sides");
        };
        let mut exprs = exprs.into_iter();
        let mut pairs = Vec::with_capacity(self.keys.len() + 1);
        while let (Some(left), Some(right)) = (exprs.next(), exprs.next()) {
            pairs.push((left, right));
        }
        match pairs.pop() {
            Some(times) if pairs.len() == self.keys.len() => {
                Self::try_new((left, right), pairs, times, self.op, self.keeps_left)
            }
            _ => plan_err!("an ASOF JOIN needs the keys that it was planned with"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let split = self.left.schema().fields().len();
        let needed = |schema: &DFSchema, exprs: Vec<&Expr>, shown: Vec<usize>| {
            let mut needed = shown;
            for column in exprs.into_iter().flat_map(|expr| expr.column_refs()) {
                needed.push(schema.maybe_index_of_column(column)?);
            }
            needed.sort_unstable();
            needed.dedup();
            Some(needed)
        };
        let pairs = || self.keys.iter().chain([&self.times]);
        let (left, right): (Vec<usize>, Vec<usize>) = output_columns.iter().partition(|at| **at < split);
        let left = needed(self.left.schema(), pairs().map(|(left, _)| left).collect(), left)?;
        let right = right.into_iter().map(|at| at - split).collect();
        let right = needed(self.right.schema(), pairs().map(|(_, right)| right).collect(), right)?;
        Some(vec![left, right])
    }
}
