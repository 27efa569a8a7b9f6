//! Gap filling: one row per bucket of time, whether or not there were events in it.
//!
//! `GROUP BY time_bucket_gapfill(size, t), keys...` yields for every series (one combination of the other keys
//! that has rows at all) a row for each bucket of a range of time. The range is that of the arguments
//! `start, finish` or of the conditions on `t` in WHERE. In added rows aggregates are null, but `locf(x)` carries
//! the last value forward and `interpolate(x)` draws a line between the neighbours, as TimescaleDB has them.
//!
//! ```text
//!   Projection: m, locf(avg(x))             Projection: m, "locf(avg(x))"
//!     Filter: HAVING               ───▶       GapFill                  adds the rows
//!       Aggregate: gapfill(..), k               Projection: .., avg(x) AS "locf(avg(x))"
//!                                                 Filter: HAVING
//!                                                   Aggregate: time_bucket(..), k
//! ```
//!
//! [`FillGaps`] rewrites the plan, the `node` stands in it, `exec` runs it over rows sorted by series and
//! time, and `filler` does the work in bounded memory: a batch in, batches of the session's size out.

mod exec;
mod filler;
mod node;
mod range;
mod rule;

pub(crate) use node::GapFill;
pub use rule::FillGaps;

/// More buckets than this per series are refused: a typing error in a range must not fill the memory.
pub const MAX_BUCKETS: i64 = 1_000_000;

/// What a column shows in the rows that are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fill {
    /// The series' own value: the column is one of its keys.
    Key,
    /// The start of the bucket.
    Time,
    /// Null.
    Null,
    /// The last value; if nulls count as missing, in rows that were there as well.
    Locf {
        /// Whether a null is passed over.
        null_is_missing: bool,
    },
    /// The straight line between the neighbouring rows, null at the ends.
    Interpolate,
}

#[cfg(test)]
mod tests;
