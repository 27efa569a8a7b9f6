//! One connection, as the broker asks about it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use mqtt5::broker::storage::{DynamicStorage, StorageBackend};
use mqtt5::broker::{AuthProvider, AuthResult};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;

use super::{Access, Claim, Denied, is_topic};
use crate::source::connection::Shared;
use crate::source::retained::Retained;

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Answers for one connection: who is it, and may it?
pub(in crate::source) struct Guest {
    pub(in crate::source) access: Arc<Access>,
    pub(in crate::source) sessions: Arc<DynamicStorage>,
    pub(in crate::source) retained: Arc<Retained>,
    pub(in crate::source) shared: Arc<Shared>,
    /// The name in the client's verified certificate.
    pub(in crate::source) certificate: Option<String>,
}

impl Guest {
    async fn admit(&self, connect: &ConnectPacket, peer: SocketAddr) -> Result<AuthResult, Denied> {
        let claim = Claim {
            peer: peer.ip(),
            certificate: self.certificate.as_deref(),
            user: connect.username.as_deref(),
            password: connect.password.as_deref(),
        };
        let identity = self.access.admit(claim).await?;
        if let Some(will) = connect.will.as_ref().filter(|will| !is_topic(&will.topic)) {
            tracing::warn!(%peer, client = connect.client_id, topic = will.topic, "a will for no topic");
            self.shared.count_unauthorized();
            return Ok(AuthResult::fail(ReasonCode::TopicNameInvalid));
        }
        if let Some(will) = connect.will.as_ref().filter(|will| will.retain)
            && !self.retained.has_room_for(&will.topic).await
        {
            tracing::warn!(%peer, client = connect.client_id, topic = will.topic, "too many retained messages");
            return Ok(AuthResult::fail(ReasonCode::QuotaExceeded));
        }
        if !self.takes_session(&connect.client_id, identity.user.as_deref()).await {
            tracing::warn!(%peer, client = connect.client_id, "a client asks for the session of another user");
            return Ok(AuthResult::fail(ReasonCode::NotAuthorized));
        }
        self.shared.admitted(identity.grants, connect.protocol_version);
        Ok(identity.user.map_or_else(AuthResult::success, AuthResult::success_with_user))
    }

    /// Whether the session of this client id may be had by `user`: not if it belongs to another one, who would be
    /// thrown out. Only a user of the very name of the client id may do that, and finds nothing of what the other left.
    async fn takes_session(&self, client_id: &str, user: Option<&str>) -> bool {
        let Some(session) = self.sessions.get_session(client_id).await.ok().flatten() else { return true };
        if session.user_id.as_deref() == user {
            return true;
        }
        if user == Some(client_id) {
            // What the broker does not find it cannot resume, and whoever is connected under this id has to go.
            return self.sessions.remove_session(client_id).await.is_ok();
        }
        session.user_id.is_none()
    }
}

impl AuthProvider for Guest {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        peer: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            Ok(self.admit(connect, peer).await.unwrap_or_else(|denied| {
                tracing::warn!(%peer, client = connect.client_id, ?denied, "an MQTT client was not let in");
                AuthResult::fail(match denied {
                    Denied::Credentials => ReasonCode::BadUsernameOrPassword,
                    Denied::Anonymous => ReasonCode::NotAuthorized,
                    Denied::Busy => ReasonCode::ServerBusy,
                })
            }))
        })
    }

    /// A client of MQTT 3.1.1 cannot be told, so its connection ends: an acknowledgement would be a lie.
    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, topic: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.shared.authorize_publish(topic)))
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, filter: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.shared.may_subscribe(filter)))
    }
}
