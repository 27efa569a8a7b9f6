//! JSON payloads: an object is an event, an array of objects is several.
//!
//! The text goes straight into typed values; no tree is built. Nested objects are flattened (`gps.lat` is the
//! column `gps_lat`), nested arrays are kept as JSON text.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use iot_schemas::catalog::UnknownFields;

use super::column::{Kind, Origin};
use super::fields::{Fields, Target};
use super::staging::{Failed, Scalar, Staging};

/// Objects may lie in each other this deep.
const MAX_DEPTH: usize = 8;
/// An array, which is kept as text, may be this deep: what readers of JSON take.
const MAX_ARRAY_DEPTH: usize = 100;

/// Collects the rows of `payload` in `staging`, or says why it is no good.
pub(crate) fn decode(payload: &[u8], fields: &mut Fields, staging: &mut Staging) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let mut sink = Sink { fields, staging, path: String::new(), by_the_letter: needs_letters(payload) };
    let mut json = serde_json::Deserializer::from_slice(payload);
    let parsed = json.deserialize_any(Payload(&mut sink)).and_then(|()| json.end());
    if let Err(e) = parsed {
        return Err(sink.staging.failure.take().unwrap_or_else(|| format!("not usable as JSON: {e}")));
    }
    Ok(())
}

/// Digits of a decimal number that the parser certainly turns into the nearest double.
const EXACT_DIGITS: usize = 15;
/// Digits of an integer that certainly fits in 64 bits.
const SAFE_DIGITS: usize = 18;

/// Whether values must be read from their letters instead of being parsed on the way.
///
/// The parser is fast, but its doubles may be off in the last place, and an integer beyond 64 bits becomes a
/// double; neither can happen to short numbers without exponent, which is what sensors send. The text of
/// nested arrays is needed too.
fn needs_letters(json: &[u8]) -> bool {
    let (mut digits, mut is_decimal) = (0, false);
    let outermost = json.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    for byte in &json[outermost + 1..] {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                if digits > if is_decimal { EXACT_DIGITS } else { SAFE_DIGITS } {
                    return true;
                }
            }
            b'.' => {
                is_decimal = true;
                if digits > EXACT_DIGITS {
                    return true;
                }
            }
            b'e' | b'E' if digits > 0 => return true,
            b'[' => return true,
            _ => (digits, is_decimal) = (0, false),
        }
    }
    false
}

struct Sink<'a> {
    fields: &'a mut Fields,
    staging: &'a mut Staging,
    /// The flattened name of the field that is being read.
    path: String,
    /// See [`needs_letters`].
    by_the_letter: bool,
}

impl Sink<'_> {
    fn scalar<E: Error>(&mut self, target: Target, scalar: Scalar<'_>) -> Result<(), E> {
        let taken = self.staging.take(self.fields, target, &self.path, scalar);
        taken.map_err(|Failed| E::custom(""))
    }

    fn refuse<T, E: Error>(&mut self, expected: &str, found: &str) -> Result<T, E> {
        let refused = self.staging.refuse_shape(&self.path, expected, found);
        refused.map_err(|Failed| E::custom(""))
    }

    /// What a field must be, if it cannot be an object or an array.
    fn expects_scalar(&self, target: Target) -> Option<&'static str> {
        match target {
            Target::EventTime | Target::EventTimeColumn(_) => Some("a time"),
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

    fn visit_str<E: Error>(self, key: &str) -> Result<Target, E> {
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
        if !self.sink.by_the_letter {
            return deserializer.deserialize_any(self);
        }
        let letters = <&RawValue>::deserialize(deserializer)?.get();
        match letters.as_bytes()[0] {
            b'-' | b'0'..=b'9' => self.number(letters),
            b'[' => self.array(letters),
            _ => serde_json::Deserializer::from_str(letters).deserialize_any(self).map_err(D::Error::custom),
        }
    }
}

impl FieldValue<'_, '_> {
    fn number<E: Error>(self, literal: &str) -> Result<(), E> {
        let scalar = if literal.contains(['.', 'e', 'E']) {
            let value = literal.parse().ok().filter(|value: &f64| value.is_finite());
            Scalar::Float(value.ok_or_else(|| E::custom("number out of range"))?)
        } else if let Ok(value) = literal.parse() {
            Scalar::Integer(value)
        } else if let Ok(value) = literal.parse() {
            Scalar::Unsigned(value)
        } else {
            let reason = format!("the integer `{}` does not fit in 64 bits", super::shorten(literal));
            return self.sink.staging.fail(reason).map_err(|Failed| E::custom(""));
        };
        self.sink.scalar(self.target, scalar)
    }

    /// An array is kept as its text.
    fn array<E: Error>(self, json: &str) -> Result<(), E> {
        let takes_text = match self.target {
            Target::DeviceId if self.sink.staging.device_known => return Ok(()),
            Target::Unknown if self.sink.fields.unknown == UnknownFields::Ignore => return Ok(()),
            Target::Unknown => true,
            Target::Column(at) => self.sink.fields.columns[at].kind() == Kind::Text,
            _ => false,
        };
        if !takes_text {
            let expected = self.sink.expects_scalar(self.target).unwrap_or("a single value");
            return self.sink.refuse(expected, "an array");
        }
        let json = compact(json);
        if depth(&json) > MAX_ARRAY_DEPTH {
            return self.sink.refuse(&format!("arrays at most {MAX_ARRAY_DEPTH} deep"), "a deeper one");
        }
        self.sink.scalar(self.target, Scalar::Text(&json))
    }
}

impl<'de> Visitor<'de> for FieldValue<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Boolean(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Integer(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<(), E> {
        self.sink.scalar(self.target, i64::try_from(v).map_or(Scalar::Unsigned(v), Scalar::Integer))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Float(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        self.sink.scalar(self.target, Scalar::Text(v))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
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
}

/// How deep objects and arrays lie in each other.
fn depth(json: &str) -> usize {
    let (mut in_string, mut escaped, mut depth, mut deepest) = (false, false, 0, 0);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// JSON without the white space between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        if in_string {
            in_string = escaped || *c != '"';
            escaped = !escaped && *c == '\\';
            return true;
        }
        in_string = *c == '"';
        !c.is_ascii_whitespace()
    };
    json.chars().filter(keep).collect()
}
