//! A password or a key: it can be used, but nothing prints it.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use iot_schemas::{Error, Result};

/// A secret. `Debug` shows that there is one and no more; there is no `Display`, and it is never serialised.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first line of a file, as editors and `echo` write it: without its line end.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the secret in {}", path.display()), e))?;
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Self::new(line)),
            _ => Err(Error::invalid(format!(
                "the first line of {} is empty; write the secret there",
                path.display()
            ))),
        }
    }

    /// The secret itself, for whoever has to send or check it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

/// Writes a file of secrets or their hashes in one step. A new one can be read by its owner only; one that was there
/// keeps its mode, owner and group, so that a service that could read it still can.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let beside = beside(path);
    let written = write_new(&beside, path, text).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|e| {
        // What is left of it must not lie about. If it was never made, there is nothing to remove.
        _ = std::fs::remove_file(&beside);
        Error::io(format!("writing {}", path.display()), e)
    })
}

/// A name in the same directory that nobody can have prepared.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    name.into()
}

fn write_new(beside: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    if let Ok(old) = std::fs::metadata(path)
        && let Err(e) = take_after(&file, &old)
    {
        let path = path.display();
        tracing::warn!(
            "{path} can now be read by whoever wrote it only, because its owner cannot be kept: {e}"
        );
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The owner first: another group must not be given what the old one could read.
fn take_after(file: &File, old: &Metadata) -> io::Result<()> {
    fchown(file, Some(old.uid()), Some(old.gid()))?;
    file.set_permissions(Permissions::from_mode(old.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new("opensesame");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(***) Some(Secret(***))");
        assert_eq!(secret.expose(), "opensesame");
    }

    #[test]
    fn a_file_holds_it_in_its_first_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("s");
        std::fs::write(&file, "open sesame\nnot this\n").expect("written");
        assert_eq!(Secret::from_file(&file).expect("a secret").expose(), "open sesame");
        std::fs::write(&file, "\n").expect("written");
        assert!(Secret::from_file(&file).expect_err("none").to_string().contains("is empty"));
    }

    #[test]
    fn a_file_that_is_written_anew_is_read_by_the_same_people() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        let mode = || std::fs::metadata(&path).expect("a file").mode() & 0o7777;
        write_private(&path, "a\n").expect("written");
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("it is ours");
        let is_root = fchown(File::open(&path).expect("a file"), Some(12_345), Some(23_456)).is_ok();
        write_private(&path, "b\n").expect("written");
        assert_eq!((mode(), std::fs::read_to_string(&path).expect("text").as_str()), (0o640, "b\n"));
        if is_root {
            let file = std::fs::metadata(&path).expect("a file");
            assert_eq!((file.uid(), file.gid()), (12_345, 23_456));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        std::fs::create_dir_all(path.join("full")).expect("a directory");
        write_private(&path, "a\n").expect_err("a directory is in the way");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
