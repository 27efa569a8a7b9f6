//! The vocabulary of the platform: what an event, a position, a stream, a view, a rule and a table *are*.
//!
//! Every other crate depends on this one and this one on none of them. Start with [`position`] (where batch
//! and speed meet), then [`view`] (how one SQL text becomes mergeable state), then [`table`] (how rows reach
//! object storage exactly once).

pub mod aggregates;
pub mod alert;
pub mod asof;
pub mod batch;
pub mod catalog;
pub mod clock;
pub mod control;
pub mod dead;
pub mod device;
pub mod disk;
pub mod error;
pub mod functions;
pub mod gapfill;
pub mod host;
pub mod layout;
pub mod log;
pub mod micro_batch;
mod planner;
pub mod position;
pub mod raw;
pub mod registry;
pub mod replay;
pub mod session;
pub mod sql;
pub mod sql_comfort;
pub mod table;
pub mod topic;
pub mod upcast;
pub mod view;
pub mod window;
pub mod write;

pub use error::{Error, Result};
