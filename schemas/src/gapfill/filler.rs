//! Gap filling itself: sorted rows in, the same rows and those that were missing out.

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array,
    new_empty_array,
};
use arrow::compute::{cast, concat_batches, interleave, take};
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Result;

use super::Fill;
use super::node::GapFill;
use crate::functions::Windows;

/// What a [`Filler`] wants or has.
#[derive(Debug)]
pub(super) enum Step {
    /// Rows are ready.
    Output(RecordBatch),
    /// Call [`Filler::push`] or [`Filler::end`].
    NeedInput,
    /// There will be no more rows.
    Finished,
}

/// Holds one batch of input, at most `limit` rows of output, and one row of the batch before.
#[derive(Debug)]
pub(super) struct Filler {
    schema: SchemaRef,
    fills: Vec<Fill>,
    windows: Windows,
    start: i64,
    finish: i64,
    limit: usize,
    keys: Vec<usize>,
    time: usize,
    converter: RowConverter,
    batch: RecordBatch,
    series_of: Option<Rows>,
    next_row: usize,
    ended: bool,
    series: Option<Series>,
    /// Per column, the row whose value [`Fill::Locf`] carries.
    held: Vec<Option<u32>>,
    /// Output: per column, rows of `batch`.
    rows: Vec<Vec<Option<u32>>>,
    /// Output: which rows are added ones.
    added: Vec<Option<Gap>>,
}

/// The series that is being filled.
#[derive(Debug, Clone, Copy)]
struct Series {
    /// A row of it; none if there are no rows at all.
    row: Option<u32>,
    /// Its last row with a time.
    last: Option<u32>,
    /// Where its next bucket starts.
    next: i64,
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    time: i64,
    before: Option<u32>,
    after: Option<u32>,
}

impl Filler {
    pub(super) fn new(node: &GapFill, schema: SchemaRef, limit: usize) -> Result<Self> {
        let fills = node.fills.clone();
        let keys: Vec<usize> = (0..fills.len()).filter(|i| fills[*i] == Fill::Key).collect();
        let time = fills.iter().position(|fill| *fill == Fill::Time).unwrap_or_default();
        let fields = keys.iter().map(|i| SortField::new(schema.field(*i).data_type().clone()));
        Ok(Self {
            converter: RowConverter::new(fields.collect())?,
            batch: RecordBatch::new_empty(schema.clone()),
            held: vec![None; fills.len()],
            rows: vec![Vec::new(); fills.len()],
            added: Vec::new(),
            windows: node.windows,
            start: node.start,
            finish: node.finish,
            limit: limit.max(1),
            series_of: None,
            next_row: 0,
            ended: false,
            series: None,
            schema,
            fills,
            keys,
            time,
        })
    }

    /// Takes the next rows. Only after [`Step::NeedInput`].
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())?;
        match self.carried()? {
            Some(carried) => {
                self.batch = concat_batches(&self.schema, [&carried, &batch])?;
                self.next_row = 1;
                if let Some(series) = &mut self.series {
                    (series.row, series.last) = (Some(0), series.last.map(|_| 0));
                }
                self.held.fill(Some(0));
            }
            None => {
                self.batch = batch;
                self.next_row = 0;
            }
        }
        let keys: Vec<ArrayRef> = self.keys.iter().map(|i| self.batch.column(*i).clone()).collect();
        self.series_of = if keys.is_empty() { None } else { Some(self.converter.convert_columns(&keys)?) };
        Ok(())
    }

    /// There are no more rows. Only after [`Step::NeedInput`].
    pub(super) fn end(&mut self) {
        self.ended = true;
        if self.series.is_none() && self.keys.is_empty() {
            self.series = Some(Series { row: None, last: None, next: self.start });
        }
    }

    /// Goes on until there is something to say.
    pub(super) fn step(&mut self) -> Result<Step> {
        loop {
            if self.added.len() >= self.limit {
                return self.flush();
            }
            if self.next_row < self.batch.num_rows() {
                self.advance();
                continue;
            }
            if self.ended && self.fill_to(self.finish, None) {
                continue;
            }
            return match (self.added.is_empty(), self.ended) {
                (false, _) => self.flush(),
                (true, true) => Ok(Step::Finished),
                (true, false) => Ok(Step::NeedInput),
            };
        }
    }

    /// Adds one row to the output: the next of the input or one that lacks before it.
    fn advance(&mut self) {
        let row = self.next_row;
        let same = self.series.and_then(|series| series.row).is_some_and(|known| match &self.series_of {
            Some(series_of) => series_of.row(known as usize) == series_of.row(row),
            None => true,
        });
        let at = u32::try_from(row).expect("a batch has fewer than 2^32 rows");
        if !same {
            if self.fill_to(self.finish, None) {
                return;
            }
            self.series = Some(Series { row: Some(at), last: None, next: self.start });
            self.held.fill(None);
        }
        let times = self.batch.column(self.time).as_primitive::<TimestampMicrosecondType>();
        if times.is_null(row) {
            self.rows.iter_mut().for_each(|rows| rows.push(Some(at)));
            self.added.push(None);
            self.next_row += 1;
            return;
        }
        let time = times.value(row);
        if self.fill_to(time.min(self.finish), Some(at)) {
            return;
        }
        for (i, fill) in self.fills.iter().enumerate() {
            let Fill::Locf { null_is_missing } = fill else {
                self.rows[i].push(Some(at));
                continue;
            };
            if !(*null_is_missing && self.batch.column(i).is_null(row)) {
                self.held[i] = Some(at);
            }
            self.rows[i].push(self.held[i]);
        }
        self.added.push(None);
        if let Some(series) = &mut self.series {
            let next = series.next.max(self.windows.end(time));
            *series = Series { row: Some(at), last: Some(at), next };
        }
        self.next_row += 1;
    }

    /// Adds the series' next bucket if it starts before `until`; says whether it did.
    fn fill_to(&mut self, until: i64, after: Option<u32>) -> bool {
        let Some(series) = &mut self.series else { return false };
        if series.next >= until {
            return false;
        }
        let gap = Gap { time: series.next, before: series.last, after };
        let key = series.row;
        series.next = self.windows.end(series.next);
        for (i, fill) in self.fills.iter().enumerate() {
            self.rows[i].push(match fill {
                Fill::Key => key,
                Fill::Locf { .. } => self.held[i],
                Fill::Time | Fill::Null | Fill::Interpolate => None,
            });
        }
        self.added.push(Some(gap));
        true
    }

    fn flush(&mut self) -> Result<Step> {
        let columns = (0..self.fills.len()).map(|i| self.column(i)).collect::<Result<Vec<_>>>()?;
        self.rows.iter_mut().for_each(Vec::clear);
        self.added.clear();
        Ok(Step::Output(RecordBatch::try_new(self.schema.clone(), columns)?))
    }

    fn column(&self, i: usize) -> Result<ArrayRef> {
        let column = self.batch.column(i);
        let gaps = || self.added.iter().flatten();
        let made: ArrayRef = match self.fills[i] {
            Fill::Time => {
                let times: TimestampMicrosecondArray = gaps().map(|gap| Some(gap.time)).collect();
                cast(&times, column.data_type())?
            }
            Fill::Interpolate => self.interpolated(column)?,
            Fill::Key | Fill::Null | Fill::Locf { .. } => {
                return Ok(take(column, &UInt32Array::from(self.rows[i].clone()), None)?);
            }
        };
        let mut next_made = 0..;
        let from: Vec<(usize, usize)> = self.rows[i]
            .iter()
            .map(|row| match row {
                Some(row) => (0, *row as usize),
                None => (1, next_made.next().unwrap_or_default()),
            })
            .collect();
        Ok(interleave(&[column, &made], &from)?)
    }

    /// The values of a column in the added rows: `(y0 * (x1 - x) + y1 * (x - x0)) / (x1 - x0)`, as TimescaleDB
    /// computes it, for integers without a fraction.
    fn interpolated(&self, column: &ArrayRef) -> Result<ArrayRef> {
        let times = self.batch.column(self.time).as_primitive::<TimestampMicrosecondType>();
        let ends = |gap: &Gap| {
            let (before, after) = (gap.before? as usize, gap.after? as usize);
            let known = !column.is_null(before) && !column.is_null(after);
            known.then(|| (before, after, gap.time - times.value(before), times.value(after) - gap.time))
        };
        let gaps = self.added.iter().flatten();
        let exact = column.data_type().is_integer() && *column.data_type() != DataType::UInt64;
        let made: ArrayRef = if exact {
            let values = cast(column, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>();
            let made = gaps.map(|gap| {
                let (before, after, since, until) = ends(gap)?;
                let weighted = |row: usize, weight: i64| i128::from(values.value(row)) * i128::from(weight);
                let value = (weighted(before, until) + weighted(after, since)) / i128::from(since + until);
                i64::try_from(value).ok()
            });
            std::sync::Arc::new(made.collect::<Int64Array>())
        } else {
            let values = cast(column, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            let made = gaps.map(|gap| {
                let (before, after, since, until) = ends(gap)?;
                let weighted = |row: usize, weight: i64| values.value(row) * weight as f64;
                Some((weighted(before, until) + weighted(after, since)) / (since + until) as f64)
            });
            std::sync::Arc::new(made.collect::<Float64Array>())
        };
        Ok(cast(&made, column.data_type())?)
    }

    /// The last row, with the values that are carried: all that later rows need of this batch.
    fn carried(&self) -> Result<Option<RecordBatch>> {
        let Some(series) = self.series else { return Ok(None) };
        let row = series.last.or(series.row);
        let columns = self.fills.iter().enumerate().map(|(i, fill)| {
            let column = self.batch.column(i);
            let row = if matches!(fill, Fill::Locf { .. }) { self.held[i] } else { row };
            if column.is_empty() {
                return Ok(new_empty_array(column.data_type()));
            }
            Ok(take(column, &UInt32Array::from(vec![row]), None)?)
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Some(RecordBatch::try_new(self.schema.clone(), columns)?))
    }
}
