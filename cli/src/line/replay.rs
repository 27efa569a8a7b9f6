//! Replays of history for rules: which rules and views take part, and what the alert log has of them already.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use iot_schemas::alert::{AlertFeed, AlertState};
use iot_schemas::catalog::{Catalog, RuleDef, ViewDef};
use iot_schemas::raw::RawStreams;
use iot_schemas::replay::{ReplayReport, ReplayRequest};
use iot_schemas::view::lineage;
use iot_schemas::{Error, Result};
use iot_serving::query::{Queries, QueryRequest};
use iot_speed_layer::{KnownAlerts, KnownStep, ReplayPlan};

use super::Line;

impl Line {
    pub(super) async fn replay_history(&self, request: ReplayRequest) -> Result<ReplayReport> {
        let (from, to) = request.range()?;
        let stream = self.replayed_stream(&request.stream)?;
        let Watched { rules, views } = watched(&*self.catalog.lock().await, &stream, &request.rules)?;
        let known = self.known_alerts(&rules, from).await?;
        let plan = ReplayPlan { stream, from, to, rules, views, known, dry_run: request.dry_run };
        Ok(self.speed.replay(plan).await?)
    }

    fn replayed_stream(&self, name: &str) -> Result<Arc<str>> {
        let names = self.ingest.names();
        names.iter().find(|stream| &***stream == name).cloned().ok_or_else(|| {
            let known: Vec<&str> = names.iter().map(|name| &**name).collect();
            let hint = format!("; the streams are: {}", known.join(", "));
            Error::NotFound { kind: "stream", name: name.to_owned(), hint }
        })
    }

    /// Every alert of the rules that is retained, from the open table and the log.
    async fn known_alerts(&self, rules: &[Arc<RuleDef>], from: Option<i64>) -> Result<KnownAlerts> {
        let names: Vec<String> =
            rules.iter().map(|rule| format!("'{}'", rule.name.replace('\'', "''"))).collect();
        let mut known = KnownAlerts::up_to(*self.alerts.latest().borrow());
        // An alert that had ended before the range cannot overlap one within it.
        let late_enough = from.map_or("true".to_owned(), |from| format!("at >= to_timestamp_micros({from})"));
        let sql = format!(
            "SELECT * FROM (
                 SELECT alert_id, rule, min(labels) AS labels, last_value(state ORDER BY id) AS state,
                        min(started_at) AS started_at, last_value(at ORDER BY id) AS at
                 FROM alerts WHERE rule IN ({}) GROUP BY alert_id, rule)
             WHERE state IN ('pending', 'firing') OR {late_enough}",
            names.join(", ")
        );
        let request = QueryRequest { sql, layer: Default::default(), max_rows: Some(usize::MAX) };
        let answer = self.queries.execute(request).await?;
        for batch in &answer.batches {
            for row in 0..batch.num_rows() {
                known.note(step(batch, row)?);
            }
        }
        Ok(known)
    }
}

fn step(rows: &RecordBatch, row: usize) -> Result<KnownStep> {
    let text = |at: usize| -> Result<String> {
        Ok(cast(rows.column(at), &DataType::Utf8)?.as_string::<i32>().value(row).to_owned())
    };
    let time = |at: usize| rows.column(at).as_primitive::<TimestampMicrosecondType>().value(row);
    let wrong = |e: serde_json::Error| Error::invalid(format!("a row of the table `alerts`: {e}"));
    let labels: BTreeMap<String, String> = serde_json::from_str(&text(2)?).map_err(wrong)?;
    let state: AlertState = serde_json::from_value(text(3)?.into()).map_err(wrong)?;
    Ok(KnownStep { alert_id: text(0)?, rule: text(1)?, labels, state, started_at: time(4), at: time(5) })
}

/// The rules to replay for, and the views that they watch, each after those that it reads.
#[derive(Debug, Default)]
struct Watched {
    rules: Vec<Arc<RuleDef>>,
    views: Vec<Arc<ViewDef>>,
}

fn watched(catalog: &Catalog, stream: &str, wanted: &[String]) -> Result<Watched> {
    for name in wanted {
        if !catalog.rules().any(|rule| rule.name == *name) {
            let hint = "; `iotctl get rules` lists them".to_owned();
            return Err(Error::NotFound { kind: "rule", name: name.clone(), hint });
        }
    }
    let find = |name: &str| catalog.views().find(|view| view.name == name).cloned();
    let Watched { mut rules, mut views } = Watched::default();
    for rule in catalog.rules() {
        let is_named = wanted.contains(&rule.name);
        if !wanted.is_empty() && !is_named {
            continue;
        }
        let (chain, source) = match find(&rule.on) {
            None => (Vec::new(), rule.on.clone()),
            Some(view) => {
                let (mut bases, source) = lineage(&view, find)?;
                bases.push(view);
                (bases, source)
            }
        };
        if source == stream {
            rules.push(rule.clone());
            let is_new = |view: &Arc<ViewDef>| views.iter().all(|have| have.name != view.name);
            let new: Vec<_> = chain.into_iter().filter(is_new).collect();
            views.extend(new);
        } else if is_named {
            return Err(Error::invalid(format!(
                "rule `{}` watches `{}`, which comes from stream `{source}`, not `{stream}`",
                rule.name, rule.on
            )));
        }
    }
    if rules.is_empty() {
        return Err(Error::invalid(format!(
            "no rule watches stream `{stream}` or a view of it, so there is nothing to replay for; a view needs no replay: it has all of history when `iotctl apply` returns"
        )));
    }
    Ok(Watched { rules, views })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = "
kind: stream
name: readings
topics: [\"devices/{device_id}/telemetry\"]
---
kind: stream
name: others
topics: [\"others/{device_id}\"]
---
kind: view
name: minutes
sql: SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, max(t) AS t FROM readings GROUP BY device_id, w
---
kind: view
name: hours
sql: SELECT device_id, tumble(w, INTERVAL '1 hour') AS h, max(t) AS t FROM minutes GROUP BY device_id, h
---
kind: rule
name: hot
on: readings
when: t > 1
---
kind: rule
name: hot_hour
on: hours
when: t > 1
---
kind: rule
name: other
on: others
when: t > 1
";

    fn check(stream: &str, wanted: &[&str]) -> std::result::Result<(Vec<String>, Vec<String>), String> {
        let mut catalog = Catalog::default();
        for document in iot_schemas::catalog::parse(CATALOG, "test").expect("it parses") {
            catalog.put(document);
        }
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let Watched { rules, views } = watched(&catalog, stream, &wanted).map_err(|e| e.to_string())?;
        let rules = rules.iter().map(|rule| rule.name.clone()).collect();
        Ok((rules, views.iter().map(|view| view.name.clone()).collect()))
    }

    #[test]
    fn the_rules_of_a_stream_come_with_the_views_that_they_watch() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(check("readings", &[]), Ok((names(&["hot", "hot_hour"]), names(&["minutes", "hours"]))));
        assert_eq!(check("readings", &["hot"]), Ok((names(&["hot"]), names(&[]))));
        assert_eq!(check("others", &[]), Ok((names(&["other"]), names(&[]))));
        let error = |stream, wanted: &[&str]| check(stream, wanted).expect_err("it is refused");
        assert!(error("readings", &["other"]).contains("comes from stream `others`"));
        assert!(error("readings", &["none"]).contains("`none`"));
        assert!(error("elsewhere", &[]).contains("nothing to replay for"));
    }
}
