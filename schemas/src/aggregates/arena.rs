//! Items of many groups in one growing list.
//!
//! A list per group costs an allocation per group and a cache miss per row. Here rows are appended to one list and
//! put in the order of their groups once, by a counting sort, when the groups are emitted.

/// A list of `(group, item)`.
#[derive(Debug, Default)]
pub(super) struct Arena<T> {
    groups: Vec<u32>,
    items: Vec<T>,
}

/// Items in the order of their groups.
#[derive(Debug)]
pub(super) struct Grouped<T> {
    /// Group `g` owns `items[starts[g]..starts[g + 1]]`.
    starts: Vec<usize>,
    items: Vec<T>,
}

impl<T: Copy + Default> Arena<T> {
    pub(super) fn push(&mut self, group: usize, item: T) {
        self.groups.push(narrow(group));
        self.items.push(item);
    }

    /// Appends `items`, one for each of `groups`.
    pub(super) fn extend(&mut self, groups: &[usize], items: impl Iterator<Item = T>) {
        self.groups.extend(groups.iter().map(|group| narrow(*group)));
        self.items.extend(items);
        debug_assert_eq!(self.groups.len(), self.items.len());
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn items_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    pub(super) fn clear(&mut self) {
        self.groups.clear();
        self.items.clear();
    }

    /// The items of the first `n` groups, in the order in which they came within a group.
    pub(super) fn grouped(&self, n: usize) -> Grouped<T> {
        let mut starts = vec![0usize; n + 1];
        for group in &self.groups {
            if let Some(count) = starts.get_mut(*group as usize + 1) {
                *count += 1;
            }
        }
        for g in 0..n {
            starts[g + 1] += starts[g];
        }
        let mut items = vec![T::default(); starts[n]];
        let mut next = starts.clone();
        for (group, item) in self.groups.iter().zip(&self.items) {
            let group = *group as usize;
            if group < n {
                items[next[group]] = *item;
                next[group] += 1;
            }
        }
        Grouped { starts, items }
    }

    /// Drops the items of the first `n` groups and renumbers the rest.
    pub(super) fn forget(&mut self, n: usize) {
        let mut kept = 0;
        for i in 0..self.items.len() {
            if self.groups[i] as usize >= n {
                self.groups[kept] = self.groups[i] - narrow(n);
                self.items[kept] = self.items[i];
                kept += 1;
            }
        }
        self.groups.truncate(kept);
        self.items.truncate(kept);
        if kept == 0 {
            // Nothing is left: hand back the memory of a large aggregation.
            *self = Self::default();
        }
    }

    pub(super) fn size(&self) -> usize {
        self.groups.capacity() * size_of::<u32>() + self.items.capacity() * size_of::<T>()
    }
}

impl<T> Grouped<T> {
    /// The items of one group, to be sorted in place.
    pub(super) fn group(&mut self, group: usize) -> &mut [T] {
        &mut self.items[self.starts[group]..self.starts[group + 1]]
    }

    /// How many items all groups have together.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }
}

fn narrow(group: usize) -> u32 {
    u32::try_from(group).expect("four billion groups do not fit in memory")
}
