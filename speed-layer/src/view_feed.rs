//! Which views are followed by somebody, and what they are told: the keys that each group touches, the watermark.
//!
//! The engine only writes down; it never waits for a reader. A view that nobody follows costs nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use arrow::array::RecordBatch;
use iot_schemas::view::{ChangeRecord, CompiledView};
use parking_lot::Mutex;

/// The records of the views that are followed.
#[derive(Debug, Default)]
pub(crate) struct ViewFeed {
    followed: Mutex<Followed>,
}

#[derive(Debug, Default)]
struct Followed {
    records: HashMap<Arc<str>, Record>,
    /// The watermark of each stream after the last whole group.
    watermarks: HashMap<Arc<str>, i64>,
}

#[derive(Debug)]
struct Record {
    stream: Arc<str>,
    changes: Weak<ChangeRecord>,
}

impl ViewFeed {
    /// The record of a view, which is written for as long as somebody holds it.
    pub(crate) fn record(&self, view: &CompiledView) -> Arc<ChangeRecord> {
        let mut followed = self.followed.lock();
        if let Some(changes) = followed.records.get(view.name()).and_then(|record| record.changes.upgrade()) {
            return changes;
        }
        let changes = Arc::new(ChangeRecord::new(followed.watermarks.get(view.stream()).copied()));
        let record = Record { stream: view.stream().clone(), changes: Arc::downgrade(&changes) };
        followed.records.insert(view.name().into(), record);
        changes
    }

    /// Whether somebody follows the view.
    pub(crate) fn is_followed(&self, view: &str) -> bool {
        self.followed.lock().records.get(view).is_some_and(|record| record.changes.strong_count() > 0)
    }

    /// Writes down the keys that a group touches, from the state rows that a view made of it.
    pub(crate) fn stage(&self, view: &CompiledView, states: &[RecordBatch], revisions: BTreeMap<i64, u64>) {
        let record = self.followed.lock().records.get(view.name()).map(|record| record.changes.clone());
        let Some(changes) = record.and_then(|changes| changes.upgrade()) else { return };
        let columns: Vec<usize> = (0..view.keys().len()).collect();
        let keys: Result<Vec<RecordBatch>, _> = states.iter().map(|batch| batch.project(&columns)).collect();
        match keys {
            Ok(keys) => changes.stage(keys, revisions),
            Err(e) => tracing::error!("the keys of view `{}`: {e}", view.name()),
        }
    }

    /// A group has been taken in as a whole: readers may see what it changed.
    pub(crate) fn publish(&self, watermarks: impl Iterator<Item = (Arc<str>, Option<i64>)>) {
        let mut followed = self.followed.lock();
        let Followed { records, watermarks: known } = &mut *followed;
        known.extend(watermarks.filter_map(|(stream, watermark)| Some((stream, watermark?))));
        records.retain(|_, record| {
            let changes = record.changes.upgrade();
            if let Some(changes) = &changes {
                changes.publish(known.get(&record.stream).copied());
            }
            changes.is_some()
        });
    }

    /// A view is gone, or has become another one: its readers begin anew.
    pub(crate) fn end(&self, view: &str) {
        let record = self.followed.lock().records.remove(view);
        if let Some(changes) = record.and_then(|record| record.changes.upgrade()) {
            changes.end();
        }
    }
}
