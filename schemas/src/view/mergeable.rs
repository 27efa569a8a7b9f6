//! Which aggregate calls have state that merges, and what to write instead of those that have none.
//!
//! `merge_laws.rs` tries every aggregate of a session against this.

use datafusion::logical_expr::expr::AggregateFunctionParams;

use crate::error::{Error, Result};

/// The aggregates whose accumulators heed DISTINCT, or to which it makes no difference. Of the others DataFusion
/// removes it by grouping twice, which a view cannot.
const DISTINCT_IN_STATE: [&str; 15] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "median",
    "percentile_cont",
    "approx_distinct",
    "array_agg",
    "string_agg",
];

/// Refuses aggregates whose answer depends on the order in which rows happen to be read: batch and speed layer read
/// them in different orders, and a recomputation in yet another.
pub(super) fn check(name: &str, params: &AggregateFunctionParams) -> Result<()> {
    if params.distinct && !DISTINCT_IN_STATE.contains(&name) {
        return Err(Error::invalid(format!(
            "{name}(DISTINCT ...) has no state that can be merged; leave DISTINCT out, or aggregate array_agg(DISTINCT ...) in the query that reads the view"
        )));
    }
    let instead = match name {
        "first_value" if params.order_by.is_empty() => {
            "write first(value, event_time), or first_value(value ORDER BY event_time)"
        }
        "last_value" if params.order_by.is_empty() => {
            "write last(value, event_time), or last_value(value ORDER BY event_time)"
        }
        "any_value" => "write first(value, event_time) or min(value)",
        "array_agg" | "string_agg" | "nth_value" if params.order_by.is_empty() => {
            "say the order within the call, as in array_agg(value ORDER BY event_time)"
        }
        _ => return Ok(()),
    };
    Err(Error::invalid(format!(
        "{name}() depends on the order in which rows are read, so its state cannot be merged; {instead}"
    )))
}
