//! Sparkplug B: births say what a node or a device measures, data refers to it by alias, deaths end it.
//!
//! ```text
//! payload ─ wire, payload ─▶ metrics ─ nodes, births ─▶ names and types ─ value ─▶ samples ─ rows ─▶ staging
//! ```
//! Decoding is a function of the log, as everywhere here, but of all of it: [`Nodes`] is what is left of the
//! messages before. It is saved with every epoch, before the log is trimmed, and a replay goes on from there.

mod births;
mod nodes;
mod payload;
mod rows;
mod topic;
mod value;
mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;

use iot_schemas::catalog::SPARKPLUG_COLUMNS;

use super::Origin;
use super::compression::expand_body;
use super::fields::Fields;
use super::staging::Staging;
use births::Declared;
pub(crate) use nodes::Nodes;
use nodes::Numbers;
pub use nodes::{NodeStatus, Rebirth};
use payload::{Content, Payload};
use rows::Rows;
use topic::{Kind, Topic};
use value::malformed;

/// The number of a session, in births and deaths of nodes.
const BD_SEQ: &str = "bdSeq";
/// By which a node is asked for its birth.
const REBIRTH: &str = "Node Control/Rebirth";
/// The data type of a boolean.
const BOOLEAN: u64 = 11;

/// The decoder of one stream.
#[derive(Debug, Default)]
pub(crate) struct Sparkplug {
    /// Read by others too, who show it.
    pub(crate) nodes: Arc<Mutex<Nodes>>,
    /// Where the columns of the format are among those of the stream.
    columns: [usize; SPARKPLUG_COLUMNS.len()],
}

impl Sparkplug {
    pub(super) fn new(fields: &Fields) -> Self {
        let at = |(name, _): (&str, _)| fields.columns.iter().position(|column| *column.name == *name);
        Self { nodes: Arc::default(), columns: SPARKPLUG_COLUMNS.map(|column| at(column).unwrap_or(0)) }
    }

    /// Collects the rows of a message, or says why it has none. What it says about its node counts in any case.
    pub(super) fn decode(
        &self,
        bytes: &[u8],
        origin: Origin<'_>,
        fields: &mut Fields,
        staging: &mut Staging,
    ) -> Result<(), String> {
        let mut nodes = self.nodes.lock();
        if !nodes.advance(origin.seq) {
            // All that came of it is in the tables; decoded from a later state it might come out otherwise.
            return Ok(());
        }
        let Some(topic) = Topic::parse(origin.topic)? else { return Ok(()) };
        let mut expanded = Vec::new();
        let message = match Message::read(&topic, bytes, origin.arrival, &mut expanded) {
            Ok(message) => message,
            Err(reason) => {
                if !origin.is_replay {
                    nodes.not_understood(&topic);
                }
                return Err(reason);
            }
        };
        let mut rows = Rows::new(&topic, &message.payload, origin.arrival);
        let counts = if origin.is_replay {
            rows.collect(&message.payload, nodes.known(&topic, &message.declared)?)
                .map_err(|it| it.reason)?;
            true
        } else {
            take(&mut nodes, &topic, message, &mut rows)?
        };
        if counts { rows.stage(&self.columns, fields, staging) } else { Ok(()) }
    }

    /// A message has come of which only the beginning was kept.
    pub(super) fn cut(&self, origin: Origin<'_>) {
        let mut nodes = self.nodes.lock();
        if nodes.advance(origin.seq)
            && !origin.is_replay
            && let Ok(Some(topic)) = Topic::parse(origin.topic)
        {
            nodes.not_understood(&topic);
        }
    }
}

/// A message that is in order by itself.
struct Message<'a> {
    payload: Payload<'a>,
    numbers: Numbers,
    /// Of a birth.
    declared: Declared,
}

impl<'a> Message<'a> {
    /// Reads a message; `expanded` is where it stands if it was compressed.
    fn read(
        topic: &Topic<'_>,
        bytes: &'a [u8],
        arrival: i64,
        expanded: &'a mut Vec<u8>,
    ) -> Result<Self, String> {
        let mut payload = Payload::parse(bytes).map_err(malformed)?;
        if let Some(compressed) = payload.compressed() {
            *expanded = expand_body(compressed)?;
            payload = Payload::parse(expanded).map_err(malformed)?;
        }
        let numbers = Numbers { seq: payload.seq, bd_seq: bd_seq(&payload, topic)?, arrival };
        let is_birth = topic.kind == Kind::Birth;
        let declared = if is_birth { Declared::read(&payload)? } else { Declared::default() };
        Ok(Self { payload, numbers, declared })
    }
}

/// Takes a message in. Returns whether it has rows.
fn take<'a>(
    nodes: &mut Nodes,
    topic: &Topic<'_>,
    Message { payload, numbers, declared }: Message<'a>,
    rows: &mut Rows<'a>,
) -> Result<bool, String> {
    match topic.kind {
        Kind::Birth => {
            let declared = nodes.birth(topic, declared, numbers)?;
            rows.collect(&payload, declared).map_err(|misfit| misfit.reason)?;
        }
        Kind::Data => {
            let declared = nodes.data(topic, numbers)?;
            if let Err(misfit) = rows.collect(&payload, declared) {
                if misfit.is_undeclared {
                    nodes.want_rebirth(topic);
                }
                return Err(misfit.reason);
            }
        }
        Kind::Death => return nodes.death(topic, numbers),
    }
    Ok(true)
}

/// The number of the session that a node's birth or death is about.
fn bd_seq(payload: &Payload<'_>, topic: &Topic<'_>) -> Result<Option<u64>, String> {
    if topic.device.is_some() || topic.kind == Kind::Data {
        return Ok(None);
    }
    for metric in payload.metrics() {
        let metric = metric.map_err(malformed)?;
        if metric.name == Some(BD_SEQ) {
            return Ok(match metric.value {
                Some(Content::Int(value)) => Some(value.into()),
                Some(Content::Long(value)) => Some(value),
                _ => None,
            });
        }
    }
    Ok(None)
}

/// The topic and the payload of the command that asks a node for its birth, at `millis` since 1970.
pub(crate) fn rebirth_command(rebirth: &Rebirth, millis: u64) -> (String, Vec<u8>) {
    let mut metric = Vec::new();
    wire::put_bytes(&mut metric, 1, REBIRTH.as_bytes());
    wire::put_varint(&mut metric, 3, millis);
    wire::put_varint(&mut metric, 4, BOOLEAN);
    wire::put_varint(&mut metric, 14, 1);
    let mut payload = Vec::new();
    wire::put_varint(&mut payload, 1, millis);
    wire::put_bytes(&mut payload, 2, &metric);
    (format!("spBv1.0/{}/NCMD/{}", rebirth.group, rebirth.node), payload)
}
