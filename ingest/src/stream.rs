//! One stream in operation: its table, its tail, its schema, its counters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use parking_lot::{Mutex, RwLock};

use iot_schemas::Result;
use iot_schemas::catalog::StreamDef;
use iot_schemas::layout::DEVICE_ID;
use iot_schemas::micro_batch::MicroBatch;
use iot_schemas::position::{NodeId, Seq};
use iot_schemas::raw::{RawSnapshot, under_new_names};
use iot_schemas::registry::Renames;
use iot_schemas::table::{Store, Table};
use iot_schemas::topic::TopicPattern;

use crate::dead_letter::{DEAD, dead_schema};
use crate::decode::{NodeStatus, Nodes, StreamDecoder};
use crate::left_out::{LeftOut, LeftOutReason};
use crate::raw_table::{dead_spec, raw_spec};
use crate::schema_keeper::SchemaKeeper;
use crate::tail::Tail;

/// What readers, decoder and sealer share about a stream.
pub(crate) struct Stream {
    pub(crate) name: Arc<str>,
    pub(crate) table: Arc<Table>,
    pub(crate) tail: RwLock<Tail>,
    /// The schema of the newest rows.
    schema: RwLock<SchemaRef>,
    /// `None` for the dead letters.
    def: RwLock<Option<Arc<StreamDef>>>,
    /// What its decoder knows of Sparkplug's edge nodes, if that is the format.
    nodes: RwLock<Option<Arc<Mutex<Nodes>>>>,
    /// The versions of its schema, and the file that keeps them; `None` for the dead letters.
    pub(crate) schemas: Option<SchemaKeeper>,
    /// Up to where the table is complete for this node.
    sealed: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) dead: AtomicU64,
    /// Keys by which copies are recognised at present.
    pub(crate) keys: AtomicU64,
    /// What was not stored on purpose.
    pub(crate) left_out: LeftOut,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Stream {
    /// Opens the table of `def`, creating it if needed, and a decoder that goes on from its schema.
    pub(crate) async fn open(
        store: &Store,
        def: Arc<StreamDef>,
        node: &NodeId,
    ) -> Result<(Self, StreamDecoder)> {
        let fresh = StreamDecoder::new(&def, &arrow::datatypes::Schema::empty())?;
        let table = Table::open(store, raw_spec(&def.name, fresh.schema(), node)).await?;
        let decoder = StreamDecoder::new(&def, &table.snapshot().schema())?;
        let schemas = SchemaKeeper::open(store, &def.name)?;
        let name = def.name.as_str().into();
        let stream = Self::new(name, table, decoder.schema().clone(), Some((def, schemas)), node);
        *stream.nodes.write() = decoder.nodes().cloned();
        Ok((stream, decoder))
    }

    /// Opens the table of the dead letters.
    pub(crate) async fn open_dead(store: &Store, node: &NodeId) -> Result<Self> {
        let table = Table::open(store, dead_spec(node)).await?;
        Ok(Self::new(DEAD.into(), table, dead_schema(), None, node))
    }

    fn new(
        name: Arc<str>,
        table: Table,
        schema: SchemaRef,
        def: Option<(Arc<StreamDef>, SchemaKeeper)>,
        node: &NodeId,
    ) -> Self {
        let (def, schemas) = def.unzip();
        let sealed = table.snapshot().frontier().get(node);
        Self {
            name,
            sealed: AtomicU64::new(sealed),
            table: Arc::new(table),
            tail: RwLock::default(),
            schema: RwLock::new(schema),
            def: RwLock::new(def),
            nodes: RwLock::default(),
            schemas,
            events: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            left_out: LeftOut::default(),
        }
    }

    pub(crate) fn def(&self) -> Option<Arc<StreamDef>> {
        self.def.read().clone()
    }

    /// Puts another definition in force.
    pub(crate) fn redefine(&self, def: Arc<StreamDef>, decoder: &StreamDecoder) {
        *self.def.write() = Some(def);
        *self.schema.write() = decoder.schema().clone();
        *self.nodes.write() = decoder.nodes().cloned();
    }

    /// Sparkplug's edge nodes and devices as they are now.
    pub(crate) fn node_status(&self) -> Vec<NodeStatus> {
        self.nodes.read().as_ref().map_or_else(Vec::new, |nodes| nodes.lock().status())
    }

    /// The schema of the newest rows.
    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.read().clone()
    }

    /// Follows the decoder.
    pub(crate) fn set_schema(&self, schema: &SchemaRef) {
        if !Arc::ptr_eq(&self.schema.read(), schema) {
            *self.schema.write() = schema.clone();
        }
    }

    /// Up to where the table is complete for this node.
    pub(crate) fn sealed(&self) -> Seq {
        self.sealed.load(Ordering::Acquire)
    }

    /// The table has become complete up to `seq`.
    pub(crate) fn set_sealed(&self, seq: Seq) {
        self.sealed.fetch_max(seq, Ordering::AcqRel);
    }

    /// Sealed and unsealed rows at one moment. The tail is read first: a seal in between makes rows appear in
    /// both, and what the table covers is then dropped from the tail.
    pub(crate) fn snapshot(&self) -> Result<RawSnapshot> {
        let tail = {
            let tail = self.tail.read();
            tail.after(&iot_schemas::position::Frontier::empty())
        };
        let renames = self.schemas.as_ref().map_or_else(Renames::default, SchemaKeeper::renames);
        let sealed = self.table.snapshot();
        // Last, so that it has every column of both.
        let schema = self.schema();
        let frontier = sealed.frontier().clone();
        let tail = tail.into_iter().filter(|batch| !frontier.covers(&batch.node, batch.last_seq));
        let tail = match renames.is_empty() {
            true => tail.collect(),
            false => tail.map(|batch| renamed(batch, &renames)).collect::<Result<_>>()?,
        };
        Ok(RawSnapshot { schema, sealed, tail, renames })
    }

    /// An event that was counted turns out to be a copy.
    pub(crate) fn count_copy(&self, device: &str, arrival: i64) {
        self.events.fetch_sub(1, Ordering::Relaxed);
        self.left_out.note(LeftOutReason::Duplicate, device, arrival);
    }

    /// A message on `topic` is not stored.
    pub(crate) fn leave_out(&self, reason: LeftOutReason, topic: &str, arrival: i64) {
        let def = self.def();
        let mut patterns = def.iter().flat_map(|def| &def.topics);
        let device = patterns.find_map(|pattern| device_of(pattern, topic));
        self.left_out.note(reason, device.unwrap_or(topic), arrival);
    }

    /// How many keys are remembered by which copies are recognised.
    pub(crate) fn remembers(&self, keys: usize) {
        self.keys.store(keys as u64, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, events: u64, dead: u64) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.dead.fetch_add(dead, Ordering::Relaxed);
    }
}

/// The device that a topic names, if it is one of `pattern`.
pub(crate) fn device_of<'a>(pattern: &TopicPattern, topic: &'a str) -> Option<&'a str> {
    let values = pattern.capture(topic)?;
    pattern.names().zip(values).find(|(name, _)| *name == DEVICE_ID).map(|(_, device)| device)
}

fn renamed(batch: MicroBatch, renames: &Renames) -> Result<MicroBatch> {
    Ok(MicroBatch { rows: under_new_names(&batch.rows, renames)?, ..batch })
}
