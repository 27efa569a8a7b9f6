//! How many connections there may be, in all and from one address, counted from the first byte on: also those
//! that have not said yet who they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts connections.
#[derive(Debug)]
pub(super) struct Doorman {
    max: usize,
    max_per_address: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The right to be connected; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    doorman: Arc<Doorman>,
    address: IpAddr,
}

impl Doorman {
    pub(super) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_address, inside: Mutex::default() })
    }

    /// `None` if there are too many already.
    pub(super) fn let_in(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let address = address.to_canonical();
        let mut inside = self.inside.lock();
        let from_there = inside.by_address.get(&address).copied().unwrap_or_default();
        if inside.all >= self.max || from_there >= self.max_per_address {
            return None;
        }
        inside.all += 1;
        inside.by_address.insert(address, from_there + 1);
        Some(Pass { doorman: self.clone(), address })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.doorman.inside.lock();
        inside.all -= 1;
        if let Some(from_there) = inside.by_address.get_mut(&self.address) {
            *from_there -= 1;
            if *from_there == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_places_become_free_again() {
        let doorman = Doorman::new(3, 2);
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([192, 0, 2, n]));
        let first = doorman.let_in(a).expect("a place");
        let _second = doorman.let_in(a).expect("a place");
        assert!(doorman.let_in(a).is_none(), "two from there already");
        let _third = doorman.let_in(b).expect("a place");
        assert!(doorman.let_in(c).is_none(), "three in all already");
        drop(first);
        assert!(doorman.let_in(c).is_some());
        assert_eq!(doorman.inside.lock().by_address.len(), 2, "who has left is forgotten");
    }
}
