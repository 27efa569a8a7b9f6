//! From SQL to a [`CompiledView`]: the aggregation is found in the plan and cut in two.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::logical_expr::expr::{
    AggregateFunction, AggregateFunctionParams, GroupingSet, NullTreatment,
};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder,
};
use datafusion::optimizer::Analyzer;

use super::combinators::{AggregateCall, Argument, Emit, OrderBy, merge_of, state_of};
use super::groups::{GroupColumn, KeyColumn, group_columns, key_columns};
use super::last_values::{empty_state, shape_of_names, state_column};
use super::normal::{EVENTS, NormalForm, check_output, normalize};
use super::{mergeable, storage};
use crate::catalog::ViewDef;
use crate::error::{Error, Result};
use crate::layout::timestamp_type;
use crate::session::small_context;
use crate::window::counts::with_numbers;
use crate::window::sessions::{FIRST, Intervals, LAST, with_extents, with_sessions};
use crate::window::{WINDOW, WindowCall, WindowKind, expand_kind, replace_call};

/// A view, ready to run. See the [module](super) for what its plans do.
#[derive(Debug)]
pub struct CompiledView {
    def: Arc<ViewDef>,
    /// The views that it reads through, the one nearest to the stream first.
    bases: Vec<Arc<ViewDef>>,
    stream: Arc<str>,
    input_schema: SchemaRef,
    /// The whole query, over a placeholder for the stream.
    plan: LogicalPlan,
    /// The aggregation as it was planned.
    aggregate: Aggregate,
    /// Which events count.
    filter: Option<Expr>,
    calls: Vec<(AggregateCall, AggregateFunctionParams)>,
    /// The aggregate expressions over the stream's columns.
    aggregates: Vec<Expr>,
    /// What stands above the aggregation, outermost first.
    above: Vec<LogicalPlan>,
    /// The window that state has to be expanded to, if any.
    window: Option<WindowCall>,
    keys: Vec<KeyColumn>,
    /// The values of the keys, over the stream's columns.
    key_exprs: Vec<Expr>,
    /// The `GROUP BY` that finishes, over state rows with their window.
    finishing_groups: Vec<Expr>,
    groups: Vec<GroupColumn>,
    state_schema: SchemaRef,
    storage_schema: SchemaRef,
    output_schema: SchemaRef,
}

/// The key that holds the start of a pane.
const PANE: &str = "key_pane";
/// The keys that hold the extent of a session.
const EXTENT: [&str; 2] = ["key_session_first", "key_session_last"];
/// The keys that hold the [position](crate::window::counts::POSITION) of an event.
const POSITION_KEYS: [&str; 3] = ["key_seq", "key_index", "key_node"];

impl CompiledView {
    /// Compiles `def` over a stream with the columns `schema`. `stream` is looked up in the SQL text first: see
    /// [`super::source_of`].
    pub async fn compile(def: Arc<ViewDef>, stream: &str, schema: &SchemaRef) -> Result<Self> {
        Self::compile_over(def, Vec::new(), stream, schema).await
    }

    /// Compiles a view that reads `stream` through other views, the one nearest to the stream first.
    pub async fn compile_over(
        def: Arc<ViewDef>,
        bases: Vec<Arc<ViewDef>>,
        stream: &str,
        schema: &SchemaRef,
    ) -> Result<Self> {
        let wrap = |e: Error| Error::invalid(format!("view `{}`: {e}", def.name));
        Self::compile_unnamed(&def, bases, stream, schema).await.map_err(wrap)
    }

    async fn compile_unnamed(
        def: &Arc<ViewDef>,
        bases: Vec<Arc<ViewDef>>,
        stream: &str,
        schema: &SchemaRef,
    ) -> Result<Self> {
        let plan = analyzed(def, &bases, stream, schema).await?;
        let output_schema = plan.schema().inner().clone();
        check_output(&output_schema)?;
        let normal = normalize(plan.clone(), stream)?;
        let events = DFSchema::try_from_qualified_schema(EVENTS, schema)?;
        let calls =
            normal.aggregates.iter().map(|expr| aggregate_call(expr, &events)).collect::<Result<Vec<_>>>()?;
        let window = crate::window::find_call(&normal.groups)?;
        if crate::window::find_call(&normal.aggregates)?.is_some() {
            return Err(Error::invalid(
                "an aggregate over the start or end of a window is not possible; use the group's own columns",
            ));
        }
        let groups = group_columns(&normal, &output_schema);
        let (keys, key_exprs) = state_keys(&normal, window.as_ref(), &groups);
        let finishing_groups = finishing_groups(&normal, &keys, &key_exprs)?;
        let names = state_names(def, &normal.aggregates);
        let state_schema = state_schema(&keys, &key_exprs, &events, &calls, names)?;
        let storage_schema = storage::storage_schema(&state_schema)?;
        let used = key_exprs.iter().chain(&normal.aggregates).chain(&normal.filter);
        let input_schema = used_columns(used.chain(window.iter().flat_map(|window| &window.of)), schema);
        let NormalForm { above, aggregate, filter, aggregates, .. } = normal;
        Ok(Self {
            def: def.clone(),
            bases,
            stream: stream.into(),
            input_schema,
            plan,
            aggregate,
            filter,
            calls,
            aggregates,
            above,
            window,
            keys,
            key_exprs,
            finishing_groups,
            groups,
            state_schema,
            storage_schema,
            output_schema,
        })
    }

    /// The view whose state this one reads: its own, or that of the lowest of its [bases](Self::bases).
    pub fn state_owner(&self) -> &str {
        self.bases.first().map_or(self.name(), |base| &base.name)
    }

    /// The definition.
    pub fn def(&self) -> &Arc<ViewDef> {
        &self.def
    }

    /// The view's name.
    pub fn name(&self) -> &str {
        &self.def.name
    }

    /// The stream that it reads.
    pub fn stream(&self) -> &Arc<str> {
        &self.stream
    }

    /// The views through which it reads the stream, the one nearest to the stream first.
    pub fn bases(&self) -> &[Arc<ViewDef>] {
        &self.bases
    }

    /// A number that changes when state made under another definition must not be merged with this one's. What a
    /// view does with its finished groups (`HAVING`, expressions, an outer query) is not part of it.
    pub fn fingerprint(&self) -> i64 {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        hash.update(&*self.stream);
        if self.def.generated {
            // States of any of its shapes can be merged: they are matched by column.
            hash.update("\nthe last value of every column");
            hash.update(shape_of_names(&self.def.sql));
        } else {
            for expr in self.filter.iter().chain(&self.key_exprs).chain(&self.aggregates) {
                hash.update(format!("\n{expr}"));
            }
            hash.update(format!("{:?}{:?}{:?}", self.window, self.input_schema, self.storage_schema));
        }
        hash.update(datafusion::DATAFUSION_VERSION);
        hash.update([crate::aggregates::STATE_VERSION]);
        let digest = hash.finalize();
        i64::from_le_bytes(digest[..8].try_into().expect("eight bytes")) & i64::MAX
    }

    /// The columns of the stream that it reads. What feeds [`Self::state_plan`] needs no others.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.input_schema
    }

    /// The keys of state rows, in the order of their columns.
    pub fn keys(&self) -> &[KeyColumn] {
        &self.keys
    }

    /// What the view groups by, as its rows show it.
    pub fn groups(&self) -> &[GroupColumn] {
        &self.groups
    }

    /// Whether each row of the view is made from the state rows of one key alone, so that changed state tells which
    /// rows have changed. Not so with overlapping windows, sessions, grouping sets, and queries over the groups.
    pub fn is_row_wise(&self) -> bool {
        self.window.is_none() && self.is_flat()
    }

    /// Whether each row of the view shows one group: there are no grouping sets, and no query over the groups.
    pub fn is_flat(&self) -> bool {
        let plain = |node: &LogicalPlan| {
            use LogicalPlan::{Filter, Projection, SubqueryAlias};
            matches!(node, Projection(_) | Filter(_) | SubqueryAlias(_))
        };
        let sets = matches!(self.aggregate.group_expr.first(), Some(Expr::GroupingSet(_)));
        !sets && self.above.iter().all(plain)
    }

    /// The window whose panes or stretches the state is kept for, if it is not a plain key.
    pub fn window(&self) -> Option<&WindowCall> {
        self.window.as_ref()
    }

    /// The schema of state rows in memory: keys, then one struct per aggregate.
    pub fn state_schema(&self) -> &SchemaRef {
        &self.state_schema
    }

    /// The schema of state rows in a table.
    pub fn storage_schema(&self) -> &SchemaRef {
        &self.storage_schema
    }

    /// The schema of the view's rows.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output_schema
    }

    /// The view's rows computed from `events` as any query would be, without state: what `verify` compares with.
    pub fn whole_plan(&self, events: &LogicalPlan) -> Result<LogicalPlan> {
        let plan = self.plan.clone().transform_up(|node| match node {
            LogicalPlan::TableScan(scan) => {
                let events = LogicalPlanBuilder::from(events.clone()).alias(scan.table_name)?.build()?;
                Ok(Transformed::yes(events))
            }
            node => {
                let inputs = node.inputs().into_iter().cloned().collect::<Vec<_>>();
                Ok(Transformed::yes(node.with_new_exprs(node.expressions(), inputs)?))
            }
        })?;
        Ok(plan.data)
    }

    /// Events in, state rows out. `events` must have the columns of [`Self::input_schema`].
    pub fn state_plan(&self, events: LogicalPlan) -> Result<LogicalPlan> {
        let mut input = LogicalPlanBuilder::from(events).alias(EVENTS)?;
        if let Some(filter) = &self.filter {
            input = input.filter(filter.clone())?;
        }
        let mut input = input.build()?;
        if let Some((call, gap)) = self.session() {
            let time = call.time();
            let intervals = Intervals { first: &time, last: &time, keys: &call.keys, gap };
            input = with_extents(input, &intervals)?;
        }
        let states = self
            .calls
            .iter()
            .map(|(call, params)| {
                // DISTINCT and the null treatment are part of the call's accumulator.
                let params =
                    AggregateFunctionParams { distinct: false, null_treatment: None, ..params.clone() };
                Ok(aggregate_expr(state_of(call.clone())?, params))
            })
            .collect::<Result<Vec<_>>>()?;
        self.aggregate_to_state(input, self.key_exprs.clone(), states)
    }

    /// State rows in, fewer state rows out: one per group.
    pub fn merge_plan(&self, states: LogicalPlan) -> Result<LogicalPlan> {
        let merges = self.merges(Emit::State)?;
        let mut group: Vec<Expr> = self.keys.iter().map(|key| unqualified(&key.name)).collect();
        let mut states = states;
        if let Some((call, gap)) = self.session() {
            let [first, last] = EXTENT.map(unqualified);
            let keys = self.window_keys(call);
            states = with_extents(states, &Intervals { first: &first, last: &last, keys: &keys, gap })?;
            group.truncate(group.len() - EXTENT.len());
            group.extend([unqualified(FIRST), unqualified(LAST)]);
        }
        self.aggregate_to_state(states, group, merges)
    }

    /// State rows in, the view's rows out.
    pub fn finish_plan(&self, states: LogicalPlan) -> Result<LogicalPlan> {
        let merges = self.merges(Emit::Value)?;
        let states = match &self.window {
            None => states,
            Some(call) => {
                let keys = self.window_keys(call);
                match &call.kind {
                    WindowKind::Session { gap } => {
                        let [first, last] = EXTENT.map(unqualified);
                        let intervals = Intervals { first: &first, last: &last, keys: &keys, gap: *gap };
                        with_sessions(states, &intervals)?
                    }
                    WindowKind::Count { size } => {
                        with_numbers(states, &keys, &POSITION_KEYS.map(unqualified), *size)?
                    }
                    kind => expand_kind(states, kind, unqualified(PANE))?,
                }
            }
        };
        let merged =
            LogicalPlanBuilder::from(states).aggregate(self.finishing_groups.clone(), merges)?.build()?;
        // Back to the names that the rest of the query knows the aggregation's columns by.
        let planned = self.aggregate.schema.iter();
        let renamed = planned.zip(merged.schema().columns()).map(|((relation, field), column)| {
            Expr::Column(column).alias_qualified(relation.cloned(), field.name())
        });
        let mut plan =
            LogicalPlanBuilder::from(merged.clone()).project(renamed.collect::<Vec<_>>())?.build()?;
        for node in self.above.iter().rev() {
            plan = node.with_new_exprs(node.expressions(), vec![plan])?;
        }
        Ok(plan)
    }

    /// Whether state rows in a table with these columns can be written again by this view. Not so if they are of a
    /// later shape of a view that follows its stream's columns: it would drop what it does not know.
    pub fn covers(&self, stored: &Schema) -> bool {
        let known = |field: &FieldRef| {
            self.storage_schema
                .field_with_name(field.name())
                .is_ok_and(|own| own.data_type() == field.data_type())
        };
        !self.def.generated || stored.fields().iter().all(known)
    }

    /// State rows as they are stored, as a plan over [`Self::state_schema`].
    pub fn stored_states(&self, table: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
        let scan = LogicalPlanBuilder::scan("batch_state", provider_as_source(table), None)?.build()?;
        let restored = self.state_schema.fields().iter().map(|field| {
            let stored = match scan.schema().field_with_unqualified_name(field.name()) {
                Err(_) if self.def.generated => {
                    let empty = Expr::Literal(empty_state(field.data_type())?, None);
                    return Ok(empty.alias_qualified(Some("batch_state"), field.name()));
                }
                stored => stored?,
            };
            let column =
                Expr::Column(Column::from_qualified_name(format!("batch_state.{}", quoted(field.name()))));
            Ok(if stored.data_type() == field.data_type() {
                column
            } else {
                storage::restore(column, field.data_type()).alias_qualified(Some("batch_state"), field.name())
            })
        });
        let restored = restored.collect::<Result<Vec<_>>>()?;
        Ok(LogicalPlanBuilder::from(scan).project(restored)?.build()?)
    }

    fn session(&self) -> Option<(&WindowCall, i64)> {
        self.window.as_ref().and_then(|call| match call.kind {
            WindowKind::Session { gap } => Some((call, gap)),
            _ => None,
        })
    }

    /// The state columns of the keys that have sessions or counts of their own.
    fn window_keys(&self, call: &WindowCall) -> Vec<Expr> {
        let column = |key: &Expr| self.key_exprs.iter().position(|expr| expr == key);
        call.keys.iter().filter_map(column).map(|at| unqualified(&self.keys[at].name)).collect()
    }

    fn aggregate_to_state(
        &self,
        input: LogicalPlan,
        group: Vec<Expr>,
        states: Vec<Expr>,
    ) -> Result<LogicalPlan> {
        let plan = LogicalPlanBuilder::from(input).aggregate(group, states)?.build()?;
        let renamed = plan.schema().columns().into_iter().zip(self.state_schema.fields());
        let renamed =
            renamed.map(|(column, field)| Expr::Column(column).alias(field.name())).collect::<Vec<_>>();
        Ok(LogicalPlanBuilder::from(plan).project(renamed)?.build()?)
    }

    fn merges(&self, emit: Emit) -> Result<Vec<Expr>> {
        let columns = self.state_schema.fields()[self.keys.len()..].iter();
        columns
            .zip(&self.calls)
            .map(|(field, (call, _))| {
                let params = AggregateFunctionParams {
                    args: vec![unqualified(field.name())],
                    distinct: false,
                    filter: None,
                    order_by: vec![],
                    null_treatment: None,
                };
                Ok(aggregate_expr(merge_of(call.clone(), emit)?, params))
            })
            .collect()
    }
}

/// The plan of a view's query over a placeholder for the stream, with types settled.
async fn analyzed(
    def: &ViewDef,
    bases: &[Arc<ViewDef>],
    stream: &str,
    schema: &SchemaRef,
) -> Result<LogicalPlan> {
    let context = small_context();
    context.register_table(
        TableReference::bare(stream),
        Arc::new(MemTable::try_new(schema.clone(), vec![vec![]])?),
    )?;
    for base in bases {
        let plan = crate::sql::plan(&context, &base.sql).await?;
        context
            .register_table(TableReference::bare(base.name.as_str()), Arc::new(ViewTable::new(plan, None)))?;
    }
    let plan = crate::sql::plan(&context, &def.sql).await?;
    // DataFusion's own rules, and not the session's: window calls are to stay.
    let state = context.state();
    Ok(Analyzer::new().execute_and_check(plan, state.config_options(), |_, _| {})?)
}

/// The columns of `schema` as expressions without a qualifier.
pub(super) fn columns(schema: &Schema) -> Vec<Expr> {
    schema.fields().iter().map(|field| Expr::Column(Column::new_unqualified(field.name()))).collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn unqualified(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn aggregate_expr(function: AggregateUDF, params: AggregateFunctionParams) -> Expr {
    Expr::AggregateFunction(AggregateFunction { func: Arc::new(function), params })
}

/// The keys of state: the group expressions, but for those that depend on a window, in whose place is what state is
/// kept by: panes, or the extents of sessions, or the positions of events, of the window's own keys.
fn state_keys(
    normal: &NormalForm,
    window: Option<&WindowCall>,
    groups: &[GroupColumn],
) -> (Vec<KeyColumn>, Vec<Expr>) {
    let (mut keys, mut exprs) = key_columns(&normal.groups, groups);
    let Some(window) = window else { return (keys, exprs) };
    let mut add = |name: String, expr: Expr| {
        keys.push(KeyColumn { name, output: None, window_micros: None });
        exprs.push(expr);
    };
    if let Some((size, offset)) = window.kind.pane() {
        add(PANE.to_owned(), crate::functions::bucket::tumble_micros(window.of[0].clone(), size, offset));
        return (keys, exprs);
    }
    for (at, key) in window.keys.iter().enumerate() {
        if !normal.groups.contains(key) {
            add(format!("key_window_{at}"), key.clone());
        }
    }
    if let WindowKind::Count { .. } = window.kind {
        for (name, part) in POSITION_KEYS.into_iter().zip(&window.of) {
            add(name.to_owned(), part.clone());
        }
    } else {
        for (name, extent) in EXTENT.into_iter().zip([FIRST, LAST]) {
            add(name.to_owned(), unqualified(extent));
        }
    }
    (keys, exprs)
}

/// The `GROUP BY` of the query over state rows.
fn finishing_groups(normal: &NormalForm, keys: &[KeyColumn], key_exprs: &[Expr]) -> Result<Vec<Expr>> {
    let over_state = |expr: &Expr| -> Result<Expr> {
        Ok(match key_exprs.iter().position(|key| key == expr) {
            Some(at) => unqualified(&keys[at].name),
            None => replace_call(expr.clone(), &unqualified(WINDOW))?,
        })
    };
    let finished: Vec<Expr> = normal.groups.iter().map(over_state).collect::<Result<_>>()?;
    let exchanged = |expr: &Expr| {
        let at = normal.planned_groups.iter().position(|planned| planned == expr);
        at.map_or_else(|| expr.clone(), |at| finished[at].clone())
    };
    let all = |exprs: &[Expr]| exprs.iter().map(exchanged).collect::<Vec<_>>();
    Ok(match normal.aggregate.group_expr.as_slice() {
        [Expr::GroupingSet(set)] => vec![Expr::GroupingSet(match set {
            GroupingSet::Rollup(exprs) => GroupingSet::Rollup(all(exprs)),
            GroupingSet::Cube(exprs) => GroupingSet::Cube(all(exprs)),
            GroupingSet::GroupingSets(sets) => {
                GroupingSet::GroupingSets(sets.iter().map(|set| all(set)).collect())
            }
        })],
        _ => finished,
    })
}

fn aggregate_call(expr: &Expr, input: &DFSchema) -> Result<(AggregateCall, AggregateFunctionParams)> {
    let plain = expr.clone().unalias();
    let Expr::AggregateFunction(AggregateFunction { func, params }) = plain else {
        return Err(Error::invalid(format!("`{expr}` is no plain aggregate function")));
    };
    mergeable::check(func.name(), &params)?;
    let field_of = |expr: &Expr| -> Result<FieldRef> { Ok(expr.to_field(input)?.1) };
    let arguments = params
        .args
        .iter()
        .map(|arg| Ok(Argument { field: field_of(arg)?, constant: crate::window::constant(arg)? }))
        .collect::<Result<Vec<_>>>()?;
    let order_by = params
        .order_by
        .iter()
        .map(|sort| {
            let options = SortOptions { descending: !sort.asc, nulls_first: sort.nulls_first };
            let argument = params.args.iter().position(|arg| *arg == sort.expr);
            Ok(OrderBy { field: field_of(&sort.expr)?, options, argument })
        })
        .collect::<Result<Vec<_>>>()?;
    let call = AggregateCall {
        function: func,
        arguments,
        order_by,
        distinct: params.distinct,
        ignore_nulls: params.null_treatment == Some(NullTreatment::IgnoreNulls),
        return_field: field_of(expr)?,
    };
    Ok((call, params))
}

fn state_schema(
    keys: &[KeyColumn],
    exprs: &[Expr],
    events: &DFSchema,
    calls: &[(AggregateCall, AggregateFunctionParams)],
    names: Vec<String>,
) -> Result<SchemaRef> {
    let mut fields = Vec::with_capacity(keys.len() + calls.len());
    for (key, expr) in keys.iter().zip(exprs) {
        let data_type = match expr {
            Expr::Column(column) if [FIRST, LAST].contains(&column.name.as_str()) => timestamp_type(),
            expr => expr.get_type(events)?,
        };
        fields.push(Field::new(&key.name, data_type, true));
    }
    for (name, (call, _)) in names.into_iter().zip(calls) {
        fields.push(Field::new(name, call.state_type()?, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// What the states of the aggregates are called in state rows: after the stream's columns where the view follows these,
/// by their number otherwise.
fn state_names(def: &ViewDef, aggregates: &[Expr]) -> Vec<String> {
    let followed = |expr: &Expr| match expr {
        Expr::AggregateFunction(function) if def.generated => match function.params.args.first() {
            Some(Expr::Column(column)) => Some(state_column(&column.name)),
            _ => None,
        },
        _ => None,
    };
    let names = aggregates.iter().enumerate();
    names.map(|(i, expr)| followed(expr).unwrap_or_else(|| format!("state_{i}"))).collect()
}

/// The columns of the stream that the expressions read.
fn used_columns<'a>(exprs: impl Iterator<Item = &'a Expr>, stream: &SchemaRef) -> SchemaRef {
    let mut used: HashSet<String> = HashSet::new();
    for expr in exprs {
        used.extend(expr.column_refs().into_iter().map(|c| c.name.clone()));
    }
    let fields: Vec<FieldRef> = stream.fields().iter().filter(|f| used.contains(f.name())).cloned().collect();
    if fields.is_empty() {
        // count(*) of everything still needs rows to count.
        return Arc::new(Schema::new(vec![stream.field(0).clone()]));
    }
    Arc::new(Schema::new(fields))
}
