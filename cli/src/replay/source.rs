//! The rows of CSV, JSON lines and Parquet files, packed with gzip or not.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use clap::ValueEnum;
use flate2::read::MultiGzDecoder;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::json;
use super::row::{Place, Row, Value, tidy_name, tidy_names};
use crate::exit::Failure;

/// Bytes read ahead.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// Rows of a Parquet file decoded at once.
const PARQUET_BATCH_ROWS: usize = 1024;
/// The name of the first column where the header has one name fewer than the rows have cells.
const ROW_NUMBER: &str = "row";

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// A header and comma-, semicolon- or tab-separated values.
    Csv,
    /// One JSON object a line.
    #[value(alias = "ndjson", alias = "json")]
    Jsonl,
    /// Parquet.
    Parquet,
}

impl FileFormat {
    fn of(file: &Path) -> Result<Self> {
        let name = file.to_string_lossy().to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("csv" | "tsv" | "txt") => Ok(Self::Csv),
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Jsonl),
            Some("parquet" | "pq") => Ok(Self::Parquet),
            _ => Err(Failure::usage("its name does not tell its format")
                .hint("name it with --format csv|jsonl|parquet")
                .into()),
        }
    }
}

/// The rows of a file, in its order.
pub(super) struct Rows(Box<dyn Iterator<Item = Result<Row>> + Send>);

impl Rows {
    /// Opens a file.
    pub(super) fn open(file: &Path, format: Option<FileFormat>) -> Result<Self> {
        let format = format.map_or_else(|| FileFormat::of(file), Ok)?;
        let packed = file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
        let opened = File::open(file)?;
        if format == FileFormat::Parquet && !packed {
            return Self::parquet(ParquetRecordBatchReaderBuilder::try_new(opened)?);
        }
        let bytes: Box<dyn Read + Send> =
            if packed { Box::new(MultiGzDecoder::new(opened)) } else { Box::new(opened) };
        Self::read(format, bytes)
    }

    /// Reads rows from bytes.
    pub(super) fn read(format: FileFormat, mut bytes: impl Read + Send + 'static) -> Result<Self> {
        match format {
            FileFormat::Csv => Ok(Self(Box::new(CsvRows::new(bytes)?))),
            FileFormat::Jsonl => Ok(Self(Box::new(JsonRows::new(bytes)))),
            FileFormat::Parquet => {
                let mut whole = Vec::new();
                bytes.read_to_end(&mut whole)?;
                Self::parquet(ParquetRecordBatchReaderBuilder::try_new(Bytes::from(whole))?)
            }
        }
    }

    fn parquet<T: parquet::file::reader::ChunkReader + 'static>(
        builder: ParquetRecordBatchReaderBuilder<T>,
    ) -> Result<Self> {
        let reader = builder.with_batch_size(PARQUET_BATCH_ROWS).build()?;
        Ok(Self(Box::new(ParquetRows { reader, batch: Vec::new().into_iter(), rows: 0 })))
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

struct CsvRows {
    reader: csv::Reader<BufReader<Box<dyn Read + Send>>>,
    names: Vec<Arc<str>>,
    record: csv::StringRecord,
    started: bool,
}

impl CsvRows {
    fn new(bytes: impl Read + Send + 'static) -> Result<Self> {
        let bytes: Box<dyn Read + Send> = Box::new(bytes);
        let mut input = BufReader::with_capacity(READ_AHEAD_BYTES, bytes);
        let delimiter = delimiter(input.fill_buf()?);
        let mut reader = csv::ReaderBuilder::new().flexible(true).delimiter(delimiter).from_reader(input);
        let names = tidy_names(reader.headers()?.iter());
        Ok(Self { reader, names, record: csv::StringRecord::new(), started: false })
    }

    fn row(&mut self) -> Result<Option<Row>> {
        if !self.reader.read_record(&mut self.record)? {
            return Ok(None);
        }
        let place = Place::Line(self.record.position().map_or(0, csv::Position::line));
        if !std::mem::replace(&mut self.started, true) && self.record.len() == self.names.len() + 1 {
            self.names.insert(0, ROW_NUMBER.into());
        }
        if self.record.len() > self.names.len() {
            let (cells, names) = (self.record.len(), self.names.len());
            return Err(anyhow!("{place} has {cells} cells, but the header has {names} names"));
        }
        let cells =
            self.names.iter().zip(&self.record).map(|(name, cell)| (name.clone(), Value::infer(cell)));
        Ok(Some(Row { place, cells: cells.collect() }))
    }
}

impl Iterator for CsvRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}

/// Whichever of comma, semicolon and tab is most frequent in the first line.
fn delimiter(head: &[u8]) -> u8 {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| line.iter().filter(|byte| **byte == delimiter).count();
    if count(b';') > count(b',') && count(b';') >= count(b'\t') {
        return b';';
    }
    if count(b'\t') > count(b',') { b'\t' } else { b',' }
}

struct JsonRows {
    lines: std::io::Lines<BufReader<Box<dyn Read + Send>>>,
    line: u64,
}

impl JsonRows {
    fn new(bytes: impl Read + Send + 'static) -> Self {
        let bytes: Box<dyn Read + Send> = Box::new(bytes);
        Self { lines: BufReader::with_capacity(READ_AHEAD_BYTES, bytes).lines(), line: 0 }
    }
}

impl Iterator for JsonRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line += 1;
            match self.lines.next()? {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => return Some(json_row(&text, Place::Line(self.line))),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

struct ParquetRows {
    reader: ParquetRecordBatchReader,
    batch: std::vec::IntoIter<String>,
    rows: u64,
}

impl Iterator for ParquetRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(text) = self.batch.next() {
                self.rows += 1;
                return Some(json_row(&text, Place::Row(self.rows)));
            }
            match self.reader.next()?.map_err(Into::into).and_then(|batch| json_lines(&batch)) {
                Ok(lines) => self.batch = lines.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The rows of a batch as JSON objects. Floating-point numbers are written so that they read back the same.
fn json_lines(batch: &RecordBatch) -> Result<Vec<String>> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner())?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn json_row(text: &str, place: Place) -> Result<Row> {
    let fields = json::fields(text).with_context(|| format!("{place} is no JSON object"))?;
    let cells = fields.into_iter().map(|(name, value)| (tidy_name(&name).into(), value)).collect();
    Ok(Row { place, cells })
}
