//! The aggregate functions of time series, as DataFusion aggregates whose state merges.
//!
//! ```text
//!  first(v, t)  last(v, t)   one value and its time             delta
//!  percentile_sketch(v)      counts in buckets of 1.6% width    approx_percentile
//!  time_series(v, t)         the points themselves              increase, rate, time_weighted_avg,
//!                                                               state_duration, counter_resets
//!  histogram(v, lo, hi, n)   counts in equal steps
//!  mode(v)                   distinct values and counts
//!  slope(v, t)               centred moments
//! ```
//!
//! On the left the aggregates, in the middle what their state is, on the right the functions that are answered from
//! it. A query that asks several of these computes the state once: [`rewrite()`] turns the calls into a scalar function
//! over the shared aggregate. `docs/aggregates.md` tells users about them.
//!
//! All are built on `groups::GroupStates`, the states of many groups at once; start there. Merging is associative
//! and commutative, also under late data, so views can use them all.

mod arena;
mod arguments;
mod bytes;
mod counts;
mod edge;
mod finishers;
mod groups;
mod histogram;
mod measures;
mod mode;
mod rewrite;
mod series;
mod sketch;
mod slope;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

pub use rewrite::{rewrite, rewrite_expression};
pub use sketch::RELATIVE_ERROR;

use groups::Udaf;

/// The version of all states here. State of another version is recomputed from raw, so it is to be raised when an
/// encoding or the meaning of a state changes.
pub(crate) const STATE_VERSION: u8 = 1;

/// All aggregate functions, to be registered.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::from(Udaf::new(edge::Edge::First))),
        Arc::new(AggregateUDF::from(Udaf::new(edge::Edge::Last))),
        Arc::new(AggregateUDF::from(Udaf::new(sketch::PercentileSketch))),
        Arc::new(AggregateUDF::from(Udaf::new(series::TimeSeries))),
        Arc::new(AggregateUDF::from(Udaf::new(histogram::Histogram))),
        Arc::new(AggregateUDF::from(Udaf::new(mode::Mode))),
        Arc::new(AggregateUDF::from(Udaf::new(slope::Slope))),
    ]
}

/// The scalar functions that read answers from shared states, to be registered.
pub fn state_functions() -> Vec<Arc<ScalarUDF>> {
    finishers::finishers()
}

#[cfg(test)]
mod answers;
#[cfg(test)]
mod laws;
