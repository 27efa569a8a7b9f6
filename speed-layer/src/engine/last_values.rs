//! The last-value views, one per stream, which are put in force without being asked for and follow the columns of
//! their streams.

use std::sync::Arc;

use iot_schemas::catalog::ViewDef;
use iot_schemas::view::{CompiledView, last_values, last_values_name, shows_columns};

use super::{Command, Engine, SpeedLayer};
use crate::error::Result;
use crate::live_view::LiveView;

impl SpeedLayer {
    /// Puts the last-value view of a stream in force, or gives it the columns that the stream has now. A view of the
    /// catalog that has its name stays instead.
    ///
    /// Reads the whole raw table if there is no state of it yet; a view in force reads nothing.
    pub async fn keep_last_values(&self, stream: &str) -> Result<()> {
        if self.last_values_are_current(stream)? {
            return Ok(());
        }
        let prepared = Box::new(self.prepare(self.last_values_of(stream)?).await?);
        self.ask(|reply| Command::SwitchView(prepared, reply)).await
    }

    /// The streams whose last-value view is in force.
    pub fn last_values_kept(&self) -> Vec<Arc<str>> {
        let views = self.views.read();
        let generated = views.values().filter(|live| live.view().def().generated);
        generated.map(|live| live.view().stream().clone()).collect()
    }

    /// The definition of a view that the system keeps of its own accord; `None` if it is of the catalog or not there.
    pub fn generated(&self, view: &str) -> Option<Arc<ViewDef>> {
        let live = self.live(view).ok()?;
        live.view().def().generated.then(|| live.view().def().clone())
    }

    /// The last-value view of a stream over the columns that it has now.
    fn last_values_of(&self, stream: &str) -> Result<Arc<ViewDef>> {
        let raw = self.raw.snapshot(stream)?;
        Ok(Arc::new(last_values(stream, &raw.schema, &raw.renames)))
    }

    fn last_values_are_current(&self, stream: &str) -> Result<bool> {
        let raw = self.raw.snapshot(stream)?;
        let live = self.live(&last_values_name(stream));
        Ok(live.is_ok_and(|live| {
            !live.view().def().generated || shows_columns(live.view(), &raw.schema, &raw.renames)
        }))
    }
}

impl Engine {
    /// Puts the last-value view of a stream in force before the line runs, unless the raw table would have to be read
    /// from its first event: then it answers `false`, and [`SpeedLayer::keep_last_values`] does that beside the line.
    pub async fn keep_last_values_at_hand(&mut self, stream: &str) -> Result<bool> {
        let sealed = self.raw.snapshot(stream)?.sealed;
        let def = self.shared.last_values_of(stream)?;
        if sealed.file_count() > 0 && !self.shared.has_state_of(&def).await? {
            return Ok(false);
        }
        self.put_view(def).await?;
        Ok(true)
    }

    /// Gives the last-value view of a stream the columns that the stream has now. If that fails the view is taken out:
    /// without them it would be wrong from here on.
    pub(super) async fn follow_columns(&mut self, stream: &str) {
        if self.shared.last_values_are_current(stream).unwrap_or(true) {
            return;
        }
        let name = last_values_name(stream);
        let Ok(live) = self.shared.live(&name) else { return };
        debug_assert!(live.view().def().generated);
        let followed = match self.shared.last_values_of(stream) {
            Ok(def) => self.put_view_surely(def).await,
            Err(e) => Err(e),
        };
        if let Err(e) = followed {
            self.failed(&format!("view `{name}` is no longer kept"), &e);
            let _ = self.remove_view(&name);
        }
    }

    /// Exchanges the last-value view in force for one over other columns, with the state of the one before.
    pub(super) async fn reshape(&mut self, view: Arc<CompiledView>) -> Result<()> {
        let before = self.shared.live(view.name())?;
        // The stream may have got more columns while this shape was made beside the engine.
        let raw = self.raw.snapshot(view.stream())?;
        let shows = |view: &CompiledView| shows_columns(view, &raw.schema, &raw.renames);
        let is_stale = shows(before.view()) && !shows(&view);
        if !before.view().def().generated || is_stale {
            return Ok(());
        }
        let live: LiveView = before.reshaped(view).await?;
        let name: Arc<str> = live.view().name().into();
        self.shared.views.write().insert(name.clone(), Arc::new(live));
        self.shared.feed.end(&name);
        Ok(())
    }

    /// A last-value view gives way to a view of the catalog that has its name, and to its stream's wish to have none.
    pub(super) fn may_be_put(&self, view: &CompiledView) -> bool {
        let taken = || self.shared.live(view.name()).is_ok_and(|live| !live.view().def().generated);
        let wanted = || self.raw.definition(view.stream()).is_some_and(|stream| stream.last_values);
        !view.def().generated || (!taken() && wanted())
    }
}
