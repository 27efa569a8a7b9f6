//! Readers of an event stream that drop the connection again and again and resume after the last id they saw.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt;
use iot_tests::{PATIENCE, pause, wait_a_little};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// An event, as the standard has it: what comes before an empty line.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Event {
    pub(super) kind: String,
    pub(super) id: Option<u64>,
    pub(super) data: String,
}

impl Event {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {}", self.data))
    }
}

/// The complete events of a text; a last one that was cut off is none.
pub(super) fn events(text: &str) -> Vec<Event> {
    let complete = text.rfind("\n\n").map_or("", |end| &text[..end]);
    complete.split("\n\n").map(event).collect()
}

fn event(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("event", kind)) => event.kind = kind.to_owned(),
            Some(("id", id)) => event.id = id.parse().ok(),
            Some(("data", data)) => event.data.push_str(data),
            _ => {}
        }
    }
    event
}

/// What a reader has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    transitions: Vec<u64>,
    missed: usize,
    last_id: u64,
    pub(super) connections: u32,
}

impl Seen {
    /// The transitions, in the order in which they came.
    pub(super) fn ids(&self) -> &[u64] {
        assert_eq!(self.missed, 0, "the server says that it no longer has what was asked for");
        &self.transitions
    }

    fn take(&mut self, event: Event) {
        if event.kind == "alert" {
            assert_eq!(event.json()["id"].as_u64(), event.id);
            self.transitions.extend(event.id);
        }
        self.missed += usize::from(event.kind == "missed");
        self.last_id = event.id.unwrap_or(self.last_id);
    }
}

/// A running reader.
#[derive(Debug)]
pub(super) struct Reader {
    name: &'static str,
    seen: Arc<Mutex<Seen>>,
    /// The transition after which it may stop.
    last: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// curl, given a few hundred milliseconds at a time.
    pub(super) fn curl(curl: &Path, url: &str) -> Self {
        let (curl, url) = (curl.to_owned(), url.to_owned());
        Self::start("curl", move |seen, chance| {
            let after = format!("Last-Event-ID: {}", seen.lock().last_id);
            let seconds = format!("0.{}", chance.random_range(3..9));
            let args = ["--silent", "--no-buffer", "--max-time", &seconds, "--header", &after, &url];
            let output = Command::new(&curl).args(args).output().expect("curl runs");
            let text = String::from_utf8(output.stdout).expect("utf-8");
            let mut seen = seen.lock();
            events(&text).into_iter().for_each(|event| seen.take(event));
        })
    }

    /// A client that hangs up after a few events, in the middle of the next.
    pub(super) fn in_rust(url: &str) -> Self {
        let url = url.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self::start("a reader in Rust", move |seen, chance| {
            let enough = chance.random_range(1..60);
            let read = read_some(&url, seen, enough);
            // Whatever goes wrong, it comes back.
            let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), read).await });
        })
    }

    fn start(
        name: &'static str,
        mut connect: impl FnMut(&Mutex<Seen>, &mut ChaCha8Rng) + Send + 'static,
    ) -> Self {
        let (seen, last) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicU64::new(u64::MAX)));
        let (theirs, until) = (seen.clone(), last.clone());
        let thread = std::thread::spawn(move || {
            let mut chance = ChaCha8Rng::seed_from_u64(5);
            while theirs.lock().last_id < until.load(Ordering::Acquire) {
                connect(&theirs, &mut chance);
                theirs.lock().connections += 1;
                pause(Duration::from_millis(20));
            }
        });
        Self { name, seen, last, thread }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until it has seen the transition `last`.
    pub(super) fn finish(self, last: u64) -> Seen {
        self.last.store(last, Ordering::Release);
        let deadline = Instant::now() + PATIENCE;
        while !self.thread.is_finished() {
            assert!(
                Instant::now() < deadline,
                "{} is at {}, not at {last}",
                self.name,
                self.seen.lock().last_id
            );
            wait_a_little();
        }
        self.thread.join().expect("the reader does not panic");
        self.seen.lock().clone()
    }
}

async fn read_some(url: &str, seen: &Mutex<Seen>, enough: usize) -> reqwest::Result<()> {
    let after = seen.lock().last_id.to_string();
    let request = reqwest::Client::new().get(url).header("Last-Event-ID", after);
    let mut body = request.send().await?.error_for_status()?.bytes_stream();
    let (mut text, mut count) = (Vec::new(), 0);
    while count < enough {
        let Some(bytes) = body.next().await else { break };
        text.extend_from_slice(&bytes?);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            seen.lock().take(event(&String::from_utf8(block).expect("utf-8")));
            count += 1;
            if count >= enough {
                break;
            }
        }
    }
    Ok(())
}
