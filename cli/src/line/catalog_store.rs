//! Where the catalog is kept: one YAML file per definition below `catalog/` in the store.

use std::fs;
use std::path::PathBuf;

use iot_schemas::catalog::{Catalog, Document, Kind, parse};
use iot_schemas::disk;
use iot_schemas::layout::CATALOG_PATH;
use iot_schemas::table::Store;
use iot_schemas::{Error, Result};
use sha2::{Digest, Sha256};

const KINDS: [Kind; 4] = [Kind::Stream, Kind::View, Kind::Rule, Kind::Device];
/// Characters of a file's name without its extension. File systems take 255 bytes.
const MAX_FILE_NAME: usize = 200;

/// The catalog's files.
#[derive(Debug, Clone)]
pub(super) struct CatalogStore {
    dir: PathBuf,
}

impl CatalogStore {
    pub(super) fn open(store: &Store) -> Result<Self> {
        let dir = store.local_path(CATALOG_PATH)?;
        for kind in KINDS {
            let dir = dir.join(folder(kind));
            disk::create_dirs(&dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        }
        Ok(Self { dir })
    }

    /// All definitions; the stream `events` if there is no stream.
    pub(super) fn load(&self) -> Result<Catalog> {
        let mut catalog = Catalog::default();
        for kind in KINDS {
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
        disk::replace(&self.path(document.def.kind(), document.def.name()), document.text.as_bytes())
    }

    /// Whether a definition is kept.
    pub(super) fn has(&self, kind: Kind, name: &str) -> bool {
        self.path(kind, name).exists()
    }

    /// Removes a definition for good; one that is not there is fine.
    pub(super) fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        let path = self.path(kind, name);
        let removed = match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            // One that an earlier call has removed may still come back.
            _ => disk::sync_entry(&path),
        };
        removed.map_err(|e| Error::io(format!("removing {}", path.display()), e))
    }

    fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.dir.join(folder(kind)).join(format!("{}.yaml", file_name(name)))
    }
}

fn folder(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "streams",
        Kind::View => "views",
        Kind::Rule => "rules",
        Kind::Device => "devices",
    }
}

/// The file's name for a definition's, without the extension.
///
/// Names of streams, views and rules stay as they are. A device may be called anything: bytes that are no letter,
/// digit, `_` or `-` become `%` and two hexadecimal digits, and of a name that is then too long for a file system the
/// end is replaced by a checksum. No two names come to the same, and none leaves the folder.
fn file_name(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    if escaped.len() > MAX_FILE_NAME {
        let hash: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        escaped.truncate(MAX_FILE_NAME - hash.len() - 1);
        escaped.push('~');
        escaped.push_str(&hash);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_a_file_of_its_own_in_the_folder() {
        let check = |name: &str, expect: &str| assert_eq!(file_name(name), expect);
        check("readings_1", "readings_1");
        check("plant/node-1/pump", "plant%2Fnode-1%2Fpump");
        check("../../etc/passwd", "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd");
        check("a%2Fb", "a%252Fb");
        check("π", "%CF%80");
        let long = |last: &str| file_name(&format!("{}{last}", "/".repeat(400)));
        assert_eq!(long("a").len(), MAX_FILE_NAME);
        assert_ne!(long("a"), long("b"));
    }

    #[test]
    fn devices_of_any_name_are_kept_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = CatalogStore::open(&Store::local(dir.path()).expect("a store")).expect("it opens");
        let names = ["plant/n 1/π", "..", "a", "a%", &"x/".repeat(250)];
        for name in names {
            let text = format!("kind: device\nname: {name:?}\n");
            parse(&text, "test").expect("it parses").iter().for_each(|it| store.put(it).expect("written"));
        }
        let found: Vec<String> =
            store.load().expect("it loads").devices().map(|def| def.name.clone()).collect();
        let mut expect = names.map(str::to_owned).to_vec();
        expect.sort();
        assert_eq!(found, expect);
        names.iter().for_each(|name| store.remove(Kind::Device, name).expect("removed"));
        assert_eq!(store.load().expect("it loads").devices().count(), 0);
    }
}
