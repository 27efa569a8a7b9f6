//! The last-value views: which the catalog asks for by having streams, and when they are put in force and taken out.
//!
//! They are no part of the catalog. A definition that has the name of one stands in its place, whenever it was made.

use std::collections::HashSet;
use std::sync::Arc;

use iot_schemas::catalog::{Catalog, Kind, ViewDef};
use iot_schemas::view::{last_values_name, source_of};
use iot_schemas::{Error, Result};
use iot_speed_layer::Engine;

use super::control::not_found;
use super::{Line, LineConfig};

/// Puts the last-value views in force of which there is state, or nothing to make state of. Returns the streams of
/// the others. What fails here is tried again with them, and reported there.
pub(super) async fn put_at_hand(engine: &mut Engine, catalog: &Catalog) -> Vec<String> {
    let mut later = Vec::new();
    for stream in catalog.last_values() {
        if !matches!(engine.keep_last_values_at_hand(&stream.name).await, Ok(true)) {
            later.push(stream.name.clone());
        }
    }
    later
}

/// Refuses views and rules that read a last-value view: its columns are not theirs to rely on.
pub(super) fn check_readers(future: &Catalog) -> Result<()> {
    let kept: HashSet<String> = future.last_values().map(|stream| last_values_name(&stream.name)).collect();
    let refused = |what: String, source: &str| {
        let stream = stream_of(source);
        Err(Error::invalid(format!(
            "{what} reads `{source}`, which follows the columns of stream `{stream}` by itself; read `{stream}` instead"
        )))
    };
    for view in future.views() {
        if let Ok(source) = source_of(view)
            && kept.contains(&source)
        {
            return refused(format!("view `{}`", view.name), &source);
        }
    }
    match future.rules().find(|rule| kept.contains(&rule.on)) {
        Some(rule) => refused(format!("rule `{}`", rule.name), &rule.on),
        None => Ok(()),
    }
}

impl Line {
    /// Makes the last-value views in force those that `catalog` asks for, with the columns that their streams have now.
    ///
    /// Nothing depends on them, so one that cannot be made holds nothing up: the status says why.
    pub(super) async fn keep_last_values(&self, catalog: &Catalog) {
        let wanted: Vec<&str> = catalog.last_values().map(|stream| stream.name.as_str()).collect();
        for stream in self.speed.last_values_kept() {
            let name = last_values_name(&stream);
            // A view of the catalog takes its place without a moment in which there is neither.
            let replaced = catalog.get(Kind::View, &name).is_some();
            if !wanted.contains(&&*stream) && !replaced {
                let _ = self.speed.remove_view(&name).await;
            }
        }
        for stream in wanted {
            if let Err(e) = self.speed.keep_last_values(stream).await {
                self.note_problem(problem(stream, &e));
            }
        }
    }

    /// Makes the last-value views that need all events of their stream, beside the line unless the line was opened for
    /// one question only.
    pub(super) async fn make_up_last_values(self: &Arc<Self>, streams: Vec<String>, config: &LineConfig) {
        let line = Arc::downgrade(self);
        let work = async move {
            for stream in streams {
                let Some(line) = line.upgrade() else { return };
                if let Err(e) = line.speed.keep_last_values(&stream).await {
                    line.note_problem(problem(&stream, &e));
                }
            }
        };
        if config.scheduled_batches {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { stop.run_until_cancelled(work).await });
        } else {
            work.await;
        }
    }

    /// The definition of a view that is there without being in the catalog.
    pub(super) fn generated(&self, kind: Kind, name: &str) -> Option<Arc<ViewDef>> {
        (kind == Kind::View).then(|| self.speed.generated(name)).flatten()
    }

    /// Why a definition cannot be deleted that is not in the catalog.
    pub(super) fn no_definition(&self, kind: Kind, name: &str) -> Error {
        match self.generated(kind, name) {
            Some(_) => Error::invalid(format!(
                "view `{name}` is kept by the system; set `last_values: false` in stream `{}` to have it no longer",
                stream_of(name)
            )),
            None => not_found(kind, name),
        }
    }

    fn note_problem(&self, problem: String) {
        tracing::error!("{problem}");
        self.problems.lock().push(problem);
    }
}

/// The stream whose last-value view has this name.
fn stream_of(name: &str) -> &str {
    name.strip_suffix("_last").unwrap_or(name)
}

fn problem(stream: &str, error: &dyn std::fmt::Display) -> String {
    format!("the last values of stream `{stream}` are not kept: {error}")
}
