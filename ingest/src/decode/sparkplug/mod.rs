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
        let payload = Payload::parse(bytes).map_err(malformed)?;
        if payload.has_body {
            return Err("the payload has a `body`, compressed metrics perhaps, which is not taken".into());
        }
        let numbers =
            Numbers { seq: payload.seq, bd_seq: bd_seq(&payload, &topic)?, arrival: origin.arrival };
        let mut rows = Rows::new(&topic, &payload, origin.arrival);
        match topic.kind {
            Kind::Birth => {
                let declared = nodes.birth(&topic, Declared::read(&payload)?, numbers)?;
                rows.collect(&payload, declared)?;
            }
            Kind::Data => {
                let declared = nodes.data(&topic, numbers)?;
                if let Err(reason) = rows.collect(&payload, declared) {
                    nodes.want_rebirth(&topic);
                    return Err(reason);
                }
            }
            Kind::Death => {
                if !nodes.death(&topic, numbers) {
                    return Ok(());
                }
            }
        }
        rows.stage(&self.columns, fields, staging)
    }
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
