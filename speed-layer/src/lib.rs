//! The speed layer: view state in memory, rules, watermarks and the alert log.
//!
//! One [`Engine`] takes durable log groups in order and, for each, updates the state of the views, evaluates
//! the rules and records what they find. Because groups come again the same after a crash, so do the alerts.
//! Readers see its work through [`SpeedLayer`] (views) and [`alert_log::AlertLog`] (alerts) and never wait for it.

pub mod alert_log;
mod batch_devices;
mod checkpoint_file;
mod devices;
mod engine;
pub mod error;
mod event_time;
mod hot;
mod late_ledger;
mod live_view;
mod progress;
pub mod rules;
mod view_feed;
mod watermark;

pub use devices::device_schema;
pub use engine::{Engine, EngineConfig, KnownAlerts, KnownStep, ReplayPlan, SpeedLayer, SpeedStats};
pub use error::{Error, Result};
pub use progress::{StreamProgress, late_schema, watermark_schema};
