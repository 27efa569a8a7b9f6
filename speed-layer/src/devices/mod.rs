//! The registry of devices: what each has sent, and whether it is there.
//!
//! ```text
//! rows of a stream ───────┐
//! births and deaths ──────┤
//! status messages, wills ─┴─▶ Registry (by stream and device) ──▶ devices.ckpt, with its position
//!                                  │
//! declarations, the clock ─────────┴──▶ the table `devices`
//! ```
//! The registry is a function of the log: each group is taken in once, in order, and the file that keeps it says up
//! to which position it goes. The log is trimmed only up to there, so nothing is missed and nothing counted twice
//! whenever the process ends. A stream that the file does not know begins with what its raw table holds.
//!
//! What depends on the present (that a device has been silent for too long) or on the catalog (declarations) is worked
//! out when the table is read, and never stored.
//!
//! Memory is bounded by [`fleet::MAX_BYTES`]: a device that does not fit any more is not registered, its events
//! are counted as such. The stream itself has them all.

mod file;
mod fleet;
mod link;
mod registry;
mod seed;
mod seen;
mod table;

pub(crate) use file::{load, save};
pub(crate) use registry::Registry;
pub(crate) use seed::seed;
pub(crate) use table::Declared;
pub use table::device_schema;
