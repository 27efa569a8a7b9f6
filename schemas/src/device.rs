//! What is said about the connection of a device, on its way from ingest to the speed layer.

use std::sync::Arc;

use crate::position::Seq;

/// How a message came to ingest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Via {
    /// Its sender has just sent it.
    #[default]
    Live,
    /// The broker sent it for a client whose connection was lost.
    Will,
    /// A broker kept it and sent it because we have subscribed: it may be old.
    Retained,
    /// It was a dead letter and was read again: it is as old as it was then.
    Replay,
}

/// A device, or its last will, has said whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The stream whose status topic it came on.
    pub stream: Arc<str>,
    /// The device.
    pub device: Arc<str>,
    /// What it said.
    pub is_online: bool,
    /// When the message arrived, microseconds since 1970.
    pub arrival: i64,
    /// The message's number.
    pub seq: Seq,
    /// How it came.
    pub via: Via,
}
