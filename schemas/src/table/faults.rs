//! Faults on purpose: an object store that fails or hangs, for drills and tests.
//!
//! An operator who wants to know what a bad store does to a line asks for it with `iotctl serve --store-faults`.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use deltalake::logstore::ObjectStoreRef;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// Which share of the calls to a store goes wrong, and how: `fail=0.25,hang=0.05,seed=7`.
///
/// Half of the calls that fail have been carried out all the same, as when an answer is lost on its way.
///
/// With `outage=FILE` all calls fail for as long as that file is there. A relative path is looked up in each table's
/// folder; readers of one table may share the store of another, so only what is written fails for certain then.
#[derive(Debug, Clone)]
pub struct Faults {
    fail: f64,
    hang: f64,
    seed: u64,
    outage: Option<PathBuf>,
    calls: Arc<AtomicU64>,
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut faults = Self { fail: 0.0, hang: 0.0, seed: 1, outage: None, calls: Arc::default() };
        for setting in text.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            let share = || match value.parse::<f64>() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(format!("`{setting}`: give a share from 0 to 1, as in `{name}=0.3`")),
            };
            match name {
                "fail" => faults.fail = share()?,
                "hang" => faults.hang = share()?,
                "seed" => {
                    faults.seed = value.parse().map_err(|_| format!("`{setting}`: give a whole number"))?
                }
                "outage" if !value.is_empty() => faults.outage = Some(value.into()),
                _ => return Err(format!("`{setting}` is no fault; there are fail, hang, outage and seed")),
            }
        }
        match faults.fail + faults.hang {
            0.0..=1.0 => Ok(faults),
            _ => Err("`fail` and `hang` are more than 1 together".into()),
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// It is not carried out.
    Lost,
    /// It is carried out, and nobody hears of it.
    Unheard,
    /// There is never an answer.
    Hanging,
}

impl Faults {
    /// Those of a table in the folder `dir`.
    pub(super) fn at(mut self, dir: &std::path::Path) -> Self {
        self.outage = self.outage.map(|file| dir.join(file));
        self
    }

    /// The fate of the next call: the same ones in the same order for the same seed.
    fn next(&self) -> Fate {
        if self.outage.as_ref().is_some_and(|file| file.exists()) {
            return Fate::Lost;
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let random = mixed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(call));
        let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
        match share {
            share if share < self.hang => Fate::Hanging,
            share if share < self.hang + self.fail / 2.0 => Fate::Lost,
            share if share < self.hang + self.fail => Fate::Unheard,
            _ => Fate::Fine,
        }
    }
}

/// SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", 2014.
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A store with faults.
#[derive(Debug)]
pub(super) struct FaultyStore {
    inner: ObjectStoreRef,
    faults: Faults,
}

impl FaultyStore {
    pub(super) fn new(inner: ObjectStoreRef, faults: Faults) -> Self {
        Self { inner, faults }
    }

    async fn through<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        suffer(self.faults.next(), call).await
    }
}

async fn suffer<T>(fate: Fate, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    match fate {
        Fate::Fine => call.await,
        Fate::Lost => Err(fault()),
        Fate::Unheard => match call.await {
            Ok(_) => Err(fault()),
            // An answer that says something for certain is heard.
            refused => refused,
        },
        Fate::Hanging => std::future::pending().await,
    }
}

fn fault() -> Error {
    Error::Generic { store: "store", source: "a fault on purpose (--store-faults)".into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.through(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.through(self.inner.put_multipart_opts(location, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.through(self.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.through(self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let faults = self.faults.clone();
        let delete = move |outcome: Result<Path>| suffer(faults.next(), std::future::ready(outcome));
        self.inner.delete_stream(locations).then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        listed(self.faults.next(), self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        listed(self.faults.next(), self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.through(self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.through(self.inner.rename_opts(from, to, options)).await
    }
}

/// A listing that breaks off before its first object, if that is its fate.
fn listed(
    fate: Fate,
    list: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let begun = async move {
        match suffer(fate, std::future::ready(Ok(()))).await {
            Ok(()) => list,
            Err(e) => stream::iter([Err(e)]).boxed(),
        }
    };
    begun.into_stream().flatten().boxed()
}
