//! `LATERAL` with `LIMIT`, as users of TimescaleDB ask for the last rows of each device.
//!
//! ```text
//!   FROM tags t JOIN LATERAL (SELECT x FROM d WHERE d.k = t.id AND d.y > 0 ORDER BY time DESC LIMIT 1) l ON c
//!
//!   FROM tags t JOIN (SELECT x, d.k AS __key,
//!                            row_number() OVER (PARTITION BY d.k ORDER BY time DESC) AS __row
//!                     FROM d WHERE d.y > 0) l
//!               ON c AND l.__key = t.id AND l.__row <= 1
//! ```
//!
//! The added columns are excluded from `*` and `l.*`. A `LATERAL` subquery that refers to no other table is a
//! plain one; one without `LIMIT` is left to DataFusion.

use std::collections::HashSet;

use datafusion::common::{DataFusionError, Result, plan_datafusion_err};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, ExcludeSelectItem, Expr, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator,
    LimitClause, ObjectName, OrderByExpr, OrderByKind, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableAlias, TableAliasColumnDef, TableFactor, Value,
    WildcardAdditionalOptions,
};

use super::names;

/// Rewrites the `LATERAL` subqueries of one SELECT; `count` numbers them.
pub(super) fn rewrite(select: &mut Select, count: &mut usize) -> Result<()> {
    let mut outer: HashSet<String> = HashSet::new();
    let mut hidden: Vec<(String, Vec<Ident>)> = Vec::new();
    let from = std::mem::take(&mut select.from);
    for mut tables in from {
        // `FROM a, LATERAL (...)`: a join to what stands before.
        if let Some(added) = lower(&mut tables.relation, &outer, count)?
            && let Some(before) = select.from.last_mut()
        {
            hidden.push((added.name, added.columns));
            let join_operator = JoinOperator::Inner(JoinConstraint::On(added.condition));
            outer.extend(names::of(&tables.relation));
            before.joins.push(Join { relation: tables.relation, global: false, join_operator });
            before.joins.append(&mut tables.joins);
            continue;
        }
        outer.extend(names::of(&tables.relation));
        for join in &mut tables.joins {
            if let Some(added) = lower(&mut join.relation, &outer, count)? {
                join.join_operator = joined_on(&join.join_operator, added.condition)?;
                hidden.push((added.name, added.columns));
            }
            outer.extend(names::of(&join.relation));
        }
        select.from.push(tables);
    }
    if !hidden.is_empty() {
        hide(&mut select.projection, &hidden);
    }
    Ok(())
}

/// What a rewritten subquery needs of the query around it.
struct Added {
    /// Its name.
    name: String,
    /// Columns that it has got.
    columns: Vec<Ident>,
    /// The condition to join it by.
    condition: Expr,
}

fn lower(table: &mut TableFactor, outer: &HashSet<String>, count: &mut usize) -> Result<Option<Added>> {
    let TableFactor::Derived { lateral, subquery, alias, .. } = table else { return Ok(None) };
    if !*lateral {
        return Ok(None);
    }
    if names::qualifiers(subquery.as_ref()).is_disjoint(outer) {
        *lateral = false;
        return Ok(None);
    }
    let Some((skipped, last)) = row_numbers(subquery)? else { return Ok(None) };
    *count += 1;
    let alias = alias.get_or_insert_with(|| TableAlias {
        explicit: true,
        name: Ident::new(format!("__lateral_{count}")),
        columns: Vec::new(),
        at: None,
    });
    let row = Ident::new(format!("__lateral_{count}_row"));
    let (keys, others) = correlations(subquery, outer)?;
    let order_by = order_by(subquery)?;
    let SetExpr::Select(inner) = subquery.body.as_mut() else {
        return Err(unsupported("it is no plain SELECT"));
    };
    inner.selection = names::all_of(others);

    let qualified = |column: &Ident| Expr::CompoundIdentifier(vec![alias.name.clone(), column.clone()]);
    let mut columns = Vec::new();
    let mut conditions = Vec::new();
    let mut partition = Vec::new();
    for (i, (inside, outside)) in keys.into_iter().enumerate() {
        let column = Ident::new(format!("__lateral_{count}_key_{i}"));
        conditions.push(names::binary(qualified(&column), BinaryOperator::Eq, outside));
        partition.push(inside.to_string());
        inner.projection.push(SelectItem::ExprWithAlias { expr: inside, alias: column.clone() });
        columns.push(column);
    }
    let order: Vec<String> = order_by.iter().map(ToString::to_string).collect();
    let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
    let number = format!("row_number() OVER (PARTITION BY {}{order})", partition.join(", "));
    inner.projection.push(SelectItem::ExprWithAlias { expr: names::expr(&number)?, alias: row.clone() });
    conditions.push(names::binary(qualified(&row), BinaryOperator::LtEq, number_of(last)));
    if skipped > 0 {
        conditions.push(names::binary(qualified(&row), BinaryOperator::Gt, number_of(skipped)));
    }
    columns.push(row);
    if !alias.columns.is_empty() {
        let named = columns.iter().map(|name| TableAliasColumnDef { name: name.clone(), data_type: None });
        alias.columns.extend(named);
    }
    let name = alias.name.value.to_lowercase();
    *lateral = false;
    subquery.order_by = None;
    subquery.limit_clause = None;
    subquery.fetch = None;
    let condition = names::all_of(conditions).ok_or_else(|| unsupported("it refers to no other table"))?;
    Ok(Some(Added { name, columns, condition }))
}

/// How many rows are skipped, and the number of the last one; `None` without LIMIT.
fn row_numbers(query: &Query) -> Result<Option<(u64, u64)>> {
    let number = |expr: &Expr| match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.parse::<u64>().ok(),
            _ => None,
        },
        _ => None,
    };
    let constant =
        |expr: &Expr| number(expr).ok_or_else(|| unsupported("LIMIT and OFFSET must be plain numbers"));
    let limits = match (&query.limit_clause, &query.fetch) {
        (None, None) => return Ok(None),
        (None, Some(fetch)) if !fetch.with_ties && !fetch.percent => {
            (0, fetch.quantity.as_ref().map_or(Ok(1), constant)?)
        }
        (Some(LimitClause::LimitOffset { limit: Some(limit), offset, limit_by }), None)
            if limit_by.is_empty() =>
        {
            (offset.as_ref().map_or(Ok(0), |offset| constant(&offset.value))?, constant(limit)?)
        }
        (Some(LimitClause::OffsetCommaLimit { offset, limit }), None) => {
            (constant(offset)?, constant(limit)?)
        }
        _ => return Err(unsupported("its LIMIT is not of the form LIMIT n [OFFSET m]")),
    };
    Ok(Some((limits.0, limits.0.saturating_add(limits.1))))
}

/// Pairs of equal inner and outer expressions, and the other conditions.
type Correlations = (Vec<(Expr, Expr)>, Vec<Expr>);

/// The conditions `inner = outer`, and those that concern the inner tables alone.
fn correlations(query: &Query, outer: &HashSet<String>) -> Result<Correlations> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return Err(unsupported("it is no plain SELECT"));
    };
    let grouped = match &select.group_by {
        GroupByExpr::Expressions(keys, _) => !keys.is_empty(),
        GroupByExpr::All(_) => true,
    };
    if grouped || select.having.is_some() || select.distinct.is_some() || query.with.is_some() {
        return Err(unsupported("it groups, or has DISTINCT or WITH"));
    }
    let own: HashSet<String> = select.from.iter().flat_map(names::of_all).collect();
    let refers =
        |expr: &Expr| names::qualifiers(expr).iter().any(|name| outer.contains(name) && !own.contains(name));
    let only_outer = |expr: &Expr| {
        let found = names::qualifiers(expr);
        let mut bare = expr.clone();
        while let Expr::Nested(inner) = bare {
            bare = *inner;
        }
        refers(expr)
            && found.iter().all(|name| !own.contains(name))
            && matches!(bare, Expr::CompoundIdentifier(_))
    };
    let (mut keys, mut others) = (Vec::new(), Vec::new());
    for condition in select.selection.iter().flat_map(names::conditions) {
        match condition {
            condition if !refers(condition) => others.push(condition.clone()),
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if only_outer(right) && !refers(left) => {
                keys.push((left.as_ref().clone(), right.as_ref().clone()));
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if only_outer(left) && !refers(right) => {
                keys.push((right.as_ref().clone(), left.as_ref().clone()));
            }
            condition => {
                return Err(unsupported(&format!(
                    "`{condition}` is no equality of an own column with one of another table (for the last row \
                     before a time, use ASOF JOIN)"
                )));
            }
        }
    }
    let mut rest = select.clone();
    rest.selection = None;
    if names::qualifiers(&rest.projection).iter().any(|name| outer.contains(name) && !own.contains(name)) {
        return Err(unsupported("it refers to another table outside of WHERE"));
    }
    if keys.is_empty() {
        return Err(unsupported("no condition in WHERE ties it to another table"));
    }
    Ok((keys, others))
}

/// ORDER BY with names and numbers of output columns replaced by what they stand for.
fn order_by(query: &Query) -> Result<Vec<OrderByExpr>> {
    let Some(order_by) = &query.order_by else { return Ok(Vec::new()) };
    let OrderByKind::Expressions(keys) = &order_by.kind else {
        return Err(unsupported("ORDER BY ALL is not possible in it"));
    };
    let SetExpr::Select(select) = query.body.as_ref() else { return Ok(keys.clone()) };
    let shown = |expr: &Expr| -> Option<Expr> {
        match expr {
            Expr::Value(value) => match &value.value {
                Value::Number(position, _) => {
                    match select.projection.get(position.parse::<usize>().ok()?.checked_sub(1)?)? {
                        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                            Some(expr.clone())
                        }
                        _ => None,
                    }
                }
                _ => None,
            },
            Expr::Identifier(name) => select.projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if alias.value == name.value => Some(expr.clone()),
                _ => None,
            }),
            _ => None,
        }
    };
    let resolved = keys
        .iter()
        .map(|key| OrderByExpr { expr: shown(&key.expr).unwrap_or(key.expr.clone()), ..key.clone() });
    Ok(resolved.collect())
}

fn number_of(number: u64) -> Expr {
    Expr::value(Value::Number(number.to_string(), false))
}

fn joined_on(operator: &JoinOperator, added: Expr) -> Result<JoinOperator> {
    let on = |constraint: &JoinConstraint| match constraint {
        JoinConstraint::On(on) => {
            Ok(JoinConstraint::On(names::binary(on.clone(), BinaryOperator::And, added.clone())))
        }
        JoinConstraint::None => Ok(JoinConstraint::On(added.clone())),
        JoinConstraint::Using(_) | JoinConstraint::Natural => Err(unsupported("it must be joined by ON")),
    };
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::CrossJoin(constraint) => Ok(JoinOperator::Inner(on(constraint)?)),
        JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => {
            Ok(JoinOperator::LeftOuter(on(constraint)?))
        }
        _ => Err(unsupported("it can be joined by JOIN, CROSS JOIN and LEFT JOIN only")),
    }
}

/// Excludes the added columns from `*` and `name.*`.
fn hide(projection: &mut [SelectItem], hidden: &[(String, Vec<Ident>)]) {
    for item in projection {
        match item {
            SelectItem::Wildcard(options) => {
                exclude(options, hidden.iter().flat_map(|(_, columns)| columns));
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                let name = names::last(name).map(|name| name.value.to_lowercase());
                let of = hidden.iter().filter(|(of, _)| Some(of) == name.as_ref());
                exclude(options, of.flat_map(|(_, columns)| columns));
            }
            _ => {}
        }
    }
}

fn exclude<'a>(options: &mut WildcardAdditionalOptions, columns: impl Iterator<Item = &'a Ident>) {
    let columns: Vec<ObjectName> = columns.map(|column| ObjectName::from(vec![column.clone()])).collect();
    if columns.is_empty() {
        return;
    }
    if let Some(except) = &mut options.opt_except {
        except.additional_elements.extend(columns.iter().filter_map(names::last).cloned());
        return;
    }
    let mut all = match options.opt_exclude.take() {
        Some(ExcludeSelectItem::Single(column)) => vec![column],
        Some(ExcludeSelectItem::Multiple(columns)) => columns,
        None => Vec::new(),
    };
    all.extend(columns);
    options.opt_exclude = Some(ExcludeSelectItem::Multiple(all));
}

fn unsupported(why: &str) -> DataFusionError {
    plan_datafusion_err!(
        "a LATERAL subquery with LIMIT is possible as (SELECT ... FROM d WHERE d.k = t.k ORDER BY ... LIMIT n); \
         here {why}"
    )
}
