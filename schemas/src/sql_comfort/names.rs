//! What the parts of a FROM clause are called, and small pieces of syntax.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, ObjectName, ObjectNamePart, TableFactor, TableWithJoins, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// The name under which a table's columns are reached; none for a subquery without one.
pub(super) fn ident(table: &TableFactor) -> Option<Ident> {
    match table {
        TableFactor::Table { name, alias: None, .. } => last(name).cloned(),
        TableFactor::Table { alias, .. }
        | TableFactor::Derived { alias, .. }
        | TableFactor::TableFunction { alias, .. }
        | TableFactor::Function { alias, .. }
        | TableFactor::UNNEST { alias, .. } => alias.as_ref().map(|alias| alias.name.clone()),
        _ => None,
    }
}

/// The names that a table brings into a query, in lower case.
pub(super) fn of(table: &TableFactor) -> Vec<String> {
    match table {
        TableFactor::NestedJoin { table_with_joins, .. } => of_all(table_with_joins),
        table => ident(table).into_iter().map(|name| name.value.to_lowercase()).collect(),
    }
}

/// The names of a table and all that is joined to it.
pub(super) fn of_all(tables: &TableWithJoins) -> Vec<String> {
    let joined = tables.joins.iter().map(|join| &join.relation);
    std::iter::once(&tables.relation).chain(joined).flat_map(of).collect()
}

/// The last part of a name with dots.
pub(super) fn last(name: &ObjectName) -> Option<&Ident> {
    name.0.last().and_then(ObjectNamePart::as_ident)
}

/// The qualifiers of columns that occur anywhere in a piece of syntax, in lower case.
pub(super) fn qualifiers(syntax: &impl Visit) -> HashSet<String> {
    struct Qualifiers(HashSet<String>);
    impl Visitor for Qualifiers {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && let [.., qualifier, _] = parts.as_slice()
            {
                self.0.insert(qualifier.value.to_lowercase());
            }
            ControlFlow::Continue(())
        }
    }
    let mut found = Qualifiers(HashSet::new());
    let _ = syntax.visit(&mut found);
    found.0
}

/// The conditions that a condition is the conjunction of.
pub(super) fn conditions(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut found = conditions(left);
            found.extend(conditions(right));
            found
        }
        Expr::Nested(inner) => conditions(inner),
        other => vec![other],
    }
}

/// The conjunction of conditions; `None` of none.
pub(super) fn all_of(conditions: impl IntoIterator<Item = Expr>) -> Option<Expr> {
    conditions.into_iter().reduce(|left, right| binary(left, BinaryOperator::And, right))
}

/// `left op right`, each in parentheses where it must be.
pub(super) fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    let guarded = |expr: Expr| match expr {
        Expr::BinaryOp { op: BinaryOperator::Or, .. } => Expr::Nested(Box::new(expr)),
        other => other,
    };
    Expr::BinaryOp { left: Box::new(guarded(left)), op, right: Box::new(guarded(right)) }
}

/// An expression from its text.
pub(super) fn expr(text: &str) -> Result<Expr, ParserError> {
    Parser::new(&GenericDialect {}).try_with_sql(text)?.parse_expr()
}

/// A subquery as a table, from its text.
pub(super) fn derived(text: &str) -> Result<TableFactor, ParserError> {
    Parser::new(&GenericDialect {}).try_with_sql(text)?.parse_table_factor()
}
