//! Catalog documents from files, directories and stdin.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use iot_schemas::catalog::{self, Document};
use iot_schemas::control::Control;

use crate::exit::Failure;
use crate::line::Line;

/// One file's documents.
#[derive(Debug)]
pub(super) struct File {
    /// How it is called in messages.
    pub(super) name: String,
    /// Its text.
    pub(super) text: String,
    /// What it defines.
    pub(super) documents: Vec<Document>,
}

/// Reads and parses files, all files of directories that end in `.yaml` or `.yml`, and stdin where `-` stands.
///
/// Fails with the code for bad configuration if anything does not parse; all that is wrong is named at once.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<File>> {
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for (name, text) in texts(paths)? {
        match catalog::parse(&text, &name) {
            Ok(documents) => files.push(File { name, text, documents }),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() {
        return Ok(files);
    }
    Err(Failure::bad_configuration(problems.join("\n       ")).into())
}

/// The files' texts as one, so that the server can apply all or none.
pub(super) fn join(files: &[File]) -> String {
    let texts: Vec<&str> = files.iter().map(|file| file.text.trim_end()).collect();
    texts.join("\n---\n") + "\n"
}

/// Puts the documents of a file or directory in force on a line of this process.
pub(super) async fn apply_locally(line: &Line, path: &Path) -> Result<()> {
    let files = read(&[path.to_owned()])?;
    let applied = line.apply(&join(&files), &path.display().to_string()).await;
    applied.map_err(|error| Failure::bad_configuration(error.to_string()))?;
    Ok(())
}

fn texts(paths: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
            texts.push(("stdin".to_owned(), text));
            continue;
        }
        for file in expand(path)? {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Failure::bad_configuration(format!("cannot read `{name}`: {error}")))?;
            texts.push((name, text));
        }
    }
    Ok(texts)
}

/// The catalog files of a directory, by name, its sub-directories included; anything else as it is.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("cannot list `{}`", path.display()))?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            files.extend(expand(&entry)?);
        } else if entry.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(entry);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;

    const STREAM: &str = "kind: stream\nname: a\ntopics: [x]\n";
    const RULE: &str = "kind: rule\nname: r\non: a\nwhen: x > 1\n";

    #[test]
    fn a_directory_is_read_in_order_and_joined_to_one_text() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("rules")).expect("a directory");
        std::fs::write(dir.path().join("a.yaml"), STREAM).expect("written");
        std::fs::write(dir.path().join("rules/r.yml"), RULE).expect("written");
        std::fs::write(dir.path().join("notes.txt"), "not: [yaml").expect("written");
        let files = read(&[dir.path().to_owned()]).expect("they parse");
        assert_eq!(files.len(), 2);
        let all = catalog::parse(&join(&files), "all").expect("the joined text parses");
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("1.yaml"), "kind: stream\n").expect("written");
        std::fs::write(dir.path().join("2.yaml"), "kind: thing\nname: t\n").expect("written");
        let error = read(&[dir.path().to_owned()]).expect_err("both are wrong");
        let failure = error.downcast_ref::<Failure>().expect("a failure");
        assert_eq!(failure.code, Code::BadConfiguration);
        assert!(
            failure.message.contains("1.yaml") && failure.message.contains("2.yaml"),
            "{}",
            failure.message
        );
    }
}
