//! `iotctl schema`: the versions of streams' schemas, and what a definition would change about them.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::describe::{self, TreeFormat};
use super::documents;
use crate::args::ServerArgs;
use crate::client::Client;
use crate::exit::Failure;
use crate::output::{self, ListFormat, Rows};

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SchemaCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum SchemaCommand {
    /// List the newest version of each stream's schema, or all versions of one.
    List(ListArgs),
    /// Show the columns of a version, and what it changed.
    #[command(disable_version_flag = true)]
    Show(ShowArgs),
    /// Say what definitions would change, and whether that is compatible; exits with 1 if it is not.
    Check(CheckArgs),
}

/// Arguments of `schema list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// All versions of this stream's, newest first.
    pub stream: Option<String>,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `schema show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The stream.
    pub stream: String,
    /// The version [default: the newest].
    #[arg(long = "version", value_name = "N")]
    pub number: Option<u32>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `schema check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Files, directories of `.yaml` files, or `-` for stdin.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// How to print the changes.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: SchemaArgs) -> Result<()> {
    match args.command {
        SchemaCommand::List(args) => list(args).await,
        SchemaCommand::Show(args) => show(args).await,
        SchemaCommand::Check(args) => check(args).await,
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let rows = Client::new(&args.server)?.schemas(args.stream.as_deref()).await?;
    let first = &["stream", "version", "since", "position", "why", "columns", "changes"];
    Rows::new(rows).first(first).print(args.format)
}

async fn show(args: ShowArgs) -> Result<()> {
    let mut version = Client::new(&args.server)?.schema(&args.stream, args.number).await?;
    if args.format == TreeFormat::Json {
        return describe::print(&version, args.format);
    }
    let mut part = |name: &str| -> Result<Vec<Map<String, Value>>> {
        let part = version.as_object_mut().and_then(|version| version.remove(name));
        Ok(serde_json::from_value(part.unwrap_or_default())?)
    };
    let (changes, columns) = (part("changes")?, part("columns")?);
    describe::print(&version, args.format)?;
    output::line("")?;
    let first = &["name", "type", "source", "unit", "aliases", "deprecated", "renamed_from"];
    Rows::new(columns).first(first).print(ListFormat::Table)?;
    output::line("")?;
    Rows::new(changes).first(&["change", "column", "detail"]).print(ListFormat::Table)
}

async fn check(args: CheckArgs) -> Result<()> {
    let files = documents::read(&args.files)?;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let client = Client::new(&args.server)?;
    let findings = client.check_schemas(documents::join(&files), &names.join(", ")).await?;
    if findings.is_empty() && args.format == ListFormat::Table {
        return output::line("no schema would change");
    }
    let first = &["stream", "column", "change", "detail", "compatible", "reason", "instead"];
    let mut rows: Vec<Map<String, Value>> = serde_json::from_value(serde_json::to_value(&findings)?)?;
    if args.format == ListFormat::Table {
        let word = |row: &Map<String, Value>| if row["compatible"] == true { "yes" } else { "no" };
        rows.iter_mut().for_each(|row| _ = row.insert("compatible".into(), word(row).into()));
    }
    Rows::new(rows).first(first).print(args.format)?;
    match findings.iter().filter(|finding| !finding.compatible).count() {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} changes are incompatible", findings.len()))
            .hint("`apply` refuses them; the list says what to do instead")
            .into()),
    }
}
