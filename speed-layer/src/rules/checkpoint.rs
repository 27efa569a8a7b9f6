//! The state of all rules as plain data, to be stored by whoever owns the position that it belongs to.

use std::collections::BTreeMap;

use iot_schemas::alert::Transition;
use iot_schemas::catalog::RuleDef;
use iot_schemas::position::NodeId;
use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::key::{Key, decode, encode};
use super::rule::{Rule, RuleStats, closing};
use super::set::{GroupPosition, Numbering, RuleSet};
use crate::error::Result;

/// The layout of [`RulesCheckpoint`] that this build writes and reads.
const VERSION: u32 = 1;

/// All instances of all rules at one position. Restored into a rule set with the same rules, it goes on as if
/// nothing had happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RulesCheckpoint {
    version: u32,
    numbering: BTreeMap<NodeId, Numbering>,
    rules: Vec<RuleCheckpoint>,
}

/// One rule in a [`RulesCheckpoint`]. It holds the definition, so that its alerts can be ended in their own
/// words should the rule be gone when the checkpoint is restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RuleCheckpoint {
    def: RuleDef,
    key_columns: Vec<String>,
    stats: RuleStats,
    active: Vec<SavedInstance>,
    ended: Vec<SavedEnded>,
}

/// An active instance in a [`RuleCheckpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedInstance {
    key: Vec<Option<String>>,
    #[serde(flatten)]
    instance: Instance,
}

/// An ended instance in a [`RuleCheckpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedEnded {
    key: Vec<Option<String>>,
    last_time: i64,
}

impl RuleSet {
    /// The state now.
    pub fn checkpoint(&self) -> RulesCheckpoint {
        RulesCheckpoint {
            version: VERSION,
            numbering: self.numbering.clone(),
            rules: self.rules.values().map(save).collect(),
        }
    }

    /// Puts the state of a checkpoint in place. Call it once, after all rules have been put.
    ///
    /// Rules that are not in the checkpoint stay as they are. Alerts of rules that have been removed or changed
    /// since are ended; their transitions are returned.
    pub fn restore(&mut self, checkpoint: RulesCheckpoint, at: &GroupPosition) -> Result<Vec<Transition>> {
        if checkpoint.version != VERSION {
            let text = format!("the rules' checkpoint has version {}, not {VERSION}", checkpoint.version);
            return Err(iot_schemas::Error::invalid(text).into());
        }
        self.numbering = checkpoint.numbering;
        let mut ended = Vec::new();
        for saved in checkpoint.rules {
            match self.rules.get_mut(&saved.def.name) {
                Some(rule) if *rule.def == saved.def && rule.target.key_columns == saved.key_columns => {
                    put_back(rule, saved);
                }
                _ => ended.extend(self.close_saved(saved, at)),
            }
        }
        Ok(ended)
    }

    fn close_saved(&mut self, saved: RuleCheckpoint, at: &GroupPosition) -> Vec<Transition> {
        let active: Vec<(Key, Instance)> = saved.active.into_iter().map(SavedInstance::into_parts).collect();
        let changes = closing(active.iter().map(|(key, instance)| (key, instance)));
        self.render_all(&saved.def, &saved.key_columns, changes, at)
    }
}

impl SavedInstance {
    fn into_parts(self) -> (Key, Instance) {
        (encode(self.key.iter().map(Option::as_deref)), self.instance)
    }
}

fn save(rule: &Rule) -> RuleCheckpoint {
    let active = rule.instances.active().into_iter();
    let ended = rule.instances.ended();
    RuleCheckpoint {
        def: rule.def.as_ref().clone(),
        key_columns: rule.target.key_columns.clone(),
        stats: rule.stats.clone(),
        active: active.map(|(key, i)| SavedInstance { key: decode(key), instance: i.clone() }).collect(),
        ended: ended.map(|(key, last_time)| SavedEnded { key: decode(key), last_time }).collect(),
    }
}

fn put_back(rule: &mut Rule, saved: RuleCheckpoint) {
    rule.stats = saved.stats;
    for ended in saved.ended {
        rule.instances.remember_end(encode(ended.key.iter().map(Option::as_deref)), ended.last_time);
    }
    for instance in saved.active {
        let (key, instance) = instance.into_parts();
        rule.put_back(key, instance);
    }
}
