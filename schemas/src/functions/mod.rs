//! The SQL functions that every session of ours knows beyond DataFusion's own.
//!
//! | function | file | says |
//! |---|---|---|
//! | `tumble`, `tumble_end`, `time_bucket` | [`bucket`] over [`windows`] | the window that a time lies in |
//! | `time_bucket_gapfill`, `locf`, `interpolate` | [`markers`] | where [`crate::gapfill`] adds rows |
//! | `asof`, `asof_using` | [`markers`] | which join is one of [`crate::asof`] |

pub mod bucket;
pub mod markers;
pub mod windows;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

pub use windows::{Windows, tumble_end_micros};

/// All scalar functions to register.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let mut functions = bucket::functions();
    functions.extend(markers::functions());
    functions
}
