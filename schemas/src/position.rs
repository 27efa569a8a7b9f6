//! Where an event stands in the log: the one coordinate in which batch and speed meet.
//!
//! Each ingest node numbers the messages it accepts: 1, 2, 3, ... A [`Frontier`] says "everything up to here",
//! node by node. Because a frontier is a set of exact positions and not a moment in time, the layers can
//! split the events between them with nothing missing and nothing counted twice, however late an event is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of an ingest node. It is part of every position, so it must survive restarts.
pub type NodeId = Arc<str>;

/// A message's number at its node. The first message is 1; 0 stands for "none yet".
pub type Seq = u64;

/// "All up to here": for each node, the highest sequence number that is covered.
///
/// A node that is not listed has nothing covered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Frontier(BTreeMap<NodeId, Seq>);

impl Frontier {
    /// The frontier that covers nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The highest covered sequence number of `node`, 0 if none.
    pub fn get(&self, node: &str) -> Seq {
        self.0.get(node).copied().unwrap_or(0)
    }

    /// Whether the message `seq` of `node` is covered.
    pub fn covers(&self, node: &str, seq: Seq) -> bool {
        seq <= self.get(node)
    }

    /// Whether every position of `other` is covered.
    pub fn covers_all(&self, other: &Frontier) -> bool {
        other.0.iter().all(|(node, seq)| self.covers(node, *seq))
    }

    /// Moves the entry of `node` forward to `seq`; a smaller `seq` changes nothing.
    pub fn advance(&mut self, node: &NodeId, seq: Seq) {
        let entry = self.0.entry(node.clone()).or_insert(0);
        *entry = (*entry).max(seq);
    }

    /// Gives `node` the entry `seq`, also if that covers less than before.
    pub(crate) fn set(&mut self, node: &NodeId, seq: Seq) {
        self.0.insert(node.clone(), seq);
    }

    /// The union: covers what either covers.
    pub fn join(&mut self, other: &Frontier) {
        for (node, seq) in &other.0 {
            self.advance(node, *seq);
        }
    }

    /// The entries in node order.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, Seq)> {
        self.0.iter().map(|(node, seq)| (node, *seq))
    }

    /// Whether nothing is covered.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(|seq| *seq == 0)
    }
}

impl FromIterator<(NodeId, Seq)> for Frontier {
    fn from_iter<T: IntoIterator<Item = (NodeId, Seq)>>(entries: T) -> Self {
        let mut frontier = Self::default();
        for (node, seq) in entries {
            frontier.advance(&node, seq);
        }
        frontier
    }
}

impl fmt::Display for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (i, (node, seq)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{node}:{seq}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontier_never_moves_back() {
        let node: NodeId = "a".into();
        let mut frontier = Frontier::empty();
        frontier.advance(&node, 5);
        frontier.advance(&node, 3);
        assert_eq!(frontier.get("a"), 5);
        assert!(frontier.covers("a", 5) && !frontier.covers("a", 6) && !frontier.covers("b", 1));
    }

    #[test]
    fn a_join_covers_what_either_covered() {
        let mut left: Frontier = [("a".into(), 5), ("b".into(), 1)].into_iter().collect();
        let right: Frontier = [("a".into(), 2), ("c".into(), 9)].into_iter().collect();
        left.join(&right);
        assert!(left.covers_all(&right));
        assert_eq!(left.to_string(), "a:5,b:1,c:9");
    }
}
