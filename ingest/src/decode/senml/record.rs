//! One record as it stands in the pack, and the labels of its fields.

use std::borrow::Cow;

/// A name or a unit is no longer than this. Base fields of megabytes would be compared and repeated with every
/// record.
const MAX_LABEL_BYTES: usize = 1_024;

/// What a field of a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    BaseName,
    BaseTime,
    BaseUnit,
    BaseValue,
    BaseSum,
    BaseVersion,
    Name,
    Unit,
    Value,
    StringValue,
    BooleanValue,
    DataValue,
    Sum,
    Time,
    UpdateTime,
    /// An extension that may be ignored.
    Other,
    /// An extension that must be understood: its name ends with `_`.
    Mandatory,
}

/// Labels, their names in JSON and their numbers in CBOR (RFC 8428, table 4).
const LABELS: [(Label, &str, i64); 15] = [
    (Label::BaseName, "bn", -2),
    (Label::BaseTime, "bt", -3),
    (Label::BaseUnit, "bu", -4),
    (Label::BaseValue, "bv", -5),
    (Label::BaseSum, "bs", -6),
    (Label::BaseVersion, "bver", -1),
    (Label::Name, "n", 0),
    (Label::Unit, "u", 1),
    (Label::Value, "v", 2),
    (Label::StringValue, "vs", 3),
    (Label::BooleanValue, "vb", 4),
    (Label::DataValue, "vd", 8),
    (Label::Sum, "s", 5),
    (Label::Time, "t", 6),
    (Label::UpdateTime, "ut", 7),
];

impl Label {
    pub(super) fn of_name(name: &str) -> Self {
        let known = LABELS.iter().find(|(_, known, _)| *known == name);
        let other = if name.ends_with('_') { Self::Mandatory } else { Self::Other };
        known.map_or(other, |(label, ..)| *label)
    }

    pub(super) fn of_number(number: i64) -> Self {
        LABELS.iter().find(|(_, _, known)| *known == number).map_or(Self::Other, |(label, ..)| *label)
    }

    fn name(self) -> &'static str {
        LABELS.iter().find(|(label, ..)| *label == self).map_or("an extension", |(_, name, _)| name)
    }
}

/// The value of a field as the encoding has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given<'a> {
    Number(f64),
    Boolean(bool),
    Text(Cow<'a, str>),
    /// Bytes, as base64url without padding: as JSON has them.
    Data(String),
    Other(&'static str),
}

impl Given<'_> {
    fn describe(&self) -> &'static str {
        match self {
            Self::Number(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Text(_) => "text",
            Self::Data(_) => "bytes",
            Self::Other(what) => what,
        }
    }
}

/// What a sensor says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Number(f64),
    Boolean(bool),
    Text(Cow<'a, str>),
}

/// One record, not resolved.
#[derive(Debug, Default)]
pub(super) struct Record<'a> {
    pub(super) base_name: Option<Cow<'a, str>>,
    pub(super) base_time: Option<f64>,
    pub(super) base_unit: Option<Cow<'a, str>>,
    pub(super) base_value: Option<f64>,
    pub(super) base_sum: Option<f64>,
    pub(super) base_version: Option<f64>,
    pub(super) name: Option<Cow<'a, str>>,
    pub(super) unit: Option<Cow<'a, str>>,
    pub(super) value: Option<Value<'a>>,
    pub(super) sum: Option<f64>,
    pub(super) time: Option<f64>,
    pub(super) update_time: Option<f64>,
}

impl<'a> Record<'a> {
    /// Takes the value of a field.
    pub(super) fn set(&mut self, label: Label, given: Given<'a>) -> Result<(), String> {
        let found = given.describe();
        let wrong = |expected: &str| format!("`{}` must be {expected}, found {found}", label.name());
        let twice = match (label, given) {
            (Label::BaseName | Label::BaseUnit | Label::Name | Label::Unit, Given::Text(text))
                if text.len() > MAX_LABEL_BYTES =>
            {
                let (name, found) = (label.name(), text.len());
                return Err(format!("`{name}` may have {MAX_LABEL_BYTES} bytes, found {found}"));
            }
            (Label::BaseName, Given::Text(text)) => self.base_name.replace(text).is_some(),
            (Label::BaseUnit, Given::Text(text)) => self.base_unit.replace(text).is_some(),
            (Label::Name, Given::Text(text)) => self.name.replace(text).is_some(),
            (Label::Unit, Given::Text(text)) => self.unit.replace(text).is_some(),
            (Label::BaseName | Label::BaseUnit | Label::Name | Label::Unit, _) => return Err(wrong("text")),
            (Label::BaseTime, Given::Number(v)) => self.base_time.replace(v).is_some(),
            (Label::BaseValue, Given::Number(v)) => self.base_value.replace(v).is_some(),
            (Label::BaseSum, Given::Number(v)) => self.base_sum.replace(v).is_some(),
            (Label::BaseVersion, Given::Number(v)) => self.base_version.replace(v).is_some(),
            (Label::Sum, Given::Number(v)) => self.sum.replace(v).is_some(),
            (Label::Time, Given::Number(v)) => self.time.replace(v).is_some(),
            (Label::UpdateTime, Given::Number(v)) => self.update_time.replace(v).is_some(),
            (Label::Value, Given::Number(v)) => self.value.replace(Value::Number(v)).is_some(),
            (Label::StringValue, Given::Text(text)) => self.value.replace(Value::Text(text)).is_some(),
            (Label::StringValue, _) => return Err(wrong("text")),
            (Label::BooleanValue, Given::Boolean(v)) => self.value.replace(Value::Boolean(v)).is_some(),
            (Label::BooleanValue, _) => return Err(wrong("a boolean")),
            (Label::DataValue, Given::Text(text)) => self.value.replace(Value::Text(text)).is_some(),
            (Label::DataValue, Given::Data(text)) => self.value.replace(Value::Text(text.into())).is_some(),
            (Label::DataValue, _) => return Err(wrong("bytes")),
            (Label::Other, _) => false,
            (Label::Mandatory, _) => return Err("an extension that must be understood is not".into()),
            _ => return Err(wrong("a number")),
        };
        if twice {
            let name = label.name();
            return Err(format!("`{name}` is one value too many"));
        }
        Ok(())
    }
}
