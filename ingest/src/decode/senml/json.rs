//! The records of a pack in JSON: an array of objects.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::pack::Pack;
use super::record::{Given, Label, Record};

/// Adds the records of `payload` to `pack`, or says why they are no good.
pub(super) fn read<'a>(payload: &'a [u8], pack: &mut Pack<'a>) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let mut json = serde_json::Deserializer::from_slice(payload);
    let mut failure = None;
    let parsed = json.deserialize_any(Records { pack, failure: &mut failure }).and_then(|()| json.end());
    parsed.map_err(|e| failure.unwrap_or_else(|| format!("not usable as SenML: {e}")))
}

/// The whole payload.
struct Records<'a, 'de> {
    pack: &'a mut Pack<'de>,
    failure: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Records<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut fail = |number: usize, why: String| {
            *self.failure = Some(format!("record {number}: {why}"));
            A::Error::custom("")
        };
        let mut number = 1;
        while let Some(Read(read)) = seq.next_element()? {
            let record = read.map_err(|why| fail(number, why))?;
            self.pack.add(record).map_err(|why| fail(number, why))?;
            number += 1;
        }
        Ok(())
    }
}

/// A record, or what is wrong with it although it is JSON.
struct Read<'de>(Result<Record<'de>, String>);

impl<'de> Deserialize<'de> for Read<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fields).map(Self)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Result<Record<'de>, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record, which is an object,")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut record = Ok(Record::default());
        while let Some(label) = map.next_key_seed(LabelOf)? {
            let letters = map.next_value::<&RawValue>()?.get();
            // What is no good is read to its end all the same, in order to say why in our words.
            record = record.and_then(|mut record| {
                record.set(label, given(letters)?)?;
                Ok(record)
            });
        }
        Ok(record)
    }
}

struct LabelOf;

impl<'de> DeserializeSeed<'de> for LabelOf {
    type Value = Label;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Label, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LabelOf {
    type Value = Label;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a label")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Label, E> {
        Ok(Label::of_name(name))
    }
}

/// A value from its letters, so that a number is the nearest double.
fn given(letters: &str) -> Result<Given<'_>, String> {
    Ok(match letters.as_bytes().first() {
        Some(b'"') => Given::Text(text(letters)?),
        Some(b'-' | b'0'..=b'9') => {
            let number = letters.parse().ok().filter(|value: &f64| value.is_finite());
            Given::Number(number.ok_or("a number is out of range")?)
        }
        Some(b't') => Given::Boolean(true),
        Some(b'f') => Given::Boolean(false),
        Some(b'[') => Given::Other("an array"),
        Some(b'{') => Given::Other("an object"),
        _ => Given::Other("nothing"),
    })
}

fn text(letters: &str) -> Result<Cow<'_, str>, String> {
    let borrowed: Option<&str> = serde_json::from_str(letters).ok();
    match borrowed {
        Some(text) => Ok(Cow::Borrowed(text)),
        None => serde_json::from_str(letters).map(Cow::Owned).map_err(|e| e.to_string()),
    }
}
