//! Replays and drops dead letters.
//!
//! Each letter goes to ingest as one record of the log that holds its message and the decision, so it is done once
//! or not at all. Which letters are still open is read from the table `dead`; so that no letter is seen as open after
//! its record was handed over, calls take turns, and a turn ends when all its records can be seen.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use iot_ingest::{Ingest, Message, Properties, Resolution};
use iot_schemas::clock::Clock;
use iot_schemas::dead::{DeadAction, DeadId, DeadLetters, DeadReport, DeadRequest};
use iot_schemas::layout::timestamp_type;
use iot_schemas::position::{NodeId, Seq};
use iot_schemas::raw::RawStreams;
use iot_schemas::{Error, Result};
use iot_serving::dead::{open_sql, payloads_sql};
use iot_serving::{Layer, Queries, QueryEngine, QueryRequest};
use iot_speed_layer::SpeedLayer;

/// Letters that are looked up at once.
const PAGE: usize = 10_000;
/// Payload bytes that are in memory at once; a single larger letter makes its own step.
const STEP_BYTES: i64 = 8 << 20;
/// Letters that are handed to ingest at once.
const STEP_LETTERS: usize = 500;
/// Reasons that a report holds.
const MAX_REASONS: usize = 10;

/// Deals with the dead letters of this process.
#[derive(Debug, Clone)]
pub(super) struct DeadDesk(Arc<Desk>);

#[derive(Debug)]
struct Desk {
    ingest: Arc<Ingest>,
    speed: Arc<SpeedLayer>,
    queries: Arc<QueryEngine>,
    node: NodeId,
    clock: Clock,
    turn: tokio::sync::Mutex<()>,
}

/// A letter that was found, without its payload.
#[derive(Debug)]
struct Found {
    id: DeadId,
    status: String,
    bytes: i64,
}

/// A letter with its payload.
#[derive(Debug)]
struct Letter {
    id: DeadId,
    stream: String,
    topic: String,
    payload: Bytes,
    received_at: i64,
    retry_of: Option<String>,
    is_cut: bool,
    properties: Option<Box<Properties>>,
}

impl DeadDesk {
    pub(super) fn new(
        ingest: Arc<Ingest>,
        speed: Arc<SpeedLayer>,
        queries: Arc<QueryEngine>,
        node: NodeId,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Desk { ingest, speed, queries, node, clock, turn: tokio::sync::Mutex::default() }))
    }
}

#[async_trait]
impl DeadLetters for DeadDesk {
    async fn resolve(&self, request: DeadRequest) -> Result<DeadReport> {
        if request.selection.is_empty() {
            return Err(Error::invalid(
                "no dead letters are named; give their ids, a stream, a reason, a condition, or `all`",
            ));
        }
        if request.action == DeadAction::Drop && request.note.trim().is_empty() {
            return Err(Error::invalid("whoever drops dead letters must say why; give a `note`"));
        }
        let desk = self.0.clone();
        // A task of its own: a caller who goes away must not end a turn in the middle.
        let done = tokio::spawn(async move { desk.resolve(&request).await }).await;
        done.unwrap_or_else(|e| {
            Err(Error::io("the work on dead letters ended unexpectedly", std::io::Error::other(e)))
        })
    }
}

impl Desk {
    async fn resolve(&self, request: &DeadRequest) -> Result<DeadReport> {
        let _turn = self.turn.lock().await;
        self.settle().await;
        let before = self.ingest.stats().last_seq;
        let mut report = DeadReport::default();
        let outcome = self.all_pages(request, before, &mut report).await;
        // Also after a failure: what was handed over can be seen before the next turn begins.
        self.settle().await;
        outcome?;
        if request.action == DeadAction::Replay {
            let node = self.node.replace('\'', "''");
            let sql = format!(
                "SELECT count(*) FROM dead WHERE _node = '{node}' AND _seq > {before} AND retry_of IS NOT NULL"
            );
            let counted = self.query(sql).await?;
            let counted = counted.first().map(|batch| longs(batch, 0)).transpose()?.unwrap_or_default();
            report.dead_again = counted.first().map_or(0, |n| *n as u64);
        }
        Ok(report)
    }

    /// Waits until everything that is durable can be seen.
    async fn settle(&self) {
        let last = self.ingest.stats().last_seq;
        if last > 0 {
            self.speed.caught_up_with(&[(self.node.clone(), last)].into_iter().collect()).await;
        }
    }

    async fn all_pages(&self, request: &DeadRequest, before: Seq, report: &mut DeadReport) -> Result<()> {
        let mut after = None;
        loop {
            // What this call makes dead again is not for this call.
            let sql = open_sql(&request.selection, (&self.node, before), after.as_ref(), PAGE);
            let found = self.found(sql).await?;
            if after.is_none() {
                check_all_are_there(&request.selection.ids, &found)?;
            }
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(last.id.clone());
            let is_last = found.len() < PAGE;
            self.page(request, found, report).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn page(&self, request: &DeadRequest, found: Vec<Found>, report: &mut DeadReport) -> Result<()> {
        let (mut step, mut bytes) = (Vec::new(), 0);
        for Found { id, status, bytes: size } in found {
            if status != "open" {
                skip(report, format!("{id}: it is {status} already"));
                continue;
            }
            if !step.is_empty() && (bytes + size > STEP_BYTES || step.len() == STEP_LETTERS) {
                self.step(request, &std::mem::take(&mut step), report).await?;
                bytes = 0;
            }
            step.push(id);
            bytes += size;
        }
        if step.is_empty() { Ok(()) } else { self.step(request, &step, report).await }
    }

    async fn step(&self, request: &DeadRequest, ids: &[DeadId], report: &mut DeadReport) -> Result<()> {
        let mut tickets = Vec::with_capacity(ids.len());
        let mut refused = None;
        for letter in self.letters(ids).await? {
            if request.action == DeadAction::Replay
                && let Some(why) = self.cannot_replay(&letter)
            {
                skip(report, format!("{}: {why}", letter.id));
                continue;
            }
            let (message, resolution) = self.record(request, letter);
            match self.ingest.resolve(message, resolution).await {
                Ok(ticket) => tickets.push(ticket),
                Err(e) => {
                    refused = Some(e);
                    break;
                }
            }
        }
        for receipt in join_all(tickets).await {
            match receipt {
                Ok(_) => report.done += 1,
                Err(e) => refused = Some(e),
            }
        }
        match refused {
            Some(e) => {
                let done = format!("{} letters were dealt with, ask again for the rest", report.done);
                Err(Error::io(done, std::io::Error::other(e)))
            }
            None => Ok(()),
        }
    }

    fn record(&self, request: &DeadRequest, letter: Letter) -> (Message, Resolution) {
        let Letter { id, stream, topic, payload, received_at, retry_of, properties, .. } = letter;
        let payload = if request.action == DeadAction::Replay { payload } else { Bytes::new() };
        let resolution = Resolution {
            first: retry_of.unwrap_or_else(|| format!("{}:{}", id.node, id.seq)),
            node: id.node,
            seq: id.seq,
            stream,
            received_at,
            action: request.action,
            at: self.clock.now_micros(),
            by: request.by.clone(),
            note: request.note.clone(),
        };
        (Message { properties, ..Message::new(topic, payload) }, resolution)
    }

    fn cannot_replay(&self, letter: &Letter) -> Option<String> {
        if letter.is_cut {
            return Some("only the beginning of its payload was kept".to_owned());
        }
        let Some(def) = self.ingest.definition(&letter.stream) else {
            return Some(format!("there is no stream `{}` any more", letter.stream));
        };
        let wanted = letter.topic == Message::written(&def.name, "", Bytes::new()).topic
            || def.status.as_ref().is_some_and(|status| status.device_of(&letter.topic).is_some())
            || def.topics.iter().any(|pattern| pattern.capture(&letter.topic).is_some());
        (!wanted)
            .then(|| format!("the stream `{}` does not take the topic `{}` any more", def.name, letter.topic))
    }

    async fn found(&self, sql: String) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for batch in self.query(sql).await? {
            let (nodes, seqs, streams) = (texts(&batch, 0)?, longs(&batch, 1)?, texts(&batch, 2)?);
            let (states, bytes) = (texts(&batch, 3)?, longs(&batch, 4)?);
            for row in 0..batch.num_rows() {
                let stream = streams[row].clone();
                let id =
                    DeadId { node: nodes[row].clone().unwrap_or_default(), seq: seqs[row] as Seq, stream };
                found.push(Found { id, status: states[row].clone().unwrap_or_default(), bytes: bytes[row] });
            }
        }
        Ok(found)
    }

    /// The letters with these ids that are still open.
    async fn letters(&self, ids: &[DeadId]) -> Result<Vec<Letter>> {
        let mut letters = Vec::with_capacity(ids.len());
        for batch in self.query(payloads_sql(ids)).await? {
            let (nodes, seqs, streams) = (texts(&batch, 0)?, longs(&batch, 1)?, texts(&batch, 2)?);
            let (topics, retries) = (texts(&batch, 3)?, texts(&batch, 6)?);
            let (content_types, user_properties) = (texts(&batch, 8)?, texts(&batch, 9)?);
            let payloads = cast(batch.column(4), &DataType::Binary)?;
            let arrivals = cast(batch.column(5), &timestamp_type())?;
            for row in 0..batch.num_rows() {
                let stream = streams[row].clone().unwrap_or_default();
                let node = nodes[row].clone().unwrap_or_default();
                letters.push(Letter {
                    id: DeadId { node, seq: seqs[row] as Seq, stream: Some(stream.clone()) },
                    stream,
                    topic: topics[row].clone().unwrap_or_default(),
                    payload: Bytes::copy_from_slice(payloads.as_binary::<i32>().value(row)),
                    received_at: arrivals.as_primitive::<TimestampMicrosecondType>().value(row),
                    retry_of: retries[row].clone(),
                    is_cut: batch.column(7).is_valid(row),
                    properties: properties(content_types[row].as_deref(), user_properties[row].as_deref()),
                });
            }
        }
        let wanted = |letter: &Letter| ids.contains(&letter.id);
        letters.retain(wanted);
        Ok(letters)
    }

    async fn query(&self, sql: String) -> Result<Vec<RecordBatch>> {
        let request = QueryRequest { sql, layer: Layer::Merged, max_rows: None };
        Ok(self.queries.execute(request).await?.batches)
    }
}

fn check_all_are_there(ids: &[DeadId], found: &[Found]) -> Result<()> {
    let is_there = |id: &&DeadId| {
        found.iter().any(|Found { id: found, .. }| {
            (&found.node, found.seq) == (&id.node, id.seq)
                && (id.stream.is_none() || found.stream == id.stream)
        })
    };
    match ids.iter().find(|id| !is_there(id)) {
        Some(id) if found.len() < PAGE => Err(Error::NotFound {
            kind: "dead letter",
            name: id.to_string(),
            hint: "; `iotctl dead list` shows which there are. Nothing was done".into(),
        }),
        _ => Ok(()),
    }
}

fn skip(report: &mut DeadReport, why: String) {
    report.skipped += 1;
    if report.reasons.len() < MAX_REASONS {
        report.reasons.push(why);
    }
}

/// What MQTT 5 said about a message, as the table has it.
fn properties(content_type: Option<&str>, user: Option<&str>) -> Option<Box<Properties>> {
    let mut properties = Properties::default();
    content_type.into_iter().for_each(|content_type| properties.set_content_type(content_type));
    let pairs: Vec<(String, String)> =
        user.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    pairs.iter().for_each(|(name, value)| properties.add_user(name, value));
    properties.boxed()
}

fn texts(batch: &RecordBatch, column: usize) -> Result<Vec<Option<String>>> {
    let texts = cast(batch.column(column), &DataType::Utf8)?;
    Ok(texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

fn longs(batch: &RecordBatch, column: usize) -> Result<Vec<i64>> {
    let longs = cast(batch.column(column), &DataType::Int64)?;
    Ok(longs.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect())
}
