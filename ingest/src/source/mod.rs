//! Where messages come from over MQTT: a broker in this process, or a subscription at somebody else's.
//!
//! Both only turn deliveries into [`Message`](crate::Message)s and receipts into acknowledgements. Nothing
//! here decides about order, durability or copies.

pub mod access;
pub mod address;
mod certificate;
mod connection;
mod copies;
mod doorman;
pub mod embedded;
pub mod external;
mod filters;
mod filters_file;
mod host;
mod listener;
pub mod remote;
mod retained;
mod scanner;
pub mod secret;
mod session;
mod subscriptions;
pub mod tls;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use self::embedded::Transport;

/// An MQTT broker that feeds ingest. The rest of the platform knows no more about it.
#[async_trait::async_trait]
pub trait MqttBroker: Send + Sync + fmt::Debug {
    /// Where clients connect, and what is spoken there.
    fn addrs(&self) -> &[(Transport, SocketAddr)];

    /// How many clients are connected.
    fn clients(&self) -> usize;

    /// Closes the listener and all connections. What is not acknowledged by then never will be.
    async fn stop(&self);
}
