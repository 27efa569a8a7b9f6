//! InfluxDB's line protocol: `measurement,tag=a temperature=21.5,count=3i 1700000000000000000`.
//!
//! Every line is an event. The measurement is the field `measurement`, tags are text fields, and the time at the
//! end of the line is the event time, in nanoseconds unless the stream says otherwise.

use std::borrow::Cow;

use iot_schemas::catalog::UnknownFields;

use super::fields::{Fields, Target};
use super::shorten;
use super::staging::{Failed, Scalar, Staging};

/// The field of a line's measurement.
const MEASUREMENT: &str = "measurement";

/// Collects the rows of `payload` in `staging`, or says why it is no good.
pub(super) fn decode(payload: &[u8], fields: &mut Fields, staging: &mut Staging) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let text = std::str::from_utf8(payload).map_err(|e| {
        format!("not usable as line protocol: it is not UTF-8 from byte {} on", e.valid_up_to())
    })?;
    let mut lines = Lines { rest: text, fields, staging, no_time: None };
    while lines.find_line() {
        let begin = lines.rest;
        lines.line().map_err(|trouble| {
            let number = text[..text.len() - begin.len()].matches('\n').count() + 1;
            match trouble {
                Trouble::Malformed(why) => format!("line {number}: {why}"),
                Trouble::Failed => {
                    format!("line {number}: {}", lines.staging.failure.take().unwrap_or_default())
                }
            }
        })?;
    }
    Ok(())
}

/// Why a line is no good.
enum Trouble {
    Malformed(String),
    /// The reason is in the staging area.
    Failed,
}

impl From<Failed> for Trouble {
    fn from(Failed: Failed) -> Self {
        Self::Failed
    }
}

impl From<&str> for Trouble {
    fn from(why: &str) -> Self {
        Self::Malformed(why.to_owned())
    }
}

struct Lines<'t, 'a> {
    /// What is not read yet.
    rest: &'t str,
    fields: &'a mut Fields,
    staging: &'a mut Staging,
    /// Why the tag or field of the line that is called as the event time elsewhere is no time.
    no_time: Option<String>,
}

impl<'t> Lines<'t, '_> {
    /// Goes to the next line that is neither empty nor a comment. `false` at the end.
    fn find_line(&mut self) -> bool {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
            if !self.rest.starts_with('#') {
                return !self.rest.is_empty();
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }

    fn line(&mut self) -> Result<(), Trouble> {
        self.staging.begin_row();
        self.no_time = None;
        let measurement = self.token(&[',', ' ']);
        if measurement.is_empty() {
            return Err("the measurement is missing".into());
        }
        self.measurement(&measurement)?;
        let mut position = 1;
        while self.eat(',') {
            let name = self.name("tag")?;
            let value = self.token(&[',', '=', ' ']);
            if value.is_empty() {
                return Err(Trouble::Malformed(format!("the tag `{}` has no value", shorten(&name))));
            }
            self.take(&name, position, Scalar::Text(&value))?;
            position += 1;
        }
        if !self.eat_spaces() || self.at_end_of_line() {
            return Err("the fields are missing; write `measurement,tag=a field=1.5`".into());
        }
        loop {
            let name = self.name("field")?;
            self.field_value(&name, position)?;
            position += 1;
            if !self.eat(',') {
                break;
            }
        }
        self.timestamp()?;
        Ok(self.staging.end_row(self.fields)?)
    }

    /// A stream that rejects unknown fields means those of its devices: every line has a measurement.
    fn measurement(&mut self, measurement: &str) -> Result<(), Trouble> {
        let target = self.fields.resolve(MEASUREMENT, 0);
        if target == Target::Unknown && self.fields.unknown == UnknownFields::Reject {
            return Ok(());
        }
        Ok(self.staging.take(self.fields, target, MEASUREMENT, Scalar::Text(measurement))?)
    }

    /// The name of a tag or field and the `=` behind it.
    fn name(&mut self, of: &str) -> Result<Cow<'t, str>, Trouble> {
        let name = self.token(&[',', '=', ' ']);
        if name.is_empty() {
            return Err(Trouble::Malformed(format!("a {of} has no name")));
        }
        if !self.eat('=') {
            return Err(Trouble::Malformed(format!("there is no `=` after the {of} `{}`", shorten(&name))));
        }
        Ok(name)
    }

    fn field_value(&mut self, name: &str, position: usize) -> Result<(), Trouble> {
        if self.eat('"') {
            let text = self.string(name)?;
            return self.take(name, position, Scalar::Text(&text));
        }
        let end = self.rest.find([',', ' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let scalar = scalar(word).ok_or_else(|| {
            let (word, name) = (shorten(word), shorten(name));
            Trouble::Malformed(format!(
                "`{word}` is no value for the field `{name}`; write 1.5, 1i, 1u, true or \"text\""
            ))
        })?;
        self.take(name, position, scalar)
    }

    /// A text in double quotes, the first of which is read already. It may hold line breaks.
    fn string(&mut self, name: &str) -> Result<Cow<'t, str>, Trouble> {
        let mut escaped = false;
        let end = self.rest.bytes().position(|byte| {
            let is_end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            is_end
        });
        let Some(end) = end else {
            return Err(Trouble::Malformed(format!(
                "the text of the field `{}` does not end",
                shorten(name)
            )));
        };
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(unescape(text, &['"', '\\']))
    }

    fn timestamp(&mut self) -> Result<(), Trouble> {
        let spaced = self.eat_spaces();
        if self.at_end_of_line() {
            return match self.no_time.take() {
                Some(reason) => Ok(self.staging.fail(reason)?),
                None => Ok(()),
            };
        }
        let end = self.rest.find([' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let time = word.parse().ok().filter(|_| spaced).ok_or_else(|| {
            Trouble::Malformed(format!("`{}` behind the fields is no time; write an integer", shorten(word)))
        })?;
        // A tag or a field may be called as the event time is elsewhere: the line's own time counts.
        self.staging.retime(None);
        self.staging.take_as_it_is(self.fields, Target::EventTime, "timestamp", Scalar::Integer(time))?;
        self.eat_spaces();
        if !self.at_end_of_line() {
            return Err("there is something behind the time".into());
        }
        Ok(())
    }

    fn take(&mut self, name: &str, position: usize, scalar: Scalar<'_>) -> Result<(), Trouble> {
        let target = self.fields.resolve(name, position);
        let taken = self.staging.take(self.fields, target, name, scalar);
        if taken.is_err() && target == Target::EventTime {
            self.no_time = self.staging.failure.take();
            return Ok(());
        }
        Ok(taken?)
    }

    /// The text up to one of `stops` that is not escaped, or to the end of the line.
    fn token(&mut self, stops: &[char]) -> Cow<'t, str> {
        let mut escaped = false;
        let end = self.rest.char_indices().find(|(_, c)| {
            let is_end = matches!(c, '\r' | '\n') || (!escaped && stops.contains(c));
            escaped = *c == '\\' && !escaped;
            is_end
        });
        let (token, rest) = self.rest.split_at(end.map_or(self.rest.len(), |(at, _)| at));
        self.rest = rest;
        unescape(token, stops)
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Whether there was a space at least.
    fn eat_spaces(&mut self) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        self.rest.len() < before
    }

    fn at_end_of_line(&self) -> bool {
        self.rest.is_empty() || self.rest.starts_with(['\r', '\n'])
    }
}

/// Takes the backslashes before `special` characters away; all others are meant literally.
fn unescape<'t>(text: &'t str, special: &[char]) -> Cow<'t, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next) if c == '\\' && special.contains(next) => {
                clean.push(*next);
                chars.next();
            }
            _ => clean.push(c),
        }
    }
    Cow::Owned(clean)
}

fn scalar(word: &str) -> Option<Scalar<'static>> {
    match word {
        "t" | "T" | "true" | "True" | "TRUE" => return Some(Scalar::Boolean(true)),
        "f" | "F" | "false" | "False" | "FALSE" => return Some(Scalar::Boolean(false)),
        _ => {}
    }
    // Rust would take words like `inf` too.
    if !word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    if let Some(digits) = word.strip_suffix('i') {
        return digits.parse().ok().map(Scalar::Integer);
    }
    if let Some(digits) = word.strip_suffix('u') {
        let value: u64 = digits.parse().ok()?;
        return Some(i64::try_from(value).map_or(Scalar::Unsigned(value), Scalar::Integer));
    }
    word.parse().ok().filter(|value: &f64| value.is_finite()).map(Scalar::Float)
}
