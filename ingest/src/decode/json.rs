//! JSON payloads: an object is an event, an array of objects is several.
//!
//! The text goes straight into typed values; no tree is built.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::value::RawValue;

use super::fields::{Fields, Target};
use super::flatten::{Flatten, MAX_ARRAY_DEPTH};
use super::staging::{Failed, Scalar, Staging};

/// Collects the rows of `payload` in `staging`, or says why it is no good.
///
/// `rows` is where an object holds its events, if they are not the object itself.
pub(super) fn decode(
    payload: &[u8],
    rows: Option<&str>,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let by_the_letter = needs_letters(payload);
    let mut sink = Sink { flat: Flatten::new(fields, staging), by_the_letter };
    let Some(rows) = rows else {
        return sink.parse(payload, |sink, json| json.deserialize_any(Payload(sink)));
    };
    // Once for what the events have in common, which may stand behind them, and once for the events.
    sink.flat = sink.flat.leaving_out(rows);
    sink.flat.staging.begin_row();
    sink.parse(payload, |sink, json| json.deserialize_any(Shared(sink)))?;
    sink.flat.leave_nothing_out();
    let mut found = false;
    let within = Within { sink: &mut sink, rows: Some(rows), found: &mut found };
    let mut json = serde_json::Deserializer::from_slice(payload);
    let parsed = within.deserialize(&mut json);
    sink.outcome(parsed)?;
    if found { Ok(()) } else { Err(format!("there is no array of objects at `{rows}`")) }
}

/// The same of objects that stand on lines of their own.
pub(crate) fn decode_lines(
    payload: &[u8],
    rows: Option<&str>,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    let mut is_empty = true;
    for (at, line) in payload.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if !line.is_empty() {
            decode(line, rows, fields, staging).map_err(|why| format!("line {}: {why}", at + 1))?;
            is_empty = false;
        }
    }
    if is_empty { Err("the payload is empty".into()) } else { Ok(()) }
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
    for byte in json.iter().skip(outermost + 1) {
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
    flat: Flatten<'a>,
    /// See [`needs_letters`].
    by_the_letter: bool,
}

/// The reason is in the staging area.
fn failed<E: Error>(Failed: Failed) -> E {
    E::custom("")
}

impl Sink<'_> {
    fn parse<'de>(
        &mut self,
        payload: &'de [u8],
        visit: impl FnOnce(&mut Self, &mut Json<'de>) -> serde_json::Result<()>,
    ) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_slice(payload);
        let parsed = visit(self, &mut json).and_then(|()| json.end());
        self.outcome(parsed)
    }

    fn outcome(&mut self, parsed: serde_json::Result<()>) -> Result<(), String> {
        parsed.map_err(|e| {
            let failure = self.flat.staging.failure.take();
            failure.unwrap_or_else(|| format!("not usable as JSON: {e}"))
        })
    }

    fn scalar<E: Error>(&mut self, target: Target, scalar: Scalar<'_>) -> Result<(), E> {
        self.flat.scalar(target, scalar).map_err(failed)
    }
}

type Json<'de> = serde_json::Deserializer<serde_json::de::SliceRead<'de>>;

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
    sink.flat.staging.begin_row();
    object(sink, map, 1, &mut 0)?;
    sink.flat.staging.end_row(sink.flat.fields).map_err(failed)
}

/// The whole payload, of which all but the events is read: what they have in common.
struct Shared<'a, 'b>(&'a mut Sink<'b>);

impl<'de> Visitor<'de> for Shared<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        object(self.0, map, 1, &mut 0)?;
        self.0.flat.share();
        Ok(())
    }
}

/// An object of which only the field at `rows` is read, or, without `rows`, the array of events there.
struct Within<'a, 'b> {
    sink: &'a mut Sink<'b>,
    rows: Option<&'a str>,
    found: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for Within<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Within<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.rows.is_some() { "an object" } else { "an array of objects" })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(rows) = self.rows else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        let (first, rest) = rows.split_once('.').map_or((rows, None), |(first, rest)| (first, Some(rest)));
        while let Some(is_it) = map.next_key_seed(Named(first))? {
            if is_it {
                map.next_value_seed(Within { sink: &mut *self.sink, rows: rest, found: &mut *self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.rows.is_some() {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        *self.found = true;
        while seq.next_element_seed(Element(self.sink))?.is_some() {}
        Ok(())
    }
}

/// Whether a key has this name.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// The fields of an object; `position` counts the fields of the event over all its objects.
#[inline]
fn object<'de, A: MapAccess<'de>>(
    sink: &mut Sink<'_>,
    mut map: A,
    depth: usize,
    position: &mut usize,
) -> Result<(), A::Error> {
    let parent = sink.flat.path.len();
    while let Some(target) = map.next_key_seed(Key { sink: &mut *sink, position: *position })? {
        *position += 1;
        map.next_value_seed(FieldValue { sink: &mut *sink, target, depth, position: &mut *position })?;
        sink.flat.path.truncate(parent);
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
        Ok(self.sink.flat.enter(key, self.position))
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
        match letters.as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => self.number(letters),
            Some(b'[') => self.array(letters),
            _ => serde_json::Deserializer::from_str(letters).deserialize_any(self).map_err(D::Error::custom),
        }
    }
}

impl FieldValue<'_, '_> {
    fn number<E: Error>(self, literal: &str) -> Result<(), E> {
        let scalar = if literal.contains(['.', 'e', 'E']) {
            Scalar::Float(finite(literal)?)
        } else if let Ok(value) = literal.parse() {
            Scalar::Integer(value)
        } else if let Ok(value) = literal.parse() {
            Scalar::Unsigned(value)
        } else {
            Scalar::Huge(finite(literal)?)
        };
        self.sink.scalar(self.target, scalar)
    }

    /// An array is kept as its text.
    fn array<E: Error>(self, json: &str) -> Result<(), E> {
        if !self.sink.flat.array(self.target).map_err(failed)? {
            return Ok(());
        }
        let json = compact(json);
        if depth(&json) > MAX_ARRAY_DEPTH {
            return self.sink.flat.refuse_deep_array().map_err(failed);
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
        if self.sink.flat.object(self.target, self.depth).map_err(failed)? {
            return object(self.sink, map, self.depth + 1, self.position);
        }
        IgnoredAny.visit_map(map).map(drop)
    }
}

fn finite<E: Error>(literal: &str) -> Result<f64, E> {
    let value = literal.parse().ok().filter(|value: &f64| value.is_finite());
    value.ok_or_else(|| E::custom("number out of range"))
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
