//! A stream's `upcast`, compiled: conditions and expressions over the fields of one event as its payload has them.
//!
//! Payloads have no schema, so an expression is planned for the types that an event's fields have; plans are kept for
//! the next event that looks like it. The value depends on the fields alone: functions of the clock and of chance are
//! refused, because a message that is decoded again must give the same rows.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch,
    RecordBatchOptions, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType, UInt64Type,
};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, visit_expressions};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::catalog::UpcastDef;
use crate::layout::timestamp_type;
use crate::session::small_context;

/// Shapes of events whose plans are kept; beyond it all are made anew as they come.
const MAX_SHAPES: usize = 64;
/// Steps that a stream can have.
const MAX_STEPS: usize = 64;

/// The value of a field, as the payload has it or as an expression gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A 64-bit integer.
    Integer(i64),
    /// An integer beyond `i64`.
    Unsigned(u64),
    /// A double.
    Float(f64),
    /// Text.
    Text(String),
    /// Microseconds since 1970.
    Instant(i64),
}

/// What becomes of an event's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Upcasted<'a> {
    /// Fields that get these values, `None` being no value. What the payload has for them does not count.
    pub set: Vec<(&'a str, Option<Value>)>,
    /// Fields that are left out.
    pub drop: &'a [String],
}

/// The compiled steps of one stream.
pub struct Upcast {
    steps: Vec<Step>,
    inputs: Vec<String>,
    session: SessionContext,
    plans: HashMap<Vec<DataType>, Plans>,
}

#[derive(Debug)]
struct Step {
    when: String,
    set: Vec<(String, String)>,
    drop: Vec<String>,
}

/// The plans of all steps for one shape of events, made when they are needed first.
struct Plans {
    schema: SchemaRef,
    when: Vec<Option<Arc<dyn PhysicalExpr>>>,
    set: Vec<Option<Vec<Arc<dyn PhysicalExpr>>>>,
}

impl fmt::Debug for Upcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upcast")
            .field("steps", &self.steps)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

impl Upcast {
    /// Compiles the steps as far as that is possible without an event. Fails if a text is no expression over the fields
    /// of one event, or has another value the next time.
    pub fn new(defs: &[UpcastDef]) -> Result<Self, String> {
        if defs.len() > MAX_STEPS {
            return Err(format!("`upcast` has more than {MAX_STEPS} steps"));
        }
        let session = small_context();
        let mut inputs = BTreeSet::new();
        for (number, def) in (1..).zip(defs) {
            let named = |what: &str, why: String| format!("`upcast`, step {number}, `{what}`: {why}");
            let texts = def.set.iter().map(|(field, text)| (field.as_str(), text));
            for (what, text) in std::iter::once(("when", &def.when)).chain(texts) {
                inputs.extend(check(&session, text).map_err(|why| named(what, why))?);
            }
            inputs.extend(def.set.keys().chain(&def.drop).cloned());
            if def.set.is_empty() && def.drop.is_empty() {
                return Err(named("when", "there is nothing to `set` or to `drop`".into()));
            }
        }
        let step = |def: &UpcastDef| Step {
            when: def.when.clone(),
            set: def.set.clone().into_iter().collect(),
            drop: def.drop.clone(),
        };
        let steps = defs.iter().map(step).collect();
        Ok(Self { steps, inputs: inputs.into_iter().collect(), session, plans: HashMap::new() })
    }

    /// The fields that it looks at, in the order in which [`Self::apply`] takes them.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// What becomes of an event with these fields; `None` if no step is meant for it. Fails with the reason if an
    /// expression does.
    pub fn apply(&mut self, values: &[Option<Value>]) -> Result<Option<Upcasted<'_>>, String> {
        let columns: Vec<ArrayRef> = values.iter().map(column).collect();
        let shape: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
        if self.plans.len() >= MAX_SHAPES && !self.plans.contains_key(&shape) {
            self.plans.clear();
        }
        let plans = self.plans.entry(shape).or_insert_with_key(|shape| {
            let field = |(name, data_type): (&String, &DataType)| Field::new(name, data_type.clone(), true);
            let fields: Vec<Field> = self.inputs.iter().zip(shape).map(field).collect();
            let steps = self.steps.len();
            let (when, set) = (vec![None; steps], vec![None; steps]);
            Plans { schema: Arc::new(Schema::new(fields)), when, set }
        });
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(plans.schema.clone(), columns, &options)
            .expect("the schema was made of the columns, which have one row each");
        for (at, step) in self.steps.iter().enumerate() {
            let named = |what: &str, why: String| format!("upcast, step {}, `{what}`: {why}", at + 1);
            if plans.when[at].is_none() {
                plans.when[at] =
                    Some(plan(&self.session, &plans.schema, &step.when).map_err(|why| named("when", why))?);
            }
            let Some(when) = &plans.when[at] else { continue };
            let holds = evaluate(when.as_ref(), &row).map_err(|why| named("when", why))?;
            match holds {
                Some(Value::Boolean(true)) => {}
                Some(Value::Boolean(false)) | None => continue,
                Some(_) => return Err(named("when", "it is neither true nor false".into())),
            }
            if plans.set[at].is_none() {
                let planned = step.set.iter().map(|(field, text)| {
                    plan(&self.session, &plans.schema, text).map_err(|why| named(field, why))
                });
                plans.set[at] = Some(planned.collect::<Result<_, _>>()?);
            }
            let exprs = plans.set[at].iter().flatten();
            let set = step.set.iter().zip(exprs).map(|((field, _), expr)| {
                let value = evaluate(expr.as_ref(), &row).map_err(|why| named(field, why))?;
                Ok((field.as_str(), value))
            });
            let set = set.collect::<Result<_, String>>()?;
            return Ok(Some(Upcasted { set, drop: &step.drop }));
        }
        Ok(None)
    }
}

/// The fields that an expression looks at, if it may be one.
fn check(session: &SessionContext, text: &str) -> Result<BTreeSet<String>, String> {
    let parsed = Parser::new(&GenericDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| {
            let expr = parser.parse_expr()?;
            parser.expect_token(&Token::EOF)?;
            Ok(expr)
        })
        .map_err(|e| e.to_string())?;
    let mut fields = BTreeSet::new();
    let odd = visit_expressions(&parsed, |expr| match expr {
        SqlExpr::Identifier(name) => {
            let is_quoted = name.quote_style.is_some();
            fields.insert(if is_quoted { name.value.clone() } else { name.value.to_lowercase() });
            ControlFlow::Continue(())
        }
        SqlExpr::CompoundIdentifier(_) => {
            ControlFlow::Break(format!("`{expr}`: write the field's name with `_` between its levels"))
        }
        _ => ControlFlow::Continue(()),
    });
    if let ControlFlow::Break(why) = odd {
        return Err(why);
    }
    let any: Vec<Field> = fields.iter().map(|name| Field::new(name, DataType::Null, true)).collect();
    let schema = DFSchema::try_from(Schema::new(any)).map_err(|e| plain(&e))?;
    let expr = session.parse_sql_expr(text, &schema).map_err(|e| plain(&e))?;
    let mut reason = None;
    let visited = expr.exists(|node| {
        reason = refusal(node);
        Ok(reason.is_some())
    });
    visited.map_err(|e| plain(&e))?;
    reason.map_or(Ok(fields), Err)
}

fn refusal(node: &Expr) -> Option<String> {
    match node {
        Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
            Some(format!(
                "{}() has another value the next time; a message that is decoded again must give the same rows",
                call.func.name()
            ))
        }
        Expr::AggregateFunction(_) | Expr::WindowFunction(_) => {
            Some("an event is seen by itself: there is nothing to aggregate".to_owned())
        }
        Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
            Some("subqueries are not possible here".to_owned())
        }
        Expr::Placeholder(_) => Some("there is nothing to bind a placeholder to".to_owned()),
        _ => None,
    }
}

fn plan(session: &SessionContext, schema: &SchemaRef, text: &str) -> Result<Arc<dyn PhysicalExpr>, String> {
    let df_schema = DFSchema::try_from(schema.clone()).map_err(|e| plain(&e))?;
    let expr = session.parse_sql_expr(text, &df_schema).map_err(|e| plain(&e))?;
    session.create_physical_expr(expr, &df_schema).map_err(|e| plain(&e))
}

fn evaluate(expr: &dyn PhysicalExpr, row: &RecordBatch) -> Result<Option<Value>, String> {
    let values = expr.evaluate(row).and_then(|values| values.into_array(1)).map_err(|e| plain(&e))?;
    let as_type = |data_type: &DataType| cast(&values, data_type).map_err(|e| e.to_string());
    if values.is_null(0) || *values.data_type() == DataType::Null {
        return Ok(None);
    }
    Ok(Some(match values.data_type() {
        DataType::Boolean => Value::Boolean(values.as_boolean().value(0)),
        DataType::UInt64 => Value::Unsigned(values.as_primitive::<UInt64Type>().value(0)),
        t if t.is_integer() => {
            Value::Integer(as_type(&DataType::Int64)?.as_primitive::<Int64Type>().value(0))
        }
        t if t.is_floating() || matches!(t, DataType::Decimal128(..) | DataType::Decimal256(..)) => {
            Value::Float(as_type(&DataType::Float64)?.as_primitive::<Float64Type>().value(0))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Value::Text(as_type(&DataType::Utf8)?.as_string::<i32>().value(0).to_owned())
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            let instant = as_type(&timestamp_type())?;
            Value::Instant(instant.as_primitive::<TimestampMicrosecondType>().value(0))
        }
        other => return Err(format!("its type is {other}, which no field can have")),
    }))
}

fn column(value: &Option<Value>) -> ArrayRef {
    match value {
        None => Arc::new(NullArray::new(1)),
        Some(Value::Boolean(v)) => Arc::new(BooleanArray::from(vec![*v])),
        Some(Value::Integer(v)) => Arc::new(Int64Array::from(vec![*v])),
        Some(Value::Unsigned(v)) => Arc::new(UInt64Array::from(vec![*v])),
        Some(Value::Float(v)) => Arc::new(Float64Array::from(vec![*v])),
        Some(Value::Text(v)) => Arc::new(StringArray::from(vec![v.as_str()])),
        Some(Value::Instant(v)) => Arc::new(TimestampMicrosecondArray::from(vec![*v]).with_timezone("UTC")),
    }
}

/// The root cause on one line, without the backtrace that DataFusion may append.
fn plain(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}
