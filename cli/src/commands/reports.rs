//! The reports of batch runs and proofs as rows to print.

use anyhow::Result;
use iot_schemas::batch::BatchReport;
use iot_schemas::control::VerifyReport;
use iot_schemas::position::Frontier;
use iot_schemas::replay::ReplayReport;
use serde_json::{Map, Value, json};

use crate::exit::Failure;
use crate::output::{self, ListFormat, Rows};

/// Prints what batch runs did.
pub(super) fn print_batch(reports: &[BatchReport], format: ListFormat) -> Result<()> {
    let rows =
        reports.iter().map(|report| with_frontiers(report, &[("from", &report.from), ("to", &report.to)]));
    let rows = Rows::new(rows.collect::<Result<_>>()?).first(&[
        "view",
        "generation",
        "full",
        "events",
        "state_rows",
        "elapsed_ms",
        "from",
        "to",
    ]);
    rows.print(format)
}

/// Prints what a proof found; differences are a failure.
pub(super) fn print_verify(reports: &[VerifyReport], format: ListFormat) -> Result<()> {
    let rows = reports.iter().map(|report| with_frontiers(report, &[("frontier", &report.frontier)]));
    let rows = Rows::new(rows.collect::<Result<_>>()?)
        .first(&["view", "rows", "events", "differences", "frontier"])
        .hidden(&["examples"]);
    rows.print(format)?;
    if format == ListFormat::Table {
        for report in reports {
            for example in &report.examples {
                output::line(format_args!("{}: {example}", report.view))?;
            }
        }
    }
    let wrong: Vec<&str> = reports.iter().filter(|r| r.differences > 0).map(|r| r.view.as_str()).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("the recomputation differs for `{}`", wrong.join("`, `")))
        .hint("`iotctl batch run --full --view NAME` computes a view anew from raw events")
        .into())
}

/// Prints what a replay of history found.
pub(super) fn print_replay(report: &ReplayReport, dry_run: bool, format: ListFormat) -> Result<()> {
    let row = |rule| with_frontiers(rule, &[]);
    let rows = Rows::new(report.rules.iter().map(row).collect::<Result<_>>()?)
        .first(&["rule", "on", "alerts", "recorded", "active", "known", "open"])
        .hidden(&["examples"]);
    rows.print(format)?;
    if format != ListFormat::Table {
        return Ok(());
    }
    for rule in &report.rules {
        for step in &rule.examples {
            let label = |(name, value): (&String, &String)| format!("{name}={value}");
            let labels: Vec<String> = step.labels.iter().map(label).collect();
            let state = serde_json::to_value(step.state)?;
            let state = state.as_str().unwrap_or_default();
            output::line(format_args!("{} {state:<8} {} {}", step.at, rule.rule, labels.join(" ")))?;
        }
    }
    let messages = report.messages;
    let (events, seconds) = (report.events, report.elapsed_ms as f64 / 1e3);
    output::notice(format_args!("replayed {events} events in {messages} messages in {seconds:.1} s"));
    if dry_run {
        output::notice(format_args!("nothing was recorded: this was a dry run"));
    }
    let open: u64 = report.rules.iter().map(|rule| rule.open).sum();
    if open > 0 {
        output::notice(format_args!(
            "{open} alerts had not ended by the end of the range and are left out; without --to they are recorded too"
        ));
    }
    Ok(())
}

/// A report as an object, with its frontiers in their short form.
fn with_frontiers<T: serde::Serialize>(
    report: &T,
    frontiers: &[(&str, &Frontier)],
) -> Result<Map<String, Value>> {
    let mut row = match serde_json::to_value(report)? {
        Value::Object(row) => row,
        other => Map::from_iter([("report".to_owned(), other)]),
    };
    for (name, frontier) in frontiers {
        row.insert((*name).to_owned(), json!(frontier.to_string()));
    }
    Ok(row)
}
