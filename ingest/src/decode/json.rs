//! JSON payloads: an object is an event, an array of objects is several.
//!
//! The text goes straight into typed values; no tree is built. Nested objects are flattened (`gps.lat` is the
//! column `gps_lat`), nested arrays are kept as JSON text.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use iot_schemas::catalog::UnknownFields;

use super::column::{Kind, Origin};
use super::fields::{Fields, Target};
use super::staging::{Failed, Scalar, Staging};

/// Objects may lie in each other this deep.
const MAX_DEPTH: usize = 8;

/// Collects the rows of `payload` in `staging`, or says why it is no good.
pub(crate) fn decode(payload: &[u8], fields: &mut Fields, staging: &mut Staging) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let mut sink = Sink { fields, staging, path: String::new() };
    let mut json = serde_json::Deserializer::from_slice(payload);
    let parsed = json.deserialize_any(Payload(&mut sink)).and_then(|()| json.end());
    if let Err(e) = parsed {
        return Err(sink.staging.failure.take().unwrap_or_else(|| format!("not usable as JSON: {e}")));
    }
    if sink.staging.suspect
        && let Some(literal) = oversized_integer(payload)
    {
        return Err(format!("the integer `{}` does not fit in 64 bits", super::shorten(literal)));
    }
    Ok(())
}

struct Sink<'a> {
    fields: &'a mut Fields,
    staging: &'a mut Staging,
    /// The flattened name of the field that is being read.
    path: String,
}

impl Sink<'_> {
    fn scalar<E: serde::de::Error>(&mut self, target: Target, scalar: Scalar<'_>) -> Result<(), E> {
        let taken = self.staging.take(self.fields, target, &self.path, scalar);
        taken.map_err(|Failed| E::custom(""))
    }

    fn refuse<T, E: serde::de::Error>(&mut self, expected: &str, found: &str) -> Result<T, E> {
        let refused = self.staging.refuse_shape(&self.path, expected, found);
        refused.map_err(|Failed| E::custom(""))
    }

    /// What a field must be, if it cannot be an object or an array.
    fn expects_scalar(&self, target: Target) -> Option<&'static str> {
        match target {
            Target::EventTime => Some("a time"),
            Target::DeviceId if self.staging.device_known => None,
            Target::DeviceId => Some("text"),
            Target::Column(at) if self.fields.columns[at].origin == Origin::Declared => {
                Some(self.fields.columns[at].kind().word())
            }
            _ => None,
        }
    }
}

/// The whole payload.
struct Payload<'a, 'b>(&'a mut Sink<'b>);

impl<'de> Visitor<'de> for Payload<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        event(self.0, map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Element(self.0))?.is_some() {}
        Ok(())
    }
}

/// An element of the outermost array.
struct Element<'a, 'b>(&'a mut Sink<'b>);

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object in the array")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        event(self.0, map)
    }
}

fn event<'de, A: MapAccess<'de>>(sink: &mut Sink<'_>, map: A) -> Result<(), A::Error> {
    sink.staging.begin_row();
    let mut position = 0;
    object(sink, map, 1, &mut position)?;
    sink.staging.end_row();
    Ok(())
}

/// The fields of an object; `position` counts the fields of the event over all its objects.
fn object<'de, A: MapAccess<'de>>(
    sink: &mut Sink<'_>,
    mut map: A,
    depth: usize,
    position: &mut usize,
) -> Result<(), A::Error> {
    let parent = sink.path.len();
    while let Some(target) = map.next_key_seed(Key { sink: &mut *sink, position: *position })? {
        *position += 1;
        map.next_value_seed(FieldValue { sink: &mut *sink, target, depth, position: &mut *position })?;
        sink.path.truncate(parent);
    }
    Ok(())
}

/// The name of a field: puts it on the path and finds out where its value goes.
struct Key<'a, 'b> {
    sink: &'a mut Sink<'b>,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Target;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Target, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_, '_> {
    type Value = Target;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Target, E> {
        let path = &mut self.sink.path;
        if !path.is_empty() {
            path.push('_');
        }
        path.push_str(key);
        Ok(self.sink.fields.resolve(path, self.position))
    }
}

/// The value of a field.
struct FieldValue<'a, 'b> {
    sink: &'a mut Sink<'b>,
    target: Target,
    depth: usize,
    position: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for FieldValue<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.target == Target::Skip {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(drop);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldValue<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Boolean(v))
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Integer(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<(), E> {
        self.sink.scalar(self.target, i64::try_from(v).map_or(Scalar::Unsigned(v), Scalar::Integer))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<(), E> {
        // An integer literal beyond 64 bits arrives as a double that has lost its last digits.
        self.sink.staging.suspect |= v.abs() >= 9_223_372_036_854_775_808.0;
        self.sink.scalar(self.target, Scalar::Float(v))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Text(v))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        // A null is as good as no field at all.
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        if let Some(expected) = self.sink.expects_scalar(self.target) {
            return self.sink.refuse(expected, "an object");
        }
        if self.depth >= MAX_DEPTH {
            return self.sink.refuse(&format!("objects at most {MAX_DEPTH} deep"), "a deeper one");
        }
        object(self.sink, map, self.depth + 1, self.position)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        let ignored = match self.target {
            Target::DeviceId => self.sink.staging.device_known,
            Target::Unknown => self.sink.fields.unknown == UnknownFields::Ignore,
            _ => false,
        };
        if ignored {
            return IgnoredAny.visit_seq(seq).map(drop);
        }
        let is_text = |at: usize| self.sink.fields.columns[at].kind() == Kind::Text;
        match self.target {
            Target::Column(at) if is_text(at) => {}
            Target::Unknown => {}
            _ => {
                let expected = self.sink.expects_scalar(self.target).unwrap_or("a single value");
                return self.sink.refuse(expected, "an array");
            }
        }
        // Rare, so a tree may be built. Its numbers have not been looked at one by one.
        let text = array_text(seq)?;
        self.sink.staging.suspect = true;
        self.sink.scalar(self.target, Scalar::Text(&text))
    }
}

/// The JSON text of an array whose `[` has been read already.
fn array_text<'de, A: SeqAccess<'de>>(seq: A) -> Result<String, A::Error> {
    let elements = serde::de::value::SeqAccessDeserializer::new(seq);
    serde_json::Value::deserialize(elements).map(|value| value.to_string())
}

/// The first integer literal of a valid JSON text that fits neither `i64` nor `u64`.
fn oversized_integer(json: &[u8]) -> Option<&str> {
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'"' => at = end_of_string(json, at + 1),
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = json[at..].iter().take_while(|b| is_part(b)).count();
                let literal = std::str::from_utf8(&json[at..at + length]).ok()?;
                let is_integer = !literal.contains(['.', 'e', 'E']);
                if is_integer && literal.parse::<i64>().is_err() && literal.parse::<u64>().is_err() {
                    return Some(literal);
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    None
}

/// The position after the closing quote of the string that `at` lies in.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while at < json.len() {
        match json[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}
