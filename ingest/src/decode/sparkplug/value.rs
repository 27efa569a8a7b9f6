//! What a sent value means under its data type: a scalar of a column, or JSON text for what has no column type.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value as Json};

use crate::decode::staging::Scalar;

use super::payload::{Content, messages};
use super::wire::{Fields, Malformed, Value, varint};

/// Property sets may lie in each other this deep.
const MAX_DEPTH: usize = 8;
/// The properties of a metric may take up this much; real ones are a few dozen bytes.
const MAX_PROPERTY_BYTES: usize = 64 << 10;
/// Rows and cells of a data set. An empty one is two bytes in the payload and many more as JSON.
const MAX_CELLS: usize = 100_000;

/// The data types, as far as they differ in what values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataType {
    Signed(u32),
    Unsigned(u32),
    Float,
    Double,
    Boolean,
    Text,
    Time,
    DataSet,
    Bytes,
    Array(Element),
    /// None is given: the form of the value says it, except for integers.
    Unknown,
}

/// What an array holds; the number is the size of an element in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Signed(u32),
    Unsigned(u32),
    Float,
    Double,
    Boolean,
    Text,
}

impl DataType {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unknown,
            1..=4 => Self::Signed(4 << number),
            5..=8 => Self::Unsigned(4 << (number - 4)),
            9 => Self::Float,
            10 => Self::Double,
            11 => Self::Boolean,
            // String, Text, UUID.
            12 | 14 | 15 => Self::Text,
            13 => Self::Time,
            16 => Self::DataSet,
            // Bytes, File.
            17 | 18 => Self::Bytes,
            22..=25 => Self::Array(Element::Signed(4 << (number - 21))),
            26..=29 => Self::Array(Element::Unsigned(4 << (number - 25))),
            30 => Self::Array(Element::Float),
            31 => Self::Array(Element::Double),
            32 => Self::Array(Element::Boolean),
            33 => Self::Array(Element::Text),
            // Times are milliseconds since 1970.
            34 => Self::Array(Element::Signed(64)),
            _ => return None,
        })
    }
}

/// A value on its way into a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Meaning<'a> {
    Null,
    Scalar(Scalar<'a>),
    /// JSON, or base64.
    Text(String),
}

/// What `content` means under the data type of that number, or why it cannot mean anything.
pub(super) fn meaning(datatype: u32, content: Content<'_>) -> Result<Meaning<'_>, String> {
    let known = DataType::of(datatype).ok_or_else(|| format!("there is no data type {datatype}"))?;
    let misfit = || format!("a value of data type {datatype} cannot be {}", describe(content));
    let scalar = match (known, content) {
        (DataType::Signed(bits), Content::Int(v)) => {
            Scalar::Integer(signed(v.into(), 32, bits).ok_or_else(misfit)?)
        }
        (DataType::Signed(bits), Content::Long(v)) => {
            Scalar::Integer(signed(v, 64, bits).ok_or_else(misfit)?)
        }
        (DataType::Unsigned(bits), Content::Int(v)) => unsigned(v.into(), bits).ok_or_else(misfit)?,
        (DataType::Unsigned(bits), Content::Long(v)) => unsigned(v, bits).ok_or_else(misfit)?,
        (DataType::Float | DataType::Double | DataType::Unknown, Content::Float(v)) => {
            return Ok(finite(v.into()));
        }
        (DataType::Float | DataType::Double | DataType::Unknown, Content::Double(v)) => return Ok(finite(v)),
        (DataType::Boolean | DataType::Unknown, Content::Boolean(v)) => Scalar::Boolean(v),
        (DataType::Text | DataType::Unknown, Content::Text(v)) => Scalar::Text(v),
        (DataType::Time, Content::Int(v)) => Scalar::Instant(i64::from(v) * 1_000),
        (DataType::Time, Content::Long(v)) => Scalar::Instant(micros(v).ok_or_else(misfit)?),
        (DataType::DataSet | DataType::Unknown, Content::DataSet(bytes)) => {
            return data_set(bytes).map(|json| Meaning::Text(json.to_string()));
        }
        (DataType::Bytes | DataType::Unknown, Content::Bytes(bytes)) => {
            return Ok(Meaning::Text(STANDARD.encode(bytes)));
        }
        (DataType::Array(element), Content::Bytes(bytes)) => return array(element, bytes).map(Meaning::Text),
        _ => return Err(misfit()),
    };
    Ok(Meaning::Scalar(scalar))
}

/// Milliseconds since 1970 as microseconds; `None` if they do not fit.
pub(super) fn micros(millis: u64) -> Option<i64> {
    i64::try_from(millis).ok()?.checked_mul(1_000)
}

fn describe(content: Content<'_>) -> String {
    match content {
        Content::Int(v) => format!("the integer `{v}`"),
        Content::Long(v) => format!("the long integer `{v}`"),
        Content::Float(_) | Content::Double(_) => "a number with a fraction".into(),
        Content::Boolean(v) => format!("`{v}`"),
        Content::Text(v) => format!("the text `{}`", crate::decode::shorten(v)),
        Content::Bytes(_) => "bytes".into(),
        Content::DataSet(_) => "a data set".into(),
        Content::Template(_) => "a template".into(),
        Content::Extension => "an extension".into(),
    }
}

/// A number that is none (NaN, infinity) is as good as no value: no table could add it up.
fn finite(value: f64) -> Meaning<'static> {
    if value.is_finite() { Meaning::Scalar(Scalar::Float(value)) } else { Meaning::Null }
}

/// A signed integer of so many bits. Some encoders extend its sign to the whole of the field and some do not.
fn signed(value: u64, field_bits: u32, bits: u32) -> Option<i64> {
    let extend = |from: u32| ((value << (64 - from)) as i64) >> (64 - from);
    if bits == 64 || value >> bits == 0 {
        return Some(extend(bits));
    }
    (extend(field_bits) == extend(bits)).then(|| extend(bits))
}

fn unsigned(value: u64, bits: u32) -> Option<Scalar<'static>> {
    (bits == 64 || value >> bits == 0)
        .then(|| i64::try_from(value).map_or(Scalar::Unsigned(value), Scalar::Integer))
}

fn number(value: f64) -> Json {
    Number::from_f64(value).map_or(Json::Null, Json::Number)
}

/// An array as JSON text.
fn array(element: Element, bytes: &[u8]) -> Result<String, String> {
    let size = match element {
        Element::Signed(bits) | Element::Unsigned(bits) => bits as usize / 8,
        Element::Float => 4,
        Element::Double => 8,
        Element::Boolean => return booleans(bytes),
        Element::Text => return texts(bytes),
    };
    if !bytes.len().is_multiple_of(size) {
        return Err(format!("an array of {} bytes cannot hold elements of {size}", bytes.len()));
    }
    let mut json = String::from("[");
    for chunk in bytes.chunks_exact(size) {
        if json.len() > 1 {
            json.push(',');
        }
        let raw = chunk.iter().rev().fold(0, |raw, byte| raw << 8 | u64::from(*byte));
        let value = match element {
            Element::Signed(bits) => signed(raw, bits, bits).map_or(Json::Null, Json::from),
            Element::Float => number(f32::from_bits(raw as u32).into()),
            Element::Double => number(f64::from_bits(raw)),
            _ => Json::from(raw),
        };
        // Writing to a text cannot fail.
        _ = write!(json, "{value}");
    }
    json.push(']');
    Ok(json)
}

/// How many, as four bytes, then their bits from the highest down.
fn booleans(bytes: &[u8]) -> Result<String, String> {
    let (count, bits) =
        bytes.split_first_chunk::<4>().ok_or("an array of booleans begins with their number")?;
    let count = u32::from_le_bytes(*count) as usize;
    if count.div_ceil(8) != bits.len() {
        return Err(format!("an array of {count} booleans does not take up {} bytes", bits.len()));
    }
    let all = bits.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1));
    Ok(Json::from(all.take(count).collect::<Vec<bool>>()).to_string())
}

/// Each ends with a zero.
fn texts(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "an array of texts is not UTF-8")?;
    let all: Vec<&str> = text.split_terminator('\0').collect();
    Ok(Json::from(all).to_string())
}

/// A data set as `{"columns": [...], "rows": [[...], ...]}`.
fn data_set(bytes: &[u8]) -> Result<Json, String> {
    let (mut columns, mut types) = (Vec::new(), Vec::new());
    for field in Fields::of(bytes) {
        match field.map_err(malformed)? {
            (2, name) => columns.push(name.text().map_err(malformed)?),
            (3, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    types.push(varint(&mut packed).map_err(malformed)? as u32);
                }
            }
            (3, one) => types.push(one.varint().map_err(malformed)? as u32),
            _ => {}
        }
    }
    if columns.len() != types.len() {
        return Err(format!("a data set has {} columns and {} types", columns.len(), types.len()));
    }
    let mut rows = Vec::new();
    for row in messages(bytes, 4, Ok) {
        if (rows.len() + 1) * (columns.len() + 1) > MAX_CELLS {
            return Err(format!("a data set has more than {MAX_CELLS} cells"));
        }
        let mut cells = Vec::with_capacity(columns.len());
        for cell in messages(row.map_err(malformed)?, 1, Ok) {
            let datatype = types.get(cells.len()).ok_or("a row of a data set has too many cells")?;
            cells.push(cell_of(*datatype, cell.map_err(malformed)?)?);
        }
        if cells.len() != columns.len() {
            return Err("a row of a data set has too few cells".into());
        }
        rows.push(Json::from(cells));
    }
    Ok(serde_json::json!({ "columns": columns, "rows": rows }))
}

fn cell_of(datatype: u32, bytes: &[u8]) -> Result<Json, String> {
    let mut content = None;
    for field in Fields::of(bytes) {
        let (number, value) = field.map_err(malformed)?;
        if (1..=7).contains(&number) {
            content = Some(Content::scalar(number - 1, value).map_err(malformed)?);
        }
    }
    content.map_or(Ok(Json::Null), |content| as_json(datatype, content))
}

fn as_json(datatype: u32, content: Content<'_>) -> Result<Json, String> {
    Ok(match meaning(datatype, content)? {
        Meaning::Null => Json::Null,
        Meaning::Text(text) => Json::from(text),
        Meaning::Scalar(Scalar::Boolean(v)) => Json::from(v),
        Meaning::Scalar(Scalar::Integer(v)) => Json::from(v),
        Meaning::Scalar(Scalar::Unsigned(v)) => Json::from(v),
        Meaning::Scalar(Scalar::Float(v) | Scalar::Huge(v)) => number(v),
        Meaning::Scalar(Scalar::Text(v)) => Json::from(v),
        // As it was sent.
        Meaning::Scalar(Scalar::Instant(micros)) => Json::from(micros / 1_000),
    })
}

/// A property set as a JSON object.
pub(super) fn properties(bytes: &[u8]) -> Result<Json, String> {
    if bytes.len() > MAX_PROPERTY_BYTES {
        return Err(format!("the properties of a metric take up more than {MAX_PROPERTY_BYTES} bytes"));
    }
    property_set(bytes, 1)
}

fn property_set(bytes: &[u8], depth: usize) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!("property sets may lie in each other at most {MAX_DEPTH} deep"));
    }
    let mut keys = Vec::new();
    for field in Fields::of(bytes) {
        if let (1, key) = field.map_err(malformed)? {
            keys.push(key.text().map_err(malformed)?);
        }
    }
    let mut set = Map::new();
    for (i, value) in messages(bytes, 2, Ok).enumerate() {
        let key = keys.get(i).ok_or("a property has no key")?;
        set.insert((*key).to_owned(), property(value.map_err(malformed)?, depth)?);
    }
    Ok(Json::Object(set))
}

fn property(bytes: &[u8], depth: usize) -> Result<Json, String> {
    let (mut datatype, mut is_null, mut content, mut nested) = (0, false, None, None);
    for field in Fields::of(bytes) {
        let (number, value) = field.map_err(malformed)?;
        match number {
            1 => datatype = value.varint().map_err(malformed)? as u32,
            2 => is_null = value.flag().map_err(malformed)?,
            3..=8 => content = Some(Content::scalar(number - 3, value).map_err(malformed)?),
            9 => nested = Some(property_set(value.bytes().map_err(malformed)?, depth + 1)?),
            10 => {
                let sets = messages(value.bytes().map_err(malformed)?, 1, Ok);
                let sets = sets.map(|set| property_set(set.map_err(malformed)?, depth + 1));
                nested = Some(Json::from(sets.collect::<Result<Vec<Json>, String>>()?));
            }
            _ => {}
        }
    }
    match (is_null, nested, content) {
        (false, Some(nested), _) => Ok(nested),
        (false, None, Some(content)) => as_json(datatype, content),
        _ => Ok(Json::Null),
    }
}

/// The data type of a template.
pub(super) const TEMPLATE: u32 = 19;

/// The reason for a dead letter whose bytes are no Sparkplug payload.
pub(super) fn malformed(Malformed(why): Malformed) -> String {
    format!("not usable as Sparkplug B: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_their_sign_whatever_their_encoder_thought_of_it() {
        let check = |datatype, content, expect: Option<i64>| {
            let found = meaning(datatype, content).ok();
            assert_eq!(found, expect.map(|v| Meaning::Scalar(Scalar::Integer(v))), "{datatype} {content:?}");
        };
        check(1, Content::Int(0xff), Some(-1));
        check(1, Content::Int(0xffff_ff80), Some(-128));
        check(1, Content::Int(128), Some(-128));
        check(1, Content::Int(300), None);
        check(2, Content::Int(0x8000), Some(-32_768));
        check(3, Content::Int(u32::MAX), Some(-1));
        check(3, Content::Long(u64::from(u32::MAX)), Some(-1));
        check(3, Content::Long(u64::MAX), Some(-1));
        check(3, Content::Long(1 << 32), None);
        check(4, Content::Long(u64::MAX), Some(-1));
        check(4, Content::Int(u32::MAX), Some(i64::from(u32::MAX)));
        check(5, Content::Int(255), Some(255));
        check(5, Content::Int(256), None);
        check(7, Content::Int(u32::MAX), Some(i64::from(u32::MAX)));
        check(8, Content::Long(7), Some(7));
        check(9, Content::Int(7), None);
        check(11, Content::Int(1), None);
        check(0, Content::Int(1), None);
        check(99, Content::Int(1), None);
        assert_eq!(meaning(8, Content::Long(u64::MAX)), Ok(Meaning::Scalar(Scalar::Unsigned(u64::MAX))));
    }

    #[test]
    fn what_no_column_can_hold_is_text_or_null() {
        let text = |datatype, bytes: &[u8]| match meaning(datatype, Content::Bytes(bytes)) {
            Ok(Meaning::Text(text)) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(text(22, &[1, 0xff]), "[1,-1]");
        assert_eq!(text(26, &[1, 0xff]), "[1,255]");
        assert_eq!(text(25, &i64::MIN.to_le_bytes()), "[-9223372036854775808]");
        assert_eq!(text(30, &[1.5f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat()), "[1.5,null]");
        assert_eq!(text(31, &[]), "[]");
        assert_eq!(text(32, &[3, 0, 0, 0, 0b1010_0000]), "[true,false,true]");
        assert_eq!(text(33, b"a\0\"b\0"), r#"["a","\"b"]"#);
        assert_eq!(text(17, b"\x00\xff"), "AP8=");
        for (datatype, bytes) in [(23, &[1][..]), (32, &[]), (32, &[255, 255, 255, 255, 0]), (33, &[0xff])] {
            meaning(datatype, Content::Bytes(bytes)).expect_err("a damaged array");
        }
        assert_eq!(meaning(9, Content::Float(f32::NAN)), Ok(Meaning::Null));
        assert_eq!(meaning(10, Content::Double(f64::INFINITY)), Ok(Meaning::Null));
    }
}
