//! Sketches that wait to be merged.
//!
//! A state that arrives is copied as it is. When the groups are emitted, a group's sketches are merged at once: they are
//! sorted, so two are merged by going through both, and one alone is passed on without a look.

use datafusion::common::Result;

use super::buckets::{Buckets, encode};
use crate::aggregates::arena::{Arena, Grouped};

/// Bytes that may wait, whatever the number of groups.
const WAITING_BYTES: usize = 16 << 20;
/// Bytes per group that may wait.
const WAITING_BYTES_PER_GROUP: usize = 512;
/// With more sketches than this, sorting all their keys is quicker than merging one after the other.
const MERGED_ONE_BY_ONE: usize = 4;

/// Where a sketch lies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    start: usize,
    len: usize,
}

/// Encoded sketches of many groups.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Arena<Run>,
    bytes: Vec<u8>,
    /// Bytes at which to merge next.
    limit: usize,
}

impl Runs {
    /// Adds a sketch; an empty one is left out.
    pub(super) fn push(&mut self, group: usize, sketch: &[u8]) {
        if !sketch.is_empty() {
            self.runs.push(group, Run { start: self.bytes.len(), len: sketch.len() });
            self.bytes.extend_from_slice(sketch);
        }
    }

    /// Whether it is time to merge what waits.
    pub(super) fn are_many(&self, groups: usize) -> bool {
        let floor = WAITING_BYTES.max(groups.saturating_mul(WAITING_BYTES_PER_GROUP));
        self.bytes.len() > self.limit.max(floor)
    }

    /// To be called when the sketches are merged as far as they can be: the next time is at twice their size.
    pub(super) fn settled(&mut self) {
        self.limit = self.bytes.len() * 2;
    }

    pub(super) fn grouped(&self, n: usize) -> Grouped<Run> {
        self.runs.grouped(n)
    }

    /// The bytes of runs.
    pub(super) fn of<'a>(&'a self, runs: &'a [Run]) -> impl ExactSizeIterator<Item = &'a [u8]> {
        runs.iter().map(|run| &self.bytes[run.start..run.start + run.len])
    }

    pub(super) fn forget(&mut self, n: usize) {
        self.runs.forget(n);
        let mut bytes = Vec::new();
        for run in self.runs.items_mut() {
            let start = bytes.len();
            bytes.extend_from_slice(&self.bytes[run.start..run.start + run.len]);
            run.start = start;
        }
        self.bytes = bytes;
        self.settled();
    }

    pub(super) fn size(&self) -> usize {
        self.runs.size() + self.bytes.capacity()
    }
}

/// Merges the sketches of one group after the other; its lists are reused.
#[derive(Debug, Default)]
pub(super) struct Merger {
    merged: Vec<(i32, u64)>,
    next: Vec<(i32, u64)>,
    scratch: Vec<(i32, u64)>,
    bytes: Vec<u8>,
}

impl Merger {
    /// The sketch of sorted `counts` and all of `runs`; empty if there are none.
    pub(super) fn sketch<'a>(
        &'a mut self,
        counts: &[(i32, u64)],
        mut runs: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<&'a [u8]> {
        if counts.is_empty() && runs.len() <= 1 {
            return Ok(runs.next().unwrap_or_default());
        }
        self.merged.clear();
        self.merged.extend_from_slice(counts);
        if runs.len() <= MERGED_ONE_BY_ONE {
            for run in runs {
                self.next.clear();
                decode(run, &mut self.next)?;
                merge(&self.merged, &self.next, &mut self.scratch);
                std::mem::swap(&mut self.merged, &mut self.scratch);
            }
        } else {
            for run in runs {
                decode(run, &mut self.merged)?;
            }
            self.merged.sort_unstable_by_key(|(key, _)| *key);
            self.merged.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    kept.1 = kept.1.saturating_add(next.1);
                }
                same
            });
        }
        encode(&self.merged, &mut self.bytes);
        Ok(&self.bytes)
    }
}

fn decode(sketch: &[u8], keys: &mut Vec<(i32, u64)>) -> Result<()> {
    let mut buckets = Buckets::open(sketch)?;
    while let Some(entry) = buckets.next()? {
        keys.push(entry);
    }
    Ok(())
}

/// Both lists, sorted by key, as one.
fn merge(left: &[(i32, u64)], right: &[(i32, u64)], merged: &mut Vec<(i32, u64)>) {
    merged.clear();
    let (mut l, mut r) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
        let entry = match a.0.cmp(&b.0) {
            std::cmp::Ordering::Less => *a,
            std::cmp::Ordering::Greater => *b,
            std::cmp::Ordering::Equal => (a.0, a.1.saturating_add(b.1)),
        };
        l += usize::from(a.0 <= b.0);
        r += usize::from(b.0 <= a.0);
        merged.push(entry);
    }
    merged.extend_from_slice(&left[l..]);
    merged.extend_from_slice(&right[r..]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_number_of_sketches_merges_to_the_sum_of_their_counts(
            lists in prop::collection::vec(prop::collection::btree_map(-20i32..20, 1u64..5, 0..12), 0..8),
            counted in prop::collection::btree_map(-20i32..20, 1u64..5, 0..12),
        ) {
            let mut expected = counted.clone();
            let mut runs = Runs::default();
            for list in &lists {
                let mut bytes = Vec::new();
                encode(&list.iter().map(|(k, c)| (*k, *c)).collect::<Vec<_>>(), &mut bytes);
                runs.push(0, &[]);
                runs.push(1, &bytes);
                list.iter().for_each(|(key, count)| *expected.entry(*key).or_default() += count);
            }
            runs.forget(1);
            let counted: Vec<(i32, u64)> = counted.into_iter().collect();
            let mut grouped = runs.grouped(1);
            let mut merger = Merger::default();
            let sketch = merger.sketch(&counted, runs.of(grouped.group(0))).expect("merges");
            let mut keys = Vec::new();
            if !sketch.is_empty() {
                decode(sketch, &mut keys).expect("reads");
            }
            prop_assert_eq!(keys.into_iter().collect::<BTreeMap<_, _>>(), expected);
        }
    }
}
