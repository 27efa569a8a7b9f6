//! `iotctl query`: SQL over views, streams and alerts, asked of a server or straight of the store.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Layer, LocationArgs, ServerArgs, Span};
use crate::client::{Answer, Client};
use crate::exit::Failure;
use crate::line::{self, Location};
use crate::output::{self, Format};

/// Arguments of `query`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: iotctl query \"SELECT * FROM climate_1m ORDER BY window_start DESC LIMIT 10\""
)]
pub struct QueryArgs {
    /// The query; stdin if it is neither here nor in a file.
    #[arg(conflicts_with = "file")]
    pub sql: Option<String>,
    /// A file with the query, `-` for stdin.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How to print the rows; by default as `-o`'s ending says, else as a table.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Where to write the rows instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Which part of the views answers.
    #[arg(long, value_enum, default_value_t)]
    pub layer: Layer,
    /// Ask again and again, so often.
    #[arg(long, value_name = "INTERVAL")]
    pub watch: Option<Span>,
    /// Show where the answer came from: on stderr, or with `--format json` around the rows.
    #[arg(long)]
    pub meta: bool,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Or the data, without a server.
    #[command(flatten)]
    pub location: LocationArgs,
}

/// Runs the command.
pub async fn run(args: QueryArgs) -> Result<()> {
    let sql = sql(args.sql.as_deref(), args.file.as_deref())?;
    let source = Source::new(&args)?;
    let printer = Printer::new(&args)?;
    let Some(Span(interval)) = args.watch else {
        return once(&source, &printer, &sql, args.layer).await;
    };
    loop {
        once(&source, &printer, &sql, args.layer).await?;
        tokio::time::sleep(interval).await;
    }
}

async fn once(source: &Source, printer: &Printer, sql: &str, layer: Layer) -> Result<()> {
    if let (Source::Server(client), true) = (source, printer.wants_document()) {
        return printer.print_document(&client.query_document(sql, layer).await?);
    }
    printer.print(&source.ask(sql, layer).await?)
}

/// Who answers.
enum Source {
    Server(Client),
    Store(Location),
}

impl Source {
    fn new(args: &QueryArgs) -> Result<Self> {
        match args.location.offline(&args.server) {
            Some(location) => Ok(Self::Store(location)),
            None => Ok(Self::Server(Client::new(&args.server)?)),
        }
    }

    async fn ask(&self, sql: &str, layer: Layer) -> Result<Answer> {
        match self {
            Self::Server(client) => client.query(sql, layer).await,
            Self::Store(location) => {
                let (schema, batches, meta) = line::offline_query(location, sql, layer.name()).await?;
                Ok(Answer { schema, batches, meta })
            }
        }
    }
}

/// How and where rows are printed.
struct Printer {
    format: Format,
    file: Option<PathBuf>,
    meta: bool,
    watching: bool,
}

impl Printer {
    fn new(args: &QueryArgs) -> Result<Self> {
        let of_file = args.output.as_deref().and_then(Format::of_file);
        let format = args.format.or(of_file).unwrap_or_default();
        if format.is_binary() && args.output.is_none() && output::stdout_is_terminal() {
            return Err(Failure::usage("this format would garble the terminal")
                .hint("write it to a file with -o FILE")
                .into());
        }
        Ok(Self { format, file: args.output.clone(), meta: args.meta, watching: args.watch.is_some() })
    }

    /// Whether rows and meta go into one JSON document, which is the server's own form of an answer.
    fn wants_document(&self) -> bool {
        self.meta && self.format == Format::Json
    }

    fn print_document(&self, document: &[u8]) -> Result<()> {
        self.write(&[document.trim_ascii_end(), b"\n"].concat())
    }

    fn print(&self, answer: &Answer) -> Result<()> {
        if self.wants_document() {
            return self.print_document(&with_meta(answer)?);
        }
        self.write(&output::encode(self.format, &answer.schema, &answer.batches)?)?;
        if self.meta {
            output::notice(serde_json::to_string_pretty(&answer.meta)?);
        }
        if output::stderr_is_terminal() {
            output::notice(footer(answer.batches.iter().map(RecordBatch::num_rows).sum(), &answer.meta));
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        if self.watching && self.file.is_none() {
            output::clear_screen()?;
        }
        output::to(self.file.as_deref(), bytes)
    }
}

/// How many rows there are, and a line for each view on where they come from.
fn footer(rows: usize, meta: &Value) -> String {
    let mut footer = if rows == 1 { "(1 row)".to_owned() } else { format!("({rows} rows)") };
    for view in meta["views"].as_array().into_iter().flatten() {
        let text = |key: &str| view[key].as_str().unwrap_or("unknown").to_owned();
        let number = |key: &str| view[key].as_u64().unwrap_or_default();
        footer.push_str(&format!(
            "\n{}: batch generation {}, {} rows of speed state, watermark {}, {} late events",
            text("name"),
            number("batch_generation"),
            number("speed_rows"),
            text("watermark"),
            number("late_events"),
        ));
    }
    footer
}

/// The form in which the server answers in JSON: columns, rows and meta in one object.
fn with_meta(answer: &Answer) -> Result<Vec<u8>> {
    let rows: Value =
        serde_json::from_slice(&output::encode(Format::Json, &answer.schema, &answer.batches)?)?;
    let whole = json!({"columns": columns(&answer.schema), "rows": rows, "meta": answer.meta});
    Ok(serde_json::to_vec(&whole)?)
}

fn columns(schema: &SchemaRef) -> Vec<Value> {
    let column = |field: &arrow::datatypes::FieldRef| json!({"name": field.name(), "type": field.data_type().to_string()});
    schema.fields().iter().map(column).collect()
}

/// The query from the argument, the file or stdin, in this order.
fn sql(argument: Option<&str>, file: Option<&Path>) -> Result<String> {
    let sql = match (argument, file) {
        (Some(sql), _) => sql.to_owned(),
        (None, Some(path)) if path != Path::new("-") => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?
        }
        (None, None) if std::io::stdin().is_terminal() => return Err(no_sql("there is no SQL to run").into()),
        (None, _) => {
            let mut sql = String::new();
            std::io::stdin().read_to_string(&mut sql).context("cannot read the query from stdin")?;
            sql
        }
    };
    let trimmed = sql.trim().trim_end_matches(';').trim_end();
    if trimmed.is_empty() {
        return Err(no_sql("the SQL is empty").into());
    }
    Ok(trimmed.to_owned())
}

fn no_sql(message: &str) -> Failure {
    Failure::usage(message)
        .hint("iotctl query \"SELECT * FROM events LIMIT 10\", or -f FILE, or SQL on stdin")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::exit::Code;

    #[test]
    fn sql_comes_from_argument_or_file_without_its_semicolon() {
        assert_eq!(sql(Some(" SELECT 1 ;\n"), None).expect("SQL"), "SELECT 1");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "SELECT ';' AS x;").expect("written");
        assert_eq!(sql(None, Some(file.path())).expect("SQL"), "SELECT ';' AS x");
        let error = sql(Some(" ; "), None).expect_err("nothing to run");
        assert_eq!(error.downcast_ref::<Failure>().expect("a failure").code, Code::Usage);
    }

    #[test]
    fn the_footer_says_where_rows_come_from() {
        assert_eq!(footer(1, &Value::Null), "(1 row)");
        let view = json!({"name": "climate_1m", "batch_generation": 7, "speed_rows": 12,
                          "watermark": "2026-11-24T12:00:00Z", "late_events": 3});
        assert_eq!(
            footer(0, &json!({"views": [view]})),
            "(0 rows)\nclimate_1m: batch generation 7, 12 rows of speed state, watermark 2026-11-24T12:00:00Z, 3 late events"
        );
    }

    #[test]
    fn json_with_meta_is_what_the_server_would_say() {
        let batch = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as ArrayRef)])
            .expect("a batch");
        let answer = Answer { schema: batch.schema(), batches: vec![batch], meta: json!({"generation": 3}) };
        let whole: Value = serde_json::from_slice(&with_meta(&answer).expect("it encodes")).expect("JSON");
        assert_eq!(whole["columns"], json!([{"name": "n", "type": "Int64"}]));
        assert_eq!((&whole["rows"], &whole["meta"]), (&json!([{"n": 1}]), &json!({"generation": 3})));
    }
}
