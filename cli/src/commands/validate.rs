//! `iotctl validate`: checks catalog files without a server.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::documents::{self, File};
use crate::exit::Failure;
use crate::output;

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Files, directories of `.yaml` files, or `-` for stdin.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: ValidateArgs) -> Result<()> {
    let files = documents::read(&args.files)?;
    no_name_twice(&files)?;
    for file in &files {
        let names: Vec<String> = file
            .documents
            .iter()
            .map(|document| format!("{}/{}", document.def.kind(), document.def.name()))
            .collect();
        output::line(format_args!("{}: ok ({})", file.name, names.join(", ")))?;
    }
    Ok(())
}

fn no_name_twice(files: &[File]) -> Result<()> {
    let mut seen = HashMap::new();
    for file in files {
        for document in &file.documents {
            let (kind, name) = (document.def.kind(), document.def.name());
            if let Some(other) = seen.insert((kind, name), &file.name) {
                let message = format!("{kind} `{name}` is defined in `{other}` and again in `{}`", file.name);
                return Err(Failure::bad_configuration(message).into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;

    fn check(text: &str) -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, text).expect("written");
        run(ValidateArgs { files: vec![file] })
    }

    #[test]
    fn a_name_given_twice_is_bad_configuration() {
        let stream = "kind: stream\nname: a\ntopics: [x]\n";
        assert!(check(stream).is_ok());
        let error = check(&format!("{stream}---\n{stream}")).expect_err("twice");
        assert_eq!(error.downcast_ref::<Failure>().expect("a failure").code, Code::BadConfiguration);
    }
}
