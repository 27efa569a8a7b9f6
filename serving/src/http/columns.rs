//! The types of an answer's columns, under the names that people know from SQL.

use arrow::datatypes::{DataType, IntervalUnit, Schema};
use serde::Serialize;

/// A column of an answer.
#[derive(Debug, Serialize)]
pub(super) struct Column<'a> {
    name: &'a str,
    r#type: String,
}

/// The columns of an answer in their order.
pub(super) fn columns(schema: &Schema) -> Vec<Column<'_>> {
    schema.fields().iter().map(|f| Column { name: f.name(), r#type: sql_type(f.data_type()) }).collect()
}

fn sql_type(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Null => "null",
        DataType::Boolean => "boolean",
        DataType::Int8 => "tinyint",
        DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        DataType::UInt8 => "utinyint",
        DataType::UInt16 => "usmallint",
        DataType::UInt32 => "uinteger",
        DataType::UInt64 => "ubigint",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytes"
        }
        DataType::Timestamp(..) => "timestamp",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Duration(_)
        | DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime | IntervalUnit::MonthDayNano) => {
            "interval"
        }
        DataType::Struct(_) => "struct",
        DataType::Map(..) => "map",
        DataType::Union(..) => "union",
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => return format!("decimal({p},{s})"),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => return format!("{}[]", sql_type(item.data_type())),
        DataType::Dictionary(_, value) => return sql_type(value),
        DataType::RunEndEncoded(_, values) => return sql_type(values.data_type()),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, TimeUnit};

    use super::*;

    #[test]
    fn types_have_the_names_of_sql() {
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let list = DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)));
        assert_eq!(sql_type(&DataType::Int64), "bigint");
        assert_eq!(sql_type(&DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))), "timestamp");
        assert_eq!(sql_type(&DataType::Decimal128(20, 3)), "decimal(20,3)");
        assert_eq!(sql_type(&text), "text");
        assert_eq!(sql_type(&list), "double[]");
    }
}
