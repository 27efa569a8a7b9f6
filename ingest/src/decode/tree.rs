//! Payloads of binary encodings that know objects and arrays: a map is an event, an array of maps is several.
//!
//! An encoding only says what comes next (a [`Head`]); what becomes of it is decided here, in the same way as for
//! JSON. Nothing is allocated for a length that the payload merely claims.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use iot_schemas::alert::micros_rfc3339;

use super::fields::{Fields, Target};
use super::flatten::{Flatten, MAX_ARRAY_DEPTH};
use super::staging::{Failed, Scalar, Staging};

/// What stands at a place of the payload.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Head<'a> {
    Null,
    /// A number, a boolean or an instant.
    Scalar(Scalar<'a>),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// So many values follow.
    Array(Length),
    /// So many keys and values follow.
    Map(Length),
    /// The end of an array or map without a length.
    End,
}

/// `None`: up to the [`Head::End`].
pub(super) type Length = Option<u64>;

impl Head<'_> {
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(Scalar::Boolean(_)) => "a boolean",
            Self::Scalar(Scalar::Instant(_)) => "a time",
            Self::Scalar(_) => "a number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Array(_) => "an array",
            Self::Map(_) => "an object",
            Self::End => "an end",
        }
    }
}

/// A payload that is read head by head.
pub(super) trait Heads<'a>: Copy {
    /// What the encoding is called.
    const NAME: &'static str;

    /// The next head, or what is wrong with the bytes there.
    fn next(&mut self) -> Result<Head<'a>, String>;

    /// How many bytes are left.
    fn left(&self) -> usize;
}

/// The value after a key, or an element: [`Head::End`] cannot stand there.
pub(super) fn value<'a>(heads: &mut impl Heads<'a>) -> Result<Head<'a>, String> {
    match heads.next()? {
        Head::End => Err("an array or map ends where a value must be".into()),
        head => Ok(head),
    }
}

/// The next element or key of an array or map that has `length` more; `None` at its end.
pub(super) fn item<'a>(heads: &mut impl Heads<'a>, length: &mut Length) -> Result<Option<Head<'a>>, String> {
    match length {
        Some(0) => Ok(None),
        Some(left) => {
            *left -= 1;
            value(heads).map(Some)
        }
        None => heads.next().map(|head| (head != Head::End).then_some(head)),
    }
}

/// Reads over a value.
pub(super) fn skip<'a>(heads: &mut impl Heads<'a>, head: Head<'a>, depth: usize) -> Result<(), String> {
    let (mut length, is_map) = match head {
        Head::Array(length) => (length, false),
        Head::Map(length) => (length, true),
        _ => return Ok(()),
    };
    if depth >= MAX_ARRAY_DEPTH {
        return Err(format!("values lie in each other more than {MAX_ARRAY_DEPTH} deep"));
    }
    while let Some(head) = item(heads, &mut length)? {
        skip(heads, head, depth + 1)?;
        if is_map {
            let head = value(heads)?;
            skip(heads, head, depth + 1)?;
        }
    }
    Ok(())
}

/// Bytes as text.
pub(super) fn bytes_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Collects the rows of a payload in `staging`, or says why it is no good. `rows` as in [`super::json::decode`].
pub(super) fn decode<'a, H: Heads<'a>>(
    heads: H,
    rows: Option<&str>,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    if heads.left() == 0 {
        return Err("the payload is empty".into());
    }
    let mut flat = Flatten::new(fields, staging);
    if let Some(rows) = rows {
        flat = flat.leaving_out(rows);
    }
    let mut walk = Walk { heads, flat, rows: None };
    let walked = match rows {
        Some(rows) => walk.wrapped(rows),
        None => walk.payload(),
    };
    walked.map_err(|trouble| match trouble {
        Trouble::Malformed(why) => format!("not usable as {}: {why}", H::NAME),
        Trouble::Failed => walk.flat.staging.failure.take().unwrap_or_default(),
    })
}

/// Why a payload is no good.
enum Trouble {
    /// It is not what the encoding allows.
    Malformed(String),
    /// The reason is in the staging area.
    Failed,
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Malformed(why)
    }
}

impl From<Failed> for Trouble {
    fn from(Failed: Failed) -> Self {
        Self::Failed
    }
}

struct Walk<'f, H> {
    heads: H,
    flat: Flatten<'f>,
    /// Where the array of events stood that was left for later.
    rows: Option<(Length, H)>,
}

impl<'a, H: Heads<'a>> Walk<'_, H> {
    fn payload(&mut self) -> Result<(), Trouble> {
        match value(&mut self.heads)? {
            Head::Map(length) => self.event(length)?,
            Head::Array(length) => self.events(length)?,
            other => {
                let found = other.describe();
                return Err(format!("expected an object or an array of objects, found {found}").into());
            }
        }
        self.end()
    }

    fn end(&self) -> Result<(), Trouble> {
        match self.heads.left() {
            0 => Ok(()),
            left => Err(format!("{left} bytes are left after its end").into()),
        }
    }

    /// An object that holds its events in a field: first what they have in common, then the events.
    fn wrapped(&mut self, rows: &str) -> Result<(), Trouble> {
        match value(&mut self.heads)? {
            Head::Map(length) => self.object(length, 1, &mut 0)?,
            other => return Err(format!("expected an object, found {}", other.describe()).into()),
        }
        self.end()?;
        self.flat.share();
        let Some((length, heads)) = self.rows.take() else {
            self.flat.staging.failure = Some(format!("there is no array of objects at `{rows}`"));
            return Err(Trouble::Failed);
        };
        self.heads = heads;
        self.flat.leave_nothing_out();
        self.events(length)
    }

    fn events(&mut self, mut length: Length) -> Result<(), Trouble> {
        while let Some(head) = item(&mut self.heads, &mut length)? {
            match head {
                Head::Map(length) => self.event(length)?,
                other => {
                    let found = other.describe();
                    return Err(format!("expected an object in the array, found {found}").into());
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, length: Length) -> Result<(), Trouble> {
        self.flat.staging.begin_row();
        self.object(length, 1, &mut 0)?;
        Ok(self.flat.staging.end_row(self.flat.fields)?)
    }

    /// The fields of an object; `position` counts the fields of the event over all its objects.
    fn object(&mut self, mut length: Length, depth: usize, position: &mut usize) -> Result<(), Trouble> {
        let parent = self.flat.path.len();
        while let Some(key) = item(&mut self.heads, &mut length)? {
            let target = match key {
                Head::Text(name) => self.flat.enter(&name, *position),
                Head::Scalar(Scalar::Integer(number)) => self.flat.enter(&number.to_string(), *position),
                other => {
                    let found = other.describe();
                    return Err(format!("expected text as a field name, found {found}").into());
                }
            };
            *position += 1;
            let head = value(&mut self.heads)?;
            self.field(target, head, depth, position)?;
            self.flat.path.truncate(parent);
        }
        Ok(())
    }

    fn field(
        &mut self,
        target: Target,
        head: Head<'a>,
        depth: usize,
        position: &mut usize,
    ) -> Result<(), Trouble> {
        match head {
            _ if target == Target::Skip => {
                if let Head::Array(length) = head
                    && self.flat.is_rows()
                {
                    self.rows = Some((length, self.heads));
                }
                skip(&mut self.heads, head, 0)?;
            }
            // A null is as good as no field at all.
            Head::Null | Head::End => {}
            Head::Scalar(scalar) => self.flat.scalar(target, scalar)?,
            Head::Text(text) => self.flat.scalar(target, Scalar::Text(&text))?,
            Head::Bytes(bytes) => self.flat.scalar(target, Scalar::Text(&bytes_text(&bytes)))?,
            Head::Map(length) if self.flat.object(target, depth)? => {
                self.object(length, depth + 1, position)?;
            }
            Head::Map(_) => skip(&mut self.heads, head, 0)?,
            Head::Array(_) if self.flat.array(target)? => {
                let mut text = String::new();
                self.write_json(head, &mut text, 0)?;
                self.flat.scalar(target, Scalar::Text(&text))?;
            }
            Head::Array(_) => skip(&mut self.heads, head, 0)?,
        }
        Ok(())
    }

    /// A value as JSON text, `depth` arrays and objects deep.
    fn write_json(&mut self, head: Head<'a>, out: &mut String, depth: usize) -> Result<(), Trouble> {
        match head {
            Head::Null | Head::End => out.push_str("null"),
            Head::Scalar(scalar) => write_scalar(scalar, out),
            Head::Text(text) => write_text(&text, out),
            Head::Bytes(bytes) => write_text(&bytes_text(&bytes), out),
            Head::Array(_) | Head::Map(_) if depth >= MAX_ARRAY_DEPTH => self.flat.refuse_deep_array()?,
            Head::Array(mut length) => {
                out.push('[');
                let mut separator = "";
                while let Some(head) = item(&mut self.heads, &mut length)? {
                    out.push_str(std::mem::replace(&mut separator, ","));
                    self.write_json(head, out, depth + 1)?;
                }
                out.push(']');
            }
            Head::Map(mut length) => {
                out.push('{');
                let mut separator = "";
                while let Some(key) = item(&mut self.heads, &mut length)? {
                    out.push_str(std::mem::replace(&mut separator, ","));
                    write_key(&key, out)?;
                    let head = value(&mut self.heads)?;
                    self.write_json(head, out, depth + 1)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }
}

fn write_key(key: &Head<'_>, out: &mut String) -> Result<(), Trouble> {
    match key {
        Head::Text(name) => write_text(name, out),
        Head::Scalar(Scalar::Integer(number)) => write_text(&number.to_string(), out),
        other => {
            return Err(format!("expected text as a field name, found {}", other.describe()).into());
        }
    }
    out.push(':');
    Ok(())
}

fn write_scalar(scalar: Scalar<'_>, out: &mut String) {
    match scalar {
        Scalar::Boolean(v) => out.push_str(if v { "true" } else { "false" }),
        Scalar::Integer(v) => out.push_str(&v.to_string()),
        Scalar::Unsigned(v) => out.push_str(&v.to_string()),
        // JSON has no word for what is no number.
        Scalar::Float(v) | Scalar::Huge(v) => out.push_str(&serde_json::Value::from(v).to_string()),
        Scalar::Text(v) => write_text(v, out),
        Scalar::Instant(v) => write_text(&micros_rfc3339::to_text(v), out),
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
