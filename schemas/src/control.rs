//! What a server can be told and asked over HTTP beyond queries: the catalog, its health, a proof of its answers.

use serde::{Deserialize, Serialize};

use crate::catalog::Kind;
use crate::error::Result;
use crate::replay::{ReplayReport, ReplayRequest};

/// What applying one document did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was new.
    Created,
    /// It replaced another definition.
    Changed,
    /// It was there already, word for word.
    Unchanged,
    /// It was removed.
    Deleted,
}

/// One document of an `apply`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Applied {
    /// What it defines.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What was done.
    pub change: Change,
}

/// The result of `iotctl verify` for one view.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The view.
    pub view: String,
    /// Whether the system keeps it of its own accord.
    #[serde(default)]
    pub generated: bool,
    /// Up to where both sides were computed.
    pub frontier: crate::position::Frontier,
    /// The rows of the recomputation.
    pub rows: u64,
    /// The raw events that were read for it.
    pub events: u64,
    /// How many rows differ.
    pub differences: u64,
    /// The first few of them, in words.
    pub examples: Vec<String>,
}

/// The control side of a server. Implemented where the layers are wired together.
#[async_trait::async_trait]
pub trait Control: Send + Sync + std::fmt::Debug {
    /// Puts the YAML documents in force, all or none, and makes them durable.
    async fn apply(&self, yaml: &str, origin: &str) -> Result<Vec<Applied>>;

    /// What [`Self::apply`] would do.
    async fn diff(&self, yaml: &str, origin: &str) -> Result<Vec<Applied>>;

    /// Removes a definition. Data on the store stays.
    async fn delete(&self, kind: Kind, name: &str) -> Result<Applied>;

    /// One object per definition of a kind (or per `devices`, `batches`), ready to be printed as a table.
    async fn list(&self, what: &str) -> Result<Vec<serde_json::Map<String, serde_json::Value>>>;

    /// Everything about one definition.
    async fn describe(&self, kind: Kind, name: &str) -> Result<serde_json::Value>;

    /// Counters, frontiers, sizes and health of all layers.
    async fn status(&self) -> Result<serde_json::Value>;

    /// Recomputes views from raw and compares; all views if `view` is `None`.
    async fn verify(&self, view: Option<&str>) -> Result<Vec<VerifyReport>>;

    /// Replays history through the speed layer, for rules that came after it.
    async fn replay(&self, request: ReplayRequest) -> Result<ReplayReport>;

    /// Why the server is not ready, or `None` if it is.
    fn not_ready(&self) -> Option<String>;

    /// Named numbers for `/metrics`, each with a help text: `(name, help, value)`.
    fn metrics(&self) -> Vec<(&'static str, &'static str, f64)>;
}
