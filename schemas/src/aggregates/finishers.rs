//! The scalar functions that read an answer from a shared state: `sketch_percentile(sketch, q)` and
//! `series_...(series)`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Float64Builder, Int64Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Float64Type};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::arguments::{is_number, wrong};
use super::measures::{self, Between};
use super::series::{Point, decode};
use super::sketch::percentile;

/// All of them, to be registered.
pub(super) fn finishers() -> Vec<Arc<ScalarUDF>> {
    use Answer as A;
    [A::Percentile, A::Increase, A::Rate, A::TimeWeightedAvg, A::StateDuration, A::CounterResets]
        .map(|answer| Arc::new(ScalarUDF::from(Finisher::new(answer))))
        .into()
}

/// What is read from the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Percentile,
    Increase,
    Rate,
    TimeWeightedAvg,
    StateDuration,
    CounterResets,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Finisher {
    answer: Answer,
    signature: Signature,
}

impl Finisher {
    fn new(answer: Answer) -> Self {
        Self { answer, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn wrong<T>(&self, got: &[DataType]) -> Result<T> {
        let (takes, example) = match self.answer {
            Answer::Percentile => (
                "a percentile_sketch and a share from 0 to 1, or a list of shares".to_owned(),
                "approx_percentile(temperature, 0.95)".to_owned(),
            ),
            Answer::TimeWeightedAvg => (
                "a time_series and 'locf' or 'linear'".to_owned(),
                "time_weighted_avg(temperature, event_time, 'linear')".to_owned(),
            ),
            _ => {
                let name = self.name().trim_start_matches("series_");
                ("a time_series".to_owned(), format!("{name}(energy, event_time)"))
            }
        };
        wrong(self.name(), &takes, &example, got)
    }
}

impl ScalarUDFImpl for Finisher {
    fn name(&self) -> &str {
        match self.answer {
            Answer::Percentile => "sketch_percentile",
            Answer::Increase => "series_increase",
            Answer::Rate => "series_rate",
            Answer::TimeWeightedAvg => "series_time_weighted_avg",
            Answer::StateDuration => "series_state_duration",
            Answer::CounterResets => "series_counter_resets",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(match (self.answer, arg_types) {
            (Answer::CounterResets, _) => DataType::Int64,
            (Answer::Percentile, [_, shares]) if shares.is_list() => shares.clone(),
            _ => DataType::Float64,
        })
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let is_state = |ty: &DataType| ty.is_binary() || ty.is_null();
        match (self.answer, arg_types) {
            (Answer::Percentile, [state, q]) if is_state(state) && is_number(q) => {
                Ok(vec![DataType::Binary, DataType::Float64])
            }
            (
                Answer::Percentile,
                [state, DataType::List(q) | DataType::LargeList(q) | DataType::FixedSizeList(q, _)],
            ) if is_state(state) && is_number(q.data_type()) => {
                let doubles = Field::new_list_field(DataType::Float64, true);
                Ok(vec![DataType::Binary, DataType::List(Arc::new(doubles))])
            }
            (Answer::TimeWeightedAvg, [state, between])
                if is_state(state) && (between.is_string() || between.is_null()) =>
            {
                Ok(vec![DataType::Binary, DataType::Utf8])
            }
            (answer, [state]) if is_state(state) && answer != Answer::Percentile => {
                Ok(vec![DataType::Binary])
            }
            _ => self.wrong(arg_types),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if all_constant { 1 } else { args.number_rows };
        let Some(states) = args.args.first() else {
            return exec_err!("{}() takes a state", self.name());
        };
        let states = states.to_array(rows)?;
        let answers = match self.answer {
            Answer::Percentile => percentiles(&states, &args.args[1].to_array(rows)?)?,
            Answer::Increase => of_series(&states, measures::increase)?,
            Answer::Rate => of_series(&states, measures::rate)?,
            Answer::StateDuration => of_series(&states, measures::state_duration)?,
            Answer::TimeWeightedAvg => {
                let between = between(args.args.get(1))?;
                of_series(&states, |points| measures::time_weighted_avg(points, between))?
            }
            Answer::CounterResets => counter_resets(&states)?,
        };
        if all_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answers, 0)?));
        }
        Ok(ColumnarValue::Array(answers))
    }
}

/// One share per row, or a list of shares per row.
fn percentiles(sketches: &ArrayRef, shares: &ArrayRef) -> Result<ArrayRef> {
    let sketches = sketches.as_binary::<i32>();
    let Some(lists) = shares.as_list_opt::<i32>() else {
        let shares = shares.as_primitive::<Float64Type>();
        let answers = sketches.iter().zip(shares).map(|(sketch, q)| percentile_of(sketch, q));
        return Ok(Arc::new(answers.collect::<Result<Float64Array>>()?));
    };
    let shares = lists.values().as_primitive::<Float64Type>();
    let mut answers = Float64Builder::with_capacity(shares.len());
    for (row, sketch) in sketches.iter().enumerate() {
        let (from, to) = (lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize);
        for i in from..to {
            answers.append_option(percentile_of(sketch, shares.is_valid(i).then(|| shares.value(i)))?);
        }
    }
    let field = Arc::new(Field::new_list_field(DataType::Float64, true));
    let nulls = NullBuffer::union(lists.nulls(), sketches.nulls());
    let offsets = OffsetBuffer::from_lengths(lists.offsets().lengths());
    Ok(Arc::new(ListArray::try_new(field, offsets, Arc::new(answers.finish()), nulls)?))
}

fn percentile_of(sketch: Option<&[u8]>, share: Option<f64>) -> Result<Option<f64>> {
    if let Some(q) = share
        && !(0.0..=1.0).contains(&q)
    {
        return exec_err!(
            "a percentile is a share from 0 to 1, not {q}; write approx_percentile(temperature, 0.95) for the 95th"
        );
    }
    match (sketch, share) {
        (Some(sketch), Some(q)) => percentile(sketch, q),
        _ => Ok(None),
    }
}

fn of_series(series: &ArrayRef, measure: impl Fn(&[Point]) -> Option<f64>) -> Result<ArrayRef> {
    let mut points = Vec::new();
    let answers = series.as_binary::<i32>().iter().map(|series| read(series, &mut points, &measure));
    Ok(Arc::new(answers.collect::<Result<Float64Array>>()?))
}

fn counter_resets(series: &ArrayRef) -> Result<ArrayRef> {
    let mut points = Vec::new();
    let series = series.as_binary::<i32>().iter();
    let answers = series.map(|series| read(series, &mut points, &measures::counter_resets));
    Ok(Arc::new(answers.collect::<Result<Int64Array>>()?))
}

fn read<T>(
    series: Option<&[u8]>,
    points: &mut Vec<Point>,
    measure: &impl Fn(&[Point]) -> Option<T>,
) -> Result<Option<T>> {
    let Some(series) = series else { return Ok(None) };
    decode(series, points)?;
    Ok(measure(points))
}

fn between(argument: Option<&ColumnarValue>) -> Result<Between> {
    let Some(argument) = argument else { return Ok(Between::Locf) };
    let ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) = argument else {
        return exec_err!(
            "the third argument of time_weighted_avg() must be the constant 'locf' or 'linear'"
        );
    };
    match Between::parse(text) {
        Some(between) => Ok(between),
        None => exec_err!("time_weighted_avg() knows 'locf' and 'linear', not '{text}'"),
    }
}
