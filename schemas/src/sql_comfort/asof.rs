//! `ASOF JOIN` as a join with a marked condition.

use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, ExcludeSelectItem, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Join,
    JoinConstraint, JoinOperator, ObjectName, Select, SelectItem, SelectItemQualifiedWildcardKind,
    TableFactor, TableWithJoins, WildcardAdditionalOptions,
};

use super::names;
use super::tokens::{INNER, LEFT};
use crate::functions::markers::{ASOF, ASOF_USING, misplaced};

/// Rewrites the `ASOF` joins of one SELECT.
pub(super) fn rewrite(select: &mut Select) -> Result<()> {
    let joins = || select.from.iter().flat_map(|tables| &tables.joins);
    let merges = |join: &Join| {
        matches!(join.join_operator, JoinOperator::AsOf { constraint: JoinConstraint::Using(_), .. })
    };
    if joins().any(merges)
        && let Some(shown) = shown(&select.from)
    {
        let items = std::mem::take(&mut select.projection).into_iter();
        let items = items.flat_map(|item| match item {
            SelectItem::Wildcard(options) if options == WildcardAdditionalOptions::default() => shown.clone(),
            item => vec![item],
        });
        select.projection = items.collect();
    }
    select.from.iter_mut().flat_map(|tables| &mut tables.joins).try_for_each(rewrite_join)
}

/// What `*` shows of joins with `USING`: the merged columns once, those of the left side. DataFusion takes either
/// side's, which are equal in its joins; here the times differ. `None` where a table has no name or another kind
/// of join says what is shown.
fn shown(from: &[TableWithJoins]) -> Option<Vec<SelectItem>> {
    let mut items = Vec::new();
    let mut show = |table: &TableFactor, columns: &[ObjectName]| {
        let name = names::ident(table)?;
        let mut options = WildcardAdditionalOptions::default();
        if !columns.is_empty() {
            options.opt_exclude = Some(ExcludeSelectItem::Multiple(columns.to_vec()));
        }
        let kind = SelectItemQualifiedWildcardKind::ObjectName(vec![name].into());
        items.push(SelectItem::QualifiedWildcard(kind, options));
        Some(())
    };
    for tables in from {
        show(&tables.relation, &[])?;
        for join in &tables.joins {
            use JoinOperator::{AsOf, CrossJoin, Inner, Join, Left, LeftOuter};
            match &join.join_operator {
                Join(constraint)
                | Inner(constraint)
                | Left(constraint)
                | LeftOuter(constraint)
                | CrossJoin(constraint)
                | AsOf { constraint, .. } => match constraint {
                    JoinConstraint::Using(columns) => show(&join.relation, columns)?,
                    JoinConstraint::On(_) | JoinConstraint::None => show(&join.relation, &[])?,
                    JoinConstraint::Natural => return None,
                },
                _ => return None,
            }
        }
    }
    Some(items)
}

fn rewrite_join(join: &mut Join) -> Result<()> {
    let JoinOperator::AsOf { match_condition, constraint } = &join.join_operator else { return Ok(()) };
    let (keeps_left, condition) = read(match_condition)?;
    let constraint = constraint.clone();
    let constraint = match condition {
        Some(condition) => with_match_condition(&condition, constraint)?,
        None => marked(join, constraint)?,
    };
    join.join_operator =
        if keeps_left { JoinOperator::LeftOuter(constraint) } else { JoinOperator::Inner(constraint) };
    Ok(())
}

/// Whether the left side is kept, and the condition unless it is among those of ON.
fn read(match_condition: &Expr) -> Result<(bool, Option<Expr>)> {
    match match_condition {
        Expr::Identifier(ident) if ident.value == INNER => Ok((false, None)),
        Expr::Identifier(ident) if ident.value == LEFT => Ok((true, None)),
        Expr::Function(function) if function.name.to_string() == LEFT => match &function.args {
            FunctionArguments::List(list) => match list.args.as_slice() {
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(condition))] => {
                    Ok((true, Some(condition.clone())))
                }
                _ => Err(shapeless()),
            },
            _ => Err(shapeless()),
        },
        condition => Ok((false, Some(condition.clone()))),
    }
}

fn with_match_condition(condition: &Expr, constraint: JoinConstraint) -> Result<JoinConstraint> {
    if !is_inequality(condition) {
        return plan_err!("MATCH_CONDITION must compare two times by >=, >, <= or <, not `{condition}`");
    }
    let asof = call(condition)?;
    match constraint {
        JoinConstraint::On(on) => Ok(JoinConstraint::On(names::binary(on, BinaryOperator::And, asof))),
        JoinConstraint::None => Ok(JoinConstraint::On(asof)),
        JoinConstraint::Using(_) | JoinConstraint::Natural => plan_err!(
            "an ASOF JOIN with MATCH_CONDITION takes its keys from ON: \
             a ASOF JOIN b MATCH_CONDITION (a.t >= b.t) ON a.k = b.k"
        ),
    }
}

/// Marks the one inequality of ON, or with USING the right side.
fn marked(join: &mut Join, constraint: JoinConstraint) -> Result<JoinConstraint> {
    match constraint {
        JoinConstraint::On(on) => {
            let mut marked = 0;
            let conditions = names::conditions(&on).into_iter().map(|condition| {
                if is_inequality(condition) {
                    marked += 1;
                    return call(condition);
                }
                Ok(condition.clone())
            });
            let conditions = conditions.collect::<Result<Vec<_>>>()?;
            match names::all_of(conditions) {
                Some(on) if marked == 1 => Ok(JoinConstraint::On(on)),
                _ => Err(shapeless()),
            }
        }
        JoinConstraint::Using(columns) => {
            let name = names::ident(&join.relation).ok_or_else(shapeless)?;
            let text = format!("(SELECT * FROM {} WHERE {ASOF_USING}()) AS {name}", join.relation);
            join.relation = names::derived(&text)?;
            Ok(JoinConstraint::Using(columns))
        }
        JoinConstraint::None | JoinConstraint::Natural => Err(shapeless()),
    }
}

fn is_inequality(condition: &Expr) -> bool {
    use BinaryOperator::{Gt, GtEq, Lt, LtEq};
    match condition {
        Expr::BinaryOp { op, .. } => matches!(op, Gt | GtEq | Lt | LtEq),
        Expr::Nested(inner) => is_inequality(inner),
        _ => false,
    }
}

fn call(condition: &Expr) -> Result<Expr> {
    Ok(names::expr(&format!("{ASOF}({condition})"))?)
}

fn shapeless() -> DataFusionError {
    misplaced(ASOF).unwrap_or_else(|| DataFusionError::Plan("this is no ASOF JOIN".into()))
}
