//! The batch layer: view state recomputed from the raw table, and upkeep of all tables.
//!
//! [`BatchLayer`] runs a view's state plan over the raw table, incrementally from the last frontier or in full,
//! and commits state and frontier in one transaction. [`upkeep`] merges small files, and state into state.

mod error;
mod recompute;
mod schedule;
pub mod upkeep;

pub use error::{Error, Result};
pub use recompute::BatchLayer;
pub use schedule::run_schedule;
