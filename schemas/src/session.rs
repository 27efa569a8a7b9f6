//! The query sessions of the platform: one configuration, one set of functions.

use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::optimizer::AnalyzerRule;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::aggregates::{aggregate_functions, state_functions};
use crate::error::Result;
use crate::functions::scalar_functions;
use crate::planner;
use crate::window::ExpandWindows;

/// A session with our functions that runs in `partitions` parallel parts within the memory of `runtime`.
///
/// Text stays `Utf8`: tables, micro-batches and state then have one type for it, not three.
pub fn context(partitions: usize, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_information_schema(true)
        .with_default_catalog_and_schema("iot", "public");
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_optimizer_rules(planner::optimizer_rules())
        .with_query_planner(Arc::new(planner::Planner))
        .build();
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(ExpandWindows)];
    rules.extend(state.analyzer().rules.iter().cloned());
    let state = SessionStateBuilder::from(state).with_analyzer_rules(rules).build();
    let context = SessionContext::new_with_state(state);
    let scalars = scalar_functions().into_iter().chain(crate::window::functions()).chain(state_functions());
    for function in scalars {
        context.register_udf(function.as_ref().clone());
    }
    for function in aggregate_functions() {
        context.register_udaf(function.as_ref().clone());
    }
    context
}

/// A session with one partition for work on much data: what needs more memory than `bytes`, such as a sort, spills to
/// disk.
pub fn spilling_context(bytes: usize) -> Result<SessionContext> {
    let pool = Arc::new(FairSpillPool::new(bytes));
    Ok(context(1, RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?))
}

/// A session for planning and for work on a single micro-batch: one partition, no memory limit.
pub fn small_context() -> SessionContext {
    context(1, Arc::new(RuntimeEnv::default()))
}
