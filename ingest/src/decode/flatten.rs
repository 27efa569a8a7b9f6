//! How the fields of nested objects become columns, whatever the payload is encoded in.
//!
//! Nested objects are flattened: `gps.lat` is the column `gps_lat`. Nested arrays are kept as JSON text.

use iot_schemas::catalog::UnknownFields;

use super::column::{Kind, Origin};
use super::fields::{Fields, Target};
use super::staging::{Failed, Scalar, Staging};

/// Objects may lie in each other this deep.
const MAX_DEPTH: usize = 8;
/// An array, which is kept as text, may be this deep: what readers of JSON take.
pub(super) const MAX_ARRAY_DEPTH: usize = 100;

/// Takes the fields of an event one after the other.
#[derive(Debug)]
pub(super) struct Flatten<'a> {
    pub(super) fields: &'a mut Fields,
    pub(super) staging: &'a mut Staging,
    /// The flattened name of the field that is being read.
    pub(super) path: String,
    /// The flattened name of the field whose value is left for later: the array of events in an object.
    rows: Option<String>,
}

impl<'a> Flatten<'a> {
    pub(super) fn new(fields: &'a mut Fields, staging: &'a mut Staging) -> Self {
        Self { fields, staging, path: String::new(), rows: None }
    }

    /// Leaves the field at `rows` out: see [`Self::is_rows`].
    pub(super) fn leaving_out(self, rows: &str) -> Self {
        Self { rows: Some(rows.replace('.', "_")), ..self }
    }

    /// Makes the fields so far part of every event that follows.
    pub(super) fn share(&mut self) {
        self.staging.share(self.fields);
    }

    /// From now on the events are read.
    pub(super) fn leave_nothing_out(&mut self) {
        self.rows = None;
    }

    /// Goes down to the field `key`, the event's field number `position`, and says where its value goes.
    #[inline]
    pub(super) fn enter(&mut self, key: &str, position: usize) -> Target {
        if !self.path.is_empty() {
            self.path.push('_');
        }
        self.path.push_str(key);
        if self.is_rows() { Target::Skip } else { self.fields.resolve(&self.path, position) }
    }

    /// Whether the field that is being read is the one that is left for later.
    pub(super) fn is_rows(&self) -> bool {
        self.rows.as_ref().is_some_and(|rows| *rows == self.path)
    }

    /// A value.
    #[inline]
    pub(super) fn scalar(&mut self, target: Target, scalar: Scalar<'_>) -> Result<(), Failed> {
        self.staging.take(self.fields, target, &self.path, scalar)
    }

    /// Whether the fields of an object, `depth` objects deep, are wanted; `false` if it is to be skipped.
    pub(super) fn object(&mut self, target: Target, depth: usize) -> Result<bool, Failed> {
        if let Some(expected) = self.expects_scalar(target) {
            return self.refuse(expected, "an object");
        }
        if depth >= MAX_DEPTH && target == Target::Unknown && self.fields.unknown == UnknownFields::Ignore {
            return Ok(false);
        }
        if depth >= MAX_DEPTH {
            return self.refuse(&format!("objects at most {MAX_DEPTH} deep"), "a deeper one");
        }
        Ok(true)
    }

    /// Whether the text of an array is wanted; `false` if the array is to be skipped.
    pub(super) fn array(&mut self, target: Target) -> Result<bool, Failed> {
        let takes_text = match target {
            Target::Skip => return Ok(false),
            Target::DeviceId if self.staging.device_known => return Ok(false),
            Target::Unknown if self.fields.unknown == UnknownFields::Ignore => return Ok(false),
            Target::Unknown => true,
            Target::Column(at) => self.fields.columns[at].kind() == Kind::Text,
            _ => false,
        };
        if !takes_text {
            let expected = self.expects_scalar(target).unwrap_or("a single value");
            return self.refuse(expected, "an array");
        }
        Ok(true)
    }

    /// The refusal of an array that is too deep.
    pub(super) fn refuse_deep_array<T>(&mut self) -> Result<T, Failed> {
        self.refuse(&format!("arrays at most {MAX_ARRAY_DEPTH} deep"), "a deeper one")
    }

    fn refuse<T>(&mut self, expected: &str, found: &str) -> Result<T, Failed> {
        self.staging.refuse_shape(&self.path, expected, found)
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
