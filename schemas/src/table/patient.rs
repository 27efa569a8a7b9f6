//! Object storage that is slow, or fails now and then: every call has a deadline and is tried again.
//!
//! What tables ask for can be asked again without harm, with one exception: to create an object that must not be there
//! yet, which is how a Delta commit is made. If such a call fails, nobody knows whether it was carried out; so when
//! the next try finds an object, its bytes say whether it is ours.
//!
//! delta-rs has one registry of stores per process, by the scheme of their URLs. [`install`] enters this one there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltalake::logstore::{ObjectStoreFactory, ObjectStoreRef, StorageConfig, object_store_factories};
use deltalake::{DeltaResult, DeltaTableError};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::RwLock;
use tokio::time::Instant;
use url::Url;

use super::durable::DurableStore;
use super::faults::{Faults, FaultyStore};

/// How long a store is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A call that takes longer counts as failed. What it wrote may still come to be.
    pub deadline: Duration,
    /// How long a failing call is repeated before its failure is reported. It is made twice at least.
    pub total: Duration,
    /// The pause before the second try; it doubles from try to try, up to [`LONGEST_PAUSE`].
    pub pause: Duration,
}

/// No pause between two tries is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Default for Patience {
    fn default() -> Self {
        // Longer than any healthy call; and a store that fails every third of them is got through, more than 30 times
        // in a row it does not.
        Self {
            deadline: Duration::from_secs(30),
            total: Duration::from_secs(60),
            pause: Duration::from_millis(50),
        }
    }
}

/// Settings of all stores of this process.
static SETTINGS: RwLock<(Option<Patience>, Option<Faults>)> = RwLock::new((None, None));

/// Makes tables that are opened from now on use stores with this patience and, for drills, these faults.
pub fn install(patience: Patience, faults: Option<Faults>) {
    *SETTINGS.write() = (Some(patience), faults);
    enter();
}

/// Enters the patient store in the registry.
pub(super) fn enter() {
    // The registry's key for a scheme is this URL.
    if let Ok(scheme) = Url::parse("file://") {
        object_store_factories().insert(scheme, Arc::new(Factory));
    }
}

/// Makes patient stores of local directories, whose files survive power loss.
#[derive(Debug)]
struct Factory;

impl ObjectStoreFactory for Factory {
    fn parse_url_opts(&self, url: &Url, config: &StorageConfig) -> DeltaResult<(ObjectStoreRef, Path)> {
        let (store, path) = object_store::parse_url_opts(url, &config.raw)
            .map_err(|source| DeltaTableError::ObjectStore { source })?;
        let dir = url.to_file_path().map_err(|()| DeltaTableError::InvalidTableLocation(url.to_string()))?;
        let (patience, faults) = SETTINGS.read().clone();
        let faults = faults.map(|faults| faults.at(&dir));
        let store: ObjectStoreRef = Arc::new(DurableStore::new(Arc::from(store), dir));
        let store = match faults {
            Some(faults) => Arc::new(FaultyStore::new(store, faults)),
            None => store,
        };
        Ok((Arc::new(PatientStore { inner: store, patience: patience.unwrap_or_default() }), path))
    }
}

/// A store whose calls have a deadline and are tried again.
#[derive(Debug)]
pub(super) struct PatientStore {
    pub(super) inner: ObjectStoreRef,
    pub(super) patience: Patience,
}

impl fmt::Display for PatientStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PatientStore {
    /// Makes the call until it works, fails for good, or has been made for long enough.
    async fn again<T, F: Future<Output = Result<T>>>(
        &self,
        what: &Path,
        call: impl Fn(u32) -> F,
    ) -> Result<T> {
        let Patience { deadline, total, mut pause } = self.patience;
        let began = Instant::now();
        for attempt in 1.. {
            let failed = match within(deadline, what, call(attempt)).await {
                Err(e) if is_passing(&e) && attempt > 1 && began.elapsed() >= total => {
                    return Err(in_vain(what, attempt, began.elapsed(), e));
                }
                Err(e) if is_passing(&e) => e,
                settled => return settled,
            };
            tracing::debug!(%what, attempt, "the store is asked again: {failed}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("attempts are not counted up to a limit")
    }

    async fn create(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.again(location, |attempt| {
            let (payload, opts) = (payload.clone(), opts.clone());
            async move {
                match self.inner.put_opts(location, payload.clone(), opts).await {
                    Err(Error::AlreadyExists { path, source }) if attempt > 1 => {
                        let there = self.inner.get_opts(location, GetOptions::default()).await?;
                        let (version, e_tag) = (there.meta.version.clone(), there.meta.e_tag.clone());
                        match there.bytes().await? == Bytes::from(payload) {
                            true => Ok(PutResult { e_tag, version }),
                            false => Err(Error::AlreadyExists { path, source }),
                        }
                    }
                    settled => settled,
                }
            }
        })
        .await
    }

    /// What `list` lists, read to its end, so that it can be asked again.
    fn listed(
        inner: ObjectStoreRef,
        patience: Patience,
        what: Path,
        list: impl Fn(&ObjectStoreRef) -> BoxStream<'static, Result<ObjectMeta>> + Send + Sync + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let all = async move {
            let patient = Self { inner, patience };
            let found = patient.again(&what, |_| list(&patient.inner).try_collect::<Vec<_>>()).await;
            stream::iter(match found {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(e) => vec![Err(e)],
            })
        };
        all.into_stream().flatten().boxed()
    }
}

/// The call's outcome, or an error after `deadline`.
async fn within<T>(deadline: Duration, what: &Path, call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(deadline, call).await {
        Ok(settled) => settled,
        Err(_) => Err(too_slow(deadline, what)),
    }
}

/// What an error says that comes of a store that failed for long. Layers above it keep its text, if not its type.
pub(crate) const IN_VAIN: &str = "the store was asked in vain,";

fn in_vain(what: &Path, attempts: u32, elapsed: Duration, last: Error) -> Error {
    let source = format!("`{what}`: {IN_VAIN} {attempts} times in {elapsed:.1?}; at last: {last}");
    Error::Generic { store: "store", source: source.into() }
}

fn too_slow(deadline: Duration, what: &Path) -> Error {
    Error::Generic { store: "store", source: format!("`{what}`: no answer within {deadline:?}").into() }
}

/// Whether the same call may work a moment later.
fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. })
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for PatientStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match opts.mode {
            PutMode::Overwrite => {
                let put = |_| self.inner.put_opts(location, payload.clone(), opts.clone());
                self.again(location, put).await
            }
            PutMode::Create => self.create(location, payload, opts).await,
            // Whether the first try was carried out cannot be told from the second.
            PutMode::Update(_) => {
                within(self.patience.deadline, location, self.inner.put_opts(location, payload, opts)).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.again(location, |_| self.inner.put_multipart_opts(location, opts.clone())).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.again(location, |_| self.inner.get_opts(location, options.clone())).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.again(location, |_| self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, patience) = (self.inner.clone(), self.patience);
        let delete = move |location: Result<Path>| {
            let patient = Self { inner: inner.clone(), patience };
            async move {
                let location = location?;
                let outcome = patient.again(&location, |_| patient.inner.delete(&location)).await;
                match outcome {
                    // An earlier try may have done it; and whoever deletes wants it to be gone.
                    Ok(()) | Err(Error::NotFound { .. }) => Ok(location),
                    Err(e) => Err(e),
                }
            }
        };
        locations.map(delete).buffered(DELETES_AT_ONCE).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        let what = prefix.clone().unwrap_or_default();
        Self::listed(self.inner.clone(), self.patience, what, move |store| store.list(prefix.as_ref()))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        let what = prefix.clone().unwrap_or_default();
        let list = move |store: &ObjectStoreRef| store.list_with_offset(prefix.as_ref(), &offset);
        Self::listed(self.inner.clone(), self.patience, what, list)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let what = prefix.cloned().unwrap_or_default();
        self.again(&what, |_| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match options.mode {
            CopyMode::Overwrite => {
                self.again(from, |_| self.inner.copy_opts(from, to, options.clone())).await
            }
            CopyMode::Create => {
                within(self.patience.deadline, from, self.inner.copy_opts(from, to, options)).await
            }
        }
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: object_store::RenameOptions) -> Result<()> {
        // A second try would not find what the first has moved.
        within(self.patience.deadline, from, self.inner.rename_opts(from, to, options)).await
    }
}

/// Deletions that are under way at once.
const DELETES_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests;
