//! The messages of a Sparkplug B payload, borrowed from its bytes.

use super::wire::{Fields, Malformed, Value};

/// By which a payload says that its body is another one, compressed (Tahu and its relatives).
const COMPRESSED: &str = "SPBV1.0_COMPRESSED";

/// A payload's own fields. Its metrics are read one by one from [`Payload::metrics`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Payload<'a> {
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<u64>,
    pub(super) seq: Option<u64>,
    /// What kind of payload it is, if it says so.
    uuid: Option<&'a str>,
    /// What it carries besides its metrics.
    body: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut payload = Self { bytes, ..Self::default() };
        for field in Fields::of(bytes) {
            match field? {
                (1, value) => payload.timestamp = Some(value.varint()?),
                (3, value) => payload.seq = Some(value.varint()?),
                (4, value) => payload.uuid = Some(value.text()?),
                (5, value) => payload.body = value.bytes()?,
                _ => {}
            }
        }
        Ok(payload)
    }

    /// The payload that this one holds in compressed form, if it does.
    pub(super) fn compressed(&self) -> Option<&'a [u8]> {
        (self.uuid == Some(COMPRESSED)).then_some(self.body)
    }

    pub(super) fn metrics(&self) -> impl Iterator<Item = Result<Metric<'a>, Malformed>> + use<'a> {
        messages(self.bytes, 2, Metric::parse)
    }
}

/// A metric, or a member of a template.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Metric<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) alias: Option<u64>,
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<u64>,
    pub(super) datatype: Option<u32>,
    pub(super) is_historical: bool,
    pub(super) is_transient: bool,
    pub(super) is_null: bool,
    /// A property set.
    pub(super) properties: Option<&'a [u8]>,
    pub(super) value: Option<Content<'a>>,
}

impl<'a> Metric<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut metric = Self::default();
        for field in Fields::of(bytes) {
            let (number, value) = field?;
            match number {
                1 => metric.name = Some(value.text()?).filter(|name| !name.is_empty()),
                2 => metric.alias = Some(value.varint()?),
                3 => metric.timestamp = Some(value.varint()?),
                4 => metric.datatype = Some(value.varint()? as u32).filter(|datatype| *datatype != 0),
                5 => metric.is_historical = value.flag()?,
                6 => metric.is_transient = value.flag()?,
                7 => metric.is_null = value.flag()?,
                9 => metric.properties = Some(value.bytes()?),
                10..=15 => metric.value = Some(Content::scalar(number - 10, value)?),
                16 => metric.value = Some(Content::Bytes(value.bytes()?)),
                17 => metric.value = Some(Content::DataSet(value.bytes()?)),
                18 => metric.value = Some(Content::Template(value.bytes()?)),
                19 => metric.value = Some(Content::Extension),
                _ => {}
            }
        }
        Ok(metric)
    }

    /// The template that it holds.
    pub(super) fn template(&self) -> Result<Option<Template<'a>>, Malformed> {
        match self.value {
            Some(Content::Template(bytes)) if !self.is_null => Template::parse(bytes).map(Some),
            _ => Ok(None),
        }
    }
}

/// A value in the form in which it was sent. What it means depends on the metric's data type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content<'a> {
    Int(u32),
    Long(u64),
    Float(f32),
    Double(f64),
    Boolean(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
    DataSet(&'a [u8]),
    Template(&'a [u8]),
    /// Something that only its sender knows.
    Extension,
}

impl<'a> Content<'a> {
    /// The six forms that all kinds of values have, in the order of their field numbers.
    pub(super) fn scalar(form: u32, value: Value<'a>) -> Result<Self, Malformed> {
        Ok(match form {
            0 => Self::Int(value.varint()? as u32),
            1 => Self::Long(value.varint()?),
            2 => Self::Float(value.float()?),
            3 => Self::Double(value.double()?),
            4 => Self::Boolean(value.flag()?),
            5 => Self::Text(value.text()?),
            _ => Self::Extension,
        })
    }
}

/// A template: its definition, or an instance with values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Template<'a> {
    pub(super) is_definition: bool,
    bytes: &'a [u8],
}

impl<'a> Template<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut template = Self { bytes, is_definition: false };
        for field in Fields::of(bytes) {
            if let (5, value) = field? {
                template.is_definition = value.flag()?;
            }
        }
        Ok(template)
    }

    /// Its parameters, read as metrics, and its members.
    pub(super) fn members(&self) -> impl Iterator<Item = Result<Metric<'a>, Malformed>> + use<'a> {
        messages(self.bytes, 3, parameter).chain(messages(self.bytes, 2, Metric::parse))
    }
}

fn parameter(bytes: &[u8]) -> Result<Metric<'_>, Malformed> {
    let mut metric = Metric::default();
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => metric.name = Some(value.text()?).filter(|name| !name.is_empty()),
            (2, value) => metric.datatype = Some(value.varint()? as u32),
            (number @ 3..=9, value) => metric.value = Some(Content::scalar(number - 3, value)?),
            _ => {}
        }
    }
    Ok(metric)
}

/// The messages in the repeated field `number`.
pub(super) fn messages<'a, T>(
    bytes: &'a [u8],
    number: u32,
    parse: fn(&'a [u8]) -> Result<T, Malformed>,
) -> impl Iterator<Item = Result<T, Malformed>> + use<'a, T> {
    Fields::of(bytes).filter_map(move |field| match field {
        Ok((found, value)) if found == number => Some(value.bytes().and_then(parse)),
        Ok(_) => None,
        Err(e) => Some(Err(e)),
    })
}
