//! What has changed in a view since somebody last looked, so that its rows can be pushed.
//!
//! The engine writes down the group keys that it touches, the reader takes them when it likes and looks the rows up.
//! Neither waits for the other. What the record holds is bounded by the number of distinct keys: a key that is
//! touched again before it was taken is there once.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Batches of keys that are held before copies are taken out.
const MAX_BATCHES: usize = 64;
/// Distinct keys that are held at most; what is touched beyond is counted and not held.
const MAX_KEYS: usize = 100_000;

/// The changes of one view, from the engine to one reader.
#[derive(Debug)]
pub struct ChangeRecord {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the group in hand: not to be seen before all of it has been taken in.
    staged: Vec<RecordBatch>,
    staged_revisions: BTreeMap<i64, u64>,
    changes: Changes,
    ended: bool,
}

/// What has changed.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The group keys of the rows that changed: the first columns of state rows.
    pub keys: Vec<RecordBatch>,
    /// How far the stream's event time has come: windows that end by then are closed.
    pub watermark: Option<i64>,
    /// Start -> how often the window has been corrected, for windows that were closed when they changed.
    pub revisions: BTreeMap<i64, u64>,
    /// Changed keys that could not be held because there were too many.
    pub lost: u64,
}

impl ChangeRecord {
    /// An empty record; the view's stream stands at `watermark`.
    pub fn new(watermark: Option<i64>) -> Self {
        let changes = Changes { watermark, ..Changes::default() };
        Self { state: Mutex::new(State { changes, ..State::default() }), version: watch::Sender::new(0) }
    }

    /// Writes down keys of the group in hand. They can be taken after [`Self::publish`].
    pub fn stage(&self, keys: Vec<RecordBatch>, revisions: BTreeMap<i64, u64>) {
        let mut state = self.state.lock();
        state.staged.extend(keys.into_iter().filter(|keys| keys.num_rows() > 0));
        state.staged_revisions.extend(revisions);
    }

    /// The group in hand is in the view as a whole: what was staged can be taken, and the watermark is this.
    pub fn publish(&self, watermark: Option<i64>) {
        let mut state = self.state.lock();
        if state.staged.is_empty() && state.changes.watermark == watermark {
            return;
        }
        state.changes.watermark = watermark;
        let staged = std::mem::take(&mut state.staged);
        state.changes.add_keys(staged);
        let revisions = std::mem::take(&mut state.staged_revisions);
        state.changes.add_revisions(revisions);
        drop(state);
        self.wake();
    }

    /// Takes what has changed since the last call. `None` if the view is gone or another one.
    pub fn take(&self) -> Option<Changes> {
        let mut state = self.state.lock();
        let watermark = state.changes.watermark;
        let taken = std::mem::replace(&mut state.changes, Changes { watermark, ..Changes::default() });
        (!state.ended).then_some(taken)
    }

    /// Puts back what was taken and could not be worked on.
    pub fn put_back(&self, taken: Changes) {
        let mut state = self.state.lock();
        state.changes.add_revisions(taken.revisions);
        state.changes.lost += taken.lost;
        state.changes.add_keys(taken.keys);
        drop(state);
        self.wake();
    }

    /// The watermark now.
    pub fn watermark(&self) -> Option<i64> {
        self.state.lock().changes.watermark
    }

    /// The view is gone, or has become another one.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.wake();
    }

    /// Whether the view is gone, or has become another one.
    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Makes the reader look.
    pub fn wake(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// A number that changes whenever there is something to take.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

impl Changes {
    fn add_revisions(&mut self, revisions: BTreeMap<i64, u64>) {
        for (start, revision) in revisions {
            let known = self.revisions.entry(start).or_default();
            *known = revision.max(*known);
        }
        while self.revisions.len() > MAX_KEYS {
            self.revisions.pop_first();
        }
    }

    fn add_keys(&mut self, keys: Vec<RecordBatch>) {
        self.keys.extend(keys);
        if self.keys.len() > MAX_BATCHES || rows(&self.keys) > MAX_KEYS {
            let before = std::mem::take(&mut self.keys);
            self.keys = distinct(before);
            let excess = rows(&self.keys).saturating_sub(MAX_KEYS);
            if excess > 0 {
                self.lost += excess as u64;
                self.keys =
                    self.keys.iter().map(|batch| batch.slice(0, batch.num_rows().min(MAX_KEYS))).collect();
            }
        }
    }
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// The same keys, each once, in one batch. Keys of an older shape of the view are left out: it is being read anew.
fn distinct(batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
    let Some(schema) = batches.last().map(RecordBatch::schema) else { return batches };
    let same: Vec<RecordBatch> = batches.into_iter().filter(|batch| batch.schema() == schema).collect();
    match KeySet::new(&schema).and_then(|mut set| {
        let all = concat_batches(&schema, &same)?;
        let fresh: BooleanArray = set.rows(&all)?.into_iter().map(|row| Some(set.seen.insert(row))).collect();
        filter_record_batch(&all, &fresh)
    }) {
        Ok(batch) => vec![batch],
        // Keys that cannot be compared are kept as they are.
        Err(_) => same,
    }
}

/// A set of group keys.
#[derive(Debug)]
pub struct KeySet {
    /// `None` for a view without keys, which has one row.
    converter: Option<RowConverter>,
    seen: HashSet<Option<OwnedRow>>,
}

impl KeySet {
    /// An empty set of keys with these columns.
    pub fn new(schema: &SchemaRef) -> Result<Self, arrow::error::ArrowError> {
        let fields: Vec<SortField> =
            schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        Ok(Self { converter, seen: HashSet::new() })
    }

    /// Adds all keys of a batch.
    pub fn extend(&mut self, keys: &RecordBatch) -> Result<(), arrow::error::ArrowError> {
        let rows = self.rows(keys)?;
        self.seen.extend(rows);
        Ok(())
    }

    /// Which rows have a key of the set; `keys` are their key columns.
    pub fn contains(&self, keys: &RecordBatch) -> Result<BooleanArray, arrow::error::ArrowError> {
        Ok(self.rows(keys)?.iter().map(|row| Some(self.seen.contains(row))).collect())
    }

    fn rows(&self, keys: &RecordBatch) -> Result<Vec<Option<OwnedRow>>, arrow::error::ArrowError> {
        match &self.converter {
            Some(converter) => {
                let rows = converter.convert_columns(keys.columns())?;
                Ok(rows.iter().map(|row| Some(row.owned())).collect())
            }
            None => Ok(vec![None; keys.num_rows()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn keys(values: impl IntoIterator<Item = i64>) -> RecordBatch {
        let column: Int64Array = values.into_iter().map(Some).collect();
        RecordBatch::try_from_iter_with_nullable([("k", Arc::new(column) as ArrayRef, true)]).unwrap()
    }

    #[test]
    fn a_group_is_seen_as_a_whole_and_taken_once() {
        let record = ChangeRecord::new(Some(1));
        let mut version = record.version();
        record.stage(vec![keys([1, 2])], [(60, 1)].into());
        assert!(record.take().unwrap().keys.is_empty() && !version.has_changed().unwrap());
        record.stage(vec![keys([3])], [(60, 2)].into());
        record.publish(Some(5));
        assert!(version.has_changed().unwrap());
        let taken = record.take().unwrap();
        assert_eq!((rows(&taken.keys), taken.watermark, taken.lost), (3, Some(5), 0));
        assert_eq!(taken.revisions.get(&60), Some(&2));
        version.mark_unchanged();
        record.publish(Some(5));
        assert!(record.take().unwrap().keys.is_empty() && !version.has_changed().unwrap());
        record.put_back(taken);
        assert_eq!(rows(&record.take().unwrap().keys), 3);
        record.end();
        assert!(record.take().is_none());
    }

    #[test]
    fn nobody_takes_and_it_stays_bounded() {
        let record = ChangeRecord::new(None);
        for _ in 0..1_000 {
            record.stage(vec![keys(0..50)], BTreeMap::new());
            record.publish(None);
        }
        assert!(rows(&record.state.lock().changes.keys) <= 50 * (MAX_BATCHES + 1));
        record.stage(vec![keys(0..2 * MAX_KEYS as i64)], BTreeMap::new());
        record.publish(None);
        let taken = record.take().unwrap();
        assert_eq!((rows(&taken.keys), taken.lost), (MAX_KEYS, MAX_KEYS as u64));
    }
}
