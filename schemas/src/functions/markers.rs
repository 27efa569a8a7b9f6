//! Functions that no row is ever given to: they mark a place in a query for a rule that rewrites it.
//!
//! `time_bucket_gapfill`, `locf` and `interpolate` are replaced by [`crate::gapfill`]; `asof` and `asof_using`,
//! which only [`crate::sql_comfort`] writes, by [`crate::asof`]. Where a rule leaves one behind, the query used
//! it where it has no meaning, and `misplaced` says what to do.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::bucket::coerce;
use crate::layout::timestamp_type;

/// The key of a gap-filled grouping.
pub const GAPFILL: &str = "time_bucket_gapfill";
/// Carries the last value forward into filled rows.
pub const LOCF: &str = "locf";
/// Fills rows on the straight line between their neighbours.
pub const INTERPOLATE: &str = "interpolate";
/// Wraps the inequality of an `ASOF JOIN`.
pub const ASOF: &str = "asof";
/// As a condition on the right side of a join with `USING`: the last column is matched as of.
pub const ASOF_USING: &str = "asof_using";

/// The functions of this file.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let names: [(&'static str, &[&str]); 5] =
        [(GAPFILL, &["gapfill"]), (LOCF, &[]), (INTERPOLATE, &[]), (ASOF, &[]), (ASOF_USING, &[])];
    names
        .into_iter()
        .map(|(name, aliases)| {
            let signature = Signature::user_defined(Volatility::Immutable);
            let parameters: &[&str] = match name {
                GAPFILL => &["bucket_width", "ts", "start", "finish"],
                LOCF => &["value", "treat_null_as_missing"],
                _ => &[],
            };
            let signature = match parameters {
                [] => signature,
                names => signature.with_parameter_names(names.to_vec()).expect("the names differ"),
            };
            let aliases = aliases.iter().map(ToString::to_string).collect();
            Arc::new(ScalarUDF::from(Marker { name, aliases, signature }))
        })
        .collect()
}

/// What is wrong with a query that still has the marker `function` after the rules; `None` for other functions.
pub(crate) fn misplaced(function: &str) -> Option<DataFusionError> {
    let why = match function {
        GAPFILL => {
            "time_bucket_gapfill() must itself be a key of GROUP BY, of one aggregation without grouping sets: \
             SELECT time_bucket_gapfill('1 minute', t) AS m, avg(x) FROM s WHERE t >= ... AND t < ... GROUP BY m"
        }
        LOCF => {
            "locf() fills rows that time_bucket_gapfill() adds, so it stands in the SELECT list, around an \
             expression of aggregates, of a query with time_bucket_gapfill(...) in GROUP BY; elsewhere try \
             last_value(x) IGNORE NULLS OVER (ORDER BY t)"
        }
        INTERPOLATE => {
            "interpolate() fills rows that time_bucket_gapfill() adds, so it stands in the SELECT list, around an \
             expression of aggregates, of a query with time_bucket_gapfill(...) in GROUP BY"
        }
        ASOF | ASOF_USING => {
            "an ASOF JOIN needs one inequality between a time of the left and a time of the right side, and \
             equalities of keys: a ASOF JOIN b ON a.k = b.k AND a.t >= b.t"
        }
        _ => return None,
    };
    Some(DataFusionError::Plan(why.to_owned()))
}

/// Why a view cannot use `function`, if it is one of gap filling.
pub(crate) fn refused_in_view(function: &str) -> Option<&'static str> {
    match function {
        GAPFILL | LOCF | INTERPOLATE => Some(
            "fills gaps of a range of time, which a view has none of; fill them in the query that reads the view",
        ),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Marker {
    name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
}

impl ScalarUDFImpl for Marker {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match self.name {
            GAPFILL => Ok(timestamp_type()),
            ASOF | ASOF_USING => Ok(DataType::Boolean),
            _ => Ok(args.first().cloned().unwrap_or(DataType::Null)),
        }
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match (self.name, given) {
            (GAPFILL, given) => coerce(self.name, "time_bucket_gapfill('1 minute', event_time)", 1, given),
            (INTERPOLATE, [number]) if number.is_integer() || number.is_floating() => {
                Ok(vec![number.clone()])
            }
            (
                INTERPOLATE,
                [
                    DataType::Null
                    | DataType::Decimal32(..)
                    | DataType::Decimal64(..)
                    | DataType::Decimal128(..)
                    | DataType::Decimal256(..)
                    | DataType::Float16,
                ],
            ) => Ok(vec![DataType::Float64]),
            (INTERPOLATE, [other]) => {
                plan_err!("interpolate() takes a number, not {other}; locf() takes anything")
            }
            (LOCF, [value]) => Ok(vec![value.clone()]),
            (LOCF, [value, DataType::Boolean]) => Ok(vec![value.clone(), DataType::Boolean]),
            (LOCF, _) => plan_err!(
                "locf() takes a value, and maybe whether null counts as missing: locf(avg(x), true)"
            ),
            (INTERPOLATE, _) => plan_err!("interpolate() takes one number: interpolate(avg(x))"),
            (_, given) => Ok(given.to_vec()),
        }
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match misplaced(self.name) {
            Some(DataFusionError::Plan(why)) => exec_err!("{why}"),
            _ => exec_err!("{}() cannot be computed", self.name),
        }
    }
}
