//! A segmented, checksummed, append-only log on local disk: frames of bytes, numbered by position.
//!
//! What [`Log::sync`] has confirmed survives SIGKILL and power loss. What it has not confirmed may survive or
//! not, but never half: a torn tail is cut off when the log is opened. The alert log and ingest's write-ahead
//! log share this format and differ in what their frames hold.
//!
//! ```text
//! <dir>/00000000000000000001.log      named after the first position that it may hold
//!   header   magic "IOTLOG\0\x01" | base u64 | crc32 of both u32
//!   frame    length u32 | crc32 of the rest u32 | first u64 | last u64 | body [length]
//!   frame    ...
//! ```
//! All integers are little endian. Frames follow each other without gaps: `first` is the previous `last` + 1. A segment
//! ends where the next one begins, whatever lies behind that in it: a write that failed and could not be cut off.

mod read;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use read::{Frame, Frames};

use crate::disk;
use crate::error::{Error, Result};
use crate::position::Seq;

const MAGIC: [u8; 8] = *b"IOTLOG\0\x01";
const HEADER_BYTES: u64 = 20;
const FRAME_HEADER_BYTES: usize = 24;
/// No frame is larger; a length beyond it is damage. Far above the largest group that ingest writes.
const MAX_FRAME_BYTES: u32 = 1 << 30;

/// What opening a log found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Frames that are there.
    pub frames: u64,
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: u64,
    /// Bytes in older segments that cannot be read. More than 0 means damaged storage, not a crash.
    pub damaged_bytes: u64,
}

/// A log open for appending. One process at a time; the caller holds the directory's lock.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    segment_bytes: u64,
    /// All segments but the active one, oldest first.
    closed: Vec<Segment>,
    active: Segment,
    file: File,
    synced: Synced,
    /// Whether the active segment may hold more than was confirmed, so that nothing may be appended to it.
    is_spoilt: bool,
    next: Seq,
}

/// What the last sync has confirmed.
#[derive(Debug, Clone, Copy)]
struct Synced {
    /// Bytes of the active segment.
    bytes: u64,
    /// The position after it.
    next: Seq,
}

#[derive(Debug, Clone)]
struct Segment {
    path: PathBuf,
    /// The first position that it may hold.
    base: Seq,
    bytes: u64,
}

impl Log {
    /// Opens the log in `dir`, creating it if needed, and cuts off a torn tail.
    ///
    /// A new segment is begun once the active one exceeds `segment_bytes`. A log that is created begins
    /// with position `first`; an existing log goes on where it ended, or at `first` if that is further.
    pub fn open(dir: &Path, segment_bytes: u64, first: Seq) -> Result<(Self, Recovery)> {
        disk::create_dirs(dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        let mut closed = segments(dir)?;
        let mut recovery = Recovery::default();
        let mut next = closed.first().map_or(first, |segment| segment.base);
        let last = closed.len().saturating_sub(1);
        let ends = ends(&closed);
        for (i, (segment, end)) in closed.iter_mut().zip(ends).enumerate() {
            next = next.max(segment.base);
            let found = read::scan(&segment.path, end)?;
            recovery.frames += found.frames;
            next = next.max(found.last + 1);
            let rest = segment.bytes - found.good_bytes;
            if rest > 0 && i == last {
                recovery.torn_bytes = rest;
                cut(&segment.path, found.good_bytes)?;
                segment.bytes = found.good_bytes;
            } else {
                recovery.damaged_bytes += rest;
            }
        }
        next = next.max(first);
        // A fresh segment for each opening: nothing is ever appended behind a tail that was cut. The name of a
        // segment says where it begins, so it is made before empty ones are removed.
        let (active, file) = create_segment(dir, next)?;
        closed.retain(|segment| {
            let empty = segment.bytes <= HEADER_BYTES;
            if empty && segment.path != active.path {
                let _ = fs::remove_file(&segment.path);
            }
            !empty
        });
        let synced = Synced { bytes: active.bytes, next };
        let dir = dir.to_owned();
        Ok((Self { dir, segment_bytes, closed, active, file, synced, is_spoilt: false, next }, recovery))
    }

    /// The position that the next frame starts with.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Bytes on disk, all segments together.
    pub fn bytes(&self) -> u64 {
        self.active.bytes + self.closed.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Appends one frame that covers `count` positions and returns the first of them.
    ///
    /// It is durable after the next [`Self::sync`]. On error (a full disk, say) the log is as it was after the
    /// last `sync`, and the call may be repeated.
    pub fn append(&mut self, count: u64, body: &[u8]) -> Result<Seq> {
        debug_assert!(count > 0 && body.len() < MAX_FRAME_BYTES as usize);
        if self.is_spoilt {
            self.leave_spoilt()?;
        }
        if self.active.bytes > self.segment_bytes && self.active.bytes == self.synced.bytes {
            self.rotate()?;
        }
        let first = self.next;
        let header = frame_header(first, first + count - 1, body);
        let written = self.file.write_all(&header).and_then(|()| self.file.write_all(body));
        if let Err(e) = written {
            return Err(self.roll_back("appending to", e));
        }
        self.active.bytes += (header.len() + body.len()) as u64;
        self.next += count;
        Ok(first)
    }

    /// Makes all appended frames durable. On error they are taken back: none of them is in the log.
    pub fn sync(&mut self) -> Result<()> {
        if self.active.bytes == self.synced.bytes {
            return Ok(());
        }
        if let Err(e) = self.file.sync_data() {
            return Err(self.roll_back("syncing", e));
        }
        self.synced = Synced { bytes: self.active.bytes, next: self.next };
        Ok(())
    }

    /// Deletes segments that hold nothing after `up_to`. Returns the bytes that were freed.
    pub fn trim(&mut self, up_to: Seq) -> Result<u64> {
        let mut rotated = Ok(());
        if self.active.bytes > HEADER_BYTES
            && self.next <= up_to + 1
            && self.active.bytes == self.synced.bytes
        {
            // A full disk has no room for another segment before something has gone.
            rotated = self.rotate();
        }
        let mut freed = 0;
        while let Some(oldest) = self.closed.first() {
            let end = self.closed.get(1).map_or(self.active.base, |next| next.base);
            if end > up_to + 1 {
                break;
            }
            fs::remove_file(&oldest.path)
                .map_err(|e| Error::io(format!("removing {}", oldest.path.display()), e))?;
            freed += self.closed.remove(0).bytes;
        }
        rotated.map(|()| freed)
    }

    /// The frames that hold positions after `after`, oldest first, as they are on disk now.
    pub fn read_after(&self, after: Seq) -> Result<Frames> {
        Frames::open(&self.dir, after)
    }

    fn rotate(&mut self) -> Result<()> {
        let (segment, file) = create_segment(&self.dir, self.next)?;
        self.closed.push(std::mem::replace(&mut self.active, segment));
        self.file = file;
        self.synced = Synced { bytes: self.active.bytes, next: self.next };
        self.is_spoilt = false;
        Ok(())
    }

    /// Returns to the last synced state after a failure. What that is, is known and not read: the disk that has
    /// failed may fail again.
    fn roll_back(&mut self, doing: &str, cause: io::Error) -> Error {
        let error = Error::io(format!("{doing} {}", self.active.path.display()), cause);
        // If this fails, the segment that follows says where this one ends.
        let _ = self.file.set_len(self.synced.bytes);
        (self.active.bytes, self.next) = (self.synced.bytes, self.synced.next);
        self.is_spoilt = true;
        // If this fails too (the disk is full), the next append tries it again before it writes anything.
        let _ = self.leave_spoilt();
        error
    }

    /// Goes on in another segment: after a failed fsync nobody knows what the kernel still has of the old one. If
    /// nothing in that was confirmed, it is emptied instead, as the other would have its name.
    fn leave_spoilt(&mut self) -> Result<()> {
        if self.active.bytes > HEADER_BYTES {
            return self.rotate();
        }
        cut(&self.active.path, HEADER_BYTES)?;
        let file = OpenOptions::new().append(true).open(&self.active.path);
        self.file = file.map_err(|e| Error::io(format!("opening {}", self.active.path.display()), e))?;
        self.is_spoilt = false;
        Ok(())
    }
}

/// The bytes in front of a frame's body.
fn frame_header(first: Seq, last: Seq, body: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[8..16].copy_from_slice(&first.to_le_bytes());
    header[16..24].copy_from_slice(&last.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[8..]);
    crc.update(body);
    header[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    header
}

/// Makes a segment that must be new: one of that name that holds frames is not touched. On error there is none.
fn create_segment(dir: &Path, base: Seq) -> Result<(Segment, File)> {
    let path = dir.join(format!("{base:020}.log"));
    let create = || -> io::Result<File> {
        remove_if_empty(&path)?;
        let mut file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        match begin(&mut file, base).and_then(|()| disk::sync(dir)) {
            // Appending, so that a cut tail is never followed by a hole.
            Ok(()) => OpenOptions::new().append(true).open(&path),
            Err(e) => {
                // A full disk has room for a name when it has none for a header.
                let _ = fs::remove_file(&path);
                Err(e)
            }
        }
    };
    let file = create().map_err(|e| Error::io(format!("creating {}", path.display()), e))?;
    Ok((Segment { path, base, bytes: HEADER_BYTES }, file))
}

/// Removes a segment without frames: an earlier try or an earlier process has left it.
fn remove_if_empty(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.len() <= HEADER_BYTES => fs::remove_file(path),
        _ => Ok(()),
    }
}

fn begin(file: &mut File, base: Seq) -> io::Result<()> {
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&base.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    file.write_all(&header)?;
    file.sync_all()
}

fn cut(path: &Path, len: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| {
        file.set_len(len)?;
        file.sync_all()
    })
    .map_err(|e| Error::io(format!("cutting the torn tail of {}", path.display()), e))
}

/// The position at which the segment after each begins. A segment that was spoilt may hold frames from there on; they
/// were not confirmed, and others have taken their positions.
fn ends(segments: &[Segment]) -> Vec<Seq> {
    segments.iter().skip(1).map(|next| next.base).chain([Seq::MAX]).collect()
}

/// The segments in `dir`, oldest first.
fn segments(dir: &Path) -> Result<Vec<Segment>> {
    let context = || format!("listing {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(context(), e))? {
        let entry = entry.map_err(|e| Error::io(context(), e))?;
        let name = entry.file_name();
        let Some(base) = name.to_str().and_then(|n| n.strip_suffix(".log")).and_then(|n| n.parse().ok())
        else {
            continue;
        };
        let bytes = entry.metadata().map_err(|e| Error::io(context(), e))?.len();
        found.push(Segment { path: entry.path(), base, bytes });
    }
    found.sort_by_key(|segment| segment.base);
    Ok(found)
}

#[cfg(test)]
mod tests;
