//! The devices of all streams, and how a log group changes them.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use iot_schemas::device::{DeviceStatus, Via};
use iot_schemas::layout::{EVENT_TIME, INGEST_TIME, IS_HISTORICAL, SEQ};
use iot_schemas::micro_batch::LogGroup;
use iot_schemas::position::{Frontier, NodeId, Seq};
use serde::{Deserialize, Serialize};

use super::fleet::{Device, Fleet, Room};
use super::link::Link;
use super::seen::Seen;
use crate::batch_devices::BatchDevices;

/// The column in which Sparkplug's rows say what kind of message they come from.
const MESSAGE_TYPE: &str = "message_type";

/// The devices by stream.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Registry {
    /// Groups up to here are in it.
    applied: Frontier,
    streams: BTreeMap<Arc<str>, Fleet>,
    #[serde(flatten)]
    room: Room,
    /// Whether it has changed since it was last saved.
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

/// What the definitions say about streams and devices.
pub(crate) trait Terms {
    /// What they say about one stream and its devices.
    fn of<'a>(&'a self, stream: &'a str) -> impl StreamTerms;
}

/// What the definitions say about one stream and its devices.
pub(crate) trait StreamTerms {
    /// Whether births and deaths stand in its rows.
    fn has_births(&self) -> bool;
    /// How far an event's time may lie after its arrival and still be believed, in microseconds.
    fn max_future(&self) -> i64;
    /// How long a device may be silent, in microseconds.
    fn silence_limit(&self, device: &str) -> Option<i64>;
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
        self.room.unregistered
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
        let mut entry = self.entry(&stream);
        for (name, seen) in devices {
            let events = seen.events;
            match entry.device(&name) {
                Some(device) => {
                    device.link = Link::heard_at(seen.last_arrival);
                    device.seen = Some(seen);
                }
                None => entry.room.unregistered += events,
            }
        }
    }

    /// Takes a group in, unless it is in already. `devices` are those of each of its batches.
    pub(crate) fn take(&mut self, group: &LogGroup, devices: &[BatchDevices<'_>], terms: &impl Terms) {
        if self.applied.covers(&group.node, group.last_seq) {
            return;
        }
        for (batch, devices) in group.batches.iter().zip(devices) {
            let statuses = group.statuses.iter().filter(|said| said.stream == batch.stream).peekable();
            let is_in = self.is_seeded_with(&batch.stream, &group.node, batch.last_seq);
            let mut entry = self.entry(&batch.stream);
            match Columns::of(&batch.rows, &group.replayed).filter(|_| !is_in) {
                Some(columns) => entry.rows(&columns, devices, statuses, &terms.of(&batch.stream)),
                None => statuses.for_each(|said| entry.said(said)),
            }
        }
        let without_rows =
            |said: &&DeviceStatus| group.batches.iter().all(|batch| batch.stream != said.stream);
        for said in group.statuses.iter().filter(without_rows) {
            self.entry(&said.stream).said(said);
        }
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

    fn entry(&mut self, stream: &Arc<str>) -> Entry<'_> {
        // Most streams are known, and their names need not be cloned.
        if !self.streams.contains_key(stream) {
            self.streams.insert(stream.clone(), Fleet::default());
        }
        let fleet = self.streams.get_mut(stream).expect("it was put there");
        Entry { fleet, room: &mut self.room }
    }

    #[cfg(test)]
    pub(super) fn with_limit(bytes: usize) -> Self {
        Self { room: Room { limit: Some(bytes), ..Room::default() }, ..Self::default() }
    }
}

/// A stream's devices, and the room for more.
struct Entry<'a> {
    fleet: &'a mut Fleet,
    room: &'a mut Room,
}

/// Where the device of a slot is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// No row of it has been looked at.
    Unknown,
    At(usize),
    /// There is no room for it.
    None,
}

impl Entry<'_> {
    /// The rows and the status messages in one group, in the order of the log.
    ///
    /// Costs a look-up for each device, and little more than the reading of three columns for each row.
    fn rows<'a>(
        &mut self,
        columns: &Columns<'_>,
        devices: &BatchDevices<'_>,
        mut statuses: Peekable<impl Iterator<Item = &'a DeviceStatus>>,
        terms: &impl StreamTerms,
    ) {
        let words = columns.words.filter(|_| terms.has_births());
        let future = terms.max_future();
        let mut places = vec![Place::Unknown; devices.names().len()];
        for (row, slot) in devices.slots().iter().map(|slot| *slot as usize).enumerate() {
            if statuses.peek().is_some() {
                let seq = columns.seqs.value(row) as Seq;
                while let Some(said) = statuses.next_if(|said| said.seq < seq) {
                    self.said(said);
                }
            }
            let (name, time, arrival) =
                (devices.names()[slot], columns.times.value(row), columns.arrivals.value(row));
            let word = words.filter(|words| words.is_valid(row)).map(|words| words.value(row));
            let via = columns.via(row);
            match word {
                Some("NDEATH") => self.devices_of(name, |link| link.died(arrival, via)),
                Some("NBIRTH") => self.devices_of(name, |link| link.node_born(arrival, via)),
                _ => {}
            }
            let place = &mut places[slot];
            if let Place::Unknown = place {
                *place = self.room.place(&mut self.fleet.devices, name).map_or(Place::None, Place::At);
            }
            let Place::At(place) = *place else {
                self.room.unregistered += 1;
                continue;
            };
            let device = self.fleet.devices.at(place);
            match &mut device.seen {
                Some(seen) => seen.count(time, arrival, future),
                None => device.seen = Some(Seen::begin(time, arrival, future)),
            }
            match word {
                Some("NBIRTH" | "DBIRTH") => device.link.born(arrival, via),
                Some("NDEATH" | "DDEATH") => device.link.died(arrival, via),
                _ if columns.is_historical(row) => {}
                _ => device.link.sent(arrival, || terms.silence_limit(name)),
            }
        }
        statuses.for_each(|said| self.said(said));
    }

    /// Tells the devices of a node, whose names begin with its own and `/`, what has happened to it.
    fn devices_of(&mut self, node: &str, tell: impl Fn(&mut Link)) {
        self.fleet.devices.with_prefix(&format!("{node}/"), |device| tell(&mut device.link));
    }

    fn said(&mut self, said: &DeviceStatus) {
        match self.device(&said.device) {
            Some(device) => device.link.said(said.is_online, said.arrival, said.via),
            None => self.room.unregistered += 1,
        }
    }

    /// A device, which is registered if it is new and there is room.
    fn device(&mut self, name: &str) -> Option<&mut Device> {
        let place = self.room.place(&mut self.fleet.devices, name)?;
        Some(self.fleet.devices.at(place))
    }
}

/// The columns that say something about devices.
struct Columns<'a> {
    times: &'a TimestampMicrosecondArray,
    arrivals: &'a TimestampMicrosecondArray,
    seqs: &'a Int64Array,
    is_historical: Option<&'a BooleanArray>,
    /// What kind of Sparkplug message a row comes from, if the stream has births.
    words: Option<&'a StringArray>,
    /// The positions of messages that were dead letters, in order.
    replayed: &'a [Seq],
}

impl<'a> Columns<'a> {
    fn of(rows: &'a RecordBatch, replayed: &'a [Seq]) -> Option<Self> {
        let historical = rows.column_by_name(IS_HISTORICAL).filter(|it| *it.data_type() == DataType::Boolean);
        let words = rows.column_by_name(MESSAGE_TYPE);
        Some(Self {
            times: rows.column_by_name(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
            arrivals: rows.column_by_name(INGEST_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
            seqs: rows.column_by_name(SEQ)?.as_primitive_opt::<Int64Type>()?,
            is_historical: historical.and_then(|column| column.as_boolean_opt()),
            words: words.and_then(|column| column.as_string_opt::<i32>()),
            replayed,
        })
    }

    /// How the message of a row came, as far as it is of consequence here.
    fn via(&self, row: usize) -> Via {
        let is_replayed =
            !self.replayed.is_empty() && self.replayed.binary_search(&(self.seqs.value(row) as Seq)).is_ok();
        if is_replayed { Via::Replay } else { Via::Live }
    }

    fn is_historical(&self, row: usize) -> bool {
        self.is_historical.is_some_and(|column| column.is_valid(row) && column.value(row))
    }
}

#[cfg(test)]
pub(super) mod tests;
