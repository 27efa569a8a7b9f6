//! What a rule watches: the rows of a stream or of a view, and how time and instances are read from them.

use std::sync::Arc;

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use iot_schemas::layout::timestamp_type;

use crate::error::{Error, Result};

/// A stream or a view as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name, which rules give in `on`.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// The column that holds a row's event time. `None`: rows take the event time of their group,
    /// [`GroupPosition::now`](super::GroupPosition::now).
    pub time_column: Option<String>,
    /// The columns whose values tell instances apart and become labels: the device of a stream, the group keys
    /// of a view other than its window.
    pub key_columns: Vec<String>,
}

impl Target {
    /// Whether time and keys can be read; `rule` is named in the error.
    pub(super) fn check(&self, rule: &str) -> Result<()> {
        if let Some(name) = &self.time_column {
            let of_type = self.type_of(rule, name)?;
            if !matches!(of_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) {
                return Err(
                    self.unfit(rule, format!("the time column `{name}` is {of_type}, not a timestamp"))
                );
            }
        }
        for name in &self.key_columns {
            let of_type = self.type_of(rule, name)?;
            if !can_cast_types(of_type, &DataType::Utf8) {
                return Err(
                    self.unfit(rule, format!("the key column `{name}` is {of_type}, which is no label"))
                );
            }
        }
        Ok(())
    }

    fn type_of(&self, rule: &str, name: &str) -> Result<&DataType> {
        let field = self.schema.field_with_name(name);
        field
            .map(|field| field.data_type())
            .map_err(|_| self.unfit(rule, format!("there is no column `{name}`")))
    }

    fn unfit(&self, rule: &str, why: String) -> Error {
        Error::invalid_rule(rule, format!("`{}` cannot be watched: {why}", self.name))
    }

    /// The schema that conditions are compiled for: every column may be NULL, because a batch from before a
    /// column was added has none of its values.
    pub(super) fn nullable_schema(&self) -> SchemaRef {
        let nullable = |field: &Arc<arrow::datatypes::Field>| field.as_ref().clone().with_nullable(true);
        Arc::new(Schema::new(self.schema.fields().iter().map(nullable).collect::<Vec<_>>()))
    }

    /// The event times of `rows`.
    pub(super) fn times(&self, rows: &RecordBatch, now: i64) -> Result<Times, arrow::error::ArrowError> {
        match self.time_column.as_deref().and_then(|name| rows.column_by_name(name)) {
            Some(column) => {
                let column = cast(column, &timestamp_type())?;
                Ok(Times::Column(column.as_primitive::<TimestampMicrosecondType>().clone()))
            }
            None => Ok(Times::Group(now)),
        }
    }
}

/// The event times of a batch in microseconds.
#[derive(Debug)]
pub(super) enum Times {
    /// Each row has its own.
    Column(TimestampMicrosecondArray),
    /// All rows have the group's.
    Group(i64),
}

impl Times {
    /// The time of one row; `None` if the row has none.
    pub(super) fn get(&self, row: usize) -> Option<i64> {
        match self {
            Self::Column(times) => times.is_valid(row).then(|| times.value(row)),
            Self::Group(now) => Some(*now),
        }
    }
}
