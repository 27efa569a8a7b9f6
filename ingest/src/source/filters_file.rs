//! The file that keeps which filters the session of a client has at its broker.
//!
//! A session outlasts the process. Without the file nobody would leave the filters that only an earlier process
//! wanted, and nobody would know which subscription an identifier stands for. A damaged file is as good as none: messages
//! may then come twice, none is lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use iot_schemas::{Result, disk};

use super::filters::Filters;

/// Magic and version; then come the checksum of the rest and [`Content`] as JSON.
const MAGIC: [u8; 8] = *b"IOTSUB\0\x01";

/// Where the filters of one client are kept.
#[derive(Debug, Clone)]
pub(super) struct FiltersFile {
    path: PathBuf,
    client_id: String,
    broker: String,
}

#[derive(Serialize, Deserialize)]
struct Content<T> {
    /// Several clients may come to the same name of a file, if hardly ever.
    client_id: String,
    /// At another broker the same filters may be there, but nothing is certain.
    broker: String,
    filters: T,
}

impl FiltersFile {
    /// The file of `client_id`, whose session is at `broker`.
    pub(super) fn new(wal_dir: &Path, client_id: &str, broker: &str) -> Self {
        // A client id may be long and hold whatever no file name may.
        let name = format!("{:08x}.filters", crc32fast::hash(client_id.as_bytes()));
        Self { path: wal_dir.join(name), client_id: client_id.to_owned(), broker: broker.to_owned() }
    }

    /// What an earlier process has left, if that can be read.
    pub(super) fn load(&self) -> Option<Filters> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                tracing::warn!(path = %self.path.display(), "the filters of the broker's session cannot be read: {e}");
                return None;
            }
        };
        let content = decode(&bytes);
        if content.is_none() {
            tracing::warn!(path = %self.path.display(), "the filters of the broker's session are damaged and were dropped");
        }
        let content = content.filter(|content| content.client_id == self.client_id)?;
        let mut filters = content.filters;
        match content.broker == self.broker {
            true => filters.compare(),
            false => filters.doubt(),
        }
        Some(filters)
    }

    /// The content of the file for these filters.
    pub(super) fn encode(&self, filters: &Filters) -> Vec<u8> {
        let (client_id, broker) = (self.client_id.clone(), self.broker.clone());
        let body = serde_json::to_vec(&Content { client_id, broker, filters });
        let body = body.expect("lists of text and numbers are JSON");
        [&MAGIC[..], &crc32fast::hash(&body).to_le_bytes(), &body].concat()
    }

    /// Replaces the file: afterwards it holds `content` or, after a crash, what it held before.
    pub(super) fn save(&self, content: &[u8]) -> Result<()> {
        disk::replace(&self.path, content)
    }
}

fn decode(bytes: &[u8]) -> Option<Content<Filters>> {
    let (checksum, body) = bytes.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*checksum) == crc32fast::hash(body)).then_some(())?;
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::super::filters::Occasion;
    use super::*;

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = FiltersFile::new(dir.path(), "iot/ingest", "broker:1883");
        assert_eq!(file.load(), None);
        let mut filters = Filters::default();
        filters.plan(&["a/#".to_owned(), "+/b".to_owned()], Occasion::Connected);
        let content = file.encode(&filters);
        file.save(&content).expect("it writes");
        assert_eq!(file.load(), Some(filters));
        for at in 0..content.len() {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            file.save(&damaged).expect("it writes");
            assert_eq!(file.load(), None, "byte {at}");
        }
        file.save(&content[..5]).expect("it writes");
        assert_eq!(file.load(), None);
    }

    #[test]
    fn at_another_broker_nothing_is_certain_and_another_client_has_another_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = FiltersFile::new(dir.path(), "iot", "one:1883");
        let wanted = ["z/+".to_owned(), "+/b".to_owned()];
        let mut filters = Filters::default();
        let plan = filters.plan(&wanted, Occasion::Connected);
        plan.subscribe.iter().for_each(|(id, _)| filters.accepted(*id));
        let second = plan.subscribe[1].0 as usize;
        file.save(&file.encode(&filters)).expect("it writes");
        assert_eq!(file.load().expect("it is there").others("z/b", &[second]).len(), 1);
        let elsewhere = FiltersFile::new(dir.path(), "iot", "two:1883").load().expect("it is there");
        assert!(elsewhere.others("z/b", &[second]).is_empty());
        assert_eq!(FiltersFile::new(dir.path(), "iot-2", "one:1883").load(), None);
    }
}
