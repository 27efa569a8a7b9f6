//! A reader of a view's stream that comes back, with the last id it saw, whenever the connection is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use iot_tests::{PATIENCE, wait_a_little};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running reader. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Follower {
    seen: Arc<Mutex<Seen>>,
    _running: DropGuard,
}

#[derive(Debug, Default)]
struct Seen {
    rows: Vec<Value>,
    missed: u64,
    last_id: String,
    connections: u32,
}

impl Follower {
    pub(super) fn start(url: &str) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), CancellationToken::new());
        let (url, theirs, until) = (url.to_owned(), seen.clone(), stop.clone());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(until.run_until_cancelled(async {
                loop {
                    // Whatever goes wrong, it comes back.
                    let _ = read(&url, &theirs).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }));
        });
        Self { seen, _running: stop.drop_guard() }
    }

    /// The rows, in the order in which they came.
    pub(super) fn rows(&self) -> Vec<Value> {
        self.seen.lock().rows.clone()
    }

    /// Rows that the server says it has left out.
    pub(super) fn missed(&self) -> u64 {
        self.seen.lock().missed
    }

    /// Waits until it has been connected so many times.
    pub(super) fn wait_until_connected(&self, times: u32) {
        self.wait(|| self.seen.lock().connections >= times);
    }

    /// Waits until its rows are as wanted.
    pub(super) fn wait_for(&self, condition: impl Fn(Vec<Value>) -> bool) {
        self.wait(|| condition(self.rows()));
    }

    fn wait(&self, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "timed out at {:?}", self.seen.lock());
            wait_a_little();
        }
    }
}

async fn read(url: &str, seen: &Mutex<Seen>) -> reqwest::Result<()> {
    let mut request = reqwest::Client::new().get(url);
    let last_id = seen.lock().last_id.clone();
    if !last_id.is_empty() {
        request = request.header("Last-Event-ID", last_id);
    }
    let mut body = request.send().await?.error_for_status()?.bytes_stream();
    let mut text = Vec::new();
    let mut is_first = true;
    while let Some(bytes) = body.next().await {
        text.extend_from_slice(&bytes?);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let mut seen = seen.lock();
            seen.connections += u32::from(std::mem::take(&mut is_first));
            seen.take(&String::from_utf8(block).expect("utf-8"));
        }
    }
    Ok(())
}

impl Seen {
    fn take(&mut self, block: &str) {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if let Some(id) = field("id") {
            self.last_id = id.to_owned();
        }
        let data = || serde_json::from_str::<Value>(field("data").expect("data")).expect("json");
        match field("event") {
            Some("row") => self.rows.push(data()),
            Some("missed") => self.missed += data()["rows"].as_u64().expect("a number"),
            _ => {}
        }
    }
}
