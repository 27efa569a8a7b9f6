//! `iotctl dead`: messages that could not be decoded, and what is done about them.

use std::fmt::Write as _;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use iot_schemas::dead::{DeadAction, DeadId, DeadReport, DeadRequest, DeadSelection};
use iot_serving::dead::{letter_sql, list_sql};
use serde_json::{Map, Value};

use super::describe::{self, TreeFormat};
use crate::args::{Layer, ServerArgs};
use crate::client::Client;
use crate::exit::Failure;
use crate::output::{self, Format, ListFormat, Rows};

/// Bytes in a line of a hex dump.
const DUMP_WIDTH: usize = 16;

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
    /// Show one dead letter with its bytes.
    Show(ShowArgs),
    /// Send the messages through ingest again, each once, after a definition was mended.
    Replay(ReplayArgs),
    /// Mark dead letters as not wanted.
    Drop(DropArgs),
}

/// The states of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Nothing was done about it.
    Open,
    /// Its message went through ingest again.
    Replayed,
    /// It is not wanted.
    Dropped,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those in this state.
    #[arg(long, value_enum)]
    pub status: Option<Status>,
    /// Only those of this stream.
    #[arg(long, value_name = "NAME")]
    pub stream: Option<String>,
    /// Only those whose reason contains this text.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: usize,
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
    /// Which: NODE:SEQ, or NODE:SEQ/STREAM where several streams could not take the message.
    pub id: DeadId,
    /// Write the payload to stdout as it came, and nothing else.
    #[arg(long, conflicts_with = "format")]
    pub raw: bool,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `dead replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// These: NODE:SEQ or NODE:SEQ/STREAM.
    pub ids: Vec<DeadId>,
    /// Those whose reason contains this text.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Which else.
    #[command(flatten)]
    pub which: WhichArgs,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub note: String,
}

/// Arguments of `dead drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// These: NODE:SEQ or NODE:SEQ/STREAM.
    pub ids: Vec<DeadId>,
    /// Why they are not wanted, for the record.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Which else.
    #[command(flatten)]
    pub which: WhichArgs,
}

/// Which dead letters, beside those that are named.
#[derive(Debug, Args)]
pub struct WhichArgs {
    /// Those of this stream.
    #[arg(long, value_name = "NAME")]
    pub stream: Option<String>,
    /// Those for which this SQL condition over the table `dead` holds.
    #[arg(long = "where", value_name = "SQL")]
    pub condition: Option<String>,
    /// All that are open.
    #[arg(long)]
    pub all: bool,
    /// Who does it, for the record.
    #[arg(long, env = "USER", value_name = "NAME", default_value = "")]
    pub by: String,
    /// How to print what was done.
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
        DeadCommand::Replay(ReplayArgs { ids, reason, which, note }) => {
            resolve(DeadAction::Replay, ids, reason, which, note).await
        }
        DeadCommand::Drop(DropArgs { ids, reason, which }) => {
            resolve(DeadAction::Drop, ids, None, which, reason).await
        }
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let selection = DeadSelection { stream: args.stream, reason: args.reason, ..DeadSelection::default() };
    let sql = list_sql(&selection, args.status.map(Status::name), args.limit);
    let rows = Rows::new(rows(&args.server, &sql).await?).first(&[
        "_node",
        "_seq",
        "received_at",
        "stream",
        "topic",
        "status",
        "reason",
    ]);
    rows.print(args.format)
}

async fn show(args: ShowArgs) -> Result<()> {
    let id = &args.id;
    let mut found = rows(&args.server, &letter_sql(id)).await?;
    let row = match (found.pop(), found.is_empty()) {
        (Some(row), true) => row,
        (Some(_), false) => {
            return Err(Failure::failed(format!("several streams could not take the message at `{id}`"))
                .hint(format!("name one of them, as in {id}/readings; `iotctl dead list` shows which"))
                .into());
        }
        (None, _) => {
            return Err(Failure::failed(format!("no dead letter at `{id}`"))
                .hint("`iotctl dead list` prints node and seq of each")
                .into());
        }
    };
    print_letter(row, args.raw, args.format)
}

fn print_letter(mut row: Map<String, Value>, raw: bool, format: TreeFormat) -> Result<()> {
    let bytes = row.get("payload").and_then(Value::as_str).and_then(bytes_of_hex).unwrap_or_default();
    if raw {
        return output::bytes(&bytes);
    }
    let text = readable(&bytes);
    if format == TreeFormat::Json {
        if let Some(text) = text {
            row.insert("payload_text".to_owned(), text.into());
        }
        return describe::print(&Value::Object(row), format);
    }
    row.remove("payload");
    describe::print(&Value::Object(row), format)?;
    let payload = text.map_or_else(|| hex_dump(&bytes), str::to_owned);
    output::line(format_args!("payload ({} bytes):\n{}", bytes.len(), payload.trim_end_matches('\n')))
}

async fn resolve(
    action: DeadAction,
    ids: Vec<DeadId>,
    reason: Option<String>,
    which: WhichArgs,
    note: String,
) -> Result<()> {
    let WhichArgs { stream, condition, all, by, format, server } = which;
    let selection = DeadSelection { ids, stream, reason, condition, all };
    if selection.is_empty() {
        let failure = Failure::usage("no dead letters are named");
        return Err(failure
            .hint("name them by id, --stream, --where (replay: --reason), or say --all")
            .into());
    }
    let report = Client::new(&server)?.resolve_dead(&DeadRequest { action, selection, by, note }).await?;
    if format == TreeFormat::Json {
        return describe::print(&serde_json::to_value(&report)?, format);
    }
    output::line(summary(action, &report))
}

fn summary(action: DeadAction, report: &DeadReport) -> String {
    let DeadReport { done, dead_again, skipped, reasons } = report;
    let mut text = match action {
        DeadAction::Replay => format!("replayed {done}, of which {dead_again} are dead letters again"),
        DeadAction::Drop => format!("dropped {done}"),
    };
    if *skipped > 0 {
        _ = write!(text, "; left {skipped} as they are");
    }
    reasons.iter().for_each(|reason| _ = write!(text, "\n  {reason}"));
    text
}

async fn rows(server: &ServerArgs, sql: &str) -> Result<Vec<Map<String, Value>>> {
    let answer = Client::new(server)?.query(sql, Layer::Merged).await?;
    Ok(serde_json::from_slice(&output::encode(Format::Json, &answer.schema, &answer.batches)?)?)
}

fn bytes_of_hex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// The bytes as text, if a terminal can show it.
fn readable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_readable = !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    is_readable.then_some(text)
}

/// Offset, bytes and characters, as `hexdump -C` prints them.
fn hex_dump(bytes: &[u8]) -> String {
    let mut dump = String::new();
    for (line, chunk) in bytes.chunks(DUMP_WIDTH).enumerate() {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown =
            |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let text: String = chunk.iter().map(shown).collect();
        _ = writeln!(dump, "{:08x}  {:47}  |{text}|", line * DUMP_WIDTH, hex.join(" "));
    }
    dump
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_is_text_is_shown_as_text() {
        let readable_hex = |hex| bytes_of_hex(hex).and_then(|bytes| readable(&bytes).map(str::to_owned));
        assert_eq!(readable_hex("7b2261223a"), Some("{\"a\":".to_owned()));
        assert_eq!(readable_hex("ff00"), None);
        assert_eq!(readable_hex("00"), None);
    }

    #[test]
    fn other_bytes_are_dumped() {
        let dump = hex_dump(b"\x00\x01ab cd efghijklmn");
        assert_eq!(
            dump,
            "00000000  00 01 61 62 20 63 64 20 65 66 67 68 69 6a 6b 6c  |..ab cd efghijkl|\n\
             00000010  6d 6e                                            |mn|\n"
        );
    }
}
