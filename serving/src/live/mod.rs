//! Pushing what is new to those who wait for it.
//!
//! A reader costs a place in a log and the few entries in hand, never a queue: whoever reads slowly falls back
//! in the log and catches up from there. It knows nothing of HTTP beyond the form of an event.

pub(crate) mod filter;
pub(crate) mod follow;
pub(crate) mod sse;

#[cfg(test)]
mod tests;
