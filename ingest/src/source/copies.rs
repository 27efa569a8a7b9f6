//! Recognises the copies that a broker sends of one message because several of our filters match it.
//!
//! Copies come under packet identifiers of their own and without DUP; what tells them apart from messages is the identifier of the
//! subscription that each of them carries. The first copy to come is taken; one that comes by another filter with the same
//! content is left out, once for each filter. So a copy is left out only if this process has taken another one. To go by
//! the identifiers alone would lose messages: Mosquitto sends a single copy, by whichever filter it finds first, of what
//! it was sent between its restart and our return.

use std::collections::VecDeque;

use ahash::HashMap;

use crate::redelivery::RECEIVE_MAXIMUM;

/// What is known of the copies of one session.
#[derive(Debug)]
pub(super) struct Copies {
    /// By content, for each message that was taken its number and the filters by which another copy may come.
    expected: HashMap<u64, Vec<(u64, Vec<usize>)>>,
    /// Contents and numbers in the order in which the messages were taken.
    order: VecDeque<(u64, u64)>,
    next: u64,
    max_expected: usize,
    /// The content of copies that were left out, by packet identifier: they come again if their acknowledgement is lost.
    left_out: HashMap<u16, u64>,
}

/// A delivery that came by one filter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    /// The identifier of its subscription.
    pub(super) by: usize,
    /// Topic and payload: see [`crate::redelivery::fingerprint`].
    pub(super) content: u64,
    /// 0 at QoS 0.
    pub(super) packet_id: u16,
    /// Whether it may have come before.
    pub(super) dup: bool,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            expected: HashMap::default(),
            order: VecDeque::new(),
            next: 0,
            // A copy comes close behind the first one; as many as can be in flight is more than enough.
            max_expected: usize::from(RECEIVE_MAXIMUM),
            left_out: HashMap::default(),
        }
    }
}

impl Copies {
    /// Whether `copy` is to be taken. `others` are the other subscriptions that match its topic.
    pub(super) fn take(&mut self, copy: Copy, others: Vec<usize>) -> bool {
        let Copy { content, packet_id, dup, .. } = copy;
        if dup && self.left_out.get(&packet_id) == Some(&content) {
            return false;
        }
        if self.is_expected(copy) {
            if packet_id > 0 {
                self.left_out.insert(packet_id, content);
            }
            return false;
        }
        self.left_out.remove(&packet_id);
        if !others.is_empty() {
            self.expect(content, others);
        }
        true
    }

    fn is_expected(&mut self, copy: Copy) -> bool {
        let taken = self.expected.get_mut(&copy.content);
        let message = taken.and_then(|taken| taken.iter_mut().find(|(_, others)| others.contains(&copy.by)));
        let Some((number, others)) = message else { return false };
        others.retain(|other| *other != copy.by);
        if others.is_empty() {
            let number = *number;
            self.forget(copy.content, number);
        }
        true
    }

    fn expect(&mut self, content: u64, others: Vec<usize>) {
        self.expected.entry(content).or_default().push((self.next, others));
        self.order.push_back((content, self.next));
        self.next += 1;
        if self.order.len() > self.max_expected
            && let Some((content, number)) = self.order.pop_front()
        {
            self.forget(content, number);
        }
    }

    fn forget(&mut self, content: u64, number: u64) {
        if let Some(taken) = self.expected.get_mut(&content) {
            taken.retain(|(known, _)| *known != number);
            if taken.is_empty() {
                self.expected.remove(&content);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of the deliveries (filter, content) is taken, where the filters 1 and 2 match everything.
    fn taken(copies: &mut Copies, deliveries: &[(usize, u64)]) -> Vec<bool> {
        let take = |(by, content): &(usize, u64)| {
            let copy = Copy { by: *by, content: *content, packet_id: 0, dup: false };
            copies.take(copy, vec![3 - by])
        };
        deliveries.iter().map(take).collect()
    }

    #[test]
    fn the_first_copy_is_taken_and_one_by_the_other_filter_is_not() {
        let mut copies = Copies::default();
        assert_eq!(taken(&mut copies, &[(1, 7), (2, 7), (2, 8), (1, 8)]), [true, false, true, false]);
        // Two messages that say the same, in turn and one after the other.
        assert_eq!(taken(&mut copies, &[(1, 7), (1, 7), (2, 7), (2, 7)]), [true, true, false, false]);
        assert_eq!(taken(&mut copies, &[(1, 7), (2, 7), (1, 7), (2, 7)]), [true, false, true, false]);
        assert!(copies.expected.is_empty());
    }

    #[test]
    fn a_message_of_which_a_single_copy_comes_is_taken() {
        let mut copies = Copies::default();
        assert_eq!(taken(&mut copies, &[(2, 7), (2, 8), (2, 7), (1, 9)]), [true; 4]);
    }

    #[test]
    fn a_copy_that_was_left_out_is_left_out_when_it_comes_again() {
        let mut copies = Copies::default();
        let first = Copy { by: 1, content: 7, packet_id: 10, dup: false };
        let second = Copy { by: 2, packet_id: 11, ..first };
        assert!(copies.take(first, vec![2]) && !copies.take(second, vec![1]));
        let again = |copy| Copy { dup: true, ..copy };
        assert!(!copies.take(again(second), vec![1]));
        assert!(copies.take(again(first), vec![2]), "the re-delivery window knows it");
        // Another message with the packet identifier of the copy.
        assert!(copies.take(Copy { content: 8, ..second }, vec![1]));
        assert!(copies.take(again(Copy { content: 8, ..second }), vec![1]));
    }

    #[test]
    fn what_is_expected_is_bounded() {
        let mut copies = Copies { max_expected: 10, ..Copies::default() };
        (0..1_000).for_each(|content| assert_eq!(taken(&mut copies, &[(1, content)]), [true]));
        assert_eq!((copies.expected.len(), copies.order.len()), (10, 10));
        assert_eq!(taken(&mut copies, &[(2, 999), (2, 989)]), [false, true]);
    }
}
