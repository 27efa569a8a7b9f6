//! An external broker, and how the load from it is shared.

use rumqttc::TlsConfiguration;
use serde::Deserialize;

use iot_schemas::{Error, Result};

use super::address::BrokerUrl;
use super::filters::overlap;
use super::secret::Secret;
use super::tls::ClientTls;

/// The group of several connections that are not told to share with others.
pub(super) const OWN_GROUP: &str = "iotctl";
/// More connections than that are of no use to one process.
pub const MAX_CONNECTIONS: usize = 64;

/// A broker, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where it is. A user and a password in it are used unless the fields below say otherwise.
    pub url: BrokerUrl,
    /// Names the session that the broker keeps: it must be the same after a restart.
    pub client_id: String,
    /// The user name.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// Certificates, for `mqtts://`.
    pub tls: ClientTls,
    /// How many connections share the load, if more than one: each is a session of its own, named after the first.
    /// They help where a broker limits what may be unacknowledged per session.
    pub connections: usize,
    /// How they share it.
    pub distribution: Distribution,
    /// Who shares the load: everybody who subscribes as `$share/GROUP/...`, on this node and on others. `None`, with one
    /// connection, does not share.
    pub share: Option<String>,
    /// The filters that this node subscribes to, instead of those of its streams: its part of the topics.
    pub topics: Vec<String>,
}

/// How several connections share the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Each message goes to one of them, which is the broker's choice (`$share/...`). A broker that deals by topic keeps
    /// the messages of a device in order, one that deals in turn does not.
    #[default]
    Shared,
    /// The `topics` are dealt out to them in turn, so all messages of a topic come over one of them, in order.
    Topics,
}

impl Remote {
    /// A broker that needs no more than what the address says.
    pub fn new(url: BrokerUrl, client_id: impl Into<String>) -> Self {
        Self {
            url,
            client_id: client_id.into(),
            user: None,
            password: None,
            tls: ClientTls::default(),
            connections: 1,
            distribution: Distribution::default(),
            share: None,
            topics: Vec::new(),
        }
    }

    /// The name of the session of connection `number`, from 1 on.
    pub(super) fn session(&self, number: usize) -> String {
        match number {
            1 => self.client_id.clone(),
            _ => format!("{}-{number}", self.client_id),
        }
    }

    /// What connection `number`, from 1 on, subscribes to instead of what the streams name, if it is not empty.
    pub(super) fn topics_of(&self, number: usize) -> Vec<String> {
        match self.distribution {
            Distribution::Shared => self.topics.clone(),
            Distribution::Topics => {
                self.topics.iter().skip(number - 1).step_by(self.connections).cloned().collect()
            }
        }
    }

    /// The group in which the load is shared, if it is.
    pub(super) fn group(&self) -> Option<String> {
        let is_shared = self.connections > 1 && self.distribution == Distribution::Shared;
        self.share.clone().or_else(|| is_shared.then(|| OWN_GROUP.to_owned()))
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return Err(Error::invalid(format!(
                "{} connections to the broker; give 1 to {MAX_CONNECTIONS}",
                self.connections
            )));
        }
        if let Some(group) = &self.share
            && (group.is_empty() || group.contains(['/', '+', '#']))
        {
            return Err(Error::invalid(format!(
                "`{group}` cannot name a shared subscription; leave `/`, `+` and `#` out"
            )));
        }
        match self.distribution {
            Distribution::Shared => Ok(()),
            Distribution::Topics => self.check_topics(),
        }
    }

    /// Refuses topics that cannot be distributed so that each message comes once, in order.
    fn check_topics(&self) -> Result<()> {
        if self.share.is_some() {
            return Err(Error::invalid(
                "with `distribution: topics` the order is kept, with `share` it is not; leave one of them out",
            ));
        }
        if self.topics.len() < self.connections {
            return Err(Error::invalid(format!(
                "`distribution: topics` with {} connections and {} topics; name at least one topic filter for each",
                self.connections,
                self.topics.len()
            )));
        }
        let on = |at: usize| at % self.connections;
        for (at, one) in self.topics.iter().enumerate() {
            let mut later = self.topics.iter().enumerate().skip(at + 1);
            if let Some((_, other)) =
                later.find(|(other_at, other)| on(*other_at) != on(at) && overlap(one, other))
            {
                return Err(Error::invalid(format!(
                    "`{one}` and `{other}` overlap and would be on two connections, so that messages come twice; \
                     name topics that have nothing in common"
                )));
            }
        }
        Ok(())
    }

    /// The user and the password, if there are any.
    pub fn credentials(&self) -> Option<(&str, &str)> {
        let user = self.user.as_deref().or(self.url.user.as_deref())?;
        let password = self.password.as_ref().or(self.url.password.as_ref());
        Some((user, password.map_or("", Secret::expose)))
    }

    /// What TLS needs, if it is spoken.
    pub fn tls_configuration(&self) -> Result<Option<TlsConfiguration>> {
        match (self.url.tls, self.tls.is_set()) {
            (true, _) => Ok(Some(TlsConfiguration::Rustls(self.tls.load()?))),
            (false, true) => Err(Error::invalid(format!(
                "the broker `{}` is reached without TLS, so certificates are of no use; write mqtts://",
                self.url
            ))),
            (false, false) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(connections: usize, topics: &[&str]) -> Remote {
        let topics = topics.iter().map(ToString::to_string).collect();
        let url = "mqtt://127.0.0.1".parse().expect("an address");
        Remote { connections, topics, distribution: Distribution::Topics, ..Remote::new(url, "iot") }
    }

    #[test]
    fn topics_are_dealt_out_in_turn_and_not_shared() {
        let remote = remote(2, &["a/#", "b/+/x", "c", "b/+/y"]);
        remote.check().expect("they have nothing in common");
        assert_eq!(remote.topics_of(1), ["a/#", "c"]);
        assert_eq!(remote.topics_of(2), ["b/+/x", "b/+/y"]);
        assert_eq!((remote.session(1), remote.session(2)), ("iot".to_owned(), "iot-2".to_owned()));
        assert_eq!(remote.group(), None);
        let shared = Remote { distribution: Distribution::Shared, ..remote };
        assert_eq!(shared.topics_of(2).len(), 4);
        assert_eq!(shared.group().as_deref(), Some(OWN_GROUP));
    }

    #[test]
    fn topics_that_would_come_twice_are_refused() {
        let refused = |remote: Remote| remote.check().expect_err("it is refused").to_string();
        assert!(refused(remote(2, &["a/#", "+/b"])).contains("`a/#` and `+/b` overlap"));
        assert!(refused(remote(3, &["a", "b"])).contains("3 connections and 2 topics"));
        let share = Some("plant".to_owned());
        assert!(refused(Remote { share, ..remote(2, &["a", "b"]) }).contains("leave one of them out"));
        // On one connection each message comes once.
        remote(2, &["a/#", "b", "+/b"]).check().expect("the overlapping ones are on one connection");
        remote(1, &["a/#", "+/b"]).check().expect("there is one connection");
    }
}
