//! A password or a key: it can be used, but nothing prints it.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
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

/// Writes a file of secrets or their hashes in one step, readable by its owner only.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let failed = |e| Error::io(format!("writing {}", path.display()), e);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside);
    let mut file = file.map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
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
}
