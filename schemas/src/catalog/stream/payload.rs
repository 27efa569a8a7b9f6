//! What a stream document says about payloads: `format`, `compression`, `csv`.

use serde::{Deserialize, Serialize};

use super::TimeUnitName;

/// How payloads are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON object, or an array of objects.
    #[default]
    Json,
    /// JSON objects, one a line.
    JsonLines,
    /// Sparkplug B: births, data and deaths of edge nodes and their devices, as protobuf.
    SparkplugB,
    /// Lines of InfluxDB's line protocol.
    LineProtocol,
    /// A CBOR map, or an array of maps (RFC 8949).
    Cbor,
    /// A MessagePack map, or an array of maps.
    Msgpack,
    /// A SenML pack in JSON (RFC 8428).
    SenmlJson,
    /// A SenML pack in CBOR.
    SenmlCbor,
    /// Lines of comma-separated values (RFC 4180).
    Csv,
    /// What the content type of the message says (MQTT 5); JSON if it says nothing.
    Auto,
}

/// The content types of the formats, in lower case and without parameters.
const CONTENT_TYPES: [(&str, Format); 18] = [
    ("application/json", Format::Json),
    ("text/json", Format::Json),
    ("application/x-ndjson", Format::JsonLines),
    ("application/ndjson", Format::JsonLines),
    ("application/jsonl", Format::JsonLines),
    ("application/x-jsonlines", Format::JsonLines),
    ("application/vnd.influx.line-protocol", Format::LineProtocol),
    ("application/vnd.influxdata.line-protocol", Format::LineProtocol),
    ("text/vnd.influx.line-protocol", Format::LineProtocol),
    ("application/cbor", Format::Cbor),
    ("application/msgpack", Format::Msgpack),
    ("application/x-msgpack", Format::Msgpack),
    ("application/vnd.msgpack", Format::Msgpack),
    ("application/senml+json", Format::SenmlJson),
    ("application/sensml+json", Format::SenmlJson),
    ("application/senml+cbor", Format::SenmlCbor),
    ("application/sensml+cbor", Format::SenmlCbor),
    ("text/csv", Format::Csv),
];

impl Format {
    /// All formats.
    pub const ALL: [Self; 10] = [
        Self::Json,
        Self::JsonLines,
        Self::SparkplugB,
        Self::LineProtocol,
        Self::Cbor,
        Self::Msgpack,
        Self::SenmlJson,
        Self::SenmlCbor,
        Self::Csv,
        Self::Auto,
    ];

    /// The word that the catalog has for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::JsonLines => "json_lines",
            Self::SparkplugB => "sparkplug_b",
            Self::LineProtocol => "line_protocol",
            Self::Cbor => "cbor",
            Self::Msgpack => "msgpack",
            Self::SenmlJson => "senml_json",
            Self::SenmlCbor => "senml_cbor",
            Self::Csv => "csv",
            Self::Auto => "auto",
        }
    }

    /// The format that a content type means. Parameters (`; charset=utf-8`) and case do not matter.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let known = CONTENT_TYPES.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name));
        known.map(|(_, format)| *format)
    }

    /// The unit of an event time that is a number, unless the stream says another.
    pub fn time_unit(self) -> TimeUnitName {
        match self {
            Self::LineProtocol => TimeUnitName::Ns,
            _ => TimeUnitName::Ms,
        }
    }

    /// Whether its payloads are text, which may begin with a byte order mark. CSV's reader knows of it.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Json | Self::JsonLines | Self::Auto | Self::LineProtocol | Self::SenmlJson)
    }

    /// Whether its events are objects, which can hold an array of others.
    pub(super) fn has_objects(self) -> bool {
        matches!(self, Self::Json | Self::JsonLines | Self::Cbor | Self::Msgpack | Self::Auto)
    }
}

/// Whether payloads are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Gzip and Zstandard are recognised by their first bytes. No payload of any format begins like them: in text
    /// these bytes cannot stand, and in the binary formats they mean a number where an object must be.
    #[default]
    Auto,
    /// Every payload is compressed with gzip.
    Gzip,
    /// Every payload is compressed with Zstandard.
    Zstd,
    /// No payload is compressed.
    None,
}

/// How the lines of a CSV payload are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CsvDef {
    /// The fields in the order of the cells. Empty: the first line of every payload names them.
    pub columns: Vec<String>,
    /// What separates the cells: one ASCII character.
    pub delimiter: char,
}

impl Default for CsvDef {
    fn default() -> Self {
        Self { columns: Vec::new(), delimiter: ',' }
    }
}

impl CsvDef {
    pub(super) fn check(&self) -> Result<(), String> {
        let delimiter = self.delimiter;
        if !delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r') {
            return Err(format!(
                "the `delimiter` {delimiter:?} cannot separate cells; use one of , ; | or a tab"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_recognised_whatever_their_case_and_parameters() {
        let check = |text: &str, expect: Option<Format>| {
            assert_eq!(Format::of_content_type(text), expect, "{text}");
        };
        check("application/json", Some(Format::Json));
        check(" Application/SenML+CBOR ; x=y", Some(Format::SenmlCbor));
        check("text/csv; header=present", Some(Format::Csv));
        check("application/xml", None);
        check("", None);
    }
}
