//! A page of the manual as a test: its YAML blocks are the catalog, its console blocks what is typed and what comes back.
//!
//! Times are not compared, nor how wide columns are. With `IOT_BLESS=1` the page gets the answers that there were.

use std::path::{Path, PathBuf};
use std::process::Command;

use iot_tests::{Server, iotctl_path};
use serde_json::Value;

/// The catalog file that the page writes and applies.
const FILE: &str = "readings.yaml";
const FENCE: &str = "```";

/// A section of a page.
pub(super) struct Page {
    path: PathBuf,
    text: String,
    blocks: Vec<Block>,
}

/// A fenced block.
pub(super) struct Block {
    language: String,
    text: String,
}

impl Page {
    pub(super) fn open(path: &Path, section: &str) -> Self {
        let text = std::fs::read_to_string(path).expect("the page");
        let (_, rest) = text.split_once(&format!("{section}\n")).expect("the section");
        let section = rest.split("\n## ").next().unwrap_or_default();
        let fenced = section.split(FENCE).skip(1).step_by(2).map(|block| {
            let (language, text) = block.split_once('\n').expect("a block begins with its language");
            Block { language: language.to_owned(), text: text.to_owned() }
        });
        let blocks = fenced.collect();
        Self { path: path.to_owned(), blocks, text }
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Fails unless `told`, block by block, is what the page says.
    pub(super) fn compare(&self, told: &[String]) {
        if std::env::var_os("IOT_BLESS").is_some_and(|value| value == "1") {
            let mut text = self.text.clone();
            for (block, told) in self.blocks.iter().zip(told) {
                text = text.replace(&block.fenced(&block.text), &block.fenced(told));
            }
            return std::fs::write(&self.path, text).expect("the page is written");
        }
        for (block, told) in self.blocks.iter().zip(told) {
            assert_eq!(comparable(told), comparable(&block.text), "this is what there was:\n{told}");
        }
    }
}

impl Block {
    pub(super) fn is_console(&self) -> bool {
        self.language == "console"
    }

    /// Does what the block says. Returns it with the answers that there were.
    pub(super) fn run(&self, server: &Server, dir: &Path) -> String {
        if !self.is_console() {
            std::fs::write(dir.join(FILE), &self.text).expect("written");
            return self.text.clone();
        }
        let commands = self.text.lines().filter(|line| line.starts_with("$ "));
        commands.map(|command| format!("{command}\n{}", run(command, server, dir))).collect()
    }

    fn fenced(&self, text: &str) -> String {
        format!("{FENCE}{}\n{text}{FENCE}", self.language)
    }
}

fn run(command: &str, server: &Server, dir: &Path) -> String {
    let words = words(command.strip_prefix("$ iotctl ").expect("a command of ours"));
    let before = decoded(&server.status());
    let output = Command::new(iotctl_path())
        .args(&words)
        .current_dir(dir)
        .env("IOTCTL_URL", server.url())
        .env("IOTCTL_MQTT", server.broker())
        .output()
        .expect("iotctl starts");
    if words[0] == "publish" {
        server.wait_for("the decoder", |status| decoded(status) > before);
    }
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).expect("utf-8").lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn decoded(status: &Value) -> u64 {
    let count = |name: &str| status["ingest"][name].as_u64().unwrap_or_default();
    count("events") + count("dead_letters")
}

/// The words of a command line with single and double quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ' ' => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    words.push(word);
    words
}

/// Lines with what may differ taken out.
fn comparable(text: &str) -> Vec<String> {
    let is_rule = |line: &&str| !line.is_empty() && line.chars().all(|c| "-+ ".contains(c));
    let word = |word: &str| {
        let is_time = word.contains(':') && word.contains("-") && word.contains('T') && word.contains('Z');
        if is_time { "TIME".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().filter(|line| !is_rule(line)).map(line).collect()
}
