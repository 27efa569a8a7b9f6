//! Windows in `GROUP BY`: `hop(t, slide, size)`, `session(t, gap)`, `count_window(n)` and their kin, with `window_end` beside them.
//!
//! They become the functions of [`crate::window`], of which the planner knows that a start is a part of a window.
//! Flink's group windows (`HOP(ts, ...)` with `HOP_START(ts, ...)`) and Arroyo's (`hop(slide, size) AS window` with
//! `window.start`, over `event_time`) come out as the same.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr,
    Ident, ObjectName, ObjectNamePart, Select, SelectItem, Value, Visit, VisitMut, Visitor, VisitorMut,
};

use super::keep_name;
use crate::layout::EVENT_TIME;
use crate::window::counts::POSITION;
use crate::window::names;

/// Rewrites the windows of every `SELECT`.
pub(super) struct GroupWindows;

impl VisitorMut for GroupWindows {
    type Break = String;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<String> {
        let is_rewritten = |call: &Function| as_window(call).is_some();
        select.projection.iter_mut().for_each(|item| keep_name(item, is_rewritten));
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<String> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        if let Some(replaced) = as_window(function) {
            *expr = replaced;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<String> {
        let GroupByExpr::Expressions(group, _) = &select.group_by else { return ControlFlow::Continue(()) };
        let grouped: Vec<Expr> =
            group.iter().flat_map(members).map(|expr| resolve(&expr, &select.projection)).collect();
        let Some(window) = grouped.iter().find_map(find_window) else { return ControlFlow::Continue(()) };

        let keys: Vec<Expr> = grouped.iter().filter(|expr| find_window(expr).is_none()).cloned().collect();
        let keyed = with_keys(&window, &keys);
        name_bare_columns(select, &grouped, &keyed);
        let mut rekey = Rekey { from: &window, to: &keyed };
        let _ = VisitMut::visit(&mut select.projection, &mut rekey);
        let _ = VisitMut::visit(&mut select.having, &mut rekey);
        let _ = VisitMut::visit(&mut select.group_by, &mut rekey);
        group_parts(select, &keyed);
        ControlFlow::Continue(())
    }
}

/// What stands for a window, or a part of it, if `function` is one that does.
fn as_window(function: &Function) -> Option<Expr> {
    let name = simple_name(function)?;
    if name == "grouping_id" {
        return Some(call("grouping", arguments(function)?));
    }
    if name == names::COUNT {
        let size = arguments(function).filter(|args| args.len() == 1)?;
        let position = POSITION.map(|part| Expr::Identifier(Ident::new(part)));
        return Some(call(names::COUNT, size.into_iter().chain(position).collect()));
    }
    let (family, part) = match name.as_str() {
        "tumble" | "hop" | "cumulate" | "session" => (name.as_str(), None),
        other => {
            let (family, part) = other.rsplit_once('_')?;
            (family, Some(part))
        }
    };
    let args = arguments(function)?;
    // Without a time, it is the event's own, and the window as a whole is meant.
    let timeless = args.first().is_some_and(|first| matches!(first, Expr::Interval(_)));
    let window = match family {
        "tumble" | "hop" | "cumulate" | "session" => format!("{family}_window"),
        _ => return None,
    };
    match part {
        None if timeless => {
            let time = Expr::Identifier(Ident::new(EVENT_TIME));
            Some(call(&window, std::iter::once(time).chain(args).collect()))
        }
        None if family == "tumble" => None,
        None => Some(call(names::START, vec![call(&window, args)])),
        Some("start") if family == "tumble" => Some(call("tumble", args)),
        Some("start") => Some(call(names::START, vec![call(&window, args)])),
        Some("end") if family != "tumble" => Some(call(names::END, vec![call(&window, args)])),
        Some("rowtime") if family == "tumble" => Some(call(names::TIME, vec![call(names::TUMBLE, args)])),
        Some("rowtime") => Some(call(names::TIME, vec![call(&window, args)])),
        _ => None,
    }
}

/// A window that a group key is, or is a part of: a window call or a `tumble(...)`.
fn find_window(expr: &Expr) -> Option<Expr> {
    struct Find(Option<Expr>);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if is_window_call(expr) || is_call(expr, "tumble") {
                self.0 = Some(expr.clone());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(None);
    let _ = Visit::visit(expr, &mut find);
    find.0
}

fn is_window_call(expr: &Expr) -> bool {
    [names::TUMBLE, names::HOP, names::CUMULATE, names::SESSION, names::COUNT]
        .iter()
        .any(|name| is_call(expr, name))
}

/// A session or a count without keys has those of its `GROUP BY`.
fn with_keys(window: &Expr, keys: &[Expr]) -> Expr {
    match window {
        Expr::Function(function) if is_call(window, names::COUNT) => {
            let args = arguments(function).unwrap_or_default();
            call(names::COUNT, args.into_iter().chain(keys.iter().cloned()).collect())
        }
        Expr::Function(function) if is_call(window, names::SESSION) => {
            let mut args = arguments(function).unwrap_or_default();
            if args.len() == 2 {
                if keys.is_empty() {
                    args.push(Expr::Value(Value::Null.into()));
                }
                args.extend(keys.iter().cloned());
            }
            call(names::SESSION, args)
        }
        other => other.clone(),
    }
}

/// Exchanges one window call for another.
struct Rekey<'a> {
    from: &'a Expr,
    to: &'a Expr,
}

impl VisitorMut for Rekey<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if expr == self.from {
            *expr = self.to.clone();
        }
        ControlFlow::Continue(())
    }
}

/// `window_start`, `window_end` and `window_time` as select items mean the window of the `GROUP BY`, unless they
/// are grouped by or named otherwise.
fn name_bare_columns(select: &mut Select, grouped: &[Expr], window: &Expr) {
    for item in &mut select.projection {
        let (expr, alias) = match item {
            SelectItem::UnnamedExpr(expr) => (expr.clone(), None),
            SelectItem::ExprWithAlias { expr, alias } => (expr.clone(), Some(alias.clone())),
            _ => continue,
        };
        let Expr::Identifier(ident) = &expr else { continue };
        let name = ident.value.to_lowercase();
        if grouped.contains(&expr) {
            continue;
        }
        let Some(part) = part_of(window, &name) else { continue };
        *item = SelectItem::ExprWithAlias { expr: part, alias: alias.unwrap_or_else(|| ident.clone()) };
    }
}

fn part_of(window: &Expr, name: &str) -> Option<Expr> {
    if ![names::START, names::END, names::TIME].contains(&name) {
        return None;
    }
    let Expr::Function(function) = window else { return None };
    if !is_call(window, "tumble") {
        return Some(call(name, vec![window.clone()]));
    }
    match name {
        names::START => Some(window.clone()),
        names::END => Some(call("tumble_end", arguments(function)?)),
        _ => Some(call(names::TIME, vec![call(names::TUMBLE, arguments(function)?)])),
    }
}

/// Adds the parts of the window that are shown to the `GROUP BY`: they are the same for all events of a group.
fn group_parts(select: &mut Select, window: &Expr) {
    struct Parts<'a> {
        window: &'a Expr,
        found: Vec<Expr>,
    }
    impl Visitor for Parts<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
            let of_window = match simple_name(function).as_deref() {
                Some(names::START | names::END | names::TIME) => {
                    arguments(function).is_some_and(|args| match (args.as_slice(), self.window) {
                        ([arg], window) if arg == window => true,
                        ([Expr::Function(arg)], Expr::Function(window)) => {
                            is_call(self.window, "tumble") && arguments(arg) == arguments(window)
                        }
                        _ => false,
                    })
                }
                Some("tumble_end") => match self.window {
                    Expr::Function(tumble) => arguments(function) == arguments(tumble),
                    _ => false,
                },
                _ => false,
            };
            if of_window && !self.found.contains(expr) {
                self.found.push(expr.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let mut parts = Parts { window, found: Vec::new() };
    let _ = Visit::visit(&select.projection, &mut parts);
    let _ = Visit::visit(&select.having, &mut parts);
    let GroupByExpr::Expressions(group, _) = &mut select.group_by else { return };
    let grouped: Vec<Expr> =
        group.iter().flat_map(members).map(|expr| resolve(&expr, &select.projection)).collect();
    if grouped.contains(window) && is_window_call(window) {
        return;
    }
    group.extend(parts.found.into_iter().filter(|part| !grouped.contains(part)));
}

/// The expressions that a `GROUP BY` item groups by.
fn members(expr: &Expr) -> Vec<Expr> {
    match expr {
        Expr::GroupingSets(sets) | Expr::Cube(sets) | Expr::Rollup(sets) => sets.concat(),
        Expr::Nested(expr) => members(expr),
        expr => vec![expr.clone()],
    }
}

/// What a `GROUP BY` item stands for: a select item by alias or by number.
fn resolve(expr: &Expr, projection: &[SelectItem]) -> Expr {
    match expr {
        Expr::Identifier(ident) => projection
            .iter()
            .find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if alias.value == ident.value => Some(expr.clone()),
                _ => None,
            })
            .unwrap_or_else(|| expr.clone()),
        Expr::Value(value) => {
            let Value::Number(number, _) = &value.value else { return expr.clone() };
            let at = number.to_string().parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            match at.and_then(|at| projection.get(at)) {
                Some(SelectItem::ExprWithAlias { expr, .. } | SelectItem::UnnamedExpr(expr)) => expr.clone(),
                _ => expr.clone(),
            }
        }
        expr => expr.clone(),
    }
}

fn is_call(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Function(function) if simple_name(function).as_deref() == Some(name))
}

fn simple_name(function: &Function) -> Option<String> {
    match function.name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Some(ident.value.to_lowercase()),
        _ => None,
    }
}

/// The arguments of a plain call.
fn arguments(function: &Function) -> Option<Vec<Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let plain = list.duplicate_treatment.is_none() && list.clauses.is_empty();
    let args = list.args.iter().map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    if plain { args.collect() } else { None }
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
