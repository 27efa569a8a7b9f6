//! One file per command: its arguments and what it does.

pub mod alerts;
pub mod apply;
pub mod batch;
pub mod completions;
pub mod dead;
pub mod delete;
pub mod demo;
pub mod describe;
pub mod diff;
pub mod get;
pub mod late;
pub mod publish;
pub mod query;
pub mod replay;
pub mod schema;
pub mod serve;
pub mod simulate;
pub mod status;
pub mod tap;
pub mod token;
pub mod user;
pub mod validate;
pub mod verify;

mod documents;
mod reports;

use anyhow::Result;

use crate::args::Command;

impl Command {
    /// Runs the command to its end.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Demo(args) => demo::run(args).await,
            Self::Serve(args) => serve::run(*args).await,
            Self::Apply(args) => apply::run(args).await,
            Self::Diff(args) => diff::run(args).await,
            Self::Get(args) => get::run(args).await,
            Self::Describe(args) => describe::run(args).await,
            Self::Delete(args) => delete::run(args).await,
            Self::Query(args) => query::run(args).await,
            Self::Batch(args) => batch::run(args).await,
            Self::Verify(args) => verify::run(args).await,
            Self::Alerts(args) => alerts::run(args).await,
            Self::Schema(args) => schema::run(args).await,
            Self::Dead(args) => dead::run(args).await,
            Self::Late(args) => late::run(args).await,
            Self::Tap(args) => tap::run(args).await,
            Self::Publish(args) => publish::run(args).await,
            Self::Simulate(args) => simulate::run(args).await,
            Self::Replay(args) => replay::run(*args).await,
            Self::Status(args) => status::run(args).await,
            Self::Token(args) => token::run(args),
            Self::User(args) => user::run(args),
            Self::Validate(args) => validate::run(args),
            Self::Completions(args) => completions::run(args),
        }
    }
}
