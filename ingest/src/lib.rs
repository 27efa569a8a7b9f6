//! Ingest: from a message to a durable position, an Arrow micro-batch and a row of the raw table.
//!
//! ```text
//! source/embedded   an MQTT broker in this process       ┐
//! source/external   a subscriber at another broker       ├─ submit(message) ──► receipt ──► PUBACK
//! (HTTP, replay: whoever calls Ingest::submit)           ┘       │                 ▲
//!                                                         bounded queue            │ durable
//!                                                                ▼                 │
//!   wal/writer   one thread: numbers what waits, one frame, one fsync per group ───┘
//!                                                                │ Group
//!                                                                ▼
//!   epoch        one thread: group.rs + decode/ make rows; what is no event is a dead letter
//!                  │ push                                        │ LineEvent::Group, ::EpochEnd
//!                  ▼                                             ▼
//!   tail         unsealed rows, readable at once           the speed layer ── Checkpoint ──┐
//!                  │ epoch: 64 MiB or 30 s                                                 │
//!                  ▼                                                                       ▼
//!   seal         one task: rows and frontier into the raw table in one commit, then the log is trimmed
//! ```
//!
//! # What is promised
//! - A receipt means that the message's bytes are fsynced. A crash at any moment loses none of them.
//! - A row reaches its table once: the commit carries the position, and a replay skips what a table covers.
//! - A copy that a gateway sends because its acknowledgement was lost is recognised ([`Delivery::dup`]).
//! - Replaying the log gives the same groups, rows and dead letters again, also where a message can only be read
//!   with the help of earlier ones whose log is gone (Sparkplug B).
//! - What cannot be decoded is kept with the reason, acknowledged and counted; it holds up nothing.
//! - At every limit the answer is to wait: sources stop acknowledging, gateways keep what they have.
//!
//! # Rules for payloads
//! A message is stored whole or becomes one dead letter, whatever its format. Nested objects are flattened with `_`; a name that
//! comes out twice, that is reserved, that begins with `_` or a digit, or that differs from a column only by
//! case is refused (`unknown_fields: ignore` leaves such fields out instead). What a topic level says (the
//! device, or another named level) wins over a payload field of the same name.

#[doc(hidden)]
pub mod bench;
mod config;
mod dead_letter;
mod decode;
mod dedup;
mod epoch;
#[doc(hidden)]
pub mod fuzz;
mod group;
mod left_out;
mod message;
mod pipeline;
mod pressure;
mod raw_table;
mod redelivery;
mod route;
mod schema_keeper;
mod seal;
pub mod source;
mod stats;
mod stream;
mod tail;
mod wal;

#[cfg(test)]
mod tests;

pub use config::{IngestConfig, SparkplugConfig};
pub use dead_letter::{DEAD, Resolution, dead_schema};
pub use decode::{NodeStatus, Rebirth};
pub use left_out::{LeftOutEntry, LeftOutReason};
pub use message::{
    Delivery, MAX_USER_PROPERTIES, MAX_USER_PROPERTY_BYTES, Message, Properties, Receipt, Refused, Ticket,
};
pub use pipeline::Ingest;
pub use stats::{IngestStats, StreamStats};
