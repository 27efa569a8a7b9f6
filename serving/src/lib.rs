//! The merged answer, and how it leaves the house: over HTTP, as server-sent events, on a dashboard.
//!
//! [`engine::QueryEngine`] answers SQL over merged views and raw streams at consistent positions;
//! [`verify`] proves its answers; [`http`] is the outside.

mod dashboard;
pub mod dead;
pub mod engine;
pub mod http;
mod live;
pub mod query;
mod tables;
pub mod verify;

pub use engine::{QueryEngine, QueryLimits};
pub use live::view_hub::ViewFeeds;
pub use query::{Layer, Queries, QueryRequest};
pub use tables::{Sources, SystemTables};
