//! Putting views in force, changing them, and taking them out.
//!
//! A view with a new definition is made in two steps. First, beside everything else, its batch state is computed from
//! the raw table and written to files that nobody reads. Then the engine, between two groups of the log, commits these
//! files in the place of the old ones and exchanges the view. Until that moment the old definition answers, and keeps
//! taking in events; from that moment the new one does, and no event is in neither or in both.
//!
//! A definition that leaves the state as it is (another `HAVING`, another expression, a view over a view) needs no
//! first step.

use std::sync::Arc;

use futures::StreamExt;
use iot_schemas::catalog::ViewDef;
use iot_schemas::position::Frontier;
use iot_schemas::raw::RawSnapshot;
use iot_schemas::session::{context, small_context};
use iot_schemas::table::{Commit, Staged, Table};
use iot_schemas::view::{CompiledView, last_values, lineage, open_table, shows_columns, source_of, storage};

use super::{Command, Engine, SpeedLayer};
use crate::error::Result;
use crate::live_view::{LiveView, project_to};

/// Staging is repeated for what has been sealed meanwhile until less than this many messages are left for the engine.
const CATCH_UP_MESSAGES: u64 = 100_000;
/// ... but not more often than this.
const CATCH_UP_ROUNDS: usize = 5;

/// A view that the engine can put in force at once.
#[derive(Debug)]
pub(super) enum PreparedView {
    /// It has state of its own.
    Own {
        /// The view, without speed state.
        live: LiveView,
        /// Its batch state if the table has none of this definition, and up to where it goes.
        staged: Option<(Staged, Frontier)>,
    },
    /// It reads the state of a view that is in force.
    Shared(Arc<CompiledView>),
    /// It is the last-value view that is in force, over other columns.
    Reshaped(Arc<CompiledView>),
}

impl PreparedView {
    fn view(&self) -> &CompiledView {
        match self {
            Self::Own { live, .. } => live.view(),
            Self::Shared(view) | Self::Reshaped(view) => view,
        }
    }
}

impl SpeedLayer {
    /// Puts a view in force, or another definition of it. Answers are complete once this returns; until then the
    /// definition before goes on answering.
    ///
    /// Reads the whole raw table if there is no state of this definition yet.
    pub async fn put_view(&self, def: Arc<ViewDef>) -> Result<()> {
        let prepared = Box::new(self.prepare(def).await?);
        self.ask(|reply| Command::SwitchView(prepared, reply)).await
    }

    /// Everything about a view that takes time.
    pub(super) async fn prepare(&self, def: Arc<ViewDef>) -> Result<PreparedView> {
        let name = def.name.clone();
        let find = |base: &str| self.live(base).ok().map(|live| live.view().def().clone());
        let (bases, stream) = lineage(&def, |base| find(base).filter(|_| base != name))?;
        if self.raw.definition(&stream).is_none() {
            let known: Vec<String> = self.raw.names().iter().map(ToString::to_string).collect();
            let hint = format!(" (view `{name}` reads it); the streams are: {}", known.join(", "));
            return Err(iot_schemas::Error::NotFound { kind: "stream", name: stream, hint }.into());
        }
        let raw = self.raw.snapshot(&stream)?;
        let view = Arc::new(CompiledView::compile_over(def, bases, &stream, &raw.schema).await?);
        let own = self.live(view.state_owner()).ok();
        if own.as_ref().is_some_and(|own| own.view().fingerprint() == view.fingerprint()) {
            return Ok(match view.def().generated {
                true => PreparedView::Reshaped(view),
                false => PreparedView::Shared(view),
            });
        }
        if !view.bases().is_empty() {
            let why =
                format!("view `{}`, which `{name}` reads, is being changed; try again", view.state_owner());
            return Err(iot_schemas::Error::invalid(why).into());
        }
        let table = match own {
            Some(own) => own.table().clone(),
            None => Arc::new(open_table(&self.store, &view, vec![self.node.clone()]).await?),
        };
        let staged = match table.snapshot().definition() {
            Some(definition) if definition == view.fingerprint() => None,
            _ => Some(self.stage(&view, &table, raw).await?),
        };
        Ok(PreparedView::Own { live: LiveView::new(view, table).await?, staged })
    }

    /// Whether the store has state of this definition, so that putting it in force does not read all of raw.
    pub(super) async fn has_state_of(&self, def: &Arc<ViewDef>) -> Result<bool> {
        let stream = source_of(def)?;
        let schema = self.raw.snapshot(&stream)?.schema;
        let view = CompiledView::compile(def.clone(), &stream, &schema).await?;
        let table = open_table(&self.store, &view, vec![self.node.clone()]).await?;
        Ok(table.snapshot().definition() == Some(view.fingerprint()))
    }

    /// Computes the state of everything that is sealed.
    async fn stage(
        &self,
        view: &CompiledView,
        table: &Table,
        mut raw: RawSnapshot,
    ) -> Result<(Staged, Frontier)> {
        let stats_columns = view.keys().iter().map(|key| key.name.clone()).collect();
        let mut staged = Staged::new(view.storage_schema().clone(), stats_columns);
        let mut covered = Frontier::empty();
        for _ in 0..CATCH_UP_ROUNDS {
            let sealed = raw.sealed.frontier().clone();
            if let Some(events) = raw.sealed_between(&covered, Some(&sealed)).await? {
                let plan = view.state_plan(project_to(events, view)?)?;
                let session = context(2, small_context().runtime_env());
                let states = session.execute_logical_plan(plan).await?.execute_stream().await?;
                let schema = view.storage_schema();
                let states = states.map(|batch| storage::to_storage(&batch?, schema));
                table.stage(&mut staged, states).await?;
            }
            covered = sealed;
            raw = self.raw.snapshot(view.stream())?;
            let ahead: u64 = raw.sealed.frontier().iter().map(|(node, seq)| seq - covered.get(node)).sum();
            // What is sealed from here on may have columns that a last-value view of this shape would drop.
            if ahead < CATCH_UP_MESSAGES
                || (view.def().generated && !shows_columns(view, &raw.schema, &raw.renames))
            {
                break;
            }
        }
        Ok((staged, covered))
    }
}

/// A last-value view that is to be seeded, with the columns that its stream has got since it was made.
async fn with_columns_of(raw: &RawSnapshot, live: LiveView) -> Result<LiveView> {
    let view = live.view();
    if !view.def().generated || shows_columns(view, &raw.schema, &raw.renames) {
        return Ok(live);
    }
    let def = Arc::new(last_values(view.stream(), &raw.schema, &raw.renames));
    let seeded = view.fingerprint();
    let view = CompiledView::compile(def, view.stream(), &raw.schema).await?;
    if view.fingerprint() != seeded {
        let why = format!("columns of stream `{}` have been renamed meanwhile; try again", view.stream());
        return Err(iot_schemas::Error::invalid(why).into());
    }
    LiveView::new(Arc::new(view), live.table().clone()).await
}

impl Engine {
    /// Puts a view in force before the line runs; see [`SpeedLayer::put_view`].
    pub async fn put_view(&mut self, def: Arc<ViewDef>) -> Result<()> {
        let prepared = self.shared.prepare(def).await?;
        self.switch_view(prepared).await
    }

    /// Exchanges a view, between two groups of the log.
    pub(super) async fn switch_view(&mut self, prepared: PreparedView) -> Result<()> {
        if !self.may_be_put(prepared.view()) {
            return Ok(());
        }
        let live = match prepared {
            PreparedView::Shared(view) => {
                let owner = self.shared.live(view.state_owner())?;
                if owner.view().fingerprint() != view.fingerprint() {
                    let why = format!("view `{}` has been changed meanwhile; try again", view.state_owner());
                    return Err(iot_schemas::Error::invalid(why).into());
                }
                Arc::new(owner.sharing(view).await?)
            }
            PreparedView::Reshaped(view) => return self.reshape(view).await,
            PreparedView::Own { live, staged } => {
                if let Some((staged, frontier)) = staged {
                    let before = live.table().snapshot();
                    // The empty state of a new view is no generation of it.
                    let made = before.definition().is_some() || !frontier.is_empty();
                    let generation = Some(before.generation() + i64::from(made));
                    let definition = Some(live.view().fingerprint());
                    live.table().switch(staged, Commit { frontier, generation, definition }).await?;
                }
                let raw = self.raw.snapshot(live.view().stream())?;
                let live = with_columns_of(&raw, live).await?;
                live.seed(&raw, &self.processed, self.ends.make_contiguous()).await?;
                Arc::new(live)
            }
        };
        let name: Arc<str> = live.view().name().into();
        let before = self.shared.views.write().insert(name.clone(), live.clone());
        if before.is_some_and(|before| before.view().def().sql != live.view().def().sql) {
            self.shared.feed.end(&name);
        }
        self.hot.remove(&name);
        if self.rules.watches(&name) {
            let target = self.target(&name)?;
            self.retarget(target).await;
        }
        self.renew_readers(&name).await
    }

    /// Makes the views that read `base` read its new definition.
    async fn renew_readers(&mut self, base: &str) -> Result<()> {
        let reads = |view: &CompiledView| view.bases().last().is_some_and(|direct| direct.name == base);
        let views = self.all_views();
        for reader in views.iter().filter(|live| reads(live.view())) {
            let def = reader.view().def().clone();
            let renewed = match self.shared.prepare(def).await {
                Ok(prepared) => Box::pin(self.switch_view(prepared)).await,
                Err(e) => Err(e),
            };
            if let Err(e) = renewed {
                self.failed(&format!("view `{}`, which reads `{base}`", reader.view().name()), &e);
            }
        }
        Ok(())
    }

    pub(super) fn remove_view(&mut self, name: &str) -> Result<()> {
        let in_use = |by: String| Err(iot_schemas::Error::invalid(by).into());
        if let Some(rule) = self.rules.definitions_on(name).first() {
            return in_use(format!(
                "view `{name}` is watched by rule `{}`; delete the rule first",
                rule.name
            ));
        }
        let views = self.all_views();
        let mut readers = views.iter().filter(|l| l.view().bases().iter().any(|base| base.name == name));
        if let Some(reader) = readers.next() {
            return in_use(format!(
                "view `{name}` is read by view `{}`; delete that first",
                reader.view().name()
            ));
        }
        self.shared.views.write().remove(name);
        self.shared.feed.end(name);
        self.hot.remove(name);
        Ok(())
    }
}
