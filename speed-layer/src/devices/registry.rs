//! The devices of all streams, and how a log group changes them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use iot_schemas::device::DeviceStatus;
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME, INGEST_TIME, IS_HISTORICAL, SEQ};
use iot_schemas::micro_batch::LogGroup;
use iot_schemas::position::{Frontier, NodeId, Seq};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::seen::Seen;

/// What all devices together may take up: their names, and [`FIXED_BYTES`] each. That is about 200,000 of them.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// What a device takes up beyond its name, about.
const FIXED_BYTES: usize = 300;
/// The column in which Sparkplug's rows say what kind of message they come from.
const MESSAGE_TYPE: &str = "message_type";

/// The devices by stream.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Registry {
    /// Groups up to here are in it.
    applied: Frontier,
    streams: BTreeMap<Arc<str>, Fleet>,
    bytes: usize,
    /// Events and status messages of devices that did not fit.
    unregistered: u64,
    #[serde(skip)]
    limit: Option<usize>,
    /// Whether it has changed since it was last saved.
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

/// The devices of one stream.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Fleet {
    /// Rows up to here were in the raw table when the registry began with it.
    #[serde(default)]
    seeded: Frontier,
    pub(super) devices: BTreeMap<Arc<str>, Device>,
}

/// One device in one stream.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    /// `None`: it has only said whether it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<Seen>,
    #[serde(default)]
    pub(super) link: Link,
}

/// What the definitions say about streams and devices.
pub(crate) trait Terms {
    /// Whether births and deaths stand in the rows of `stream`.
    fn has_births(&self, stream: &str) -> bool;
    /// How long a device may be silent, in microseconds.
    fn silence_limit(&self, stream: &str, device: &str) -> Option<i64>;
}

impl Registry {
    /// Groups up to here are in it.
    pub(crate) fn applied(&self) -> &Frontier {
        &self.applied
    }

    /// The devices that are registered.
    pub(crate) fn len(&self) -> usize {
        self.streams.values().map(|fleet| fleet.devices.len()).sum()
    }

    /// Events and status messages of devices that did not fit.
    pub(crate) fn unregistered(&self) -> u64 {
        self.unregistered
    }

    pub(super) fn fleet(&self, stream: &str) -> Option<&Fleet> {
        self.streams.get(stream)
    }

    /// Whether the stream is known, if only to have no devices.
    pub(super) fn knows(&self, stream: &str) -> bool {
        self.streams.contains_key(stream)
    }

    /// Begins a stream with what its raw table holds up to `frontier`.
    pub(super) fn begin(
        &mut self,
        stream: Arc<str>,
        frontier: Frontier,
        devices: impl IntoIterator<Item = (Arc<str>, Seen)>,
    ) {
        self.is_dirty = true;
        self.streams.insert(stream.clone(), Fleet { seeded: frontier, ..Fleet::default() });
        for (name, seen) in devices {
            let events = seen.events;
            match self.device(&stream, &name) {
                Some(device) => {
                    device.link = Link::heard_at(seen.last_arrival);
                    device.seen = Some(seen);
                }
                None => self.unregistered += events,
            }
        }
    }

    /// Takes a group in, unless it is in already.
    pub(crate) fn take(&mut self, group: &LogGroup, terms: &impl Terms) {
        if self.applied.covers(&group.node, group.last_seq) {
            return;
        }
        for batch in &group.batches {
            let own: Vec<&DeviceStatus> =
                group.statuses.iter().filter(|said| said.stream == batch.stream).collect();
            if !self.is_seeded_with(&batch.stream, &group.node, batch.last_seq) {
                self.rows(&batch.stream, &batch.rows, own, terms);
            } else {
                own.into_iter().for_each(|said| self.said(said));
            }
        }
        let without_rows =
            |said: &DeviceStatus| group.batches.iter().all(|batch| batch.stream != said.stream);
        group.statuses.iter().filter(|said| without_rows(said)).for_each(|said| self.said(said));
        self.applied.advance(&group.node, group.last_seq);
        self.is_dirty = true;
    }

    /// Everything up to here has been seen, if there was anything.
    pub(crate) fn advance(&mut self, node: &NodeId, seq: Seq) {
        self.applied.advance(node, seq);
        self.is_dirty = true;
    }

    fn is_seeded_with(&self, stream: &str, node: &NodeId, seq: Seq) -> bool {
        self.streams.get(stream).is_some_and(|fleet| fleet.seeded.covers(node, seq))
    }

    /// The rows and the status messages of one stream in one group, in the order of the log.
    fn rows(
        &mut self,
        stream: &Arc<str>,
        rows: &RecordBatch,
        statuses: Vec<&DeviceStatus>,
        terms: &impl Terms,
    ) {
        let mut statuses = statuses.into_iter().peekable();
        let Some(columns) = Columns::of(rows, terms.has_births(stream)) else {
            return statuses.for_each(|said| self.said(said));
        };
        for row in 0..rows.num_rows() {
            let seq = columns.seqs.value(row) as Seq;
            while let Some(said) = statuses.next_if(|said| said.seq < seq) {
                self.said(said);
            }
            self.row(stream, &columns, row, terms);
        }
        statuses.for_each(|said| self.said(said));
    }

    fn row(&mut self, stream: &Arc<str>, columns: &Columns<'_>, row: usize, terms: &impl Terms) {
        let (name, arrival) = (columns.devices.value(row), columns.arrivals.value(row));
        let word = columns.words.filter(|words| words.is_valid(row)).map(|words| words.value(row));
        if word == Some("NDEATH") {
            self.node_died(stream, name, arrival);
        }
        let is_old = columns.is_historical.is_some_and(|column| column.is_valid(row) && column.value(row));
        let Some(device) = self.device(stream, name) else {
            self.unregistered += 1;
            return;
        };
        let time = columns.times.value(row);
        match &mut device.seen {
            Some(seen) => seen.count(time, arrival),
            None => device.seen = Some(Seen::between(1, (time, time), (arrival, arrival))),
        }
        match word {
            Some("NBIRTH" | "DBIRTH") => device.link.born(arrival),
            Some("NDEATH" | "DDEATH") => device.link.died(arrival),
            _ if is_old => {}
            _ => device.link.sent(arrival, || terms.silence_limit(stream, name)),
        }
    }

    /// The devices of a node, whose names begin with its own and `/`, die with it.
    fn node_died(&mut self, stream: &str, node: &str, arrival: i64) {
        let Some(fleet) = self.streams.get_mut(stream) else { return };
        let first = format!("{node}/");
        let from = (Bound::Included(first.as_str()), Bound::Unbounded);
        let devices = fleet.devices.range_mut::<str, _>(from);
        for (_, device) in devices.take_while(|(name, _)| name.starts_with(&first)) {
            device.link.died(arrival);
        }
    }

    fn said(&mut self, said: &DeviceStatus) {
        match self.device(&said.stream, &said.device) {
            Some(device) => device.link.said(said.is_online, said.arrival, said.via),
            None => self.unregistered += 1,
        }
    }

    /// A device, which is registered if it is new and there is room.
    fn device(&mut self, stream: &Arc<str>, name: &str) -> Option<&mut Device> {
        let fleet = match self.streams.contains_key(stream) {
            true => self.streams.get_mut(stream)?,
            false => self.streams.entry(stream.clone()).or_default(),
        };
        if !fleet.devices.contains_key(name) {
            let bytes = name.len() + FIXED_BYTES;
            if self.bytes + bytes > self.limit.unwrap_or(MAX_BYTES) {
                return None;
            }
            self.bytes += bytes;
            fleet.devices.insert(name.into(), Device::default());
        }
        fleet.devices.get_mut(name)
    }

    #[cfg(test)]
    pub(super) fn with_limit(bytes: usize) -> Self {
        Self { limit: Some(bytes), ..Self::default() }
    }
}

/// The columns that say something about devices.
struct Columns<'a> {
    devices: &'a StringArray,
    times: &'a TimestampMicrosecondArray,
    arrivals: &'a TimestampMicrosecondArray,
    seqs: &'a Int64Array,
    is_historical: Option<&'a BooleanArray>,
    /// What kind of Sparkplug message a row comes from.
    words: Option<&'a StringArray>,
}

impl<'a> Columns<'a> {
    fn of(rows: &'a RecordBatch, has_births: bool) -> Option<Self> {
        let historical = rows.column_by_name(IS_HISTORICAL).filter(|it| *it.data_type() == DataType::Boolean);
        let words = rows.column_by_name(MESSAGE_TYPE).filter(|_| has_births);
        Some(Self {
            devices: rows.column_by_name(DEVICE_ID)?.as_string_opt::<i32>()?,
            times: rows.column_by_name(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
            arrivals: rows.column_by_name(INGEST_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
            seqs: rows.column_by_name(SEQ)?.as_primitive_opt::<Int64Type>()?,
            is_historical: historical.and_then(|column| column.as_boolean_opt()),
            words: words.and_then(|column| column.as_string_opt::<i32>()),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
