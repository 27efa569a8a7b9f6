//! From SQL to a [`CompiledView`]: the aggregation is found in the plan and cut in two.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, NullTreatment};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, ColumnarValue, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Volatility,
};
use datafusion::prelude::SessionContext;

use super::combinators::{AggregateCall, Argument, Emit, OrderBy, merge_of, state_of};
use super::{mergeable, storage};
use crate::catalog::ViewDef;
use crate::error::{Error, Result};
use crate::session::small_context;

/// A view, ready to run. See the [module](super) for what its plans do.
#[derive(Debug)]
pub struct CompiledView {
    def: Arc<ViewDef>,
    stream: Arc<str>,
    input_schema: SchemaRef,
    /// The plan below the aggregation, over a placeholder for the stream.
    input: LogicalPlan,
    /// The aggregation as it was planned.
    aggregate: Aggregate,
    calls: Vec<(AggregateCall, AggregateFunctionParams)>,
    /// What stands above the aggregation, outermost first.
    above: Vec<LogicalPlan>,
    keys: Vec<KeyColumn>,
    state_schema: SchemaRef,
    storage_schema: SchemaRef,
    output_schema: SchemaRef,
}

/// A group key of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its column in state rows.
    pub name: String,
    /// The column of the view's rows that shows it unchanged, if any.
    pub output: Option<String>,
    /// The window length in microseconds if it is the start of a window.
    pub window_micros: Option<i64>,
}

impl CompiledView {
    /// Compiles `def` over a stream with the columns `schema`. `stream` is looked up in the SQL text first: see
    /// [`source_of`].
    pub async fn compile(def: Arc<ViewDef>, stream: &str, schema: &SchemaRef) -> Result<Self> {
        let wrap = |e: Error| Error::invalid(format!("view `{}`: {e}", def.name));
        Self::compile_unnamed(&def, stream, schema).await.map_err(wrap)
    }

    async fn compile_unnamed(def: &Arc<ViewDef>, stream: &str, schema: &SchemaRef) -> Result<Self> {
        let context = small_context();
        context.register_table(
            TableReference::bare(stream),
            Arc::new(MemTable::try_new(schema.clone(), vec![vec![]])?),
        )?;
        let state = context.state();
        let plan = state.create_logical_plan(&def.sql).await?;
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
        let output_schema = plan.schema().inner().clone();
        check_output(&output_schema)?;
        let (above, aggregate) = split(plan)?;
        check_input(&aggregate.input, stream)?;
        check_deterministic(&above, &aggregate)?;
        let keys = key_columns(&above, &aggregate, &output_schema)?;
        let calls = aggregate
            .aggr_expr
            .iter()
            .map(|expr| aggregate_call(&context, expr, aggregate.input.schema()))
            .collect::<Result<Vec<_>>>()?;
        let state_schema = state_schema(&keys, &aggregate, &calls)?;
        let storage_schema = storage::storage_schema(&state_schema)?;
        let input_schema = used_columns(&aggregate, schema)?;
        Ok(Self {
            def: def.clone(),
            stream: stream.into(),
            input_schema,
            input: aggregate.input.as_ref().clone(),
            aggregate,
            calls,
            above,
            keys,
            state_schema,
            storage_schema,
            output_schema,
        })
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

    /// A number that changes when state made under another definition must not be merged with this one's.
    pub fn fingerprint(&self) -> i64 {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        hash.update(self.def.sql.trim());
        hash.update(format!("{:?}", self.storage_schema));
        hash.update(datafusion::DATAFUSION_VERSION);
        hash.update([crate::aggregates::STATE_VERSION]);
        let digest = hash.finalize();
        i64::from_le_bytes(digest[..8].try_into().expect("eight bytes")) & i64::MAX
    }

    /// The columns of the stream that it reads. What feeds [`Self::state_plan`] needs no others.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.input_schema
    }

    /// The group keys, in the order of their columns in state rows.
    pub fn keys(&self) -> &[KeyColumn] {
        &self.keys
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

    /// Events in, state rows out. `events` must have the columns of [`Self::input_schema`].
    pub fn state_plan(&self, events: LogicalPlan) -> Result<LogicalPlan> {
        let input = self.input.clone().transform_up(|node| match node {
            LogicalPlan::TableScan(scan) => {
                let events = LogicalPlanBuilder::from(events.clone()).alias(scan.table_name)?.build()?;
                Ok(Transformed::yes(events))
            }
            node => {
                let inputs = node.inputs().into_iter().cloned().collect::<Vec<_>>();
                Ok(Transformed::yes(node.with_new_exprs(node.expressions(), inputs)?))
            }
        })?;
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
        self.aggregate_to_state(input.data, self.aggregate.group_expr.clone(), states)
    }

    /// State rows in, fewer state rows out: one per group.
    pub fn merge_plan(&self, states: LogicalPlan) -> Result<LogicalPlan> {
        let merges = self.merges(Emit::State)?;
        self.aggregate_to_state(states, self.key_exprs(), merges)
    }

    /// State rows in, the view's rows out.
    pub fn finish_plan(&self, states: LogicalPlan) -> Result<LogicalPlan> {
        let group = self.key_exprs();
        let merges = self.merges(Emit::Value)?;
        let merged = LogicalPlanBuilder::from(states).aggregate(group, merges)?.build()?;
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

    /// State rows as they are stored, as a plan over [`Self::state_schema`].
    pub fn stored_states(&self, table: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
        let scan = LogicalPlanBuilder::scan("states", provider_as_source(table), None)?.build()?;
        let restored = self.state_schema.fields().iter().map(|field| {
            let stored = scan.schema().field_with_unqualified_name(field.name())?;
            let column =
                Expr::Column(Column::from_qualified_name(format!("states.{}", quoted(field.name()))));
            Ok(if stored.data_type() == field.data_type() {
                column
            } else {
                storage::restore(column, field.data_type()).alias_qualified(Some("states"), field.name())
            })
        });
        let restored = restored.collect::<Result<Vec<_>>>()?;
        Ok(LogicalPlanBuilder::from(scan).project(restored)?.build()?)
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

    fn key_exprs(&self) -> Vec<Expr> {
        self.keys.iter().map(|key| Expr::Column(Column::new_unqualified(&key.name))).collect()
    }

    fn merges(&self, emit: Emit) -> Result<Vec<Expr>> {
        let columns = self.state_schema.fields()[self.keys.len()..].iter();
        columns
            .zip(&self.calls)
            .map(|(field, (call, _))| {
                let params = AggregateFunctionParams {
                    args: vec![Expr::Column(Column::new_unqualified(field.name()))],
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

/// The columns of `schema` as expressions without a qualifier.
pub(super) fn columns(schema: &Schema) -> Vec<Expr> {
    schema.fields().iter().map(|field| Expr::Column(Column::new_unqualified(field.name()))).collect()
}

/// The one table that a query reads.
pub fn source_of(def: &ViewDef) -> Result<String> {
    let wrong = |why: String| Error::invalid(format!("view `{}`: {why}", def.name));
    let context = small_context();
    let statement = context
        .state()
        .sql_to_statement(&def.sql, &datafusion::config::Dialect::Generic)
        .map_err(|e| wrong(e.strip_backtrace()))?;
    let tables =
        context.state().resolve_table_references(&statement).map_err(|e| wrong(e.strip_backtrace()))?;
    match tables.as_slice() {
        [table] => Ok(table.table().to_owned()),
        [] => Err(wrong("the query reads no stream; write SELECT ... FROM a_stream GROUP BY ...".into())),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            Err(wrong(format!("the query reads {}; a view reads exactly one stream", names.join(" and "))))
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn aggregate_expr(function: AggregateUDF, params: AggregateFunctionParams) -> Expr {
    Expr::AggregateFunction(AggregateFunction { func: Arc::new(function), params })
}

/// Walks down from the top to the aggregation.
fn split(plan: LogicalPlan) -> Result<(Vec<LogicalPlan>, Aggregate)> {
    let mut above = Vec::new();
    let mut plan = plan;
    loop {
        let below = match &plan {
            LogicalPlan::Aggregate(aggregate) => return Ok((above, aggregate.clone())),
            LogicalPlan::Projection(node) => node.input.clone(),
            LogicalPlan::Filter(node) => node.input.clone(),
            LogicalPlan::SubqueryAlias(node) => node.input.clone(),
            other => return Err(unsupported(other)),
        };
        above.push(plan);
        plan = Arc::unwrap_or_clone(below);
    }
}

fn unsupported(node: &LogicalPlan) -> Error {
    let why = match node {
        LogicalPlan::Sort(_) => "ORDER BY has no meaning in a view; order the query that reads it",
        LogicalPlan::Limit(_) => "LIMIT has no meaning in a view; limit the query that reads it",
        LogicalPlan::Distinct(_) => "DISTINCT cannot be kept up to date; GROUP BY the columns instead",
        LogicalPlan::Window(_) => {
            "window functions (OVER) cannot be merged; use them in the query that reads the view"
        }
        LogicalPlan::Join(_) => "a view reads one stream and joins nothing; join in the query that reads it",
        LogicalPlan::Union(_) => "UNION is not possible in a view; make two views",
        LogicalPlan::TableScan(_) | LogicalPlan::EmptyRelation(_) => {
            "there is no aggregation; a view needs a GROUP BY or an aggregate function"
        }
        other => return Error::invalid(format!("{} is not possible in a view", other.display())),
    };
    Error::invalid(why)
}

/// Below the aggregation only row-by-row work on the stream is possible.
fn check_input(input: &LogicalPlan, stream: &str) -> Result<()> {
    input.apply(|node| match node {
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {
            Ok(TreeNodeRecursion::Continue)
        }
        LogicalPlan::TableScan(scan) if scan.table_name.table() == stream => Ok(TreeNodeRecursion::Continue),
        LogicalPlan::Aggregate(_) => {
            datafusion::common::plan_err!("there are two aggregations; make a view for the inner one")
        }
        other => Err(datafusion::common::DataFusionError::Plan(unsupported(other).to_string())),
    })?;
    Ok(())
}

/// A view must say the same of the same events at any time.
fn check_deterministic(above: &[LogicalPlan], aggregate: &Aggregate) -> Result<()> {
    let check = |expr: &Expr| {
        expr.apply(|expr| match expr {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                let name = call.func.name();
                datafusion::common::plan_err!(
                    "{name}() gives another answer at another time; a view cannot use it"
                )
            }
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                datafusion::common::plan_err!("a view reads one stream and has no subqueries")
            }
            Expr::GroupingSet(_) => {
                datafusion::common::plan_err!(
                    "grouping sets, CUBE and ROLLUP are not possible in a view; make a view for each grouping"
                )
            }
            _ => Ok(TreeNodeRecursion::Continue),
        })
        .map(|_| ())
    };
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr) {
        check(expr)?;
    }
    let mut nodes = above.to_vec();
    nodes.push(aggregate.input.as_ref().clone());
    for node in nodes {
        node.apply(|node| {
            node.expressions().iter().try_for_each(check)?;
            // The nodes above hold the aggregation as their input; it was checked itself.
            Ok(if matches!(node, LogicalPlan::Aggregate(_)) {
                TreeNodeRecursion::Stop
            } else {
                TreeNodeRecursion::Continue
            })
        })?;
    }
    Ok(())
}

fn check_output(schema: &Schema) -> Result<()> {
    let mut seen = HashSet::new();
    for field in schema.fields() {
        if !seen.insert(field.name().to_lowercase()) {
            return Err(Error::invalid(format!(
                "two columns are called `{}`; rename one with AS",
                field.name()
            )));
        }
    }
    Ok(())
}

/// Names the group keys after the output columns that show them.
fn key_columns(above: &[LogicalPlan], aggregate: &Aggregate, output: &Schema) -> Result<Vec<KeyColumn>> {
    let mut keys = Vec::new();
    for (i, expr) in aggregate.group_expr.iter().enumerate() {
        let (relation, field) = aggregate.schema.qualified_field(i);
        let shown = output_of(above, Column::new(relation.cloned(), field.name()), output);
        let name = match &shown {
            Some(name) if !name.starts_with("state_") && !name.starts_with("key_") => name.clone(),
            _ => format!("key_{i}"),
        };
        keys.push(KeyColumn { name, output: shown, window_micros: window_micros(expr) });
    }
    Ok(keys)
}

/// The output column that is exactly the aggregation's column `column`.
fn output_of(above: &[LogicalPlan], column: Column, output: &Schema) -> Option<String> {
    let mut column = column;
    for node in above.iter().rev() {
        match node {
            LogicalPlan::Projection(projection) => {
                let position = projection
                    .expr
                    .iter()
                    .position(|e| e.clone().unalias() == Expr::Column(column.clone()))?;
                let (relation, field) = projection.schema.qualified_field(position);
                column = Column::new(relation.cloned(), field.name());
            }
            LogicalPlan::SubqueryAlias(node) => {
                let position = node.input.schema().maybe_index_of_column(&column)?;
                let (relation, field) = node.schema.qualified_field(position);
                column = Column::new(relation.cloned(), field.name());
            }
            _ => {}
        }
    }
    output.index_of(&column.name).is_ok().then_some(column.name)
}

/// The length of a `tumble(...)` with a constant size.
fn window_micros(expr: &Expr) -> Option<i64> {
    let Expr::ScalarFunction(call) = expr.clone().unalias() else { return None };
    if call.func.name() != "tumble" {
        return None;
    }
    match call.args.get(1)? {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(size)), _) => {
            Some(i64::from(size.days) * 86_400_000_000 + size.nanoseconds / 1_000)
        }
        _ => None,
    }
}

fn aggregate_call(
    context: &SessionContext,
    expr: &Expr,
    input: &DFSchema,
) -> Result<(AggregateCall, AggregateFunctionParams)> {
    let plain = expr.clone().unalias();
    let Expr::AggregateFunction(AggregateFunction { func, params }) = plain else {
        return Err(Error::invalid(format!("`{expr}` is no plain aggregate function")));
    };
    mergeable::check(func.name(), &params)?;
    let field_of = |expr: &Expr| -> Result<FieldRef> { Ok(expr.to_field(input)?.1) };
    let arguments = params
        .args
        .iter()
        .map(|arg| Ok(Argument { field: field_of(arg)?, constant: constant(context, arg)? }))
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

/// The value of an expression that needs no row.
fn constant(context: &SessionContext, expr: &Expr) -> Result<Option<ScalarValue>> {
    if expr.any_column_refs() {
        return Ok(None);
    }
    let schema = DFSchema::empty();
    let physical = context.create_physical_expr(expr.clone(), &schema)?;
    let row = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(1));
    let row =
        arrow::record_batch::RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &row)?;
    Ok(Some(match physical.evaluate(&row)? {
        ColumnarValue::Scalar(value) => value,
        ColumnarValue::Array(values) => ScalarValue::try_from_array(&values, 0)?,
    }))
}

fn state_schema(
    keys: &[KeyColumn],
    aggregate: &Aggregate,
    calls: &[(AggregateCall, AggregateFunctionParams)],
) -> Result<SchemaRef> {
    let mut fields: Vec<Field> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| Field::new(&key.name, aggregate.schema.field(i).data_type().clone(), true))
        .collect();
    for (i, (call, _)) in calls.iter().enumerate() {
        fields.push(Field::new(format!("state_{i}"), call.state_type()?, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The columns of the stream that the query reads.
fn used_columns(aggregate: &Aggregate, stream: &SchemaRef) -> Result<SchemaRef> {
    let mut used: HashSet<String> = HashSet::new();
    let mut note = |expr: &Expr| used.extend(expr.column_refs().into_iter().map(|c| c.name.clone()));
    aggregate.group_expr.iter().chain(&aggregate.aggr_expr).for_each(&mut note);
    aggregate.input.apply(|node| {
        node.expressions().iter().for_each(&mut note);
        Ok(TreeNodeRecursion::Continue)
    })?;
    let fields: Vec<FieldRef> = stream.fields().iter().filter(|f| used.contains(f.name())).cloned().collect();
    if fields.is_empty() {
        // count(*) of everything still needs rows to count.
        return Ok(Arc::new(Schema::new(vec![stream.field(0).clone()])));
    }
    Ok(Arc::new(Schema::new(fields)))
}
