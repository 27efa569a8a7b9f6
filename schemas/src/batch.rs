//! What the batch layer is asked for and what it answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::position::Frontier;
use crate::table::Table;
use crate::view::{ChangeRecord, CompiledView, ViewSnapshot};

/// One batch run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchRequest {
    /// The views to run; empty means all.
    pub views: Vec<String>,
    /// Recompute from the first event instead of from the last frontier.
    pub full: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a batch run did to one view.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BatchReport {
    /// The view.
    pub view: String,
    /// The generation that the run committed; the previous one if there was nothing to do.
    pub generation: i64,
    /// Whether everything was recomputed.
    pub full: bool,
    /// The frontier before the run.
    pub from: Frontier,
    /// The frontier that is covered now.
    pub to: Frontier,
    /// How many raw events were read.
    pub events: u64,
    /// How many state rows were written.
    pub state_rows: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// Where the serving layer and the command line ask for batch runs. Implemented by the batch layer.
#[async_trait::async_trait]
pub trait BatchRunner: Send + Sync + std::fmt::Debug {
    /// Runs and commits. Views are done one after the other; the first failure stops the run.
    async fn run(&self, request: BatchRequest) -> Result<Vec<BatchReport>>;
}

/// The merged views, as the speed layer keeps them and serving and batch see them.
pub trait Views: Send + Sync + std::fmt::Debug {
    /// The names of all views.
    fn names(&self) -> Vec<Arc<str>>;

    /// A consistent snapshot of one view: its batch state up to a frontier, and the speed state after it.
    fn snapshot(&self, view: &str) -> Result<ViewSnapshot>;

    /// A view's plans and the table of its batch state.
    fn compiled(&self, view: &str) -> Result<(Arc<CompiledView>, Arc<Table>)>;

    /// Begins to write down what changes in a view, for as long as somebody holds the record. There is one record
    /// per view and it has one reader: asked for again while it is held, the same one is given.
    fn record_changes(&self, view: &str) -> Result<Arc<ChangeRecord>>;

    /// Says that the table has a newer batch state. Drops exactly the speed state that it covers.
    fn batch_committed(&self, view: &str);
}
