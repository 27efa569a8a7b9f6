//! Windows that are more than a column: overlapping ones, growing ones, and sessions.
//!
//! A query names a window by a *window call*, one of the functions `tumble_window`, `hop_window`,
//! `cumulate_window` and `session_window`, which stand for a struct of `start` and `end`, or `count_window`, which
//! stands for a number. An event lies in several windows, or its window depends on other events, so the calls (but for
//! the first) are no functions of a row: they are *expanded* into plans. [`crate::sql`] turns what users write into
//! window calls.
//!
//! There are two expansions, written independently, and a view is right when they agree:
//!
//! - [`ExpandWindows`] gives an ad-hoc query its meaning: every event is repeated once per window.
//! - A view keeps state per [pane](WindowKind::pane), the longest stretch of time of which no window holds a part
//!   only, and repeats *state* when it is read. Session state carries the first and the last event time of its
//!   stretch, and merging joins what lies within the gap. Count windows keep state per event.

mod calls;
pub(crate) mod counts;
mod expand;
pub(crate) mod sessions;

pub use calls::{WindowCall, WindowKind};
pub(crate) use calls::{constant, find_call, functions, names};
pub use expand::ExpandWindows;
pub(crate) use expand::{WINDOW, expand_kind, replace_call};
