//! `iotctl tap`: watch a stage of the line as things pass through it.

use std::collections::HashMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::args::{Layer, ServerArgs, Span};
use crate::client::Client;
use crate::output::{self, Format};

/// How often the ledger of late events is looked at.
const LATE_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Arguments of `tap`.
#[derive(Debug, Args)]
pub struct TapArgs {
    /// The stage.
    #[command(subcommand)]
    pub stage: Stage,
}

/// The stages.
#[derive(Debug, Subcommand)]
pub enum Stage {
    /// Print the rows of a view as they change, as their windows close, and as they are corrected: one JSON object a line.
    View(ViewArgs),
    /// Print what the ledger of late events gains: one JSON object a line.
    Late(LateArgs),
}

/// How long to watch.
#[derive(Debug, Clone, Copy, Args)]
pub struct UntilArgs {
    /// Stop after so many lines.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Stop after this time.
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Span>,
}

/// Arguments of `tap view`.
#[derive(Debug, Args)]
pub struct ViewArgs {
    /// The view.
    pub name: String,
    /// Only rows of this device.
    #[arg(long, value_name = "DEVICE")]
    pub device_id: Option<String>,
    /// Only closed rows and their corrections.
    #[arg(long)]
    pub closed: bool,
    /// How long.
    #[command(flatten)]
    pub until: UntilArgs,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `tap late`.
#[derive(Debug, Args)]
pub struct LateArgs {
    /// Only this stream.
    #[arg(long)]
    pub stream: Option<String>,
    /// How long.
    #[command(flatten)]
    pub until: UntilArgs,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: TapArgs) -> Result<()> {
    match args.stage {
        Stage::View(args) => within(args.until.duration, view(args)).await,
        Stage::Late(args) => within(args.until.duration, late(args)).await,
    }
}

/// The end of the time is the wanted end, not a failure.
async fn within(duration: Option<Span>, work: impl Future<Output = Result<()>>) -> Result<()> {
    match duration {
        Some(Span(duration)) => tokio::time::timeout(duration, work).await.unwrap_or(Ok(())),
        None => work.await,
    }
}

async fn view(args: ViewArgs) -> Result<()> {
    let device = args.device_id.map(|device| ("device_id".to_owned(), device));
    let closed = args.closed.then(|| ("closed".to_owned(), "true".to_owned()));
    let parameters = device.into_iter().chain(closed).collect();
    let mut stream = Client::new(&args.server)?.follow_view(&args.name, parameters);
    let mut left = args.until.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let event = stream.next().await?;
        match event.event.as_str() {
            "row" => {
                output::line(&event.data)?;
                left -= 1;
            }
            "missed" => output::notice(format_args!("rows were left out, this is too slow: {}", event.data)),
            _ => {}
        }
    }
    Ok(())
}

async fn late(args: LateArgs) -> Result<()> {
    let client = Client::new(&args.server)?;
    let condition = args
        .stream
        .as_ref()
        .map_or_else(String::new, |stream| format!(" AND stream = '{}'", stream.replace('\'', "''")));
    let sql = format!("SELECT * FROM late WHERE scope <> 'stream'{condition} ORDER BY newest_arrival, scope");
    let mut left = args.until.limit.unwrap_or(u64::MAX);
    let mut ledger = Ledger::default();
    let mut ticks = tokio::time::interval(LATE_EVERY);
    while left > 0 {
        ticks.tick().await;
        let answer = client.query(&sql, Layer::Merged).await?;
        let rows = serde_json::from_slice(&output::encode(Format::Json, &answer.schema, &answer.batches)?)?;
        for row in ledger.news(rows) {
            if left > 0 {
                output::line(Value::Object(row))?;
                left -= 1;
            }
        }
    }
    Ok(())
}

/// What the ledger said at the last look: the events of each row.
#[derive(Debug, Default)]
struct Ledger {
    known: Option<HashMap<String, i64>>,
}

impl Ledger {
    /// The rows that have grown since the last look, with how many events they have `gained`. The first look is
    /// what others are compared with.
    fn news(&mut self, rows: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
        let now: Vec<(String, i64, Map<String, Value>)> = rows
            .into_iter()
            .map(|row| (identity(&row), row.get("events").and_then(Value::as_i64).unwrap_or(0), row))
            .collect();
        let events = now.iter().map(|(identity, events, _)| (identity.clone(), *events)).collect();
        let Some(known) = self.known.replace(events) else { return Vec::new() };
        let gained = |(identity, events, mut row): (String, i64, Map<String, Value>)| {
            let gained = events - known.get(&identity).copied().unwrap_or(0);
            row.insert("gained".to_owned(), gained.into());
            (gained > 0).then_some(row)
        };
        now.into_iter().filter_map(gained).collect()
    }
}

/// What a row is about, as text.
fn identity(row: &Map<String, Value>) -> String {
    let columns = ["scope", "kind", "stream", "device_id", "view", "window_start"];
    columns.map(|column| row.get(column).unwrap_or(&Value::Null).to_string()).join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(device: &str, events: i64) -> Map<String, Value> {
        let row = json!({ "scope": "device", "kind": "late", "device_id": device, "events": events });
        row.as_object().expect("an object").clone()
    }

    #[test]
    fn only_what_grew_since_the_last_look_is_news() {
        let mut ledger = Ledger::default();
        assert!(ledger.news(vec![row("a", 3)]).is_empty());
        let news = ledger.news(vec![row("a", 3), row("b", 2)]);
        assert_eq!((news.len(), &news[0]["device_id"], &news[0]["gained"]), (1, &json!("b"), &json!(2)));
        let news = ledger.news(vec![row("a", 7), row("b", 2)]);
        assert_eq!((news.len(), &news[0]["device_id"], &news[0]["gained"]), (1, &json!("a"), &json!(4)));
    }
}
