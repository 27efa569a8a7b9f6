//! The SQL that people write, before the planner sees it.
//!
//! DataFusion plans standard SQL. Users of streaming engines write more than that: window table functions
//! (`FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), ...))`), window functions in `GROUP BY` (`hop(ts, ...)`,
//! `session(ts, ...)`) with `window_end` beside them, several questions to one aggregate state
//! ([`crate::aggregates`]), `ASOF JOIN` and `LATERAL` with `LIMIT` ([`crate::sql_comfort`]). This front end turns them into functions that the planner can
//! type; what these mean is the business of [`crate::window`]. It works on tokens and on the syntax tree, so that
//! errors point at what the user wrote.

mod group_windows;
mod names;
mod table_functions;

use std::ops::ControlFlow;

use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::VisitMut;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

use crate::{aggregates, sql_comfort};

pub(crate) use names::keep_name;

/// Reads one statement.
pub fn parse(sql: &str) -> Result<Statement> {
    let sql = sql_comfort::prepare(sql);
    let tokens =
        Tokenizer::new(&GenericDialect {}, &sql).tokenize_with_location().map_err(ParserError::from)?;
    let tokens = table_functions::rewrite(tokens)?;
    let mut statements = DFParserBuilder::new(tokens).build()?.parse_statements()?;
    let Some(mut statement) = statements.pop_front() else {
        return plan_err!("there is no statement; write SELECT ...");
    };
    if !statements.is_empty() {
        return plan_err!("there are {} statements; send one at a time", statements.len() + 1);
    }
    sql_comfort::rewrite(&mut statement)?;
    rewrite(&mut statement)?;
    Ok(statement)
}

/// Plans one statement.
pub async fn plan(context: &SessionContext, sql: &str) -> Result<LogicalPlan> {
    context.state().statement_to_plan(parse(sql)?).await
}

fn rewrite(statement: &mut Statement) -> Result<()> {
    let statement = match statement {
        Statement::Statement(statement) => statement,
        Statement::Explain(explain) => return rewrite(&mut explain.statement),
        _ => return Ok(()),
    };
    aggregates::rewrite(statement).map_err(|e| DataFusionError::Plan(e.to_string()))?;
    match VisitMut::visit(statement.as_mut(), &mut group_windows::GroupWindows) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(why) => Err(DataFusionError::Plan(why)),
    }
}

#[cfg(test)]
mod tests;
