//! Events that are written to a stream by name, without MQTT.

use std::fmt;

use bytes::Bytes;

use crate::error::Result;

/// Takes events, with the guarantees of a QoS 1 message.
#[async_trait::async_trait]
pub trait EventWriter: Send + Sync + fmt::Debug {
    /// Returns once the events are durable. They are decoded after that: what cannot be is a dead letter.
    async fn write(&self, batch: Written) -> Result<()>;
}

/// Encoded events for one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The stream.
    pub stream: String,
    /// How they are encoded (see [`crate::catalog::Format::of_content_type`]); the parameter `precision` says what times
    /// count.
    pub content_type: String,
    /// The events, perhaps compressed with gzip or Zstandard.
    pub payload: Bytes,
}
