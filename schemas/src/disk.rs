//! What is on a local disk for good: after power loss too, not only after the end of a process.
//!
//! A file is found again if its bytes are on the disk, its name is in its directory, and so on up to the root.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::{Error, Result};

/// Makes a file's bytes durable, or a directory's entries. Blocks.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the entry of `path` in its directory durable: that it is there, or no longer. Blocks.
pub fn sync_entry(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// Creates a directory and those above it, durably. Blocks; one that is there is fine.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().skip(1).take_while(|dir| !is_there(dir)).collect();
    fs::create_dir_all(dir)?;
    // Its own entry in any case: whoever made it may have ended before this.
    std::iter::once(dir).chain(missing).try_for_each(sync_entry)
}

/// Writes a file durably, so that it is there whole or, after a crash, as it was before. Blocks.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let draft = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_entry(path)
    };
    write().map_err(|e| {
        // On a full disk it would take up the last room.
        let _ = fs::remove_file(&draft);
        Error::io(format!("writing {}", path.display()), e)
    })
}

/// What is left free on a disk for what must be written before something can be deleted, if it has more than twenty times as
/// much.
const RESERVE_BYTES: u64 = 64 << 20;

/// Fails if less than the reserve is free on the disk of `path`: 64 MiB, or a twentieth of a small disk. Where that cannot be told
/// there is no reserve. Costs a system call.
pub fn check_reserve(path: &Path) -> io::Result<()> {
    let Ok(disk) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let reserve = RESERVE_BYTES.min(disk.f_blocks.saturating_mul(disk.f_frsize) / 20);
    if free >= reserve {
        return Ok(());
    }
    let why = format!("{} KiB are free and {} KiB are left as a reserve", free >> 10, reserve >> 10);
    Err(io::Error::new(io::ErrorKind::StorageFull, why))
}

/// The ancestors of a relative path end with an empty one.
fn is_there(dir: &Path) -> bool {
    dir.as_os_str().is_empty() || dir.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_room_has_its_reserve_and_one_that_is_absent_has_none() {
        let dir = tempfile::tempdir().expect("a directory");
        check_reserve(dir.path()).expect("tests need room");
        check_reserve(&dir.path().join("absent")).expect("nothing is known");
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        replace(&path, b"old and long").expect("written");
        replace(&path, b"new").expect("replaced");
        assert_eq!(fs::read(&path).expect("readable"), b"new");
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("made");
        let error = replace(&folder, b"new").expect_err("a folder is in its place");
        assert!(error.to_string().contains("folder"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 2, "no draft is left");
    }

    #[test]
    fn directories_are_made_with_those_above_them_and_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep).expect("made");
        create_dirs(&deep).expect("there");
        assert!(deep.is_dir());
        sync_entry(&deep).expect("synced");
        sync(&dir.path().join("absent")).expect_err("it is not there");
    }
}
