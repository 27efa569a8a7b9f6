//! Compressed payloads: gzip and Zstandard, expanded within a bound.

use std::io::{self, Read};

use iot_schemas::catalog::Compression;

/// A payload becomes no larger than this. A few kilobytes could stand for terabytes otherwise.
const MAX_EXPANDED_BYTES: usize = 16 << 20;
/// What a huge payload may leave behind as room for the next one.
const KEPT_CAPACITY: usize = 1 << 20;
/// How far back a Zstandard frame may refer, as a power of two: the decoder sets so much memory aside before it
/// has read anything.
const MAX_WINDOW_LOG: u32 = 24;

const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Expands payloads into one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Expander {
    expanded: Vec<u8>,
}

impl Expander {
    /// The payload as the decoder of its format takes it, or why it cannot be expanded.
    #[inline]
    pub(super) fn expand<'a>(
        &'a mut self,
        payload: &'a [u8],
        compression: Compression,
    ) -> Result<&'a [u8], String> {
        if !self.expanded.is_empty() {
            self.expanded.clear();
            self.expanded.shrink_to(KEPT_CAPACITY);
        }
        let (word, outcome) = match compression {
            Compression::Auto if payload.starts_with(&GZIP) => ("gzip", self.gzip(payload)),
            Compression::Auto if payload.starts_with(&ZSTD) => ("zstd", self.zstd(payload)),
            Compression::Auto | Compression::None => return Ok(payload),
            Compression::Gzip => ("gzip", self.gzip(payload)),
            Compression::Zstd => ("zstd", self.zstd(payload)),
        };
        outcome.map_err(|e| format!("not usable as {word}: {e}"))?;
        self.within_bound()?;
        Ok(&self.expanded)
    }

    fn within_bound(&self) -> Result<(), String> {
        if self.expanded.len() > MAX_EXPANDED_BYTES {
            return Err(format!(
                "the payload expands to more than {MAX_EXPANDED_BYTES} bytes; send less at once"
            ));
        }
        Ok(())
    }

    /// The memory that is kept between payloads.
    pub(super) fn kept_bytes(&self) -> usize {
        self.expanded.capacity()
    }

    fn gzip(&mut self, payload: &[u8]) -> io::Result<()> {
        self.read(flate2::bufread::MultiGzDecoder::new(payload))
    }

    fn zstd(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(payload)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        self.read(decoder)
    }

    fn read(&mut self, reader: impl Read) -> io::Result<()> {
        // One byte more than allowed shows that there is more.
        reader.take(MAX_EXPANDED_BYTES as u64 + 1).read_to_end(&mut self.expanded).map(drop)
    }
}

/// A body that a format itself compresses, with gzip or in the form that zlib gives to DEFLATE.
pub(super) fn expand_body(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut expander = Expander::default();
    let outcome = if body.starts_with(&GZIP) {
        expander.gzip(body)
    } else {
        expander.read(flate2::bufread::ZlibDecoder::new(body))
    };
    outcome.map_err(|e| format!("the body cannot be expanded, it is neither gzip nor DEFLATE: {e}"))?;
    expander.within_bound()?;
    Ok(expander.expanded)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).expect("memory")
    }

    #[test]
    fn what_is_compressed_is_recognised_unless_the_stream_says_otherwise() {
        let check = |payload: &[u8], compression, expect: Result<&[u8], &str>| {
            let mut expander = Expander::default();
            match (expander.expand(payload, compression), expect) {
                (Ok(found), Ok(expect)) => assert_eq!(found, expect),
                (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
                (found, expect) => panic!("{found:?}, not {expect:?}"),
            }
        };
        let (text, gzip, zstd) = (&b"{\"v\":1}"[..], gzip(b"{\"v\":1}"), zstd(b"{\"v\":1}"));
        check(text, Compression::Auto, Ok(text));
        check(&gzip, Compression::Auto, Ok(text));
        check(&zstd, Compression::Auto, Ok(text));
        check(&gzip, Compression::Gzip, Ok(text));
        check(&zstd, Compression::Zstd, Ok(text));
        check(&gzip, Compression::None, Ok(&gzip));
        check(&[gzip.clone(), gzip.clone()].concat(), Compression::Auto, Ok(b"{\"v\":1}{\"v\":1}"));
        check(&zstd, Compression::Gzip, Err("not usable as gzip"));
        check(text, Compression::Zstd, Err("not usable as zstd"));
        check(&gzip[..gzip.len() - 3], Compression::Auto, Err("not usable as gzip"));
        check(&zstd[..zstd.len() - 3], Compression::Auto, Err("not usable as zstd"));
    }

    #[test]
    fn a_payload_that_expands_without_end_is_refused_and_leaves_no_memory_behind() {
        let zeros = vec![0; MAX_EXPANDED_BYTES];
        let mut expander = Expander::default();
        for bomb in [gzip(&[&zeros[..], &[0]].concat()), zstd(&[&zeros[..], &[0]].concat())] {
            assert!(bomb.len() < 64 << 10);
            let why = expander.expand(&bomb, Compression::Auto).expect_err("too large");
            assert_eq!(why, "the payload expands to more than 16777216 bytes; send less at once");
        }
        assert_eq!(expander.expand(&gzip(&zeros), Compression::Auto).expect("just right").len(), zeros.len());
        expander.expand(b"{}", Compression::Auto).expect("good");
        assert!(expander.kept_bytes() <= KEPT_CAPACITY);
    }

    #[test]
    fn a_frame_that_wants_a_huge_window_is_refused() {
        // A frame header: magic, no single segment, window of 2^31 bytes, then an empty last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x01, 0x00, 0x00];
        let why = Expander::default().expand(&frame, Compression::Auto).expect_err("too large a window");
        assert!(why.contains("not usable as zstd"), "{why}");
    }
}
