//! Decodes the messages of one log group, stream by stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use tokio::sync::mpsc;

use iot_schemas::catalog::StreamDef;
use iot_schemas::dead::DeadAction;
use iot_schemas::device::DeviceStatus;
use iot_schemas::layout::{DEVICE_ID, INGEST_TIME};
use iot_schemas::micro_batch::MicroBatch;
use iot_schemas::position::{NodeId, Seq};
use iot_schemas::registry::{Stamp, Why};
use iot_schemas::{Error, Result};

use crate::dead_letter::{DEAD, DeadLetter, DeadLetters, Resolution};
use crate::decode::{Captures, Origin, Rebirth, StreamDecoder};
use crate::dedup::{DedupRule, KeyWindow};
use crate::message::WRITTEN;
use crate::route::{TopicCache, matches};
use crate::stream::Stream;
use crate::wal::record::{Record, records};
use crate::wal::sparkplug_file;

/// The messages of one group fsync, as the log has them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    pub(crate) body: Vec<u8>,
}

/// The events of a group.
#[derive(Debug, Default)]
pub(crate) struct DecodedGroup {
    /// For each stream that has events, its number among the lanes and the events.
    pub(crate) batches: Vec<(usize, MicroBatch)>,
    pub(crate) dead: Option<MicroBatch>,
    /// What devices have said about their connection.
    pub(crate) statuses: Vec<DeviceStatus>,
    pub(crate) events: u64,
    pub(crate) dead_letters: u64,
    /// Events that are not stored because one with the same key is.
    pub(crate) copies: u64,
    /// Messages whose dead letters are replayed.
    replayed: Vec<Seq>,
    /// Whether part of the group could not be read.
    pub(crate) unreadable: bool,
}

/// A stream and its decoder.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) stream: Arc<Stream>,
    pub(crate) def: Arc<StreamDef>,
    pub(crate) decoder: StreamDecoder,
    /// The keys by which copies are recognised, if the stream has `dedup`.
    pub(crate) keys: Option<KeyWindow>,
}

impl Lane {
    /// Whether its keys are those that `rule` of a new definition asks for.
    pub(crate) fn goes_by(&self, rule: &DedupRule, def: &StreamDef) -> bool {
        let kind = |def: &StreamDef, name: &String| def.fields.get(name).map(|field| field.field_type);
        let same_type = |name: &String| kind(&self.def, name) == kind(def, name);
        self.keys.as_ref().is_some_and(|keys| keys.goes_by(rule)) && def.dedup.iter().all(same_type)
    }

    /// The rows without those whose key is known.
    fn without_copies(&mut self, rows: RecordBatch, decoded: &mut DecodedGroup) -> RecordBatch {
        let Some(keys) = &mut self.keys else { return rows };
        let kept = keys.kept(&rows, &decoded.replayed).expect("columns of raw rows have an order");
        self.stream.remembers(keys.len());
        if kept.true_count() == rows.num_rows() {
            return rows;
        }
        let devices = rows.column_by_name(DEVICE_ID).and_then(|column| column.as_string_opt::<i32>());
        let arrivals = rows.column_by_name(INGEST_TIME);
        let arrivals = arrivals.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        for copy in (0..rows.num_rows()).filter(|row| !kept.value(*row)) {
            let device = devices.map_or("", |devices| devices.value(copy));
            self.stream.count_copy(device, arrivals.map_or(0, |arrivals| arrivals.value(copy)));
            decoded.copies += 1;
            decoded.events -= 1;
        }
        filter_record_batch(&rows, &kept).expect("there is a verdict for each row")
    }
}

impl Lane {
    /// Makes a version of the schema, at a position, if the decoder's columns are not those of the newest.
    pub(crate) fn observe(&self, why: Why, at: i64, node: &NodeId, seq: Seq) {
        if let Some(schemas) = &self.stream.schemas {
            schemas.observe(&self.def, self.decoder.schema(), Stamp { why, at, node: node.clone(), seq });
        }
    }
}

/// A stream that wants a topic, and what the topic says about the events.
#[derive(Debug)]
struct Route {
    lane: usize,
    captures: Captures,
    /// The device, if the topic is one on which devices say whether they are online.
    status_of: Option<Arc<str>>,
}

/// Decodes groups for all streams.
#[derive(Debug)]
pub(crate) struct GroupDecoder {
    node: NodeId,
    pub(crate) lanes: Vec<Lane>,
    routes: TopicCache<Vec<Route>>,
    dead: DeadLetters,
    /// Where requests for a rebirth go; `None` in a replay: then they have been made.
    pub(crate) rebirths: Option<mpsc::Sender<Rebirth>>,
    /// An edge node is asked for a rebirth this often at most.
    rebirth_every: Duration,
    /// Whether the saved state has nodes of a stream.
    has_saved_nodes: bool,
}

impl GroupDecoder {
    pub(crate) fn new(node: NodeId, lanes: Vec<Lane>, rebirth_every: Duration) -> Self {
        let (routes, dead) = (TopicCache::default(), DeadLetters::new(node.clone()));
        Self { node, lanes, routes, dead, rebirths: None, rebirth_every, has_saved_nodes: false }
    }

    /// Adds a stream.
    pub(crate) fn add(&mut self, lane: Lane) {
        self.routes.clear();
        self.lanes.push(lane);
    }

    /// The stream of that name.
    pub(crate) fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| *lane.stream.name == *name)
    }

    /// Puts another definition of a known stream in force, if what the stream holds allows it.
    ///
    /// `keys` is what `dedup` needs, unless the lane's own can go on.
    pub(crate) fn redefine(&mut self, def: Arc<StreamDef>, keys: Option<KeyWindow>) -> Result<Arc<Stream>> {
        let lane = self.lanes.iter_mut().find(|lane| *lane.stream.name == *def.name);
        let lane = lane.ok_or_else(|| Error::NotFound {
            kind: "stream",
            name: def.name.clone(),
            hint: String::new(),
        })?;
        let mut decoder = StreamDecoder::new(&def, lane.decoder.schema())?;
        decoder.go_on_from(&lane.decoder);
        lane.decoder = decoder;
        lane.keys = match (DedupRule::of(&def), keys) {
            (None, _) => None,
            (Some(_), None) => lane.keys.take(),
            (Some(_), Some(keys)) => Some(keys),
        };
        lane.def = def.clone();
        lane.stream.redefine(def, &lane.decoder);
        self.routes.clear();
        Ok(lane.stream.clone())
    }

    /// Takes a stream out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.routes.clear();
        self.lanes.retain(|lane| *lane.stream.name != *name);
    }

    /// What must be saved of Sparkplug's nodes now that everything up to `seq` has been decoded, if anything.
    pub(crate) fn nodes_to_save(&mut self, seq: Seq) -> Option<Vec<u8>> {
        let mut nodes: BTreeMap<&str, _> = BTreeMap::new();
        for lane in &self.lanes {
            if let Some(of_lane) = lane.decoder.nodes() {
                let mut of_lane = of_lane.lock();
                of_lane.applied_up_to(seq);
                nodes.insert(&lane.stream.name, of_lane);
            }
        }
        let had_nodes = std::mem::replace(&mut self.has_saved_nodes, !nodes.is_empty());
        let nodes = nodes.iter().map(|(stream, nodes)| (*stream, &**nodes)).collect();
        (had_nodes || self.has_saved_nodes).then(|| sparkplug_file::encode(&nodes))
    }

    /// Decodes a group. Streams' schemas have grown when this returns, if they had to.
    pub(crate) fn decode(&mut self, group: &Group) -> DecodedGroup {
        let mut decoded = DecodedGroup::default();
        let mut seq = group.first;
        match records(&group.body) {
            Some(records) => {
                for record in records {
                    self.message(&record, seq, &mut decoded);
                    seq += 1;
                }
            }
            None => seq = group.first,
        }
        decoded.unreadable = seq != group.last + 1;
        self.collect(group, &mut decoded);
        decoded
    }

    fn message(&mut self, record: &Record<'_>, seq: Seq, decoded: &mut DecodedGroup) {
        if let Some(resolution) = record.resolution {
            return self.resolve(record, resolution, seq, decoded);
        }
        for route in self.routes(record.topic).iter() {
            self.event(route, record, seq, None, decoded);
        }
    }

    /// A message for one stream; `retry_of` is its first dead letter if it comes from a replay.
    fn event(
        &mut self,
        route: &Route,
        record: &Record<'_>,
        seq: Seq,
        retry_of: Option<&str>,
        decoded: &mut DecodedGroup,
    ) {
        if let Some(device) = &route.status_of {
            return self.status(route.lane, device, record, seq, retry_of, decoded);
        }
        let lane = &mut self.lanes[route.lane];
        let origin = Origin {
            topic: record.topic,
            captures: &route.captures,
            arrival: record.arrival,
            seq,
            content_type: record.content_type,
            user_properties: record.user_properties,
            is_replay: retry_of.is_some(),
        };
        if retry_of.is_some() {
            decoded.replayed.push(seq);
        }
        let schema_before = Arc::as_ptr(lane.decoder.schema());
        let outcome = match record.cut_from {
            Some(bytes) => {
                lane.decoder.cut(origin);
                Err(format!("the payload of {bytes} bytes is larger than ingest takes"))
            }
            None => lane.decoder.decode(record.payload, origin),
        };
        if let Some(nodes) = lane.decoder.nodes()
            && let Some(rebirth) = nodes.lock().rebirth(record.arrival, self.rebirth_every)
            && let Some(rebirths) = &self.rebirths
            && rebirths.try_send(rebirth).is_err()
        {
            // The node will be asked again when it next sends something that cannot be read.
            tracing::debug!("a request for a rebirth was not sent: too many are waiting");
        }
        if schema_before != Arc::as_ptr(lane.decoder.schema()) {
            lane.observe(Why::Inferred, record.arrival, &self.node, seq);
        }
        match outcome {
            Ok(events) => {
                decoded.events += events as u64;
                lane.stream.count(events as u64, 0);
            }
            Err(reason) => {
                lane.stream.count(0, 1);
                let stream = lane.stream.name.clone();
                self.dead_letter(&stream, record, &reason, seq, retry_of, decoded);
            }
        }
    }

    /// A message on a status topic of a stream.
    fn status(
        &mut self,
        lane: usize,
        device: &Arc<str>,
        record: &Record<'_>,
        seq: Seq,
        retry_of: Option<&str>,
        decoded: &mut DecodedGroup,
    ) {
        let lane = &self.lanes[lane];
        let stream = lane.stream.name.clone();
        let said = match (record.cut_from, &lane.def.status) {
            (Some(bytes), _) => Err(format!("the payload of {bytes} bytes is larger than ingest takes")),
            (None, Some(status)) => status.decode(record.payload),
            (None, None) => Ok(None),
        };
        match said {
            Ok(Some(is_online)) => {
                let (device, arrival, via) = (device.clone(), record.arrival, record.via);
                decoded.statuses.push(DeviceStatus { stream, device, is_online, arrival, seq, via });
            }
            Ok(None) => {}
            Err(reason) => {
                lane.stream.count(0, 1);
                self.dead_letter(&stream, record, &reason, seq, retry_of, decoded);
            }
        }
    }

    /// What was decided about a dead letter. The decision counts whatever becomes of the message.
    fn resolve(&mut self, record: &Record<'_>, json: &[u8], seq: Seq, decoded: &mut DecodedGroup) {
        let Ok(done) = serde_json::from_slice::<Resolution>(json) else {
            tracing::error!(
                seq,
                "a decision about a dead letter cannot be read by this version; it is skipped"
            );
            return;
        };
        if done.action == DeadAction::Replay {
            let routes = self.routes(record.topic);
            let first = Some(done.first.as_str());
            match routes.iter().find(|route| *self.lanes[route.lane].stream.name == *done.stream) {
                Some(route) => self.event(route, record, seq, first, decoded),
                None => {
                    let reason = format!("the stream `{}` does not take this topic any more", done.stream);
                    self.dead_letter(&done.stream, record, &reason, seq, first, decoded);
                }
            }
        }
        self.dead.push_action(&done, record.topic, seq);
    }

    fn dead_letter(
        &mut self,
        stream: &str,
        record: &Record<'_>,
        reason: &str,
        seq: Seq,
        retry_of: Option<&str>,
        decoded: &mut DecodedGroup,
    ) {
        decoded.dead_letters += 1;
        let lane = self.lanes.iter().find(|lane| *lane.stream.name == *stream);
        let schemas = lane.and_then(|lane| lane.stream.schemas.as_ref());
        self.dead.push(DeadLetter {
            stream,
            topic: record.topic,
            payload: record.payload,
            reason,
            received_at: record.arrival,
            seq,
            cut_from: record.cut_from,
            retry_of,
            content_type: record.content_type,
            user_properties: record.user_properties,
            schema_version: schemas.and_then(|schemas| schemas.at(seq)),
        });
    }

    fn routes(&mut self, topic: &str) -> Arc<Vec<Route>> {
        match self.routes.get(topic) {
            Some(routes) => routes,
            None => self.routes.put(topic, self.find_routes(topic)),
        }
    }

    /// Each stream at most once: the first of its patterns that matches says what the levels mean. A topic that is
    /// one of its status topics too is that alone.
    fn find_routes(&self, topic: &str) -> Vec<Route> {
        if let Some(stream) = topic.strip_prefix(WRITTEN) {
            let lane = self.lanes.iter().position(|lane| *lane.stream.name == *stream);
            return lane
                .map(|lane| Route { lane, captures: Captures::written(), status_of: None })
                .into_iter()
                .collect();
        }
        let route = |(lane, it): (usize, &Lane)| {
            if let Some(device) = it.def.status.as_ref().and_then(|status| status.device_of(topic)) {
                return Some(Route { lane, captures: Captures::default(), status_of: Some(device.into()) });
            }
            let pattern = it.def.topics.iter().find(|pattern| matches(pattern, topic))?;
            let captures = it.decoder.capture(pattern, topic)?;
            Some(Route { lane, captures, status_of: None })
        };
        self.lanes.iter().enumerate().filter_map(route).collect()
    }

    fn collect(&mut self, group: &Group, decoded: &mut DecodedGroup) {
        let batch = |stream: Arc<str>, rows| MicroBatch {
            stream,
            node: self.node.clone(),
            first_seq: group.first,
            last_seq: group.last,
            rows,
        };
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(rows) = lane.decoder.finish(&self.node) {
                lane.stream.set_schema(lane.decoder.schema());
                let rows = lane.without_copies(rows, decoded);
                decoded.batches.push((i, batch(lane.stream.name.clone(), rows)));
            }
        }
        decoded.dead = self.dead.finish().map(|rows| batch(DEAD.into(), rows));
    }
}
