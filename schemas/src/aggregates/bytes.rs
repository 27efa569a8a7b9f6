//! Small integers in few bytes (LEB128), as the states' encodings use them.

use datafusion::common::{Result, exec_err};

/// Appends `value` in groups of seven bits, the lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps small integers of either sign to small unsigned ones.
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads what [`put`] wrote. Bytes that nothing here wrote give errors, never a panic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Opens bytes that start with the version `version`; `what` names them in errors.
    pub(super) fn open(what: &'static str, bytes: &'a [u8], version: u8) -> Result<Self> {
        match bytes.split_first() {
            Some((first, bytes)) if *first == version => Ok(Self { what, bytes }),
            Some((first, _)) => exec_err!("these bytes are no {what} (version {first}, known is {version})"),
            None => exec_err!("these bytes are no {what}: there are none"),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn next(&mut self) -> Result<u64> {
        // Nearly all are a single byte.
        if let Some((first, rest)) = self.bytes.split_first()
            && *first < 0x80
        {
            self.bytes = rest;
            return Ok(u64::from(*first));
        }
        self.next_long()
    }

    fn next_long(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for (i, byte) in self.bytes.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if *byte < 0x80 {
                self.bytes = &self.bytes[i + 1..];
                return Ok(value);
            }
        }
        exec_err!("a {} ends in the middle of a number", self.what)
    }

    pub(super) fn next_f64(&mut self) -> Result<f64> {
        let Some((first, rest)) = self.bytes.split_first_chunk::<8>() else {
            return exec_err!("a {} ends in the middle of a value", self.what);
        };
        self.bytes = rest;
        Ok(f64::from_le_bytes(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_torn_bytes_are_errors() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = vec![1];
            put(&mut out, value);
            let mut reader = Reader::open("test", &out, 1).expect("opens");
            assert_eq!(reader.next().expect("reads"), value);
            assert!(reader.is_empty());
            let torn = &out[..out.len() - 1];
            assert!(Reader::open("test", torn, 1).and_then(|mut r| r.next()).is_err());
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert!(Reader::open("test", &[2], 1).is_err());
        assert!(Reader::open("test", &[], 1).is_err());
    }
}
