//! What is known about the edge nodes of a stream: the state that makes their messages readable.
//!
//! It is a function of the log and of nothing else: the same messages lead to the same state, requests for a
//! rebirth included, whose limit goes by the times of arrival. No I/O here; [`Nodes`] is saved as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use iot_schemas::position::Seq;

use super::births::Declared;
use super::topic::{Kind, Topic};

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
    /// The node that the last message was about.
    #[serde(skip)]
    spoke: Option<Box<str>>,
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
    /// Which of the messages before that are missing: the lowest bit is the one right before it.
    #[serde(default)]
    missing: u32,
    /// Whether something has shown that we do not know what the node has declared, or have missed something.
    #[serde(default)]
    is_suspect: bool,
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
        self.spoke = None;
        let is_new = seq > self.applied;
        self.applied = self.applied.max(seq);
        is_new
    }

    /// A node or a device is born. Returns what it declares. If there is no room for that, it is as good as not born.
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
        if let Err(reason) = self.make_room(&key, come.saturating_sub(gone)) {
            self.not_understood(topic);
            return Err(reason);
        }
        self.bytes = self.bytes + come - gone;
        let node = self.nodes.entry(key.clone()).or_default();
        match topic.device {
            None => {
                node.itself = session;
                node.devices.clear();
                node.bd_seq = message.bd_seq;
                node.seq = Some(message.seq.and_then(|seq| u8::try_from(seq).ok()).unwrap_or(0));
                (node.missing, node.is_suspect) = (0, false);
            }
            Some(device) => {
                node.devices.insert(device.into(), session);
                let is_whole = node.count(message.seq);
                node.is_suspect |= !is_whole || !node.itself.is_online;
            }
        }
        node.seen = self.applied;
        self.spoke = Some(key);
        let session = match topic.device {
            None => &node.itself,
            Some(device) => node.devices.entry(device.into()).or_default(),
        };
        Ok(&session.declared)
    }

    /// Data has come. Returns what its metrics were declared as, or why it cannot be read.
    pub(super) fn data(&mut self, topic: &Topic<'_>, message: Numbers) -> Result<&Declared, String> {
        let node = self.node(topic)?;
        let is_whole = !node.itself.is_online || node.count(message.seq);
        let is_born = node.session(topic).is_some_and(|session| session.is_online);
        node.is_suspect |= !is_whole || !is_born;
        let session = node.session(topic).filter(|session| session.is_online);
        session.map(|session| &session.declared).ok_or_else(|| before_birth(topic))
    }

    /// What the metrics of a message mean that was a dead letter and comes again: those of a birth by what it
    /// declares itself, those of data by what is declared now. Nothing is changed by it.
    pub(super) fn known<'d>(
        &'d self,
        topic: &Topic<'_>,
        declared: &'d Declared,
    ) -> Result<&'d Declared, String> {
        if topic.kind != Kind::Data {
            return Ok(declared);
        }
        let session = self.nodes.get(&key(topic)).and_then(|node| node.session(topic));
        let session = session.filter(|session| session.born.is_some());
        session.map(|session| &session.declared).ok_or_else(|| before_birth(topic))
    }

    /// A session has ended. Returns whether it was the present one.
    pub(super) fn death(&mut self, topic: &Topic<'_>, message: Numbers) -> Result<bool, String> {
        if topic.device.is_none() && !self.nodes.contains_key(&key(topic)) {
            return Ok(true);
        }
        let node = self.node(topic)?;
        if let Some(device) = topic.device {
            if let Some(session) = node.devices.get_mut(device) {
                session.is_online = false;
            }
            // A device of a node that is not known to be there is a sign that a birth was missed.
            node.is_suspect |= !node.itself.is_online || !node.count(message.seq);
            return Ok(true);
        }
        if is_before(message.bd_seq, node.bd_seq) {
            node.stale_deaths += 1;
            return Ok(false);
        }
        // A node may say that it goes, and its will says it again.
        let is_known =
            node.itself.born.is_some() && message.bd_seq.is_some() && message.bd_seq == node.bd_seq;
        if is_known && !node.itself.is_online {
            return Ok(false);
        }
        node.itself.is_online = false;
        node.devices.values_mut().for_each(|session| session.is_online = false);
        (node.seq, node.is_suspect) = (None, false);
        Ok(true)
    }

    /// The message cannot be read as the node is known: it should declare itself anew.
    pub(super) fn want_rebirth(&mut self, topic: &Topic<'_>) {
        if let Some(node) = self.nodes.get_mut(&key(topic)) {
            node.is_suspect = true;
        }
    }

    /// A message could not be read at all. If it was a birth, what was declared before holds no longer, and what came
    /// in its place is not known.
    pub(super) fn not_understood(&mut self, topic: &Topic<'_>) {
        let key = key(topic);
        let Some(node) = self.nodes.get_mut(&key).filter(|_| topic.kind == Kind::Birth) else { return };
        let before = node.bytes(&key);
        match topic.device {
            None => {
                node.itself.end();
                node.devices.clear();
                node.seq = None;
            }
            Some(device) => {
                if let Some(session) = node.devices.get_mut(device) {
                    session.end();
                }
            }
        }
        self.bytes = self.bytes + node.bytes(&key) - before;
    }

    /// The node that a message is about, which is there from now on.
    fn node(&mut self, topic: &Topic<'_>) -> Result<&mut Node, String> {
        let key = key(topic);
        if !self.nodes.contains_key(&key) {
            self.make_room(&key, key.len() + FIXED_BYTES)?;
            self.bytes += Node::default().bytes(&key);
        }
        self.spoke = Some(key.clone());
        let node = self.nodes.entry(key).or_default();
        node.seen = self.applied;
        Ok(node)
    }

    /// Whom to ask for a rebirth after the message that arrived at `arrival`: a node that is not understood, once in a
    /// while, until it is born anew.
    pub(crate) fn rebirth(&mut self, arrival: i64, at_most_every: Duration) -> Option<Rebirth> {
        let key = self.spoke.take()?;
        let node = self.nodes.get_mut(&key).filter(|node| node.is_suspect)?;
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
    /// Takes the number of the next message. Returns whether none is missing before it. One that was missing and comes
    /// late is missing no more.
    fn count(&mut self, seq: Option<u64>) -> bool {
        // Some nodes do not number their messages; then nothing can be said.
        let Some(seq) = seq else { return true };
        let seq = u8::try_from(seq).ok();
        let (Some(last), Some(next)) = (self.seq, seq) else {
            let is_first = self.seq.is_none() && seq.is_some();
            (self.seq, self.missing) = (seq, 0);
            self.gaps += u64::from(!is_first);
            return is_first;
        };
        let behind = u32::from(last.wrapping_sub(next));
        if (1..=u32::BITS).contains(&behind) && self.missing >> (behind - 1) & 1 == 1 {
            self.missing &= !(1 << (behind - 1));
            return true;
        }
        let skipped = u32::from(next.wrapping_sub(last).wrapping_sub(1));
        self.missing = match skipped {
            0..u32::BITS => self.missing.unbounded_shl(skipped + 1) | ((1 << skipped) - 1),
            _ => 0,
        };
        self.seq = seq;
        self.gaps += u64::from(skipped > 0);
        skipped == 0
    }

    /// That of the node itself or of the device that a message is about.
    fn session(&self, topic: &Topic<'_>) -> Option<&Session> {
        match topic.device {
            None => Some(&self.itself),
            Some(device) => self.devices.get(device),
        }
    }

    fn bytes(&self, key: &str) -> usize {
        let devices: usize = self.devices.iter().map(|(name, session)| session.bytes(name)).sum();
        self.itself.bytes(key) + devices
    }
}

impl Session {
    /// It is over, and nothing is known of what comes after it.
    fn end(&mut self) {
        (self.is_online, self.declared) = (false, Declared::default());
    }

    fn bytes(&self, name: &str) -> usize {
        name.len() + FIXED_BYTES + self.declared.bytes()
    }
}

fn before_birth(topic: &Topic<'_>) -> String {
    match topic.device {
        None => format!("data of the edge node `{}` before its birth", topic.node),
        Some(device) => format!("data of the device `{device}` before its birth"),
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
