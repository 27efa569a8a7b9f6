//! The versions of a stream's schema: in memory as the decoder makes them, in a file before anything of them is in a
//! table.
//!
//! The file lies beside the catalog, `catalog/schemas/<stream>.jsonl`: a line with a version and the checksum of the
//! rest, then a line per version. It is replaced as a whole. What a crash takes away is decoded again from the log,
//! with the same numbers at the same positions; what a dead letter names is in the file before the letter is in its
//! table.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::datatypes::Schema;
use parking_lot::{Mutex, RwLock};

use iot_schemas::catalog::StreamDef;
use iot_schemas::disk;
use iot_schemas::layout::SCHEMAS_PATH;
use iot_schemas::position::Seq;
use iot_schemas::registry::{History, Renames, Stamp, Version};
use iot_schemas::table::Store;
use iot_schemas::{Error, Result};

use crate::stream::Stream;

/// How the file begins; the checksum follows, in hexadecimal digits.
const MAGIC: &str = "iot-schemas 1 ";

/// One stream's history and its file.
#[derive(Debug)]
pub(crate) struct SchemaKeeper {
    path: PathBuf,
    history: RwLock<History>,
    /// How many versions the file has. Held while it is written.
    writing: Mutex<()>,
    saved: AtomicUsize,
}

impl SchemaKeeper {
    /// Reads the history of a stream; that of a new one is empty.
    pub(crate) fn open(store: &Store, stream: &str) -> Result<Self> {
        let dir = store.local_path(SCHEMAS_PATH)?;
        disk::create_dirs(&dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        let path = dir.join(format!("{stream}.jsonl"));
        let history = load(&path)?;
        let saved = AtomicUsize::new(history.versions().len());
        Ok(Self { path, history: RwLock::new(history), writing: Mutex::default(), saved })
    }

    /// Makes a version if the columns are not those of the newest.
    pub(crate) fn observe(&self, def: &StreamDef, schema: &Schema, stamp: Stamp) {
        self.history.write().observe(def, schema, stamp);
    }

    /// The number of the version that is in force at a position.
    pub(crate) fn at(&self, seq: Seq) -> Option<u32> {
        self.history.read().at(seq)
    }

    /// Which columns are read where others have no value.
    pub(crate) fn renames(&self) -> Renames {
        self.history.read().renames().clone()
    }

    /// All versions.
    pub(crate) fn history(&self) -> History {
        self.history.read().clone()
    }

    fn is_saved(&self) -> bool {
        self.saved.load(Ordering::Acquire) == self.history.read().versions().len()
    }

    fn save(&self) -> Result<()> {
        let _writing = self.writing.lock();
        if self.is_saved() {
            return Ok(());
        }
        let versions = self.history.read().versions().to_vec();
        disk::replace(&self.path, encode(&versions).as_bytes())?;
        self.saved.store(versions.len(), Ordering::Release);
        Ok(())
    }
}

impl Stream {
    /// Whether there are versions of its schema that are in memory only.
    pub(crate) fn has_new_schemas(&self) -> bool {
        self.schemas.as_ref().is_some_and(|schemas| !schemas.is_saved())
    }

    /// Makes all versions of its schema durable. Blocks; does nothing if they are.
    pub(crate) fn save_schemas(&self) -> Result<()> {
        self.schemas.as_ref().map_or(Ok(()), SchemaKeeper::save)
    }
}

fn encode(versions: &[Arc<Version>]) -> String {
    let line = |version: &Arc<Version>| {
        serde_json::to_string(&**version).expect("texts, numbers and lists of them are JSON") + "\n"
    };
    let body: String = versions.iter().map(line).collect();
    format!("{MAGIC}{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

fn load(path: &Path) -> Result<History> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(History::default()),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    decode(&text).map_err(|reason| Error::Corrupt {
        path: path.display().to_string(),
        reason: format!(
            "{reason}; bring the file back from a backup, or move it away: versions then begin at 1 again"
        ),
    })
}

fn decode(text: &str) -> Result<History, String> {
    let (head, body) = text.split_once('\n').unwrap_or((text, ""));
    let Some(checksum) = head.strip_prefix(MAGIC) else {
        return Err("it is no history of a schema that this version can read".into());
    };
    if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(body.as_bytes())) {
        return Err("the checksum does not fit: the file is damaged".into());
    }
    let versions: Result<Vec<Version>, _> = body.lines().map(serde_json::from_str).collect();
    History::new(versions.map_err(|e| e.to_string())?)
}

#[cfg(test)]
mod tests {
    use iot_schemas::catalog::{Definition, parse};
    use iot_schemas::registry::Why;

    use super::*;

    #[test]
    fn what_is_saved_comes_back_and_what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::local(dir.path()).expect("a store");
        let text = "kind: stream\nname: s\ntopics: [x]\nfields: {v: {type: double, unit: Cel}}\n";
        let Definition::Stream(def) = parse(text, "test").expect("it parses").remove(0).def else {
            panic!("a stream")
        };
        let keeper = SchemaKeeper::open(&store, "s").expect("it opens");
        let stamp = Stamp { why: Why::Applied, at: 7, node: "n".into(), seq: 3 };
        keeper.observe(&def, &Schema::empty(), stamp.clone());
        assert!(!keeper.is_saved());
        keeper.save().expect("it writes");
        keeper.observe(&def, &Schema::empty(), stamp);
        assert!(keeper.is_saved(), "the same again is nothing new");
        let again = SchemaKeeper::open(&store, "s").expect("it opens");
        assert_eq!(again.history().versions(), keeper.history().versions());
        assert_eq!(again.at(3), Some(1));

        let content = fs::read(&keeper.path).expect("it is there");
        for at in 0..content.len() {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            fs::write(&keeper.path, damaged).expect("written");
            let error = SchemaKeeper::open(&store, "s").expect_err(&format!("byte {at}")).to_string();
            assert!(error.contains("s.jsonl") && error.contains("backup"), "{error}");
        }
    }
}
