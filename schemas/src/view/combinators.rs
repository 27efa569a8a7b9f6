//! State and merge combinators: any aggregate function, cut in two.
//!
//! For an aggregate `f`, [`state_of`] is the aggregate that consumes raw values and returns `f`'s intermediate
//! state as a struct, and [`merge_of`] consumes such structs and returns either the state again
//! ([`Emit::State`]) or `f`'s value ([`Emit::Value`]). So
//!
//! ```text
//! f(all rows)  ==  merge_f(Value, state_f(some rows) ∪ state_f(the other rows))
//! ```
//!
//! however the rows are split. ClickHouse calls the two `-State` and `-Merge`. They are ordinary aggregate
//! functions to DataFusion: its optimizer pushes filters on group keys through them and its executor runs them
//! in parallel.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray, UInt64Array};
use arrow::compute::{SortOptions, filter};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use datafusion::common::{Result, ScalarValue, exec_err, internal_err};
use datafusion::logical_expr::ReversedUDAF;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

/// An aggregate function call without its input: what is needed to make its accumulators anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AggregateCall {
    /// The function.
    pub function: Arc<AggregateUDF>,
    /// Its arguments: type, and value if constant (some functions read constants when they start).
    pub arguments: Vec<Argument>,
    /// Its `ORDER BY`.
    pub order_by: Vec<OrderBy>,
    /// Whether it is `DISTINCT`.
    pub distinct: bool,
    /// Whether it is `IGNORE NULLS`.
    pub ignore_nulls: bool,
    /// What it returns.
    pub return_field: FieldRef,
}

/// One argument of an [`AggregateCall`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Argument {
    /// Its type.
    pub field: FieldRef,
    /// Its value, if it is the same for every row.
    pub constant: Option<ScalarValue>,
}

/// One expression of the `ORDER BY` of an [`AggregateCall`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrderBy {
    /// Its type.
    pub field: FieldRef,
    /// Its direction.
    pub options: SortOptions,
    /// The argument that it repeats, if any: with DISTINCT only arguments can be ordered by.
    pub argument: Option<usize>,
}

/// What a [`merge_of`] aggregate returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Emit {
    /// The merged state, to be merged further.
    State,
    /// The aggregate's value.
    Value,
}

/// The aggregate that turns raw values into `call`'s state. Takes the arguments of `call`.
pub fn state_of(call: AggregateCall) -> Result<AggregateUDF> {
    Ok(AggregateUDF::from(Combinator::new(call, Phase::State)?))
}

/// The aggregate that merges `call`'s states. Takes one argument, the struct.
pub fn merge_of(call: AggregateCall, emit: Emit) -> Result<AggregateUDF> {
    Ok(AggregateUDF::from(Combinator::new(call, Phase::Merge(emit))?))
}

impl AggregateCall {
    /// The struct type of its state. Fields are named `f0`, `f1`, ... and nullable.
    pub fn state_type(&self) -> Result<DataType> {
        let fields = self.state_fields("state")?;
        let fields = fields.iter().enumerate();
        Ok(DataType::Struct(
            fields.map(|(i, f)| Field::new(format!("f{i}"), f.data_type().clone(), true)).collect(),
        ))
    }

    fn state_fields(&self, name: &str) -> Result<Vec<FieldRef>> {
        let input_fields: Vec<FieldRef> = self.arguments.iter().map(|a| a.field.clone()).collect();
        let ordering_fields: Vec<FieldRef> = self.order_by.iter().map(|o| o.field.clone()).collect();
        self.function.state_fields(StateFieldsArgs {
            name,
            input_fields: &input_fields,
            return_field: self.return_field.clone(),
            ordering_fields: &ordering_fields,
            is_distinct: self.distinct,
        })
    }

    /// Calls `make` with arguments as the planner would make them for a plain call, over a schema of its own.
    fn with_arguments<T>(&self, make: impl FnOnce(AccumulatorArgs) -> Result<T>) -> Result<T> {
        let fields = self
            .arguments
            .iter()
            .map(|a| a.field.clone())
            .chain(self.order_by.iter().map(|o| o.field.clone()));
        // Names may repeat; only positions matter.
        let fields: Fields = fields
            .enumerate()
            .map(|(i, f)| Arc::new(f.as_ref().clone().with_name(format!("c{i}"))))
            .collect();
        let column = |i: usize| Arc::new(Column::new(&format!("c{i}"), i)) as Arc<dyn PhysicalExpr>;
        let exprs: Vec<Arc<dyn PhysicalExpr>> = self
            .arguments
            .iter()
            .enumerate()
            .map(|(i, a)| match &a.constant {
                Some(value) => Arc::new(Literal::new(value.clone())) as Arc<dyn PhysicalExpr>,
                None => column(i),
            })
            .collect();
        let order_bys: Vec<PhysicalSortExpr> = self
            .order_by
            .iter()
            .enumerate()
            .map(|(i, order)| {
                let column = column(order.argument.unwrap_or(self.arguments.len() + i));
                PhysicalSortExpr::new(column, order.options)
            })
            .collect();
        let expr_fields: Vec<FieldRef> = self.arguments.iter().map(|a| a.field.clone()).collect();
        make(AccumulatorArgs {
            return_field: self.return_field.clone(),
            schema: &Schema::new(fields),
            ignore_nulls: self.ignore_nulls,
            order_bys: &order_bys,
            is_reversed: false,
            name: self.function.name(),
            is_distinct: self.distinct,
            exprs: &exprs,
            expr_fields: &expr_fields,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    State,
    Merge(Emit),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Combinator {
    call: AggregateCall,
    phase: Phase,
    name: String,
    signature: Signature,
    state_type: DataType,
}

impl Combinator {
    fn new(call: AggregateCall, phase: Phase) -> Result<Self> {
        let suffix = match phase {
            Phase::State => "state",
            Phase::Merge(Emit::State) => "merge_state",
            Phase::Merge(Emit::Value) => "merge",
        };
        let name = format!("{}_{suffix}", call.function.name());
        let state_type = call.state_type()?;
        Ok(Self { call, phase, name, signature: Signature::user_defined(Volatility::Immutable), state_type })
    }

    fn emits_state(&self) -> bool {
        self.phase != Phase::Merge(Emit::Value)
    }

    fn state_struct_fields(&self) -> Fields {
        match &self.state_type {
            DataType::Struct(fields) => fields.clone(),
            other => unreachable!("the state type is made as a struct, not {other}"),
        }
    }
}

impl AggregateUDFImpl for Combinator {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(arg_types.to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.emits_state() {
            self.state_type.clone()
        } else {
            self.call.return_field.data_type().clone()
        })
    }

    fn is_nullable(&self) -> bool {
        self.emits_state() || self.call.return_field.is_nullable()
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.call.state_fields(args.name)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let inner = self.call.with_arguments(|args| self.call.function.accumulator(args))?;
        let fields = self.state_struct_fields();
        Ok(Box::new(RowAccumulator { inner, phase: self.phase, fields }))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        // DataFusion's vectorised accumulator of bit_xor(DISTINCT ...) forgets about DISTINCT; the one by rows heeds it.
        if self.call.distinct && self.call.function.name() == "bit_xor" {
            return false;
        }
        let supported =
            self.call.with_arguments(|args| Ok(self.call.function.groups_accumulator_supported(args)));
        supported.unwrap_or(false)
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let inner = self.call.with_arguments(|args| self.call.function.create_groups_accumulator(args))?;
        let fields = self.state_struct_fields();
        Ok(Box::new(VectorAccumulator { inner, phase: self.phase, fields }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        match self.phase {
            Phase::State => self.call.function.order_sensitivity(),
            Phase::Merge(_) => AggregateOrderSensitivity::Insensitive,
        }
    }

    /// The planner forgets an ordering requirement of functions that know no reverse; being one's own reverse, with
    /// the same requirement, keeps it.
    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    /// Declined: the state is the same whether the input happens to be ordered or not.
    fn with_beneficial_ordering(self: Arc<Self>, _: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        if self.emits_state() {
            ScalarValue::try_from(data_type)
        } else {
            self.call.function.default_value(data_type)
        }
    }
}

/// The children of a state struct; rows that are null in the struct are null in the children.
fn unpack(values: &[ArrayRef]) -> Result<(Vec<ArrayRef>, Option<BooleanArray>)> {
    let [state] = values else {
        return internal_err!("a merge takes one state column, not {}", values.len());
    };
    let Some(state) = state.as_struct_opt() else {
        return exec_err!("a merge takes a state struct, not {}", state.data_type());
    };
    let valid = state.nulls().filter(|nulls| nulls.null_count() > 0);
    let valid = valid.map(|nulls| BooleanArray::new(nulls.inner().clone(), None));
    Ok((state.columns().to_vec(), valid))
}

/// The struct of a state. Accumulators name fields within their state as they like; here names are fixed.
fn pack(fields: &Fields, columns: &[ArrayRef]) -> Result<StructArray> {
    Ok(StructArray::try_new(fields.clone(), named(fields, columns)?, None)?)
}

/// State columns with the names within them that the state's type says.
fn named(fields: &Fields, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let columns = columns.iter().zip(fields).map(|(column, field)| {
        let named = super::storage::restore_array(column, field.data_type());
        named.map_err(|e| datafusion::common::DataFusionError::External(Box::new(e)))
    });
    columns.collect()
}

/// Accumulates one group.
#[derive(Debug)]
struct RowAccumulator {
    inner: Box<dyn Accumulator>,
    phase: Phase,
    fields: Fields,
}

impl Accumulator for RowAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match self.phase {
            Phase::State => self.inner.update_batch(values),
            Phase::Merge(_) => {
                let (mut states, valid) = unpack(values)?;
                if let Some(valid) = valid {
                    states = states.iter().map(|s| filter(s, &valid)).collect::<Result<_, _>>()?;
                }
                self.inner.merge_batch(&states)
            }
        }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.phase == Phase::Merge(Emit::Value) {
            return self.inner.evaluate();
        }
        let columns =
            self.inner.state()?.iter().map(|value| value.to_array_of_size(1)).collect::<Result<Vec<_>>>()?;
        Ok(ScalarValue::Struct(Arc::new(pack(&self.fields, &columns)?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let columns =
            self.inner.state()?.iter().map(|value| value.to_array_of_size(1)).collect::<Result<Vec<_>>>()?;
        let columns = named(&self.fields, &columns)?;
        columns.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }
}

/// Accumulates many groups at once.
struct VectorAccumulator {
    inner: Box<dyn GroupsAccumulator>,
    phase: Phase,
    fields: Fields,
}

impl GroupsAccumulator for VectorAccumulator {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        if self.phase == Phase::State {
            return self.inner.update_batch(values, group_indices, opt_filter, total_num_groups);
        }
        let (states, valid) = unpack(values)?;
        let keep = match (valid, opt_filter) {
            (None, None) => return self.inner.merge_batch(&states, group_indices, total_num_groups),
            (Some(valid), Some(filter)) => arrow::compute::and_kleene(&valid, filter)?,
            (Some(keep), None) => keep,
            (None, Some(keep)) => keep.clone(),
        };
        let rows: UInt64Array = (0..keep.len() as u64)
            .filter(|i| keep.is_valid(*i as usize) && keep.value(*i as usize))
            .collect();
        let states =
            states.iter().map(|s| arrow::compute::take(s, &rows, None)).collect::<Result<Vec<_>, _>>()?;
        let indices: Vec<usize> = rows.values().iter().map(|row| group_indices[*row as usize]).collect();
        self.inner.merge_batch(&states, &indices, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        if self.phase == Phase::Merge(Emit::Value) {
            return self.inner.evaluate(emit_to);
        }
        let columns = self.inner.state(emit_to)?;
        Ok(Arc::new(pack(&self.fields, &columns)?))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        named(&self.fields, &self.inner.state(emit_to)?)
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.inner.merge_batch(values, group_indices, total_num_groups)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        if self.phase == Phase::State {
            return named(&self.fields, &self.inner.convert_to_state(values, opt_filter)?);
        }
        let (states, valid) = unpack(values)?;
        if opt_filter.is_some() {
            return internal_err!("a state column has no filter");
        }
        // A table has null where a column of state was added after the row.
        let Some(valid) = valid else { return Ok(states) };
        let absent = arrow::compute::not(&valid)?;
        Ok(states.iter().map(|state| arrow::compute::nullif(state, &absent)).collect::<Result<_, _>>()?)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}
