//! The one shape of state behind every aggregate here, and how DataFusion drives it.
//!
//! An aggregate implements [`GroupStates`], the states of many groups at once. [`Vectorised`] makes DataFusion's
//! `GroupsAccumulator` of it, and [`OneGroup`] the row accumulator that is used without GROUP BY and in windows,
//! so that the two cannot disagree. [`Udaf`] makes the function of a [`Definition`].

use std::any::Any;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
};

/// The states of the groups `0..n` of one aggregate.
///
/// Merging is associative and commutative, and a group that saw nothing is its identity: what a group answers is a
/// function of the *set* of rows it saw (floating sums within rounding).
pub(super) trait GroupStates: Debug + Send + Sync + 'static {
    /// Makes room for groups up to `groups`; never fewer than before.
    fn resize(&mut self, groups: usize);

    /// Takes one row per entry of `groups`. `values` are the arguments as [`Definition::coerce`] has them.
    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()>;

    /// Takes one state per entry of `groups`, as [`Self::states`] made them. Null states are empty.
    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()>;

    /// The states of the first `n` groups. Changes no content.
    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>>;

    /// The answers of the first `n` groups. Changes no content.
    fn values(&mut self, n: usize) -> Result<ArrayRef>;

    /// Drops the first `n` groups; group `n` becomes group 0.
    fn forget(&mut self, n: usize);

    /// Bytes of memory in use. O(1).
    fn size(&self) -> usize;

    /// States of the same function and types that saw nothing.
    fn fresh(&self) -> Box<dyn GroupStates>;
}

/// What is particular to one aggregate function.
pub(super) trait Definition: Debug + Eq + Hash + Any + Send + Sync {
    /// Its name in SQL.
    fn name(&self) -> &'static str;

    /// The argument types to cast to, or an error that shows a right call.
    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>>;

    /// The type of the answer to arguments of these (coerced) types.
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType>;

    /// Names and types of the state's parts for these (coerced) argument types.
    fn state(&self, arguments: &[DataType]) -> Vec<(&'static str, DataType)>;

    /// Empty states.
    fn groups(&self, args: &AccumulatorArgs) -> Result<Box<dyn GroupStates>>;
}

/// The DataFusion function of a definition.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Udaf<D> {
    definition: D,
    signature: Signature,
}

impl<D> Udaf<D> {
    pub(super) fn new(definition: D) -> Self {
        Self { definition, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl<D: Definition> AggregateUDFImpl for Udaf<D> {
    fn name(&self) -> &str {
        self.definition.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.definition.coerce(arg_types)
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.definition.return_type(arg_types)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if args.is_distinct {
            let name = self.name();
            return plan_err!("{name}(DISTINCT ...) has no meaning here; leave DISTINCT out");
        }
        let types: Vec<DataType> = args.input_fields.iter().map(|f| f.data_type().clone()).collect();
        let parts = self.definition.state(&types).into_iter();
        Ok(parts
            .map(|(part, ty)| Arc::new(Field::new(format_state_name(args.name, part), ty, true)))
            .collect())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let mut states = self.definition.groups(&args)?;
        states.resize(1);
        Ok(Box::new(OneGroup { states, groups: Vec::new() }))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Vectorised { states: self.definition.groups(&args)?, groups: 0 }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

/// One group, for queries without GROUP BY and for windows.
#[derive(Debug)]
struct OneGroup {
    states: Box<dyn GroupStates>,
    /// As many zeros as the longest batch had rows.
    groups: Vec<usize>,
}

impl OneGroup {
    fn zeros(&mut self, rows: usize) -> &[usize] {
        if self.groups.len() < rows {
            self.groups.resize(rows, 0);
        }
        &self.groups[..rows]
    }
}

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.zeros(rows_of(values));
        self.states.update(values, &self.groups[..rows_of(values)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.zeros(rows_of(states));
        self.states.merge(states, &self.groups[..rows_of(states)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&self.states.values(1)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.states.states(1)?.iter().map(|part| ScalarValue::try_from_array(part, 0)).collect()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.states.size() + self.groups.capacity() * size_of::<usize>()
    }
}

fn rows_of(columns: &[ArrayRef]) -> usize {
    columns.first().map_or(0, |column| column.len())
}

/// Many groups.
#[derive(Debug)]
struct Vectorised {
    states: Box<dyn GroupStates>,
    groups: usize,
}

impl Vectorised {
    fn grow(&mut self, groups: usize) {
        self.groups = self.groups.max(groups);
        self.states.resize(self.groups);
    }

    fn emit<T>(
        &mut self,
        emit_to: EmitTo,
        what: impl FnOnce(&mut dyn GroupStates, usize) -> Result<T>,
    ) -> Result<T> {
        let n = match emit_to {
            EmitTo::All => self.groups,
            EmitTo::First(n) => n,
        };
        let emitted = what(self.states.as_mut(), n)?;
        self.states.forget(n);
        self.groups -= n;
        Ok(emitted)
    }
}

/// The rows that `keep` keeps; a null keeps nothing.
fn filtered(
    values: &[ArrayRef],
    groups: &[usize],
    keep: &BooleanArray,
) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
    let keep = match keep.nulls() {
        Some(nulls) => BooleanArray::new(keep.values() & nulls.inner(), None),
        None => keep.clone(),
    };
    let values = values.iter().map(|v| arrow::compute::filter(v, &keep)).collect::<Result<_, _>>()?;
    let kept = keep.values().set_indices().map(|row| groups[row]).collect();
    Ok((values, kept))
}

impl GroupsAccumulator for Vectorised {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        match opt_filter {
            None => self.states.update(values, group_indices),
            Some(keep) => {
                let (values, groups) = filtered(values, group_indices, keep)?;
                self.states.update(&values, &groups)
            }
        }
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        self.states.merge(values, group_indices)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.emit(emit_to, |states, n| states.values(n))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.emit(emit_to, |states, n| states.states(n))
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let rows = rows_of(values);
        let groups: Vec<usize> = (0..rows).collect();
        let mut states = self.states.fresh();
        states.resize(rows);
        match opt_filter {
            None => states.update(values, &groups)?,
            Some(keep) => {
                let (values, groups) = filtered(values, &groups, keep)?;
                states.update(&values, &groups)?;
            }
        }
        states.states(rows)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.states.size()
    }
}
