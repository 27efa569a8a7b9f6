//! Rows as bytes.
//!
//! The text formats write instants as RFC 3339 in UTC, 64-bit integers as numbers, NULL as `null` (CSV: nothing)
//! and what JSON has no number for (NaN, infinities) as `null`. The binary formats carry the rows as they are.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, make_array};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json;
use arrow::json::writer::{JsonArray, JsonFormat, LineDelimited};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::columns::columns;
use super::format::Format;
use crate::query::Answer;
use iot_schemas::{Error, Result};

/// `2026-11-24T10:00:00Z`, with as many decimals as needed.
const INSTANT: &str = "%Y-%m-%dT%H:%M:%S%.fZ";
/// The same for instants within lists and structs, which keep their time zone.
const NESTED_INSTANT: &str = "%Y-%m-%dT%H:%M:%S%.f%:z";

/// The whole answer in one format. Only JSON has room for the provenance; for the others it is in the headers.
pub(super) fn encode(answer: &Answer, format: Format) -> Result<Vec<u8>> {
    let Answer { schema, batches, .. } = answer;
    let rows = match format {
        Format::Json => return json(answer),
        Format::JsonLines => json_rows::<LineDelimited>(Vec::new(), batches),
        Format::Csv => csv_rows(schema, batches),
        Format::Arrow => arrow_stream(schema, batches),
        Format::Parquet => parquet_file(schema, batches).map_err(ArrowError::from),
    };
    rows.map_err(|e| cannot_be_written(format, &e))
}

/// One JSON object per line and row.
pub(crate) fn json_lines(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    json_rows::<LineDelimited>(Vec::new(), batches).map_err(|e| cannot_be_written(Format::JsonLines, &e))
}

/// `{"columns": [...], "rows": [...], "meta": {...}}`
fn json(answer: &Answer) -> Result<Vec<u8>> {
    let failed = |e: serde_json::Error| Error::invalid(format!("the answer cannot be written as JSON: {e}"));
    let mut out = b"{\"columns\":".to_vec();
    serde_json::to_writer(&mut out, &columns(&answer.schema)).map_err(failed)?;
    out.extend_from_slice(b",\"rows\":");
    let mut out =
        json_rows::<JsonArray>(out, &answer.batches).map_err(|e| cannot_be_written(Format::Json, &e))?;
    out.extend_from_slice(b",\"meta\":");
    serde_json::to_writer(&mut out, &answer.meta).map_err(failed)?;
    out.extend_from_slice(b"}");
    Ok(out)
}

fn json_rows<F: JsonFormat>(out: Vec<u8>, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_timestamp_format(INSTANT.to_owned())
        .with_timestamp_tz_format(NESTED_INSTANT.to_owned())
        .build::<_, F>(out);
    for batch in batches {
        writer.write(&without_time_zones(batch)?)?;
    }
    writer.finish()?;
    Ok(writer.into_inner())
}

fn csv_rows(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = csv::WriterBuilder::new().with_timestamp_format(INSTANT.to_owned()).build(Vec::new());
    // The header is written with the first batch, so there must be one.
    writer.write(&with_maps_as_text(RecordBatch::new_empty(schema.clone()))?)?;
    for batch in batches {
        writer.write(&with_maps_as_text(without_time_zones(batch)?)?)?;
    }
    Ok(writer.into_inner())
}

/// CSV has no maps: they are written as `{key: value}`.
fn with_maps_as_text(batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    if schema.fields().iter().all(|field| !matches!(field.data_type(), DataType::Map(..))) {
        return Ok(batch);
    }
    let options = FormatOptions::new().with_null("");
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, array)| {
        let DataType::Map(..) = field.data_type() else { return Ok((field.name(), array.clone())) };
        let texts = ArrayFormatter::try_new(array, &options)?;
        let texts = (0..array.len()).map(|row| texts.value(row).try_to_string().map(Some));
        Ok((field.name(), Arc::new(texts.collect::<Result<StringArray, ArrowError>>()?) as ArrayRef))
    });
    RecordBatch::try_from_iter_with_nullable(
        columns
            .collect::<Result<Vec<_>, ArrowError>>()?
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
}

fn arrow_stream(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.into_inner()
}

fn parquet_file(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ParquetError> {
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.into_inner()
}

/// The same instants, of which the writers know that they are in UTC.
fn without_time_zones(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let array = without_time_zone(array)?;
        fields.push(Field::new(field.name(), array.data_type().clone(), field.is_nullable()));
        arrays.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
}

fn without_time_zone(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let DataType::Timestamp(unit, Some(_)) = array.data_type() else { return Ok(array.clone()) };
    let data = array.to_data().into_builder().data_type(DataType::Timestamp(*unit, None)).build()?;
    Ok(make_array(data))
}

fn cannot_be_written(format: Format, error: &ArrowError) -> Error {
    Error::invalid(format!(
        "the answer cannot be written as {}: {error}; cast the column",
        format.content_type()
    ))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, MapBuilder, StringBuilder, TimestampMicrosecondArray};
    use arrow::ipc::reader::StreamReader;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::query::Meta;

    fn answer() -> Answer {
        let at = TimestampMicrosecondArray::from(vec![1_700_000_000_000_000, 1_700_000_000_250_000]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("at", Arc::new(at.with_timezone("UTC")) as ArrayRef, false),
            ("device_id", Arc::new(StringArray::from(vec!["a, \"b\"", "c"])), false),
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MAX), None])), true),
            ("x", Arc::new(Float64Array::from(vec![1.5, f64::NAN])), true),
        ])
        .unwrap();
        Answer { schema: batch.schema(), batches: vec![batch], meta: Meta::default() }
    }

    fn empty() -> Answer {
        Answer { batches: Vec::new(), ..answer() }
    }

    #[track_caller]
    fn check(answer: &Answer, format: Format, expect: &str) {
        assert_eq!(String::from_utf8(encode(answer, format).unwrap()).unwrap(), expect);
    }

    #[test]
    fn csv_has_maps_as_text() {
        let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        labels.keys().append_value("site");
        labels.values().append_value("north");
        labels.append(true).unwrap();
        labels.append(true).unwrap();
        let batch = RecordBatch::try_from_iter([("labels", Arc::new(labels.finish()) as ArrayRef)]).unwrap();
        let answer = Answer { schema: batch.schema(), batches: vec![batch], meta: Meta::default() };
        let text = String::from_utf8(encode(&answer, Format::Csv).unwrap()).unwrap();
        assert_eq!(text, "labels\n{site: north}\n{}\n");
    }

    #[test]
    fn json_lines_have_exact_integers_nulls_and_utc() {
        let expect = concat!(
            "{\"at\":\"2023-11-14T22:13:20Z\",\"device_id\":\"a, \\\"b\\\"\",\"n\":9223372036854775807,\"x\":1.5}\n",
            "{\"at\":\"2023-11-14T22:13:20.250Z\",\"device_id\":\"c\",\"n\":null,\"x\":null}\n",
        );
        check(&answer(), Format::JsonLines, expect);
        check(&empty(), Format::JsonLines, "");
    }

    #[test]
    fn csv_has_a_header_even_without_rows() {
        let expect = concat!(
            "at,device_id,n,x\n",
            "2023-11-14T22:13:20Z,\"a, \"\"b\"\"\",9223372036854775807,1.5\n",
            "2023-11-14T22:13:20.250Z,c,,NaN\n",
        );
        check(&answer(), Format::Csv, expect);
        check(&empty(), Format::Csv, "at,device_id,n,x\n");
    }

    #[test]
    fn json_carries_columns_and_provenance_even_without_rows() {
        let value: serde_json::Value =
            serde_json::from_slice(&encode(&empty(), Format::Json).unwrap()).unwrap();
        assert_eq!(value["rows"], serde_json::json!([]));
        assert_eq!(value["columns"][0], serde_json::json!({"name": "at", "type": "timestamp"}));
        assert_eq!(value["meta"]["layer"], "merged");
    }

    #[test]
    fn the_binary_formats_give_back_the_same_rows() {
        let answer = answer();
        let arrow = encode(&answer, Format::Arrow).unwrap();
        let read: Vec<_> =
            StreamReader::try_new(arrow.as_slice(), None).unwrap().map(Result::unwrap).collect();
        assert_eq!(format!("{read:?}"), format!("{:?}", answer.batches));

        let parquet = bytes::Bytes::from(encode(&answer, Format::Parquet).unwrap());
        let reader = ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().build().unwrap();
        let read: Vec<_> = reader.map(Result::unwrap).collect();
        assert_eq!(
            read[0].columns(),
            answer.batches[0].columns().iter().map(Clone::clone).collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_empty_answer_is_a_readable_file_in_the_binary_formats() {
        let arrow = encode(&empty(), Format::Arrow).unwrap();
        assert_eq!(StreamReader::try_new(arrow.as_slice(), None).unwrap().count(), 0);
        let parquet = bytes::Bytes::from(encode(&empty(), Format::Parquet).unwrap());
        assert_eq!(ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().schema().fields().len(), 4);
    }
}
