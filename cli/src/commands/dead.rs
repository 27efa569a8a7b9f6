//! `iotctl dead`: messages that could not be decoded, read from the table `dead`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::describe::{self, TreeFormat};
use crate::args::{Layer, ServerArgs};
use crate::client::Client;
use crate::exit::Failure;
use crate::output::{self, Format, ListFormat, Rows};

/// Arguments of `dead`.
#[derive(Debug, Args)]
pub struct DeadArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DeadCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List the newest dead letters.
    List(ListArgs),
    /// Show one dead letter.
    Show(ShowArgs),
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// At most so many.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The message's position as NODE:SEQ.
    #[arg(value_parser = position)]
    pub position: (String, u64),
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: DeadArgs) -> Result<()> {
    match args.command {
        DeadCommand::List(args) => list(args).await,
        DeadCommand::Show(args) => show(args).await,
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let sql = format!("SELECT * FROM dead ORDER BY received_at DESC, _seq DESC LIMIT {}", args.limit);
    let rows = Rows::new(rows(&args.server, &sql).await?)
        .first(&["_node", "_seq", "received_at", "stream", "topic", "reason"])
        .hidden(&["payload"]);
    rows.print(args.format)
}

async fn show(args: ShowArgs) -> Result<()> {
    let (node, seq) = args.position;
    let node = node.replace('\'', "''");
    let mut found =
        rows(&args.server, &format!("SELECT * FROM dead WHERE _node = '{node}' AND _seq = {seq}")).await?;
    match found.pop() {
        Some(row) => describe::print(&Value::Object(row), args.format),
        None => Err(Failure::failed(format!("no dead letter at `{node}:{seq}`"))
            .hint("`iotctl dead list` prints node and seq of each")
            .into()),
    }
}

async fn rows(server: &ServerArgs, sql: &str) -> Result<Vec<Map<String, Value>>> {
    let answer = Client::new(server)?.query(sql, Layer::Merged).await?;
    let mut rows: Vec<Map<String, Value>> =
        serde_json::from_slice(&output::encode(Format::Json, &answer.schema, &answer.batches)?)?;
    for payload in rows.iter_mut().filter_map(|row| row.get_mut("payload")) {
        if let Some(text) = payload.as_str().and_then(text_of_hex) {
            *payload = Value::String(text);
        }
    }
    Ok(rows)
}

/// The text whose bytes these hexadecimal digits are; `None` if they are no text, which then stay as they are.
fn text_of_hex(hex: &str) -> Option<String> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Option<Vec<u8>> = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
    let text = String::from_utf8(bytes?).ok()?;
    let is_readable = !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    is_readable.then_some(text)
}

fn position(text: &str) -> Result<(String, u64), String> {
    let parsed = text.rsplit_once(':').and_then(|(node, seq)| Some((node.to_owned(), seq.parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is no position; write NODE:SEQ, as in `n1:17`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_is_text_is_shown_as_text() {
        assert_eq!(text_of_hex("7b2261223a"), Some("{\"a\":".to_owned()));
        assert_eq!(text_of_hex("ff00"), None);
        assert_eq!(text_of_hex("00"), None);
    }

    #[test]
    fn a_position_is_node_and_number() {
        assert_eq!(position("n1:17"), Ok(("n1".to_owned(), 17)));
        assert!(position("n1").is_err() && position("n1:x").is_err());
    }
}
