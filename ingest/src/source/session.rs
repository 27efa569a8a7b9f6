//! What a subscriber's session at a broker consists of on our side: nothing.
//!
//! We publish nothing at QoS 1 and receive nothing at QoS 2, so between two connections there is no state of ours to
//! keep. The client library must be told so: a process that takes up a session without any state would not be allowed to
//! subscribe to anything in it.

use std::pin::Pin;

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

/// Says that there was a session, and that nothing of it was under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmptySession {
    /// As in the client's options.
    pub(super) expiry_s: u32,
    /// As in the client's options.
    pub(super) outgoing_inflight: u16,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

impl SessionStore for EmptySession {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> Answer<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: Some(self.expiry_s),
            outgoing_inflight_upper_limit: Some(self.outgoing_inflight),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(std::future::ready(Ok(Some(session))))
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> Answer<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> Answer<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
