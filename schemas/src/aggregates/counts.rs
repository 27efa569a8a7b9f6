//! How often each key occurs in each group: what sketches and modes are made of.

use super::arena::{Arena, Grouped};

/// Occurrences that may wait uncounted, whatever the number of groups (12 MiB).
const WAITING: usize = 1 << 20;
/// Occurrences per group that may wait uncounted. Below this a list is smaller than counts and quicker to add to.
const WAITING_PER_GROUP: usize = 128;

/// A multiset of `i32` keys per group.
///
/// Single occurrences wait in a list and are counted when the groups are emitted, or when many wait. Adding is
/// O(1); counting is O(n log n) in a group's occurrences, O(n) if its keys lie close together.
/// Memory: 8 bytes per waiting occurrence, 24 per counted key.
#[derive(Debug, Default)]
pub(super) struct Counts {
    groups: usize,
    single: Arena<i32>,
    counted: Arena<(i32, u64)>,
    /// Waiting and counted entries at which to count next.
    limit: usize,
}

impl Counts {
    pub(super) fn resize(&mut self, groups: usize) {
        self.groups = self.groups.max(groups);
    }

    /// One more of `key`.
    pub(super) fn add(&mut self, group: usize, key: i32) {
        self.single.push(group, key);
    }

    /// `count` more of `key`.
    pub(super) fn add_many(&mut self, group: usize, key: i32, count: u64) {
        match count {
            0 => {}
            1 => self.single.push(group, key),
            _ => self.counted.push(group, (key, count)),
        }
    }

    /// One more of each of `keys`, one for each of `groups`.
    pub(super) fn extend(&mut self, groups: &[usize], keys: impl Iterator<Item = i32>) {
        self.single.extend(groups, keys);
    }

    /// To be called after each batch: counts what waits if it has become too much.
    pub(super) fn settle(&mut self) {
        let floor = WAITING.max(self.groups.saturating_mul(WAITING_PER_GROUP));
        if self.single.len() + self.counted.len() > self.limit.max(floor) {
            self.count();
        }
    }

    fn count(&mut self) {
        let mut counted = Arena::default();
        self.each(self.groups, |group, keys| keys.iter().for_each(|key| counted.push(group, *key)));
        self.single.clear();
        // Twice what could not be made smaller, so that the cost stays constant per occurrence.
        self.limit = counted.len() * 2;
        self.counted = counted;
    }

    /// Calls `with` for each of the first `n` groups in order, with its keys in ascending order and their counts.
    pub(super) fn each(&self, n: usize, mut with: impl FnMut(usize, &[(i32, u64)])) {
        let mut single = self.single.grouped(n);
        let mut counted = self.counted.grouped(n);
        let mut scratch = Scratch::default();
        for group in 0..n {
            with(group, scratch.count(group, &mut single, &mut counted));
        }
    }

    /// Drops what was counted and keeps the groups.
    pub(super) fn clear(&mut self) {
        self.single.clear();
        self.counted.clear();
        self.limit = 0;
    }

    pub(super) fn forget(&mut self, n: usize) {
        self.groups -= n;
        self.single.forget(n);
        self.counted.forget(n);
        self.limit = self.counted.len() * 2;
    }

    pub(super) fn size(&self) -> usize {
        self.single.size() + self.counted.size()
    }
}

/// Lists that are reused from group to group.
#[derive(Debug, Default)]
struct Scratch {
    dense: Vec<u64>,
    counts: Vec<(i32, u64)>,
}

impl Scratch {
    fn count(
        &mut self,
        group: usize,
        single: &mut Grouped<i32>,
        counted: &mut Grouped<(i32, u64)>,
    ) -> &[(i32, u64)] {
        self.counts.clear();
        self.count_single(single.group(group));
        let counted = counted.group(group);
        if !counted.is_empty() {
            self.counts.extend_from_slice(counted);
            self.counts.sort_unstable_by_key(|(key, _)| *key);
            self.counts.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    kept.1 += next.1;
                }
                same
            });
        }
        &self.counts
    }

    fn count_single(&mut self, keys: &mut [i32]) {
        let (Some(low), Some(high)) = (keys.iter().min(), keys.iter().max()) else { return };
        let (low, span) = (*low, (i64::from(*high) - i64::from(*low)) as usize);
        // A table of counts costs a step per possible key, sorting some ten steps per occurrence.
        if keys.len() > 64 && span < keys.len() * 8 {
            self.dense.clear();
            self.dense.resize(span + 1, 0);
            keys.iter().for_each(|key| self.dense[(key - low) as usize] += 1);
            let present = self.dense.iter().enumerate().filter(|(_, count)| **count > 0);
            self.counts.extend(present.map(|(i, count)| (low + i as i32, *count)));
        } else {
            keys.sort_unstable();
            self.counts.extend(keys.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u64)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_are_those_of_a_map_whenever_they_are_settled(
            added in prop::collection::vec((0usize..4, -30i32..30, 0u64..4, any::<bool>()), 0..300),
        ) {
            let mut counts = Counts::default();
            counts.resize(4);
            let mut expected = vec![BTreeMap::<i32, u64>::new(); 4];
            for (group, key, count, settle) in added {
                counts.add_many(group, key, count);
                if count > 0 {
                    *expected[group].entry(key).or_default() += count;
                }
                if settle {
                    counts.count();
                }
            }
            counts.forget(1);
            counts.each(3, |group, keys| {
                assert_eq!(keys, expected[group + 1].iter().map(|(k, c)| (*k, *c)).collect::<Vec<_>>());
            });
        }
    }
}
