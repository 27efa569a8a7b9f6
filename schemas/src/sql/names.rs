//! The names of columns that have none: the text that the user wrote, not what it is rewritten to.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Function, Ident, SelectItem, visit_expressions};

/// Names an unnamed column after its text, if a call in it is about to be rewritten.
pub(crate) fn keep_name(item: &mut SelectItem, is_rewritten: impl Fn(&Function) -> bool) {
    let SelectItem::UnnamedExpr(expr) = item else { return };
    let changes = visit_expressions(expr, |expr| match expr {
        Expr::Function(call) if is_rewritten(call) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    if changes.is_break() {
        let alias = Ident::with_quote('"', lower_case(&expr.to_string()));
        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
    }
}

/// Lower case, except within quotes, where case has a meaning.
fn lower_case(text: &str) -> String {
    let mut quote = None;
    text.chars()
        .map(|c| {
            match quote {
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ => {}
            }
            if quote.is_none() { c.to_ascii_lowercase() } else { c }
        })
        .collect()
}
