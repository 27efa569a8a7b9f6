//! The schema registry: what columns a stream has had, version by version, and which changes of them are allowed.
//!
//! A stream's schema changes in two ways: by `apply` (what the definition declares) and by inference (a field that
//! events bring, an integer column that becomes a double). Each change makes a [`Version`] in the stream's
//! [`History`], at a position of the log. [`rules`] is the one table of what may change and how; `apply`,
//! `iotctl schema check` and the manual all read it.
//!
//! ```text
//! definition + columns that are there ──columns_of──▶ columns ──compare──▶ changes ──rules──▶ compatible or not
//!                                                        └──History::observe──▶ a version, if anything changed
//! ```
//!
//! A history is a function of the log: the same messages, decoded again from any sealed position, make no version
//! that is not there already.

mod column;
mod compare;
mod history;
pub mod rules;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use column::{Column, Source, columns_of};
pub use compare::{Change, compare};
pub use history::{History, MAX_VERSIONS, Renames, Stamp, Step, Version, Why};
pub use rules::{RULES, Rule, RuleId};

use crate::error::Result;

/// One change that a definition would make to a stream's schema, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The stream.
    pub stream: String,
    /// The column that changes; `None` if the stream as a whole does.
    pub column: Option<String>,
    /// The rule's name.
    pub change: String,
    /// What changes, in words.
    pub detail: String,
    /// Whether `apply` does it.
    pub compatible: bool,
    /// What becomes of the data, or why it is refused.
    pub reason: String,
    /// What to do instead of an incompatible change.
    pub instead: Option<String>,
}

impl Finding {
    /// A change of `stream`, judged by the table of rules.
    pub fn of(stream: &str, change: Change) -> Self {
        let rule = change.rule.rule();
        Self {
            stream: stream.to_owned(),
            column: change.column,
            change: rule.name.to_owned(),
            detail: change.detail,
            compatible: rule.is_compatible(),
            reason: rule.what.to_owned(),
            instead: rule.instead.map(str::to_owned),
        }
    }
}

/// What a server says about its streams' schemas. Implemented where the layers are wired together.
#[async_trait::async_trait]
pub trait Schemas: Send + Sync + std::fmt::Debug {
    /// A row per stream with its newest version; all versions of one stream, newest first, if one is named.
    fn list(&self, stream: Option<&str>) -> Result<Vec<Map<String, Value>>>;

    /// One version with its columns and what it changed; the newest if `number` is absent.
    fn show(&self, stream: &str, number: Option<u32>) -> Result<Value>;

    /// What the documents' streams would change, judged. Nothing is done. Fails if a document is wrong by itself.
    async fn check(&self, yaml: &str, origin: &str) -> Result<Vec<Finding>>;
}
