//! The laws of every aggregate here, on the accumulators that DataFusion drives.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::{concat, filter, take};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use proptest::prelude::*;

use super::*;

const GROUPS: usize = 4;

/// A function over the columns that [`columns`] makes.
#[derive(Debug, Clone, Copy)]
struct Case {
    function: &'static str,
    columns: &'static [usize],
    /// States and answers are the same bit by bit in any order of merging.
    exact: bool,
}

const fn case(function: &'static str, columns: &'static [usize]) -> Case {
    Case { function, columns, exact: true }
}

const CASES: &[Case] = &[
    case("first", &[0, 1]),
    case("last", &[0, 1]),
    case("first", &[2, 1]),
    case("last", &[2, 1]),
    case("last", &[3, 1]),
    case("last", &[1, 1]),
    case("percentile_sketch", &[0]),
    case("time_series", &[0, 1]),
    case("histogram", &[0, 4, 5, 6]),
    case("mode", &[0]),
    case("mode", &[2]),
    case("mode", &[3]),
    Case { exact: false, ..case("slope", &[0, 1]) },
];

type Row = (usize, Option<f64>, Option<i64>, Option<u8>, Option<bool>);

fn row() -> impl Strategy<Value = Row> {
    let value = prop_oneof![
        8 => (-40i32..40).prop_map(|v| f64::from(v) / 4.0),
        1 => prop_oneof![Just(f64::NAN), Just(0.0), Just(f64::INFINITY), Just(1e300), Just(-0.0)],
    ];
    (
        0..GROUPS - 1,
        prop::option::weighted(0.9, value),
        prop::option::weighted(0.9, 0i64..30),
        prop::option::weighted(0.9, 0u8..5),
        prop::option::weighted(0.9, any::<bool>()),
    )
}

/// The slope of infinities is NaN in one order and infinite in another.
fn finite(rows: &[Row]) -> Vec<Row> {
    rows.iter().map(|r| (r.0, r.1.filter(|v| v.abs() < 1e9), r.2, r.3, r.4)).collect()
}

fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    let times = rows.iter().map(|r| r.2.map(|s| s * 1_000_000)).collect::<TimestampMicrosecondArray>();
    vec![
        Arc::new(rows.iter().map(|r| r.1).collect::<Float64Array>()),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(rows.iter().map(|r| r.3.map(|s| format!("state {s}"))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.4).collect::<BooleanArray>()),
        Arc::new(Float64Array::from(vec![-5.0; rows.len()])),
        Arc::new(Float64Array::from(vec![5.0; rows.len()])),
        Arc::new(Int64Array::from(vec![4; rows.len()])),
    ]
}

impl Case {
    fn arguments(&self, rows: &[Row]) -> Vec<ArrayRef> {
        let columns = columns(rows);
        self.columns.iter().map(|i| columns[*i].clone()).collect()
    }

    fn with<T>(&self, make: impl FnOnce(&AggregateUDF, AccumulatorArgs) -> T) -> T {
        let function = aggregate_functions().into_iter().find(|f| f.name() == self.function).expect("known");
        let all = columns(&[]);
        let types: Vec<DataType> = self.columns.iter().map(|i| all[*i].data_type().clone()).collect();
        let fields: Vec<FieldRef> =
            types.iter().map(|ty| Arc::new(Field::new("c", ty.clone(), true))).collect();
        let exprs: Vec<Arc<dyn PhysicalExpr>> = self
            .columns
            .iter()
            .map(|i| match i {
                4 => Arc::new(Literal::new(ScalarValue::from(-5.0))) as Arc<dyn PhysicalExpr>,
                5 => Arc::new(Literal::new(ScalarValue::from(5.0))),
                6 => Arc::new(Literal::new(ScalarValue::from(4i64))),
                i => Arc::new(Column::new("c", *i)),
            })
            .collect();
        let return_type = function.return_type(&types).expect("a type");
        let args = AccumulatorArgs {
            return_field: Arc::new(Field::new("r", return_type, true)),
            schema: &Schema::empty(),
            ignore_nulls: false,
            order_bys: &[],
            is_reversed: false,
            name: self.function,
            is_distinct: false,
            exprs: &exprs,
            expr_fields: &fields,
        };
        make(&function, args)
    }

    fn vectorised(&self) -> Box<dyn GroupsAccumulator> {
        self.with(|function, args| function.create_groups_accumulator(args)).expect("an accumulator")
    }

    fn one_group(&self) -> Box<dyn Accumulator> {
        self.with(|function, args| function.accumulator(args)).expect("an accumulator")
    }

    fn fed(&self, rows: &[Row]) -> Box<dyn GroupsAccumulator> {
        let mut accumulator = self.vectorised();
        let groups: Vec<usize> = rows.iter().map(|r| r.0).collect();
        accumulator.update_batch(&self.arguments(rows), &groups, None, GROUPS).expect("updates");
        accumulator
    }

    fn state(&self, rows: &[Row]) -> Vec<ArrayRef> {
        self.fed(rows).state(EmitTo::All).expect("a state")
    }

    fn merged(&self, states: &[&Vec<ArrayRef>]) -> Box<dyn GroupsAccumulator> {
        let mut accumulator = self.vectorised();
        let groups: Vec<usize> = (0..GROUPS).collect();
        for state in states {
            accumulator.merge_batch(state, &groups, GROUPS).expect("merges");
        }
        accumulator
    }

    fn merge(&self, states: &[&Vec<ArrayRef>]) -> Vec<ArrayRef> {
        self.merged(states).state(EmitTo::All).expect("a state")
    }

    fn check(&self, a: &[ArrayRef], b: &[ArrayRef], law: &str) {
        if self.exact {
            assert_eq!(a, b, "{self:?}: {law}");
            return;
        }
        for (a, b) in a.iter().zip(b) {
            match (a.as_primitive_opt::<Float64Type>(), b.as_primitive_opt::<Float64Type>()) {
                (Some(a), Some(b)) => a.iter().zip(b).for_each(|(a, b)| {
                    let same = match (a, b) {
                        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs().max(1.0),
                        (a, b) => a == b,
                    };
                    assert!(same, "{self:?}: {law}: {a:?} and {b:?}");
                }),
                _ => assert_eq!(a, b, "{self:?}: {law}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn states_merge_associatively_and_commutatively_and_nothing_is_the_identity(
        a in prop::collection::vec(row(), 0..40),
        b in prop::collection::vec(row(), 0..40),
        c in prop::collection::vec(row(), 0..120),
    ) {
        for case in CASES {
            let part = |rows: &[Row]| if case.exact { rows.to_vec() } else { finite(rows) };
            let (a, b, c) = (part(&a), part(&b), part(&c));
            let (sa, sb, sc) = (case.state(&a), case.state(&b), case.state(&c));
            let ab = case.merge(&[&sa, &sb]);
            case.check(&ab, &case.merge(&[&sb, &sa]), "commutative");
            let bc = case.merge(&[&sb, &sc]);
            case.check(&case.merge(&[&ab, &sc]), &case.merge(&[&sa, &bc]), "associative");
            let nothing = case.state(&[]);
            case.check(&case.merge(&[&nothing, &sa]), &sa, "identity before");
            case.check(&case.merge(&[&sa, &nothing]), &sa, "identity after");
            let whole = [a, b, c].concat();
            let values = |mut accumulator: Box<dyn GroupsAccumulator>| {
                vec![accumulator.evaluate(EmitTo::All).expect("evaluates")]
            };
            case.check(&values(case.merged(&[&sc, &sa, &sb])), &values(case.fed(&whole)), "merged is whole");
            case.check(&case.merge(&[&ab, &sc]), &case.state(&whole), "the state of the merged is of the whole");
        }
    }

    #[test]
    fn row_and_vectorised_accumulators_agree(rows in prop::collection::vec(row(), 0..150)) {
        for case in CASES {
            let rows = if case.exact { rows.clone() } else { finite(&rows) };
            let vectorised = case.fed(&rows).evaluate(EmitTo::All).expect("evaluates");
            let states = case.state(&rows);
            for group in 0..GROUPS {
                let own: Vec<Row> = rows.iter().filter(|r| r.0 == group).copied().collect();
                let (mut half, mut one) = (case.one_group(), case.one_group());
                let (left, right) = own.split_at(own.len() / 2);
                half.update_batch(&case.arguments(left)).expect("updates");
                one.update_batch(&case.arguments(right)).expect("updates");
                let state: Vec<ArrayRef> =
                    half.state().expect("a state").iter().map(|s| s.to_array().expect("an array")).collect();
                one.merge_batch(&state).expect("merges");
                let value = one.evaluate().expect("evaluates").to_array().expect("an array");
                case.check(&[value], &[vectorised.slice(group, 1)], "one group");
                let again = one.evaluate().expect("evaluates again").to_array().expect("an array");
                case.check(&[again], &[vectorised.slice(group, 1)], "evaluating changes nothing");
                let state: Vec<ArrayRef> =
                    one.state().expect("a state").iter().map(|s| s.to_array().expect("an array")).collect();
                let expected: Vec<ArrayRef> = states.iter().map(|s| s.slice(group, 1)).collect();
                case.check(&state, &expected, "the state of one group");
            }
        }
    }

    #[test]
    fn emitting_in_parts_filtering_and_passing_rows_on_change_nothing(
        rows in prop::collection::vec(row(), 1..80),
        first in 1..GROUPS,
        keep in prop::collection::vec(prop::option::weighted(0.9, any::<bool>()), 80),
    ) {
        for case in CASES {
            let rows = if case.exact { rows.clone() } else { finite(&rows) };
            let arguments = case.arguments(&rows);
            let groups: Vec<usize> = rows.iter().map(|r| r.0).collect();
            let keep = BooleanArray::from(keep[..rows.len()].to_vec());
            let kept: Vec<Row> =
                rows.iter().zip(keep.iter()).filter(|(_, k)| *k == Some(true)).map(|(r, _)| *r).collect();
            let whole = case.fed(&kept).evaluate(EmitTo::All).expect("evaluates");

            let mut parts = case.vectorised();
            parts.update_batch(&arguments, &groups, Some(&keep), GROUPS).expect("updates");
            let head = parts.evaluate(EmitTo::First(first)).expect("evaluates");
            // What comes later is counted in groups that have moved up.
            let later: Vec<usize> = groups.iter().filter(|g| **g >= first).map(|g| g - first).collect();
            let rest = BooleanArray::from(groups.iter().map(|g| *g >= first).collect::<Vec<_>>());
            let rest: Vec<ArrayRef> =
                arguments.iter().map(|a| filter(a, &rest).expect("filters")).collect();
            let none = BooleanArray::from(vec![false; later.len()]);
            parts.update_batch(&rest, &later, Some(&none), GROUPS - first).expect("updates");
            let tail = parts.evaluate(EmitTo::All).expect("evaluates");
            let both = concat(&[head.as_ref(), tail.as_ref()]).expect("concatenates");
            case.check(&[both], std::slice::from_ref(&whole), "in two parts");

            let states = case.vectorised().convert_to_state(&arguments, Some(&keep)).expect("converts");
            let mut merged = case.vectorised();
            merged.merge_batch(&states, &groups, GROUPS).expect("merges");
            case.check(&[merged.evaluate(EmitTo::All).expect("evaluates")], &[whole], "row by row");
        }
    }

    #[test]
    fn late_points_give_the_answer_of_all_points(rows in prop::collection::vec(row(), 1..60), seed in any::<u64>()) {
        let mut order: Vec<u64> = (0..rows.len() as u64).collect();
        order.sort_by_key(|i| (i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let order = arrow::array::UInt64Array::from(order);
        let case = case("time_series", &[0, 1]);
        let groups: Vec<usize> = order.values().iter().map(|i| rows[*i as usize].0).collect();
        let shuffled: Vec<ArrayRef> =
            case.arguments(&rows).iter().map(|a| take(a, &order, None).expect("takes")).collect();
        let mut late = case.vectorised();
        late.update_batch(&shuffled, &groups, None, GROUPS).expect("updates");
        assert_eq!(
            &late.evaluate(EmitTo::All).expect("evaluates"),
            &case.fed(&rows).evaluate(EmitTo::All).expect("evaluates")
        );
    }
}
