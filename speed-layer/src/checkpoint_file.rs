//! What the engine needs to go on after a crash: the rules' instances at an exact position, in one file.
//!
//! The file is replaced atomically. The log is trimmed only up to its position, so whatever came later is
//! replayed. A file that is damaged or of another version is set aside; alerts then begin anew from the log.

use std::fs;
use std::path::Path;

use iot_schemas::disk;
use iot_schemas::position::Frontier;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::event_time::SavedTime;
use crate::rules::RulesCheckpoint;

/// The engine's durable state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Everything up to here is in `rules`.
    pub(crate) frontier: Frontier,
    pub(crate) rules: RulesCheckpoint,
    /// Absent in the files of builds that kept less: event time then begins with what comes next.
    #[serde(default)]
    pub(crate) time: SavedTime,
}

/// The first line of the file, before the checksum.
const HEAD: &str = "iot-checkpoint 1";

/// Writes the file so that it is there whole or not at all.
pub(crate) fn save(path: &Path, saved: &Saved) -> Result<()> {
    write_checked(path, HEAD, saved)
}

/// Writes `value` as JSON under the first line `head` and a checksum, so that it is there whole or not at all.
pub(crate) fn write_checked(path: &Path, head: &str, value: &impl Serialize) -> Result<()> {
    let body = serde_json::to_vec(value)
        .map_err(|e| iot_schemas::Error::io(format!("writing {}", path.display()), e.into()))?;
    let head = format!("{head} {:08x}\n", crc32fast::hash(&body));
    Ok(disk::replace(path, &[head.as_bytes(), &body].concat())?)
}

/// Reads the file; `None` if there is none that can be used.
pub(crate) fn load(path: &Path) -> Result<Option<Saved>> {
    read_checked(path, HEAD, "alerts begin anew")
}

/// Reads what [`write_checked`] wrote; `None` if there is nothing that can be used. What cannot is set aside, with
/// the consequence in the log.
pub(crate) fn read_checked<T: DeserializeOwned>(
    path: &Path,
    head: &str,
    consequence: &str,
) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(iot_schemas::Error::io(format!("reading {}", path.display()), e).into()),
    };
    let saved = parse(&bytes, head);
    if saved.is_none() {
        tracing::warn!(path = %path.display(), "a checkpoint cannot be read: {consequence}");
        let _ = fs::rename(path, path.with_extension("damaged"));
    }
    Ok(saved)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], head: &str) -> Option<T> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let first = std::str::from_utf8(&bytes[..end]).ok()?;
    let checksum = first.strip_prefix(head)?.strip_prefix(' ')?;
    let body = &bytes[end + 1..];
    (u32::from_str_radix(checksum, 16).ok()? == crc32fast::hash(body)).then_some(())?;
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RuleSet;

    #[test]
    fn a_damaged_checkpoint_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rules.ckpt");
        let frontier: Frontier = [("n".into(), 7)].into_iter().collect();
        let rules = RuleSet::default().checkpoint();
        save(&path, &Saved { frontier: frontier.clone(), rules, time: SavedTime::default() }).expect("saved");
        assert_eq!(load(&path).expect("reads").expect("there").frontier, frontier);
        let mut bytes = fs::read(&path).expect("reads");
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(&path, bytes).expect("writes");
        assert!(load(&path).expect("reads").is_none());
        assert!(!path.exists() && path.with_extension("damaged").exists());
    }
}
