//! SQL that other engines' users write and DataFusion does not plan, rewritten before planning.
//!
//! | written | becomes | where |
//! |---|---|---|
//! | `a ASOF [LEFT] JOIN b ON ...` or `USING (...)` (DuckDB) | the form of the next row | [`prepare`] |
//! | `a ASOF JOIN b MATCH_CONDITION (...) ON ...` (Snowflake) | a join marked for [`crate::asof`] | [`rewrite`] |
//! | `t JOIN LATERAL (... WHERE d.k = t.k ORDER BY x LIMIT n) d ON ...` | a join with numbered rows | [`rewrite`] |
//!
//! A front end calls [`prepare`] on the text, parses it, and calls [`rewrite`] on each statement.

mod asof;
mod lateral;
mod names;
mod tokens;

use std::ops::ControlFlow;

use datafusion::common::{DataFusionError, Result};
use datafusion::sql::parser;
use datafusion::sql::sqlparser::ast::{Query, Select, SetExpr, Statement, VisitMut, VisitorMut};

pub use tokens::prepare;

/// Rewrites a statement of DataFusion's parser; see [`rewrite_sql`].
pub fn rewrite(statement: &mut parser::Statement) -> Result<()> {
    match statement {
        parser::Statement::Statement(statement) => rewrite_sql(statement),
        parser::Statement::Explain(explain) => rewrite(&mut explain.statement),
        _ => Ok(()),
    }
}

/// Rewrites a statement and all queries in it. What needs no rewriting is left as it is.
///
/// # Errors
/// If an `ASOF JOIN` or a `LATERAL` subquery with `LIMIT` has a shape that cannot be rewritten.
pub fn rewrite_sql(statement: &mut Statement) -> Result<()> {
    match VisitMut::visit(statement, &mut Rewriter::default()) {
        ControlFlow::Break(e) => Err(e),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Gives what it adds to a query a name of its own.
#[derive(Debug, Default)]
struct Rewriter {
    laterals: usize,
}

impl VisitorMut for Rewriter {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        match self.set_expr(&mut query.body) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(e),
        }
    }
}

impl Rewriter {
    fn set_expr(&mut self, body: &mut SetExpr) -> Result<()> {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::SetOperation { left, right, .. } => {
                self.set_expr(left)?;
                self.set_expr(right)
            }
            // Queries in parentheses are visited on their own.
            _ => Ok(()),
        }
    }

    fn select(&mut self, select: &mut Select) -> Result<()> {
        asof::rewrite(select)?;
        lateral::rewrite(select, &mut self.laterals)
    }
}

#[cfg(test)]
pub(crate) mod tests;
