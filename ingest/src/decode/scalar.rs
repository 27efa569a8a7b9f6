//! A single value of a payload, whatever the format.

use iot_schemas::alert::micros_rfc3339;
use iot_schemas::upcast;

use super::shorten;

/// A scalar as a payload has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar<'a> {
    Boolean(bool),
    Integer(i64),
    /// An integer beyond `i64`.
    Unsigned(u64),
    /// An integer beyond 64 bits, as the nearest double.
    Huge(f64),
    Float(f64),
    Text(&'a str),
    /// Microseconds since 1970, where the encoding has a type for it.
    Instant(i64),
}

impl<'a> Scalar<'a> {
    /// An expression's value.
    pub(crate) fn of(value: &'a upcast::Value) -> Self {
        match value {
            upcast::Value::Boolean(v) => Self::Boolean(*v),
            upcast::Value::Integer(v) => Self::Integer(*v),
            upcast::Value::Unsigned(v) => Self::Unsigned(*v),
            upcast::Value::Float(v) => Self::Float(*v),
            upcast::Value::Text(v) => Self::Text(v),
            upcast::Value::Instant(v) => Self::Instant(*v),
        }
    }

    /// Itself, for an expression.
    pub(crate) fn to_value(self) -> upcast::Value {
        match self {
            Self::Boolean(v) => upcast::Value::Boolean(v),
            Self::Integer(v) => upcast::Value::Integer(v),
            Self::Unsigned(v) => upcast::Value::Unsigned(v),
            Self::Float(v) | Self::Huge(v) => upcast::Value::Float(v),
            Self::Text(v) => upcast::Value::Text(v.to_owned()),
            Self::Instant(v) => upcast::Value::Instant(v),
        }
    }

    /// The nearest double, if it is a number.
    pub(crate) fn to_float(self) -> Option<f64> {
        match self {
            Self::Integer(v) => Some(v as f64),
            Self::Unsigned(v) => Some(v as f64),
            Self::Float(v) | Self::Huge(v) => Some(v),
            Self::Boolean(_) | Self::Text(_) | Self::Instant(_) => None,
        }
    }

    /// What it is, for a reason.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Boolean(v) => format!("boolean `{v}`"),
            Self::Integer(v) => format!("integer `{v}`"),
            Self::Unsigned(v) => format!("integer `{v}`"),
            Self::Huge(v) => format!("integer `{v}`, which has more than 64 bits"),
            Self::Float(v) => format!("number `{v}`"),
            Self::Text(v) => format!("text `{}`", shorten(v)),
            Self::Instant(v) => format!("the time `{}`", micros_rfc3339::to_text(*v)),
        }
    }
}
