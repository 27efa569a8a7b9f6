//! Where the catalog is kept: one YAML file per definition below `catalog/` in the store.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use iot_schemas::catalog::{Catalog, Document, Kind, parse};
use iot_schemas::layout::CATALOG_PATH;
use iot_schemas::table::Store;
use iot_schemas::{Error, Result};

/// The catalog's files.
#[derive(Debug)]
pub(super) struct CatalogStore {
    dir: PathBuf,
}

impl CatalogStore {
    pub(super) fn open(store: &Store) -> Result<Self> {
        let dir = store.local_path(CATALOG_PATH)?;
        for kind in [Kind::Stream, Kind::View, Kind::Rule] {
            let dir = dir.join(folder(kind));
            fs::create_dir_all(&dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        }
        Ok(Self { dir })
    }

    /// All definitions; the stream `events` if there is no stream.
    pub(super) fn load(&self) -> Result<Catalog> {
        let mut catalog = Catalog::default();
        for kind in [Kind::Stream, Kind::View, Kind::Rule] {
            let dir = self.dir.join(folder(kind));
            let entries =
                fs::read_dir(&dir).map_err(|e| Error::io(format!("listing {}", dir.display()), e))?;
            for entry in entries {
                let path = entry.map_err(|e| Error::io(format!("listing {}", dir.display()), e))?.path();
                if path.extension().is_some_and(|extension| extension == "yaml") {
                    let named = path.display().to_string();
                    let text =
                        fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {named}"), e))?;
                    parse(&text, &named)?.into_iter().for_each(|document| catalog.put(document));
                }
            }
        }
        if catalog.streams().next().is_none() {
            Catalog::with_default_stream().documents().cloned().for_each(|document| catalog.put(document));
        }
        Ok(catalog)
    }

    /// Writes a definition so that it is there whole or not at all.
    pub(super) fn put(&self, document: &Document) -> Result<()> {
        let path = self.path(document.def.kind(), document.def.name());
        let write = || -> std::io::Result<()> {
            let temporary = path.with_extension("tmp");
            let mut file = File::create(&temporary)?;
            file.write_all(document.text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(path.parent().unwrap_or(&self.dir))?.sync_all()
        };
        write().map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }

    /// Whether a definition is kept.
    pub(super) fn has(&self, kind: Kind, name: &str) -> bool {
        self.path(kind, name).exists()
    }

    /// Removes a definition; one that is not there is fine.
    pub(super) fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        let path = self.path(kind, name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.dir.join(folder(kind)).join(format!("{name}.yaml"))
    }
}

fn folder(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "streams",
        Kind::View => "views",
        Kind::Rule => "rules",
    }
}
