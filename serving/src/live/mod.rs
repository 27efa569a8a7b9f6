//! Pushing what is new to those who wait for it.
//!
//! A reader costs a place in a log and the few entries in hand, never a queue: whoever reads slowly falls back
//! in the log and catches up from there. Readers of a view have a mailbox instead of a place, with the newest value
//! of each row. It knows nothing of HTTP beyond the form of an event.

pub(crate) mod filter;
pub(crate) mod follow;
pub(crate) mod mailbox;
pub(crate) mod sse;
pub(crate) mod view_hub;
mod view_rows;
pub(crate) mod view_sse;

#[cfg(test)]
mod tests;
