//! Files of readings as MQTT messages: what `iotctl replay` sends, without the sending.
//!
//! A [`Replay`] reads a CSV, JSON lines or Parquet file row by row and yields messages. Numbers keep the digits that
//! they have in the file, so that sums and extremes on the other side can be compared with those of the file.
//!
//! ```text
//! file -> rows (source) -> readings (mapping) -> some held back (late) -> joined (batch) -> messages
//! ```

mod batch;
mod json;
mod late;
mod mapping;
mod row;
mod source;
mod template;
mod time;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;

pub use mapping::{Device, MappingOptions, TimeField};
pub use source::FileFormat;
pub use template::Template;
pub use time::TimeUnit;

use batch::Batcher;
use late::Late;
use mapping::Mapper;
use source::Rows;

/// What to replay, and how.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The file; `.gz` is unpacked on the fly.
    pub file: PathBuf,
    /// Its format; by default what its name says.
    pub format: Option<FileFormat>,
    /// How rows become readings.
    pub mapping: MappingOptions,
    /// Stop after so many rows.
    pub limit: Option<u64>,
    /// Readings per message; one of one reading is an object, one of more is an array.
    pub batch: usize,
    /// Which fraction of the readings comes late, in random order.
    pub late_fraction: f64,
    /// What decides which ones.
    pub seed: u64,
}

impl ReplayOptions {
    /// Everything in `file`, one reading per message, in the file's order.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            format: None,
            mapping: MappingOptions::default(),
            limit: None,
            batch: 1,
            late_fraction: 0.0,
            seed: 1,
        }
    }
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayMessage {
    /// Where to.
    pub topic: String,
    /// A JSON object, or an array of them.
    pub payload: Bytes,
    /// The event time of its newest reading (microseconds since 1970), if there is one.
    pub time_us: Option<i64>,
    /// How many readings it holds.
    pub readings: u64,
}

/// What was read so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayStats {
    /// Rows read.
    pub readings: u64,
    /// Readings that were held back.
    pub late: u64,
    /// Readings whose row lacks a value that the topic needs; they are sent under `unknown`.
    pub without_device: u64,
}

/// One row as a message of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    topic: String,
    object: String,
    time_us: Option<i64>,
}

/// The messages of one file, in the order in which they are to be sent.
#[derive(Debug)]
pub struct Replay {
    file: String,
    rows: Rows,
    left: u64,
    mapper: Option<Mapper>,
    options: MappingOptions,
    late: Late,
    batcher: Batcher,
    ready: VecDeque<ReplayMessage>,
    ended: bool,
    stats: ReplayStats,
}

impl Replay {
    /// Opens the file.
    pub fn open(options: ReplayOptions) -> Result<Self> {
        let file = options.file.display().to_string();
        let rows =
            Rows::open(&options.file, options.format).with_context(|| format!("cannot read `{file}`"))?;
        let mut mapping = options.mapping;
        if let Device::Guess = mapping.device {
            mapping.file_stem = stem(&options.file);
        }
        Ok(Self {
            file,
            rows,
            left: options.limit.unwrap_or(u64::MAX),
            mapper: None,
            options: mapping,
            late: Late::new(options.late_fraction, options.seed),
            batcher: Batcher::new(options.batch),
            ready: VecDeque::new(),
            ended: false,
            stats: ReplayStats::default(),
        })
    }

    /// What was read so far.
    pub fn stats(&self) -> ReplayStats {
        self.stats
    }

    /// Reads the next row and whatever becomes ready by it; at the end, all that was held back.
    fn advance(&mut self) -> Result<()> {
        let row = if self.left == 0 { None } else { self.rows.next().transpose()? };
        let Some(row) = row else {
            self.ended = true;
            for reading in self.late.drain() {
                self.ready.extend(self.batcher.push(reading));
            }
            self.ready.extend(self.batcher.flush());
            return Ok(());
        };
        self.left -= 1;
        let mapper = match &mut self.mapper {
            Some(mapper) => mapper,
            none => none.insert(Mapper::new(&self.options, &row)?),
        };
        let (reading, lacks_device) = mapper.map(&row)?;
        self.stats.readings += 1;
        self.stats.without_device += u64::from(lacks_device);
        let (now, held) = self.late.pass(reading);
        self.stats.late += u64::from(held);
        if let Some(reading) = now {
            self.ready.extend(self.batcher.push(reading));
        }
        Ok(())
    }
}

impl Iterator for Replay {
    type Item = Result<ReplayMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(Ok(message));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.ended = true;
                return Some(Err(error.context(format!("cannot replay `{}`", self.file))));
            }
        }
    }
}

/// The file's name without folders and endings: the device of a file that names none.
fn stem(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
}

#[cfg(test)]
mod tests;
