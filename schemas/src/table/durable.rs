//! A local directory as an object store whose objects survive power loss.
//!
//! `object_store` renames and links files that are in the page cache only. Whoever is told here that an object is
//! written may forget where it came from: its bytes are on the disk, its name is in its directory, and so are the
//! names of the directories that were made for it. A commit is written after the files that it names, so it never
//! names one that is not there.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::{self, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use deltalake::logstore::ObjectStoreRef;
use futures::future::join_all;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
};
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

#[cfg(not(test))]
use crate::disk::sync;
#[cfg(test)]
use journal::sync;

/// Directories that are known to be durable, at most. At the limit all are forgotten: that costs a sync more.
const MAX_KNOWN_DIRECTORIES: usize = 65_536;

/// A store of local files that are synced before it says that they are there.
#[derive(Debug)]
pub(super) struct DurableStore {
    inner: ObjectStoreRef,
    disk: Disk,
}

impl DurableStore {
    /// Makes the objects of `inner`, which are files below `dir`, durable. The directory itself is so already.
    pub(super) fn new(inner: ObjectStoreRef, dir: PathBuf) -> Self {
        Self { inner, disk: Disk { dir, known: Arc::default() } }
    }
}

impl fmt::Display for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// The files behind the objects.
#[derive(Debug, Clone)]
struct Disk {
    dir: PathBuf,
    /// Directories whose entries in the directories above them are durable, up to `dir`.
    known: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Disk {
    /// Makes the file behind an object durable: all at once, which costs little more than the file alone.
    async fn settle(&self, location: &Path) -> Result<()> {
        // Paths of objects are those of the file system's root.
        let file = LocalFileSystem::new().path_to_filesystem(location)?;
        let syncs = self.unsettled(&file).into_iter().map(|path| spawn_blocking(move || sync(&path)));
        for done in join_all(syncs).await {
            done?.map_err(|e| Error::Generic {
                store: "store",
                source: format!("`{location}` cannot be made durable: {e}").into(),
            })?;
        }
        self.remember_above(&file);
        Ok(())
    }

    /// The file, its directory, and those above it in which a directory is new.
    fn unsettled(&self, file: &path::Path) -> Vec<PathBuf> {
        let known = self.known.lock();
        let mut paths = vec![file.to_owned()];
        for parent in file.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.dir)) {
            paths.push(parent.to_owned());
            if known.contains(parent) {
                break;
            }
        }
        paths
    }

    fn remember_above(&self, file: &path::Path) {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN_DIRECTORIES {
            known.clear();
        }
        let above = file.ancestors().skip(1).take_while(|dir| *dir != self.dir && dir.starts_with(&self.dir));
        for dir in above {
            if !known.insert(dir.to_owned()) {
                break;
            }
        }
    }
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for DurableStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let creates = opts.mode == PutMode::Create;
        let done = match self.inner.put_opts(location, payload, opts).await {
            // Whoever hears this relies on what is there. An earlier try may have left it unsynced.
            Err(there @ Error::AlreadyExists { .. }) => {
                self.disk.settle(location).await?;
                return Err(there);
            }
            settled => settled?,
        };
        if let Err(e) = self.disk.settle(location).await {
            if creates {
                // Nobody knows what the kernel still has of it, and the next try must write it anew.
                self.inner.delete(location).await?;
            }
            return Err(e);
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { inner, location: location.clone(), disk: self.disk.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    // A file that comes back after power loss is one more that nobody refers to.
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.disk.settle(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        self.disk.settle(to).await
    }
}

/// An upload in parts that is durable once it is complete.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    location: Path,
    disk: Disk,
}

#[async_trait::async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.inner.complete().await?;
        self.disk.settle(&self.location).await?;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// What tests see of the order in which files become durable.
#[cfg(test)]
pub(super) mod journal {
    use std::io;

    use super::*;

    static SYNCED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    /// Syncs and notes it, unless a file `broken` lies beside.
    pub(super) fn sync(path: &path::Path) -> io::Result<()> {
        if path.with_file_name("broken").exists() {
            return Err(io::Error::other("the disk is broken on purpose"));
        }
        crate::disk::sync(path)?;
        SYNCED.lock().push(path.to_owned());
        Ok(())
    }

    /// What was synced below `dir` so far, in order.
    pub(in crate::table) fn below(dir: &path::Path) -> Vec<PathBuf> {
        SYNCED.lock().iter().filter(|path| path.starts_with(dir)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
