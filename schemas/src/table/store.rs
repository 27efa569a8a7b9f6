//! Where tables live.

use std::path::Path;

use url::Url;

use crate::disk;
use crate::error::{Error, Result};

/// The root under which all tables live.
#[derive(Debug, Clone)]
pub struct Store {
    root: Url,
}

impl Store {
    /// A store in a local directory, which is created.
    pub fn local(dir: &Path) -> Result<Self> {
        disk::create_dirs(dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        let dir = dir.canonicalize().map_err(|e| Error::io(format!("opening {}", dir.display()), e))?;
        let root = Url::from_directory_path(&dir)
            .map_err(|()| Error::invalid(format!("`{}` is no usable path", dir.display())))?;
        super::patient::enter();
        Ok(Self { root })
    }

    /// A store at a URL, or in a local directory if `location` has no scheme.
    pub fn parse(location: &str) -> Result<Self> {
        match Url::parse(location) {
            Ok(url) if url.scheme() == "file" => match url.to_file_path() {
                Ok(dir) => Self::local(&dir),
                Err(()) => Err(Error::invalid(format!("`{location}` is no local path"))),
            },
            Ok(url) if url.scheme().len() > 1 => Err(Error::invalid(format!(
                "the store `{location}`: this build reads and writes local directories only; give a path or a file:// URL"
            ))),
            _ => Self::local(Path::new(location)),
        }
    }

    /// The URL of a table or folder.
    pub fn url(&self, path: &str) -> Result<Url> {
        self.root
            .join(&format!("{path}/"))
            .map_err(|e| Error::invalid(format!("`{path}` below `{}`: {e}", self.root)))
    }

    /// The local directory behind the store.
    pub fn local_path(&self, path: &str) -> Result<std::path::PathBuf> {
        self.url(path)?
            .to_file_path()
            .map_err(|()| Error::invalid(format!("`{}` is no local path", self.root)))
    }
}
