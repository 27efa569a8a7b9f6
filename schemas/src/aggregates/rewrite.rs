//! One state, many questions: calls that share a state are rewritten to one aggregate and scalar functions over it.
//!
//! ```text
//! approx_percentile(v, 0.5)                 sketch_percentile(percentile_sketch(v), 0.5)
//! approx_percentile(v, 0.99)        ──▶     sketch_percentile(percentile_sketch(v), 0.99)
//! delta(v, t) FILTER (WHERE ok)             (last(v, t) FILTER (WHERE ok) - first(v, t) FILTER (WHERE ok))
//! ```
//!
//! The planner computes equal aggregates once, so three percentiles cost one sketch. The rewrite looks at the text
//! alone; `FILTER` and `OVER` go to the aggregate, and columns keep the names of the calls as they were written.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, Select, Statement, VisitMut, VisitorMut,
};

use crate::error::{Error, Result};
use crate::sql::keep_name;

/// A function of the user that is answered from a shared state.
#[derive(Debug)]
struct Shared {
    name: &'static str,
    /// The aggregate that makes the state, and how many of the arguments it takes.
    state: &'static str,
    state_arguments: usize,
    /// The scalar function that takes the state and the rest of the arguments.
    finish: &'static str,
    /// Fewest and most arguments of the call.
    arguments: (usize, usize),
    takes: &'static str,
    example: &'static str,
}

const TIMED: &str = "a value and a timestamp";

const SHARED: [Shared; 6] = [
    Shared {
        name: "approx_percentile",
        state: "percentile_sketch",
        state_arguments: 1,
        finish: "sketch_percentile",
        arguments: (2, 2),
        takes: "a number and a share from 0 to 1, or a list of shares",
        example: "approx_percentile(temperature, 0.95)",
    },
    series("increase", "series_increase", "increase(energy, event_time)"),
    series("rate", "series_rate", "rate(energy, event_time)"),
    Shared {
        arguments: (2, 3),
        takes: "a value, a timestamp and optionally 'locf' or 'linear'",
        ..series(
            "time_weighted_avg",
            "series_time_weighted_avg",
            "time_weighted_avg(temperature, event_time, 'linear')",
        )
    },
    series("state_duration", "series_state_duration", "state_duration(status = 'on', event_time)"),
    series("counter_resets", "series_counter_resets", "counter_resets(energy, event_time)"),
];

const fn series(name: &'static str, finish: &'static str, example: &'static str) -> Shared {
    let (state, state_arguments, arguments) = ("time_series", 2, (2, 2));
    Shared { name, state, state_arguments, finish, arguments, takes: TIMED, example }
}

/// Rewrites all calls in a statement, subqueries included. Fails on calls that cannot be right, such as a wrong
/// number of arguments or DISTINCT; what it does not know it leaves alone.
pub fn rewrite(statement: &mut Statement) -> Result<()> {
    match statement.visit(&mut Rewriter) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// Rewrites all calls in an expression.
pub fn rewrite_expression(expression: &mut Expr) -> Result<()> {
    match expression.visit(&mut Rewriter) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = Error;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        select.projection.iter_mut().for_each(|item| keep_name(item, is_rewritten));
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        match replacement(call) {
            Ok(Some(replacement)) => *expr = replacement,
            Ok(None) => {}
            Err(error) => return ControlFlow::Break(error),
        }
        ControlFlow::Continue(())
    }
}

fn name_of(call: &Function) -> Option<String> {
    let [part] = call.name.0.as_slice() else { return None };
    let ident = part.as_ident()?;
    Some(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
}

fn shared(name: &str) -> Option<&'static Shared> {
    SHARED.iter().find(|shared| shared.name == name)
}

fn is_rewritten(call: &Function) -> bool {
    name_of(call).is_some_and(|name| name == "delta" || shared(&name).is_some())
}

fn replacement(call: &Function) -> Result<Option<Expr>> {
    let Some(name) = name_of(call) else { return Ok(None) };
    if name == "delta" {
        let arguments = arguments(call, "delta", (2, 2), TIMED, "delta(energy, event_time)")?;
        let (last, first) = (state(call, "last", arguments), state(call, "first", arguments));
        let (left, right) = (Box::new(last), Box::new(first));
        let difference = Expr::BinaryOp { left, op: BinaryOperator::Minus, right };
        return Ok(Some(Expr::Nested(Box::new(difference))));
    }
    let Some(shared) = shared(&name) else { return Ok(None) };
    let arguments = arguments(call, shared.name, shared.arguments, shared.takes, shared.example)?;
    let (of_state, rest) = arguments.split_at(shared.state_arguments);
    let state = state(call, shared.state, of_state);
    let mut finish = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(state))];
    finish.extend_from_slice(rest);
    Ok(Some(Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(shared.finish)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: list(finish),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })))
}

/// The aggregate that makes the state: `call` under another name, with its FILTER and OVER.
fn state(call: &Function, name: &str, arguments: &[FunctionArg]) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        args: list(arguments.to_vec()),
        ..call.clone()
    })
}

fn list(args: Vec<FunctionArg>) -> FunctionArguments {
    FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: vec![] })
}

/// The arguments of a call that has nothing but arguments, FILTER and OVER.
fn arguments<'a>(
    call: &'a Function,
    name: &str,
    (fewest, most): (usize, usize),
    takes: &str,
    example: &str,
) -> Result<&'a [FunctionArg]> {
    let refused = |what: &str| Err(Error::invalid(format!("{name}() {what}; write {example}")));
    let list = match &call.args {
        FunctionArguments::List(list) => list,
        FunctionArguments::None | FunctionArguments::Subquery(_) => {
            return refused(&format!("takes {takes}"));
        }
    };
    if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) {
        return refused(
            "takes every event, also those with equal values, so DISTINCT would give a wrong answer",
        );
    }
    if !list.clauses.is_empty() || !call.within_group.is_empty() {
        return refused("needs no ORDER BY, its answer does not depend on the order of rows");
    }
    if call.null_treatment.is_some() {
        return refused("always leaves nulls out");
    }
    if !(fewest..=most).contains(&list.args.len()) {
        return refused(&format!("takes {takes}, not {} arguments", list.args.len()));
    }
    Ok(&list.args)
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn rewritten(sql: &str) -> Result<String> {
        let mut statements = Parser::parse_sql(&GenericDialect {}, sql).expect(sql);
        rewrite(&mut statements[0])?;
        Ok(statements[0].to_string())
    }

    fn check(sql: &str, expect: &str) {
        assert_eq!(rewritten(sql).expect(sql), expect);
    }

    #[test]
    fn calls_become_one_state_and_keep_their_names() {
        check(
            "SELECT approx_percentile(v, 0.5), APPROX_PERCENTILE(V, 0.99) AS p99 FROM t",
            "SELECT sketch_percentile(percentile_sketch(v), 0.5) AS \"approx_percentile(v, 0.5)\", \
             sketch_percentile(percentile_sketch(V), 0.99) AS p99 FROM t",
        );
        check(
            "SELECT delta(v, t) FILTER (WHERE ok) AS d FROM s",
            "SELECT (last(v, t) FILTER (WHERE ok) - first(v, t) FILTER (WHERE ok)) AS d FROM s",
        );
        check(
            "SELECT Rate(v, t) * 60 FROM s WHERE x = 'rate(v, t)'",
            "SELECT series_rate(time_series(v, t)) * 60 AS \"rate(v, t) * 60\" FROM s WHERE x = 'rate(v, t)'",
        );
        check(
            "SELECT state_duration(S = 'On', t) FROM s",
            "SELECT series_state_duration(time_series(S = 'On', t)) AS \"state_duration(s = 'On', t)\" FROM s",
        );
        check(
            "SELECT time_weighted_avg(v, t, 'linear') OVER (PARTITION BY d) AS a FROM s",
            "SELECT series_time_weighted_avg(time_series(v, t) OVER (PARTITION BY d), 'linear') AS a FROM s",
        );
    }

    #[test]
    fn calls_are_found_everywhere_and_other_calls_are_left_alone() {
        check(
            "WITH q AS (SELECT increase(v, t) AS i FROM s) SELECT i FROM q WHERE i > (SELECT rate(v, t) AS r FROM s)",
            "WITH q AS (SELECT series_increase(time_series(v, t)) AS i FROM s) SELECT i FROM q \
             WHERE i > (SELECT series_rate(time_series(v, t)) AS r FROM s)",
        );
        check(
            "SELECT d FROM s GROUP BY d HAVING counter_resets(v, t) > 0 ORDER BY delta(v, t)",
            "SELECT d FROM s GROUP BY d HAVING series_counter_resets(time_series(v, t)) > 0 \
             ORDER BY (last(v, t) - first(v, t))",
        );
        let other = "SELECT last(v, t), count(DISTINCT v), my.rate(v) FROM s";
        check(other, other);
    }

    #[test]
    fn wrong_calls_are_refused_with_a_right_one() {
        for (call, reason) in [
            ("approx_percentile(v)", "not 1 arguments; write approx_percentile(temperature, 0.95)"),
            ("approx_percentile(DISTINCT v, 0.5)", "DISTINCT"),
            ("rate(v)", "rate(energy, event_time)"),
            ("delta(v, t ORDER BY t)", "ORDER BY"),
            ("increase(v, t) IGNORE NULLS", "nulls"),
            ("time_weighted_avg(v, t, 'linear', 1)", "optionally"),
        ] {
            let error = rewritten(&format!("SELECT {call} FROM s")).expect_err(call).to_string();
            assert!(error.contains(reason), "{call}: {error}");
        }
    }
}
