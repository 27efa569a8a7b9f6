//! `iotctl late`: the ledger of late and future events, read from the table `late`.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::args::{Layer, ServerArgs};
use crate::client::Client;
use crate::output::{self, Format, ListFormat, Rows};

/// Arguments of `late`.
#[derive(Debug, Args)]
pub struct LateArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: LateCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum LateCommand {
    /// List how many events came late, by stream, device and closed window.
    List(ListArgs),
}

/// Arguments of `late list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this stream.
    #[arg(long)]
    pub stream: Option<String>,
    /// Only this device.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// At most so many, those with the newest arrivals.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: LateArgs) -> Result<()> {
    match args.command {
        LateCommand::List(args) => list(args).await,
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let answer = Client::new(&args.server)?.query(&sql(&args), Layer::Merged).await?;
    let rows = serde_json::from_slice(&output::encode(Format::Json, &answer.schema, &answer.batches)?)?;
    let columns = &["scope", "kind", "stream", "device_id", "view", "window_start", "window_end", "events"];
    Rows::new(rows).first(columns).print(args.format)
}

fn sql(args: &ListArgs) -> String {
    let wanted = [("stream", &args.stream), ("device_id", &args.device)];
    let conditions = wanted
        .into_iter()
        .filter_map(|(column, value)| Some(format!("{column} = '{}'", value.as_ref()?.replace('\'', "''"))));
    let conditions: Vec<String> = std::iter::once("true".to_owned()).chain(conditions).collect();
    format!(
        "SELECT * FROM late WHERE {} ORDER BY newest_arrival DESC, scope, device_id, window_start DESC LIMIT {}",
        conditions.join(" AND "),
        args.limit
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_cannot_break_out_of_its_quotes() {
        let args = ListArgs {
            stream: Some("s' OR 'a'='a".into()),
            device: None,
            limit: 5,
            format: ListFormat::default(),
            server: ServerArgs::default(),
        };
        assert!(sql(&args).contains("stream = 's'' OR ''a''=''a' ORDER BY"), "{}", sql(&args));
    }
}
