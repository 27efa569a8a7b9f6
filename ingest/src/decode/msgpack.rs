//! MessagePack, head by head.
//!
//! The extension type -1 is an instant. Other extension types are the applications' own: their bytes are taken
//! as bytes.

use std::borrow::Cow;

use super::staging::Scalar;
use super::tree::{Head, Heads};

/// The extension type of timestamps.
const TIMESTAMP: u8 = 0xff;

/// What is left of a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Msgpack<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Msgpack<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, length: payload.len() }
    }

    fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let taken = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = taken.ok_or_else(|| {
            let (at, left) = (self.at(), self.rest.len());
            format!("at byte {at} a length of {length} is given, but only {left} bytes follow")
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// A big-endian number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (number, rest) = self.rest.split_first_chunk().ok_or("it ends in the middle of a value")?;
        self.rest = rest;
        Ok(*number)
    }

    fn unsigned(&mut self, bytes: u8) -> Result<u64, String> {
        Ok(match bytes {
            1 => u64::from(u8::from_be_bytes(self.number()?)),
            2 => u64::from(u16::from_be_bytes(self.number()?)),
            4 => u64::from(u32::from_be_bytes(self.number()?)),
            _ => u64::from_be_bytes(self.number()?),
        })
    }

    fn signed(&mut self, bytes: u8) -> Result<i64, String> {
        Ok(match bytes {
            1 => i64::from(i8::from_be_bytes(self.number()?)),
            2 => i64::from(i16::from_be_bytes(self.number()?)),
            4 => i64::from(i32::from_be_bytes(self.number()?)),
            _ => i64::from_be_bytes(self.number()?),
        })
    }

    fn text(&mut self, length: u64) -> Result<Head<'a>, String> {
        let at = self.at();
        let text = std::str::from_utf8(self.take(length)?);
        text.map(|text| Head::Text(Cow::Borrowed(text)))
            .map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    fn bytes(&mut self, length: u64) -> Result<Head<'a>, String> {
        Ok(Head::Bytes(Cow::Borrowed(self.take(length)?)))
    }

    fn extension(&mut self, length: u64) -> Result<Head<'a>, String> {
        let at = self.at();
        let [kind] = self.number()?;
        let data = self.take(length)?;
        if kind != TIMESTAMP {
            return Ok(Head::Bytes(Cow::Borrowed(data)));
        }
        let micros = instant(data).ok_or_else(|| format!("the extension at byte {at} is no time"))?;
        Ok(Head::Scalar(Scalar::Instant(micros)))
    }
}

/// A timestamp of 32, 64 or 96 bits in microseconds.
fn instant(data: &[u8]) -> Option<i64> {
    let (seconds, nanoseconds) = match data.len() {
        4 => (i64::from(u32::from_be_bytes(data.try_into().ok()?)), 0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            ((both & 0x3_ffff_ffff) as i64, (both >> 34) as u32)
        }
        12 => {
            let (nanoseconds, seconds) = data.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(nanoseconds.try_into().ok()?))
        }
        _ => return None,
    };
    if nanoseconds >= 1_000_000_000 {
        return None;
    }
    seconds.checked_mul(1_000_000)?.checked_add(i64::from(nanoseconds / 1_000))
}

fn integer<'a>(n: u64) -> Head<'a> {
    Head::Scalar(i64::try_from(n).map_or(Scalar::Unsigned(n), Scalar::Integer))
}

impl<'a> Heads<'a> for Msgpack<'a> {
    const NAME: &'static str = "MessagePack";

    fn next(&mut self) -> Result<Head<'a>, String> {
        let at = self.at();
        let [marker] = self.number()?;
        // How many bytes the number or the length behind the marker has: markers come in rows of 1, 2, 4, 8.
        let wide = |first: u8| 1 << (marker - first);
        Ok(match marker {
            0x00..=0x7f => integer(u64::from(marker)),
            0x80..=0x8f => Head::Map(Some(u64::from(marker & 0x0f))),
            0x90..=0x9f => Head::Array(Some(u64::from(marker & 0x0f))),
            0xa0..=0xbf => self.text(u64::from(marker & 0x1f))?,
            0xc0 => Head::Null,
            0xc1 => return Err(format!("it is not well-formed at byte {at}")),
            0xc2 | 0xc3 => Head::Scalar(Scalar::Boolean(marker == 0xc3)),
            0xc4..=0xc6 => {
                let length = self.unsigned(wide(0xc4))?;
                self.bytes(length)?
            }
            0xc7..=0xc9 => {
                let length = self.unsigned(wide(0xc7))?;
                self.extension(length)?
            }
            0xca => Head::Scalar(Scalar::Float(f64::from(f32::from_be_bytes(self.number()?)))),
            0xcb => Head::Scalar(Scalar::Float(f64::from_be_bytes(self.number()?))),
            0xcc..=0xcf => integer(self.unsigned(wide(0xcc))?),
            0xd0..=0xd3 => Head::Scalar(Scalar::Integer(self.signed(wide(0xd0))?)),
            0xd4..=0xd8 => self.extension(1 << (marker - 0xd4))?,
            0xd9..=0xdb => {
                let length = self.unsigned(wide(0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => Head::Array(Some(self.unsigned(2 * wide(0xdc))?)),
            0xde | 0xdf => Head::Map(Some(self.unsigned(2 * wide(0xde))?)),
            0xe0..=0xff => Head::Scalar(Scalar::Integer(i64::from(marker as i8))),
        })
    }

    fn left(&self) -> usize {
        self.rest.len()
    }
}
