//! CBOR (RFC 8949), head by head.
//!
//! Tag 0 and tag 1 are instants, tags 2 to 5 numbers in parts: integers of any size, and a mantissa with an exponent
//! of ten or of two. Other tags say what a value is good for and are left out.

use std::borrow::Cow;

use ciborium_ll::{Decoder, Error, Header};
use iot_schemas::catalog::TimeUnitName;

use super::staging::Scalar;
use super::time;
use super::tree::{Head, Heads};

const FALSE: u8 = 20;
const TRUE: u8 = 21;
const NULL: u8 = 22;
const UNDEFINED: u8 = 23;

/// What is left of a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cbor<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Cbor<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, length: payload.len() }
    }

    fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    fn header(&mut self) -> Result<Header, String> {
        let mut decoder = Decoder::from(self.rest);
        let header = decoder.pull().map_err(|e| match e {
            Error::Io(_) => "it ends in the middle of a value".to_owned(),
            Error::Syntax(_) => format!("it is not well-formed at byte {}", self.at()),
        })?;
        self.rest = self.rest.get(decoder.offset()..).unwrap_or_default();
        Ok(header)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| {
            let (at, left) = (self.at(), self.rest.len());
            format!("at byte {at} a length of {length} is given, but only {left} bytes follow")
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The content of a byte or text string, whose pieces have headers of the same sort.
    fn string(
        &mut self,
        length: Option<usize>,
        piece: impl Fn(Header) -> Option<Option<usize>>,
    ) -> Result<Cow<'a, [u8]>, String> {
        if let Some(length) = length {
            return self.take(length).map(Cow::Borrowed);
        }
        let mut whole = Vec::new();
        loop {
            let at = self.at();
            match self.header()? {
                Header::Break => return Ok(Cow::Owned(whole)),
                header => match piece(header) {
                    Some(Some(length)) => whole.extend_from_slice(self.take(length)?),
                    _ => return Err(format!("it is not well-formed at byte {at}")),
                },
            }
        }
    }

    fn bytes(&mut self, length: Option<usize>) -> Result<Cow<'a, [u8]>, String> {
        self.string(length, |header| if let Header::Bytes(length) = header { Some(length) } else { None })
    }

    fn text(&mut self, length: Option<usize>) -> Result<Cow<'a, str>, String> {
        let at = self.at();
        let piece = |header| if let Header::Text(length) = header { Some(length) } else { None };
        let utf8 = match self.string(length, piece)? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        };
        utf8.ok_or_else(|| format!("the text at byte {at} is not UTF-8"))
    }

    /// What a tag makes of the value behind it; `None` if it says nothing that matters here.
    fn tagged(&mut self, tag: u64) -> Result<Option<Head<'a>>, String> {
        let at = self.at();
        let instant = match tag {
            0 => match self.header()? {
                Header::Text(length) => time::from_text(&self.text(length)?),
                _ => None,
            },
            1 => match self.header()? {
                Header::Positive(n) => {
                    i64::try_from(n).ok().and_then(|n| time::from_integer(n, TimeUnitName::S))
                }
                Header::Negative(n) => {
                    i64::try_from(n).ok().and_then(|n| time::from_integer(!n, TimeUnitName::S))
                }
                Header::Float(v) => time::from_float(v, TimeUnitName::S),
                _ => None,
            },
            2 | 3 => {
                let integer = self.big_integer(tag == 3)?;
                let integer =
                    integer.ok_or_else(|| format!("the value at byte {at} (tag {tag}) is no integer"))?;
                return Ok(Some(Head::Scalar(integer)));
            }
            4 | 5 => {
                let number = self.in_parts(tag == 4)?.filter(|number| number.is_finite());
                let number =
                    number.ok_or_else(|| format!("the value at byte {at} (tag {tag}) is no number"))?;
                return Ok(Some(Head::Scalar(Scalar::Float(number))));
            }
            _ => return Ok(None),
        };
        let instant = instant.ok_or_else(|| format!("the value at byte {at} (tag {tag}) is no time"))?;
        Ok(Some(Head::Scalar(Scalar::Instant(instant))))
    }
}

/// Integers, and numbers that are given in parts. `None` is what is none.
impl Cbor<'_> {
    /// The bytes of an integer, the most significant first; of -1 minus the integer if it is negative.
    fn big_integer(&mut self, is_negative: bool) -> Result<Option<Scalar<'static>>, String> {
        let Header::Bytes(length) = self.header()? else { return Ok(None) };
        let bytes = self.bytes(length)?;
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        let digits = &bytes[first..];
        if digits.len() > size_of::<u64>() {
            let size = digits.iter().fold(0.0, |size: f64, byte| size.mul_add(256.0, f64::from(*byte)));
            return Ok(Some(Scalar::Huge(if is_negative { -1.0 - size } else { size })));
        }
        let size = digits.iter().fold(0, |size: u64, byte| size << 8 | u64::from(*byte));
        Ok(Some(if is_negative { negative(size) } else { positive(size) }))
    }

    /// An array of an exponent, of ten or of two, and a mantissa.
    fn in_parts(&mut self, is_decimal: bool) -> Result<Option<f64>, String> {
        let Header::Array(Some(2)) = self.header()? else { return Ok(None) };
        let (Some(Scalar::Integer(exponent)), Some(mantissa)) = (self.integer()?, self.integer()?) else {
            return Ok(None);
        };
        let Ok(exponent) = i32::try_from(exponent) else { return Ok(None) };
        if !is_decimal {
            return Ok(mantissa.to_float().map(|mantissa| mantissa * 2f64.powi(exponent)));
        }
        Ok(match mantissa {
            // By its letters it becomes the nearest double.
            Scalar::Integer(mantissa) => format!("{mantissa}e{exponent}").parse().ok(),
            Scalar::Unsigned(mantissa) => format!("{mantissa}e{exponent}").parse().ok(),
            other => other.to_float().map(|mantissa| mantissa * 10f64.powi(exponent)),
        })
    }

    /// An integer of any size.
    fn integer(&mut self) -> Result<Option<Scalar<'static>>, String> {
        match self.header()? {
            Header::Positive(n) => Ok(Some(positive(n))),
            Header::Negative(n) => Ok(Some(negative(n))),
            Header::Tag(tag @ 2..=3) => self.big_integer(tag == 3),
            _ => Ok(None),
        }
    }
}

fn positive(n: u64) -> Scalar<'static> {
    i64::try_from(n).map_or(Scalar::Unsigned(n), Scalar::Integer)
}

/// -1 minus `n`, as CBOR writes negative integers.
fn negative(n: u64) -> Scalar<'static> {
    i64::try_from(n).map_or_else(|_| Scalar::Huge(-1.0 - n as f64), |n| Scalar::Integer(!n))
}

impl<'a> Heads<'a> for Cbor<'a> {
    const NAME: &'static str = "CBOR";

    fn next(&mut self) -> Result<Head<'a>, String> {
        loop {
            let at = self.at();
            return Ok(match self.header()? {
                Header::Positive(n) => Head::Scalar(positive(n)),
                Header::Negative(n) => Head::Scalar(negative(n)),
                Header::Float(v) => Head::Scalar(Scalar::Float(v)),
                Header::Simple(FALSE) => Head::Scalar(Scalar::Boolean(false)),
                Header::Simple(TRUE) => Head::Scalar(Scalar::Boolean(true)),
                Header::Simple(NULL | UNDEFINED) => Head::Null,
                Header::Simple(n) => return Err(format!("the simple value {n} at byte {at} has no meaning")),
                Header::Tag(tag) => match self.tagged(tag)? {
                    Some(head) => head,
                    None => continue,
                },
                Header::Break => Head::End,
                Header::Bytes(length) => Head::Bytes(self.bytes(length)?),
                Header::Text(length) => Head::Text(self.text(length)?),
                Header::Array(length) => Head::Array(length.map(|n| n as u64)),
                Header::Map(length) => Head::Map(length.map(|n| n as u64)),
            });
        }
    }

    fn left(&self) -> usize {
        self.rest.len()
    }
}
