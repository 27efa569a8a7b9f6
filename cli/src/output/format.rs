//! Query results in the formats that people and programs ask for.

use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, LineDelimited, WriterBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use clap::ValueEnum;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::table::Table;

/// How a query's result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, NULL shown as nothing.
    #[default]
    Table,
    /// One JSON array of objects.
    Json,
    /// One JSON object a line.
    #[value(alias = "ndjson")]
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
    /// A Parquet file.
    Parquet,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// The format that a file's name asks for.
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            "arrow" | "arrows" | "ipc" => Some(Self::Arrow),
            _ => None,
        }
    }

    /// Whether it would garble a terminal.
    pub fn is_binary(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow)
    }
}

/// The result as bytes to print.
pub fn encode(format: Format, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    match format {
        Format::Table => table(schema, batches),
        Format::Json => json_array(batches),
        Format::Jsonl => json_lines(batches),
        Format::Csv => csv(schema, batches),
        Format::Parquet => parquet(schema, batches),
        Format::Arrow => arrow_stream(schema, batches),
    }
    .with_context(|| format!("cannot write the result as {}", name(format)))
}

fn name(format: Format) -> String {
    format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn table(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let columns = schema.fields().iter().map(|field| (field.name().clone(), is_number(field.data_type())));
    let mut table = Table::new(columns);
    for_each_row(batches, |cells| {
        table.push(cells);
        Ok(())
    })?;
    Ok(table.to_string().into_bytes())
}

fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => value.is_numeric(),
        other => other.is_numeric(),
    }
}

fn csv(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(schema.fields().iter().map(|field| field.name()))?;
    for_each_row(batches, |cells| Ok(writer.write_record(cells)?))?;
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

/// Calls `row` with the cells of each row as text: instants as RFC 3339, NULL as nothing.
fn for_each_row(batches: &[RecordBatch], mut row: impl FnMut(Vec<String>) -> Result<()>) -> Result<()> {
    let options = FormatOptions::new().with_display_error(false).with_null("");
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<_, _>>()?;
        for index in 0..batch.num_rows() {
            let cells = columns.iter().map(|column| column.value(index).try_to_string());
            row(cells.collect::<Result<_, _>>()?)?;
        }
    }
    Ok(())
}

fn json_array(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    let mut bytes = writer.into_inner();
    bytes.push(b'\n');
    Ok(bytes)
}

fn json_lines(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    Ok(writer.into_inner())
}

fn parquet(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?)
}

fn arrow_stream(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::ipc::reader::StreamReader;
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
    use serde_json::{Value, json};

    use super::*;

    fn result() -> (SchemaRef, Vec<RecordBatch>) {
        let times = TimestampMicrosecondArray::from(vec![Some(0), Some(1_500_000)]).with_timezone("UTC");
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("device_id", Arc::new(StringArray::from(vec!["a", "b,c"])) as ArrayRef, false),
            ("at", Arc::new(times) as ArrayRef, false),
            ("n", Arc::new(Int64Array::from(vec![Some(9_007_199_254_740_993), None])) as ArrayRef, true),
            ("mean", Arc::new(Float64Array::from(vec![Some(1.5), Some(20.25)])) as ArrayRef, true),
        ])
        .expect("a batch");
        (batch.schema(), vec![batch])
    }

    fn text(format: Format) -> String {
        let (schema, batches) = result();
        String::from_utf8(encode(format, &schema, &batches).expect("it encodes")).expect("UTF-8")
    }

    #[test]
    fn a_table_aligns_numbers_and_shows_null_as_nothing() {
        let expect = [
            " device_id | at                       |                n |  mean",
            "-----------+--------------------------+------------------+-------",
            " a         | 1970-01-01T00:00:00Z     | 9007199254740993 |   1.5",
            " b,c       | 1970-01-01T00:00:01.500Z |                  | 20.25",
        ];
        assert_eq!(text(Format::Table).lines().collect::<Vec<_>>(), expect);
    }

    #[test]
    fn csv_quotes_and_leaves_null_empty() {
        let expect = "device_id,at,n,mean\na,1970-01-01T00:00:00Z,9007199254740993,1.5\n\"b,c\",1970-01-01T00:00:01.500Z,,20.25\n";
        assert_eq!(text(Format::Csv), expect);
    }

    #[test]
    fn json_has_every_column_in_every_row() {
        let rows: Value = serde_json::from_str(&text(Format::Json)).expect("JSON");
        assert_eq!(
            rows[1],
            json!({"device_id": "b,c", "at": "1970-01-01T00:00:01.500Z", "n": null, "mean": 20.25})
        );
        assert_eq!(rows[0]["n"], json!(9_007_199_254_740_993_i64));
        assert_eq!(text(Format::Jsonl).lines().count(), 2);
    }

    #[test]
    fn no_rows_are_an_empty_array() {
        let (schema, _) = result();
        assert_eq!(encode(Format::Json, &schema, &[]).expect("it encodes"), b"[]\n");
        assert_eq!(encode(Format::Jsonl, &schema, &[]).expect("it encodes"), b"");
    }

    #[test]
    fn binary_formats_read_back_as_they_were() {
        let (schema, batches) = result();
        let bytes = encode(Format::Parquet, &schema, &batches).expect("it encodes");
        let read = ParquetRecordBatchReader::try_new(Bytes::from(bytes), 100).expect("a Parquet file");
        assert_eq!(read.collect::<Result<Vec<_>, _>>().expect("rows"), batches);
        let bytes = encode(Format::Arrow, &schema, &batches).expect("it encodes");
        let read = StreamReader::try_new(bytes.as_slice(), None).expect("an Arrow stream");
        assert_eq!(read.collect::<Result<Vec<_>, _>>().expect("rows"), batches);
    }

    #[test]
    fn a_files_name_chooses_the_format() {
        assert_eq!(Format::of_file(Path::new("x/y.parquet")), Some(Format::Parquet));
        assert_eq!(Format::of_file(Path::new("x/y.txt")), None);
    }
}
