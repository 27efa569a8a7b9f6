//! What is known about the edge nodes of a stream: the state that makes their messages readable.
//!
//! It is a function of the log and of nothing else: the same messages lead to the same state, requests for a
//! rebirth included, whose limit goes by the times of arrival. No I/O here; [`Nodes`] is saved as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use iot_schemas::position::Seq;

use super::births::Declared;
use super::topic::Topic;

/// What the nodes of one stream may take up. At the limit nodes that are offline are forgotten, those that
/// have been silent for the longest first; if all are online, a birth beyond it is refused.
const MAX_BYTES: usize = 64 << 20;
/// What a node or a device takes up beyond its names and metrics, about.
const FIXED_BYTES: usize = 256;

/// The nodes of a stream, by `group/node`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Nodes {
    nodes: BTreeMap<Box<str>, Node>,
    bytes: usize,
    /// Messages up to here are in this state.
    applied: Seq,
    /// The node that the last message showed to be one we do not understand.
    #[serde(skip)]
    wanted: Option<Box<str>>,
    #[serde(skip)]
    limit: Option<usize>,
}

/// An edge node.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    itself: Session,
    devices: BTreeMap<Box<str>, Session>,
    bd_seq: Option<u64>,
    /// The number of its last message in this session.
    seq: Option<u8>,
    gaps: u64,
    stale_deaths: u64,
    rebirths: u64,
    /// When the last request for a rebirth was due: arrival, microseconds since 1970.
    asked_at: Option<i64>,
    /// Its last message.
    seen: Seq,
}

/// Whether a node or a device is there, and what its birth declared.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    is_online: bool,
    /// When its last birth arrived, microseconds since 1970.
    born: Option<i64>,
    declared: Declared,
}

/// A request to a node to declare everything anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebirth {
    /// The group of the node.
    pub group: String,
    /// The node.
    pub node: String,
}

/// A node or one of its devices, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// The group of the node.
    pub group: String,
    /// The node.
    pub node: String,
    /// The device; `None` for the node itself.
    pub device: Option<String>,
    /// Whether its last birth came after its last death.
    pub is_online: bool,
    /// When its last birth arrived, microseconds since 1970.
    pub born: Option<i64>,
    /// The number of the node's session.
    pub bd_seq: Option<u64>,
    /// The number of the node's last message.
    pub seq: Option<u8>,
    /// How often messages of the node were missing.
    pub gaps: u64,
    /// How often an older session of the node ended after the present one had begun.
    pub stale_deaths: u64,
    /// How often the node was asked for a rebirth.
    pub rebirths: u64,
}

impl Nodes {
    /// No nodes, of which so much may be kept.
    #[cfg(test)]
    pub(super) fn with_limit(bytes: usize) -> Self {
        Self { limit: Some(bytes), ..Self::default() }
    }

    /// What they take up, about.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same, counted anew.
    #[cfg(test)]
    pub(super) fn count_bytes(&self) -> usize {
        self.nodes.iter().map(|(key, node)| node.bytes(key)).sum()
    }

    /// Messages up to here are in this state.
    pub(crate) fn applied(&self) -> Seq {
        self.applied
    }

    /// Whatever the messages up to `seq` say is in this state, if they say anything.
    pub(crate) fn applied_up_to(&mut self, seq: Seq) {
        self.applied = self.applied.max(seq);
    }

    /// Whether the message of this number is yet to be taken in. It counts as taken in from now on.
    pub(super) fn advance(&mut self, seq: Seq) -> bool {
        self.wanted = None;
        let is_new = seq > self.applied;
        self.applied = self.applied.max(seq);
        is_new
    }

    /// A node or a device is born. Returns what it declares.
    pub(super) fn birth(
        &mut self,
        topic: &Topic<'_>,
        declared: Declared,
        message: Numbers,
    ) -> Result<&Declared, String> {
        let key = key(topic);
        let known = self.nodes.get(&key);
        let session = Session { is_online: true, born: Some(message.arrival), declared };
        // What goes away, and what comes in its place.
        let gone = known.map_or(0, |node| match topic.device {
            None => node.bytes(&key),
            Some(device) => node.devices.get(device).map_or(0, |session| session.bytes(device)),
        });
        let come = match topic.device {
            None => session.bytes(&key),
            Some(device) if known.is_some() => session.bytes(device),
            Some(device) => session.bytes(device) + Session::default().bytes(&key),
        };
        self.make_room(&key, come.saturating_sub(gone))?;
        self.bytes = self.bytes + come - gone;
        let node = self.nodes.entry(key.clone()).or_default();
        let is_whole = match topic.device {
            None => {
                node.itself = session;
                node.devices.clear();
                node.bd_seq = message.bd_seq;
                node.seq = Some(message.seq.and_then(|seq| u8::try_from(seq).ok()).unwrap_or(0));
                true
            }
            Some(device) => {
                node.devices.insert(device.into(), session);
                node.count(message.seq) && node.itself.is_online
            }
        };
        node.seen = self.applied;
        if !is_whole {
            self.wanted = Some(key);
        }
        let session = match topic.device {
            None => &node.itself,
            Some(device) => node.devices.entry(device.into()).or_default(),
        };
        Ok(&session.declared)
    }

    /// Data has come. Returns what its metrics were declared as, or why it cannot be read.
    pub(super) fn data(&mut self, topic: &Topic<'_>, message: Numbers) -> Result<&Declared, String> {
        let key = key(topic);
        if !self.nodes.contains_key(&key) {
            self.make_room(&key, key.len() + FIXED_BYTES)?;
            let node = Node::default();
            self.bytes += node.bytes(&key);
            self.nodes.insert(key.clone(), node);
        }
        let node = self.nodes.get_mut(&key).ok_or("the node is not there")?;
        node.seen = self.applied;
        let is_whole = !node.itself.is_online || node.count(message.seq);
        let session = match topic.device {
            None => Some(&node.itself),
            Some(device) => node.devices.get(device),
        };
        let session = session.filter(|session| session.is_online);
        if !is_whole || session.is_none() {
            self.wanted = Some(key);
        }
        session.map(|session| &session.declared).ok_or_else(|| match topic.device {
            None => format!("data of the edge node `{}` before its birth", topic.node),
            Some(device) => format!("data of the device `{device}` before its birth"),
        })
    }

    /// A session has ended. Returns whether it was the present one.
    pub(super) fn death(&mut self, topic: &Topic<'_>, message: Numbers) -> bool {
        let key = key(topic);
        let Some(node) = self.nodes.get_mut(&key) else { return true };
        node.seen = self.applied;
        if let Some(device) = topic.device {
            if let Some(session) = node.devices.get_mut(device) {
                session.is_online = false;
            }
            if node.itself.is_online && !node.count(message.seq) {
                self.wanted = Some(key);
            }
            return true;
        }
        if is_before(message.bd_seq, node.bd_seq) {
            node.stale_deaths += 1;
            return false;
        }
        node.itself.is_online = false;
        node.devices.values_mut().for_each(|session| session.is_online = false);
        node.seq = None;
        true
    }

    /// The message cannot be read as the node is known: it should declare itself anew.
    pub(super) fn want_rebirth(&mut self, topic: &Topic<'_>) {
        self.wanted = Some(key(topic));
    }

    /// Whom to ask for a rebirth after the message that arrived at `arrival`: each node once in a while only.
    pub(crate) fn rebirth(&mut self, arrival: i64, at_most_every: Duration) -> Option<Rebirth> {
        let key = self.wanted.take()?;
        let node = self.nodes.get_mut(&key)?;
        let pause = i64::try_from(at_most_every.as_micros()).unwrap_or(i64::MAX);
        // A clock that was set back must not keep a node silent.
        let is_due = node.asked_at.is_none_or(|at| arrival < at || arrival.saturating_sub(at) >= pause);
        if !is_due {
            return None;
        }
        node.asked_at = Some(arrival);
        node.rebirths += 1;
        let (group, node) = key.split_once('/')?;
        Some(Rebirth { group: group.to_owned(), node: node.to_owned() })
    }

    /// All nodes and devices.
    pub(crate) fn status(&self) -> Vec<NodeStatus> {
        let mut all = Vec::new();
        for (key, node) in &self.nodes {
            let (group, name) = key.split_once('/').unwrap_or((key, ""));
            let devices = node.devices.iter().map(|(name, session)| (Some(name.to_string()), session));
            all.extend(std::iter::once((None, &node.itself)).chain(devices).map(|(device, session)| {
                NodeStatus {
                    group: group.to_owned(),
                    node: name.to_owned(),
                    device,
                    is_online: session.is_online,
                    born: session.born,
                    bd_seq: node.bd_seq,
                    seq: node.seq,
                    gaps: node.gaps,
                    stale_deaths: node.stale_deaths,
                    rebirths: node.rebirths,
                }
            }));
        }
        all
    }

    /// Makes room for `bytes` more, without the node `key`.
    fn make_room(&mut self, key: &str, bytes: usize) -> Result<(), String> {
        let limit = self.limit.unwrap_or(MAX_BYTES);
        if self.bytes + bytes <= limit {
            return Ok(());
        }
        let offline = self.nodes.iter().filter(|(name, node)| !node.itself.is_online && &***name != key);
        let mut offline: Vec<(Seq, Box<str>)> =
            offline.map(|(name, node)| (node.seen, name.clone())).collect();
        offline.sort_unstable();
        // A tenth more than needed, so that this is not done for every message.
        let target = (limit - limit / 10).saturating_sub(bytes);
        for (_, name) in offline {
            if self.bytes <= target {
                break;
            }
            if let Some(node) = self.nodes.remove(&name) {
                self.bytes -= node.bytes(&name);
            }
        }
        if self.bytes + bytes > limit {
            return Err(format!(
                "what the edge nodes of this stream declare takes up more than {limit} bytes"
            ));
        }
        Ok(())
    }
}

/// What a message says about its place in the session, and when it arrived (microseconds since 1970).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    pub(super) seq: Option<u64>,
    pub(super) bd_seq: Option<u64>,
    pub(super) arrival: i64,
}

impl Node {
    /// Takes the number of the next message. Returns whether none is missing before it.
    fn count(&mut self, seq: Option<u64>) -> bool {
        // Some nodes do not number their messages; then nothing can be said.
        let Some(seq) = seq else { return true };
        let seq = u8::try_from(seq).ok();
        let is_next = match (self.seq, seq) {
            (Some(last), Some(seq)) => seq == last.wrapping_add(1),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        self.seq = seq;
        self.gaps += u64::from(!is_next);
        is_next
    }

    fn bytes(&self, key: &str) -> usize {
        let devices: usize = self.devices.iter().map(|(name, session)| session.bytes(name)).sum();
        self.itself.bytes(key) + devices
    }
}

impl Session {
    fn bytes(&self, name: &str) -> usize {
        name.len() + FIXED_BYTES + self.declared.bytes()
    }
}

fn key(topic: &Topic<'_>) -> Box<str> {
    format!("{}/{}", topic.group, topic.node).into()
}

/// Whether a death belongs to an older session than the birth. Sessions are numbered round a circle of 256.
fn is_before(death: Option<u64>, birth: Option<u64>) -> bool {
    match (death, birth) {
        (Some(death), Some(birth)) => (1..128).contains(&(birth.wrapping_sub(death) % 256)),
        _ => false,
    }
}
