//! The file that keeps the re-delivery window when the log that it came from is trimmed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use iot_schemas::disk;
use iot_schemas::position::Seq;
use iot_schemas::{Error, Result};

use crate::redelivery::Redelivery;

/// Reads the window; an absent file is an empty window, a damaged one too, with a warning.
pub(crate) fn load(wal_dir: &Path) -> Result<(Redelivery, Seq)> {
    let path = path(wal_dir);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Redelivery::default(), 0)),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    Ok(Redelivery::decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "the re-delivery window is damaged and was dropped");
        (Redelivery::default(), 0)
    }))
}

/// Replaces the file: afterwards it holds `window` or, after a crash, what it held before.
pub(crate) fn save(wal_dir: &Path, window: &[u8]) -> Result<()> {
    disk::replace(&path(wal_dir), window)
}

fn path(wal_dir: &Path) -> PathBuf {
    wal_dir.join("redelivery.window")
}
