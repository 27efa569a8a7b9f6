//! What rules watch: the rows of streams and views, and what happens when their columns change.

use std::sync::Arc;

use arrow::datatypes::DataType;
use iot_schemas::catalog::{RuleDef, ViewDef};
use iot_schemas::error::is_passing;
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME};
use iot_schemas::micro_batch::MicroBatch;

use super::{Engine, FIRST_RETRY};
use crate::error::{Error, Result};
use crate::rules::Target;

impl Engine {
    /// Puts a rule in force; see [`super::SpeedLayer::put_rule`].
    pub async fn put_rule(&mut self, def: Arc<RuleDef>) -> Result<()> {
        let target = self.target(&def.on).map_err(|e| match e {
            Error::Schemas(e) => Error::invalid_rule(&def.name, e.to_string()),
            other => other,
        })?;
        let at = self.position(self.processed.get(&self.config.node), "");
        let ended = self.rules.put(def, target, &at)?;
        self.record(ended).await;
        Ok(())
    }

    /// A stream or view as rules see it.
    pub(super) fn target(&self, name: &str) -> Result<Target> {
        if self.raw.definition(name).is_some() {
            return Ok(Target {
                name: name.to_owned(),
                schema: self.raw.snapshot(name)?.schema,
                time_column: Some(EVENT_TIME.to_owned()),
                key_columns: vec![DEVICE_ID.to_owned()],
            });
        }
        let live = self.shared.live(name).map_err(|_| iot_schemas::Error::NotFound {
            kind: "stream or view",
            name: name.to_owned(),
            hint: "; a rule's `on` names one".to_owned(),
        })?;
        let mut target = Target {
            name: name.to_owned(),
            schema: live.view().output_schema().clone(),
            time_column: None,
            key_columns: Vec::new(),
        };
        if !live.view().is_row_wise() {
            return Err(iot_schemas::Error::invalid(format!(
                "view `{name}` cannot be watched by a rule: its windows overlap or join, or its rows combine several groups; watch a view with tumbling windows, or the stream"
            ))
            .into());
        }
        for key in live.view().keys() {
            let shown = key.output.clone().ok_or_else(|| {
                iot_schemas::Error::invalid(format!(
                    "view `{name}` does not show its group key `{}`; a rule needs it to tell alerts apart: add it to the SELECT list",
                    key.name
                ))
            })?;
            let is_time = matches!(
                target.schema.field_with_name(&shown).map(|f| f.data_type()),
                Ok(DataType::Timestamp(..))
            );
            if key.window_micros.is_some() && is_time && target.time_column.is_none() {
                target.time_column = Some(shown);
            } else {
                target.key_columns.push(shown);
            }
        }
        Ok(target)
    }

    /// Notices that a stream has got new or wider columns. A batch from before that (in a replay) has narrower
    /// ones; it is the stream's own schema that counts.
    pub(super) async fn note_schema(&mut self, batch: &MicroBatch) {
        if self.schemas.get(&batch.stream).is_some_and(|known| *known == batch.rows.schema()) {
            return;
        }
        let Ok(target) = self.target(&batch.stream) else { return };
        self.follow_columns(&batch.stream).await;
        let mut all_follow = true;
        for live in self.views_on(&batch.stream) {
            let wider = |field: &Arc<arrow::datatypes::Field>| {
                target
                    .schema
                    .field_with_name(field.name())
                    .is_ok_and(|now| now.data_type() != field.data_type())
            };
            // State of the narrower type cannot take in the wider one: the view is made anew from raw.
            // What reads another view follows it.
            if live.view().bases().is_empty()
                && !live.view().def().generated
                && live.view().input_schema().fields().iter().any(wider)
            {
                let made = self.put_view_surely(live.view().def().clone()).await;
                all_follow &= made.is_ok();
                if let Err(e) = made {
                    self.failed(&format!("view `{}`", live.view().name()), &e);
                }
            }
        }
        // A view that has failed is tried again with the next batch: until then it takes 40.5 for 40.
        if all_follow {
            self.schemas.insert(batch.stream.clone(), batch.rows.schema());
        }
        if self.rules.watches(&batch.stream) {
            self.retarget(target).await;
        }
    }

    /// Puts a view in force, however long the store takes: the batch that follows does not fit the one in force.
    pub(super) async fn put_view_surely(&mut self, def: Arc<ViewDef>) -> Result<()> {
        let mut wait = FIRST_RETRY;
        loop {
            match self.put_view(def.clone()).await {
                Err(e) if is_passing(&e) => {
                    self.wait_out(&format!("view `{}`", def.name), &e, &mut wait).await
                }
                outcome => {
                    self.clear_trouble(wait);
                    return outcome;
                }
            }
        }
    }

    pub(super) async fn retarget(&mut self, target: Target) {
        let at = self.position(self.processed.get(&self.config.node), "");
        let outcome = self.rules.retarget(target, &at);
        for unfit in &outcome.unfit {
            self.failed("a rule", unfit);
        }
        self.record(outcome.ended).await;
    }
}
