//! `iotctl user`: the users file of the embedded broker. A running server sees changes at the next login.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use iot_ingest::source::access::users::UsersFile;

use crate::exit::Failure;
use crate::output;

/// Arguments of `user`.
#[derive(Debug, Args)]
pub struct UserArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: UserCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Give a user a password, which is asked for, or read from stdin if that is no terminal.
    Add(NamedArgs),
    /// Take a user out.
    Remove(NamedArgs),
    /// List the users.
    List(FileArgs),
}

/// A user in a file.
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// The user's name.
    pub name: String,
    /// The file.
    #[command(flatten)]
    pub file: FileArgs,
}

/// The users file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The users file.
    #[arg(long, env = "IOTCTL_USERS", value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs the command.
pub fn run(args: UserArgs) -> Result<()> {
    match args.command {
        UserCommand::Add(args) => add(&args),
        UserCommand::Remove(args) => remove(&args),
        UserCommand::List(args) => UsersFile::read(&args.file)?.names()?.iter().try_for_each(output::line),
    }
}

fn add(NamedArgs { name, file: FileArgs { file } }: &NamedArgs) -> Result<()> {
    let mut users = UsersFile::read_or_new(file)?;
    let is_new = users.put(name, &password()?)?;
    users.write(file)?;
    output::line(format_args!("user/{name} {}", if is_new { "created" } else { "changed" }))
}

fn remove(NamedArgs { name, file: FileArgs { file } }: &NamedArgs) -> Result<()> {
    let mut users = UsersFile::read(file)?;
    if !users.remove(name) {
        let failure = Failure::failed(format!("there is no user `{name}` in {}", file.display()));
        return Err(failure.hint("`iotctl user list` shows who is there").into());
    }
    users.write(file)?;
    output::line(format_args!("user/{name} deleted"))
}

fn password() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("reading the password from stdin")?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let ask = |prompt| rpassword::prompt_password(prompt).context("reading the password");
    let password = ask("Password: ")?;
    if password != ask("Again: ")? {
        return Err(Failure::failed("the two passwords differ; nothing was changed").into());
    }
    Ok(password)
}
