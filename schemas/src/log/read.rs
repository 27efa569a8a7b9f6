//! Reading a log: frame by frame, checking every checksum, never trusting a length.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{FRAME_HEADER_BYTES, HEADER_BYTES, MAGIC, MAX_FRAME_BYTES, ends, segments};
use crate::error::{Error, Result};
use crate::position::Seq;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The first position that it covers.
    pub first: Seq,
    /// The last position that it covers.
    pub last: Seq,
    /// What was appended.
    pub body: Vec<u8>,
}

/// The frames of a log from some position on. Holds one frame in memory at a time.
#[derive(Debug)]
pub struct Frames {
    after: Seq,
    /// Segments not yet opened and where they end, newest first.
    waiting: Vec<(PathBuf, Seq)>,
    current: Option<SegmentReader>,
}

impl Frames {
    /// Opens the log in `dir` for reading; it may be appended to meanwhile.
    pub fn open(dir: &Path, after: Seq) -> Result<Self> {
        let mut found = segments(dir)?;
        // A segment is needed if the next one starts after what the reader has already.
        let first = found.iter().rposition(|segment| segment.base <= after + 1).unwrap_or(0);
        let ends = ends(&found).split_off(first);
        let waiting = found.drain(first..).map(|segment| segment.path).zip(ends).rev().collect();
        Ok(Self { after, waiting, current: None })
    }

    fn read_next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(reader) = &mut self.current {
                match reader.next_frame()? {
                    Some(frame) if frame.last <= self.after => continue,
                    Some(frame) => return Ok(Some(frame)),
                    None => self.current = None,
                }
            }
            let Some((path, end)) = self.waiting.pop() else { return Ok(None) };
            self.current = SegmentReader::open(&path, end)?;
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().transpose()
    }
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) frames: u64,
    /// The last position, 0 if there is no frame.
    pub(super) last: Seq,
    /// Bytes up to the end of the last good frame.
    pub(super) good_bytes: u64,
}

/// Reads a whole segment, up to position `end`, and says how much of it is good.
pub(super) fn scan(path: &Path, end: Seq) -> Result<Found> {
    let mut found = Found::default();
    let Some(mut reader) = SegmentReader::open(path, end)? else { return Ok(found) };
    found.good_bytes = HEADER_BYTES;
    while let Some(frame) = reader.next_frame()? {
        found.frames += 1;
        found.last = frame.last;
        found.good_bytes += (FRAME_HEADER_BYTES + frame.body.len()) as u64;
    }
    Ok(found)
}

#[derive(Debug)]
struct SegmentReader {
    path: PathBuf,
    /// The first position that is no longer its own.
    end: Seq,
    file: BufReader<File>,
}

impl SegmentReader {
    /// `None` if the header is torn or of an unknown version.
    fn open(path: &Path, end: Seq) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            // Trimmed between listing and opening: its frames are no longer wanted by anybody.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
        };
        let mut reader = Self { path: path.to_owned(), end, file: BufReader::with_capacity(1 << 16, file) };
        let mut header = [0; HEADER_BYTES as usize];
        if !reader.fill(&mut header)? {
            return Ok(None);
        }
        let crc = u32::from_le_bytes(header[16..20].try_into().expect("four bytes"));
        let good = header[0..8] == MAGIC && crc == crc32fast::hash(&header[0..16]);
        Ok(good.then_some(reader))
    }

    /// `None` at the end and at the first frame that is not whole and right, or no longer its own.
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (length, crc, first, last) = (word(0), word(4), long(8), long(16));
        if length > MAX_FRAME_BYTES || first > last || first >= self.end {
            return Ok(None);
        }
        // The length is not yet proven: grow as bytes arrive instead of trusting it with an allocation.
        let mut body = Vec::new();
        let read = (&mut self.file).take(u64::from(length)).read_to_end(&mut body);
        read.map_err(|e| Error::io(format!("reading {}", self.path.display()), e))?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&header[8..]);
        hasher.update(&body);
        let whole = body.len() == length as usize && hasher.finalize() == crc;
        Ok(whole.then_some(Frame { first, last, body }))
    }

    /// Fills `buffer`; `false` if the file ends first.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(Error::io(format!("reading {}", self.path.display()), e)),
        }
    }
}
