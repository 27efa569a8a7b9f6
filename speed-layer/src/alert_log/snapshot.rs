//! Where every alert stood when the log was last shortened.
//!
//! ```text
//! <dir>/alerts.snapshot
//!   magic "IOTALRT\x01" | length u32 | crc32 of the body u32 | body: JSON
//! ```
//! All integers are little endian. The file is replaced as a whole: it is the old one or the new one, never half.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use iot_schemas::alert::{Transition, TransitionId};
use iot_schemas::position::{NodeId, Seq};
use iot_schemas::{Error, Result, disk};
use serde::{Deserialize, Serialize};

const FILE: &str = "alerts.snapshot";
const MAGIC: [u8; 8] = *b"IOTALRT\x01";
const HEADER_BYTES: usize = 16;

/// What outlives the transitions that it was computed from. Applying transitions to it that it covers already
/// changes nothing, so it need not match a point of the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The newest number given.
    pub(super) latest: TransitionId,
    /// The last (seq, ordinal) recorded of each node.
    pub(super) recorded: Vec<(NodeId, Seq, u32)>,
    /// All active and the newest ended alerts.
    pub(super) alerts: Vec<SnapshotEntry>,
}

/// One alert.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotEntry {
    /// The number of its first transition.
    pub(super) first: TransitionId,
    pub(super) newest: Transition,
}

impl Snapshot {
    /// The snapshot in `dir`, if there is one.
    ///
    /// One that is damaged is an error: without it alerts that are firing would be forgotten silently.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        let corrupt = |reason: String| Error::Corrupt { path: path.display().to_string(), reason };
        let body = body(&bytes).ok_or_else(|| corrupt("the checksum is wrong".into()))?;
        serde_json::from_slice(body).map(Some).map_err(|e| corrupt(e.to_string()))
    }

    /// Replaces the snapshot in `dir`, durably.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let body = serde_json::to_vec(self).expect("a snapshot has text keys only");
        disk::replace(&path, &[&header(&body)[..], &body].concat())
    }
}

/// The body of a whole and undamaged file.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
    (header == self::header(body)).then_some(body)
}

fn header(body: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &(body.len() as u32).to_le_bytes(), &crc32fast::hash(body).to_le_bytes()].concat()
}
