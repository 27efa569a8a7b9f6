//! How events of older payload versions become events of today.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One step of a stream's `upcast`. The first whose `when` holds for an event is the one that changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpcastDef {
    /// A SQL condition over the event's fields as the payload has them; absent ones are NULL.
    pub when: String,
    /// Declared fields and what they become: SQL over the same fields. NULL is no value.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Fields that are left out.
    #[serde(default)]
    pub drop: Vec<String>,
}
