//! The file that keeps what is known of Sparkplug's edge nodes when the log that it came from is trimmed.
//!
//! It is written when all tables have committed an epoch and before the log is trimmed, and the next epoch is
//! not sealed before. So whatever a crash interrupts, each stream's state in the file is that after the last
//! epoch that is in all tables, and the log has everything since.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use iot_schemas::{Error, Result, disk};

use crate::decode::Nodes;

/// Magic and version; then come the checksum of the rest and the nodes by stream as JSON.
const MAGIC: [u8; 8] = *b"IOTSPB\0\x01";

/// The content of the file for the nodes of these streams.
pub(crate) fn encode(streams: &BTreeMap<&str, &Nodes>) -> Vec<u8> {
    let body = serde_json::to_vec(streams).expect("maps from text to numbers and text are JSON");
    [&MAGIC[..], &crc32fast::hash(&body).to_le_bytes(), &body].concat()
}

/// Reads the nodes by stream. An absent file has none; a damaged one neither, with a warning: nodes are then
/// asked for their births.
pub(crate) fn load(wal_dir: &Path) -> Result<BTreeMap<String, Nodes>> {
    let path = path(wal_dir);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    Ok(decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "the state of Sparkplug nodes is damaged and was dropped");
        BTreeMap::new()
    }))
}

/// Replaces the file: afterwards it holds `content` or, after a crash, what it held before.
pub(crate) fn save(wal_dir: &Path, content: &[u8]) -> Result<()> {
    disk::replace(&path(wal_dir), content)
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<String, Nodes>> {
    let (checksum, body) = bytes.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*checksum) == crc32fast::hash(body)).then_some(())?;
    serde_json::from_slice(body).ok()
}

fn path(wal_dir: &Path) -> PathBuf {
    wal_dir.join("sparkplug.nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(load(dir.path()).expect("it reads").is_empty());
        let nodes = Nodes::default();
        let content = encode(&[("plant", &nodes)].into_iter().collect());
        save(dir.path(), &content).expect("it writes");
        assert_eq!(load(dir.path()).expect("it reads"), [("plant".to_owned(), nodes)].into_iter().collect());
        for at in 0..content.len() {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            save(dir.path(), &damaged).expect("it writes");
            assert!(load(dir.path()).expect("it reads").is_empty(), "byte {at}");
        }
        save(dir.path(), &content[..5]).expect("it writes");
        assert!(load(dir.path()).expect("it reads").is_empty());
    }
}
