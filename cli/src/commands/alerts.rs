//! `iotctl alerts`: the alert log.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use iot_schemas::alert::{AlertState, Transition, micros_rfc3339};

use super::describe::{self, TreeFormat};
use crate::args::{ServerArgs, Span};
use crate::client::{self, AlertFilter, Client};
use crate::output::{self, ListFormat, Rows};

/// Arguments of `alerts`.
#[derive(Debug, Args)]
pub struct AlertsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AlertsCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// List the alerts as they are now.
    List(ListArgs),
    /// Show one alert with its history.
    Show(ShowArgs),
    /// Print alerts as they happen.
    Watch(WatchArgs),
}

/// Arguments of `alerts list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only alerts in this state: pending, firing, resolved or inactive.
    #[arg(long)]
    pub state: Option<String>,
    /// Only alerts of this rule.
    #[arg(long)]
    pub rule: Option<String>,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `alerts show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The alert's id, as `alerts list` prints it.
    pub id: String,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `alerts watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only alerts of this rule.
    #[arg(long)]
    pub rule: Option<String>,
    /// Only alerts of this severity.
    #[arg(long)]
    pub severity: Option<String>,
    /// Only alerts of this device.
    #[arg(long, value_name = "DEVICE")]
    pub device_id: Option<String>,
    /// Only alerts with this label, as NAME=VALUE; may be given more than once.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Begin with what happens next instead of with all present alerts.
    #[arg(long)]
    pub no_snapshot: bool,
    /// Stop after so many transitions.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Stop after this time.
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Span>,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: WatchFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// How a transition is printed while it happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum WatchFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    #[value(alias = "json")]
    Jsonl,
}

/// Runs the command.
pub async fn run(args: AlertsArgs) -> Result<()> {
    match args.command {
        AlertsCommand::List(args) => list(args).await,
        AlertsCommand::Show(args) => show(args).await,
        AlertsCommand::Watch(args) => match args.duration {
            // The end of the time is the wanted end, not a failure.
            Some(Span(duration)) => tokio::time::timeout(duration, watch(args)).await.unwrap_or(Ok(())),
            None => watch(args).await,
        },
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let limit = Some(args.limit.to_string());
    let parameters = [("state", args.state), ("rule", args.rule), ("limit", limit)];
    let parameters: Vec<_> =
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let rows = Client::new(&args.server)?.alerts(&parameters).await?;
    let rows = Rows::new(rows)
        .first(&["alert_id", "state", "severity", "rule", "labels", "started_at", "at", "annotations"])
        .hidden(&["id", "node", "seq", "ordinal", "previous", "values", "recorded_at"]);
    rows.print(args.format)
}

async fn show(args: ShowArgs) -> Result<()> {
    describe::print(&Client::new(&args.server)?.alert(&args.id).await?, args.format)
}

async fn watch(args: WatchArgs) -> Result<()> {
    let mut stream = Client::new(&args.server)?.follow_alerts(filter(&args));
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let event = stream.next().await?;
        match event.event.as_str() {
            "alert" => {}
            "missed" => {
                output::notice(format_args!(
                    "transitions were missed, the log has them no more: {}",
                    event.data
                ));
                continue;
            }
            _ => continue,
        }
        match args.format {
            WatchFormat::Text => output::line(text(&client::transition(&event.data)?))?,
            WatchFormat::Jsonl => output::line(&event.data)?,
        }
        left -= 1;
    }
    Ok(())
}

fn filter(args: &WatchArgs) -> AlertFilter {
    let named = [("rule", &args.rule), ("severity", &args.severity), ("device_id", &args.device_id)];
    let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    let labels = args.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()));
    AlertFilter { parameters: named.chain(labels).collect(), snapshot: !args.no_snapshot }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label; write NAME=VALUE")),
    }
}

/// A transition as one line: time, state, severity, rule, labels, and what the rule's author wanted to be said.
pub fn text(transition: &Transition) -> String {
    let labels: Vec<String> =
        transition.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut line = format!(
        "{}  {:<8}  {:<8}  {}  {}",
        micros_rfc3339::to_text(transition.at),
        state(transition.state),
        transition.severity.to_string(),
        transition.rule,
        labels.join(" ")
    );
    if let Some(summary) = transition.annotations.get("summary") {
        line.push_str(&format!("  {summary}"));
    }
    line
}

fn state(state: AlertState) -> &'static str {
    match state {
        AlertState::Pending => "pending",
        AlertState::Firing => "FIRING",
        AlertState::Resolved => "resolved",
        AlertState::Inactive => "inactive",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSITION: &str = r#"{"id": 3, "alert_id": "a1", "rule": "overheating", "state": "firing", "previous": "pending",
        "severity": "critical", "labels": {"device_id": "press-01", "team": "plant"},
        "annotations": {"summary": "press-01 at 91.5 C"}, "values": {}, "started_at": "2026-11-24T04:00:00Z",
        "at": "2026-11-24T04:00:02.500Z", "recorded_at": "2026-11-24T04:00:03Z", "node": "n1", "seq": 9, "ordinal": 0}"#;

    #[test]
    fn a_transition_is_one_line() {
        let transition = client::transition(TRANSITION).expect("a transition");
        assert_eq!(
            text(&transition),
            "2026-11-24T04:00:02.500Z  FIRING    critical  overheating  device_id=press-01 team=plant  press-01 at 91.5 C"
        );
    }

    #[test]
    fn a_label_needs_a_name() {
        assert_eq!(label("team=plant"), Ok(("team".into(), "plant".into())));
        assert!(label("=x").is_err() && label("team").is_err());
    }
}
