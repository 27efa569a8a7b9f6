//! `iotctl token`: the tokens file of a server's HTTP side. A running server sees changes at once.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use iot_ingest::source::secret::write_private;
use iot_serving::http::auth::{Scope, TokensFile};
use rand::RngExt;

use crate::exit::Failure;
use crate::output;

/// Arguments of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it cannot be printed again.
    Create(CreateArgs),
    /// List the tokens' names and scopes.
    List(FileArgs),
    /// Take a token out.
    Revoke(RevokeArgs),
}

/// Arguments of `token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What to call it: who has it.
    pub name: String,
    /// What it allows.
    #[arg(long, value_enum, default_value_t = ScopeArg::Read)]
    pub scope: ScopeArg,
    /// The file.
    #[command(flatten)]
    pub file: FileArgs,
}

/// Arguments of `token revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Its name.
    pub name: String,
    /// The file.
    #[command(flatten)]
    pub file: FileArgs,
}

/// The tokens file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The tokens file.
    #[arg(long, env = "IOTCTL_TOKENS", value_name = "FILE")]
    pub file: PathBuf,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Questions.
    Read,
    /// Also events and what is done about alerts.
    Write,
    /// Everything.
    Admin,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Read => Self::Read,
            ScopeArg::Write => Self::Write,
            ScopeArg::Admin => Self::Admin,
        }
    }
}

/// Runs the command.
pub fn run(args: TokenArgs) -> Result<()> {
    match args.command {
        TokenCommand::Create(args) => create(&args),
        TokenCommand::List(FileArgs { file }) => {
            let tokens = TokensFile::read(&file)?.list()?;
            tokens.iter().try_for_each(|(name, scope)| output::line(format_args!("{name} {}", scope.name())))
        }
        TokenCommand::Revoke(args) => revoke(&args),
    }
}

fn create(CreateArgs { name, scope, file: FileArgs { file } }: &CreateArgs) -> Result<()> {
    let mut tokens = if file.exists() { TokensFile::read(file)? } else { TokensFile::default() };
    let token = format!("iot_{:032x}{:032x}", rand::rng().random::<u128>(), rand::rng().random::<u128>());
    tokens.add(name, (*scope).into(), &token)?;
    write_private(file, &tokens.text())?;
    output::line(token)
}

fn revoke(RevokeArgs { name, file: FileArgs { file } }: &RevokeArgs) -> Result<()> {
    let mut tokens = TokensFile::read(file)?;
    if !tokens.remove(name) {
        let failure = Failure::failed(format!("there is no token `{name}` in {}", file.display()));
        return Err(failure.hint("`iotctl token list` shows which there are").into());
    }
    write_private(file, &tokens.text())?;
    output::line(format_args!("token/{name} revoked"))
}
