//! The records of a pack in CBOR: an array of maps, their keys the numbers of the labels.

use super::super::cbor::Cbor;
use super::super::staging::Scalar;
use super::super::tree::{Head, Heads, Length, bytes_text, item, skip, value};
use super::pack::Pack;
use super::record::{Given, Label, Record};

/// Adds the records of `payload` to `pack`, or says why they are no good.
pub(super) fn read<'a>(payload: &'a [u8], pack: &mut Pack<'a>) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let unusable = |why: String| format!("not usable as SenML: {why}");
    let mut heads = Cbor::new(payload);
    let mut length = match value(&mut heads).map_err(unusable)? {
        Head::Array(length) => length,
        other => return Err(unusable(format!("expected an array of records, found {}", other.describe()))),
    };
    let mut number = 1;
    while let Some(head) = item(&mut heads, &mut length).map_err(unusable)? {
        let Head::Map(fields) = head else {
            return Err(unusable(format!("expected a record in the array, found {}", head.describe())));
        };
        let record = record(&mut heads, fields).and_then(|record| pack.add(record));
        record.map_err(|why| format!("record {number}: {why}"))?;
        number += 1;
    }
    match heads.left() {
        0 => Ok(()),
        left => Err(unusable(format!("{left} bytes are left after its end"))),
    }
}

fn record<'a>(heads: &mut Cbor<'a>, mut length: Length) -> Result<Record<'a>, String> {
    let mut record = Record::default();
    while let Some(key) = item(heads, &mut length)? {
        let label = match key {
            Head::Scalar(Scalar::Integer(number)) => Label::of_number(number),
            // Extensions, and what a sender has not translated.
            Head::Text(name) => Label::of_name(&name),
            other => return Err(format!("expected a number as a label, found {}", other.describe())),
        };
        let head = value(heads)?;
        let given = match head {
            Head::Scalar(Scalar::Boolean(v)) => Given::Boolean(v),
            Head::Scalar(Scalar::Float(v)) if !v.is_finite() => Given::Other("what is no number"),
            Head::Scalar(scalar) => scalar.to_float().map_or(Given::Other("a time"), Given::Number),
            Head::Text(text) => Given::Text(text),
            Head::Bytes(bytes) => Given::Data(bytes_text(&bytes)),
            other => {
                let found = other.describe();
                skip(heads, other, 0)?;
                Given::Other(found)
            }
        };
        record.set(label, given)?;
    }
    Ok(record)
}
