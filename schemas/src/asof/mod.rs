//! `ASOF JOIN`: each row of the left side with the one row of the right side that was current at its time.
//!
//! ```text
//!   a ASOF JOIN b ON a.k = b.k AND a.t >= b.t      the latest row of b with b.k = a.k and b.t <= a.t
//!                                  a.t >  b.t      ... strictly before
//!                                  a.t <= b.t      the earliest row of b at or after
//!                                  a.t <  b.t      ... strictly after
//! ```
//!
//! `ASOF JOIN` drops rows of the left side without a match, `ASOF LEFT JOIN` keeps them with nulls, as DuckDB has
//! it. A null key or time matches nothing. Of several rows of the right side with the same key and time, any one
//! is taken.
//!
//! [`crate::sql_comfort`] turns the syntax into a plain join whose condition carries a marker. [`FindAsofJoins`]
//! replaces such joins by the `node`, and `exec` merges both sides, sorted by key and time, in one pass: after the
//! sort (which spills) it holds a few batches, however large the sides are.

mod exec;
mod merge;
mod node;
mod rule;

pub(crate) use node::AsofJoin;
pub use rule::FindAsofJoins;
