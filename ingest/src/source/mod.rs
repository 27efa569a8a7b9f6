//! Where messages come from over MQTT: a broker in this process, or a subscription at somebody else's.
//!
//! Both only turn deliveries into [`Message`](crate::Message)s and receipts into acknowledgements. Nothing
//! here decides about order, durability or copies.

mod connection;
pub mod embedded;
pub mod external;
mod host;
mod scanner;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

/// An MQTT broker that feeds ingest. The rest of the platform knows no more about it.
#[async_trait::async_trait]
pub trait MqttBroker: Send + Sync + fmt::Debug {
    /// Where clients connect.
    fn local_addr(&self) -> SocketAddr;

    /// How many clients are connected.
    fn clients(&self) -> usize;

    /// Closes the listener and all connections. What is not acknowledged by then never will be.
    async fn stop(&self);
}
