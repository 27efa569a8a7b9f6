//! The system's own tables, as queries find them: `alerts`, `devices`, `dropped`, `late`, `watermarks`,
//! `view_status`, `sparkplug_nodes`, `schemas`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Column;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use iot_ingest::Ingest;
use iot_schemas::Result;
use iot_serving::SystemTables;
use iot_speed_layer::SpeedLayer;
use iot_speed_layer::alert_log::{AlertTable, alert_schema};

use super::{dropped, schemas, sparkplug_nodes, view_status};

/// The system's own tables.
#[derive(Debug)]
pub(super) struct LineTables {
    alerts: Arc<AlertTable>,
    speed: Arc<SpeedLayer>,
    ingest: Arc<Ingest>,
}

impl LineTables {
    pub(super) fn new(alerts: Arc<AlertTable>, speed: Arc<SpeedLayer>, ingest: Arc<Ingest>) -> Self {
        Self { alerts, speed, ingest }
    }

    /// Every transition once: those in the table, and those that are only in the log yet.
    async fn alert_rows(&self) -> Result<LogicalPlan> {
        let rows = self.alerts.rows().map_err(iot_schemas::Error::from)?;
        let tail = in_memory("alerts", rows.tail)?;
        if rows.sealed.file_count() == 0 {
            return Ok(tail.build()?);
        }
        let column = |name: &str| Expr::Column(Column::new_unqualified(name));
        // Rows from before this column was there were news.
        let historical =
            |name| coalesce(vec![column(name), lit(false)]).alias_qualified(Some("alerts"), name);
        let columns = alert_schema();
        let columns = columns.fields().iter().map(|field| match field.name().as_str() {
            name @ "historical" => historical(name),
            name => column(name),
        });
        let sealed = provider_as_source(rows.sealed.provider().await?);
        let sealed = LogicalPlanBuilder::scan("alerts", sealed, None)?.project(columns)?;
        Ok(sealed.union(tail.build()?)?.build()?)
    }
}

fn in_memory(name: &str, rows: RecordBatch) -> Result<LogicalPlanBuilder> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
    Ok(LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(table)), None)?)
}

#[async_trait]
impl SystemTables for LineTables {
    fn names(&self) -> Vec<String> {
        ["alerts", "devices", "dropped", "late", "schemas", "sparkplug_nodes", "view_status", "watermarks"]
            .map(str::to_owned)
            .to_vec()
    }

    async fn rows(&self, name: &str) -> Result<Option<LogicalPlan>> {
        match name {
            "alerts" => Ok(Some(self.alert_rows().await?)),
            "devices" => Ok(Some(in_memory(name, self.speed.device_rows(None))?.build()?)),
            "dropped" => Ok(Some(in_memory(name, dropped::rows(&self.ingest)?)?.build()?)),
            "late" => Ok(Some(in_memory(name, self.speed.late_rows())?.build()?)),
            "schemas" => Ok(Some(in_memory(name, schemas::rows(&self.ingest)?)?.build()?)),
            "sparkplug_nodes" => Ok(Some(in_memory(name, sparkplug_nodes::rows(&self.ingest)?)?.build()?)),
            "view_status" => Ok(Some(in_memory(name, view_status::rows(&*self.speed)?)?.build()?)),
            "watermarks" => Ok(Some(in_memory(name, self.speed.watermark_rows())?.build()?)),
            _ => Ok(None),
        }
    }
}
