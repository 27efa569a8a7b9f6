//! Publishers that go on whatever happens to the broker, and know which of their readings were acknowledged.
//!
//! Each sends readings numbered 1, 2, 3, ... (`n`) for five devices of its own (`NAME-0` to `NAME-4`), under its
//! name (`source`), in a session that outlasts the connection. The temperature of all its devices changes
//! between 20 and 90 after every [`LoadOptions::stretch`] readings, so that rules have something to say.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use iot_schemas::clock::Clock;
use parking_lot::Mutex;
use rumqttc::{
    AsyncClient, Broker, EventLoop, MqttOptions, PublishNoticeError, PublishOptions, QoS, SessionMode,
};

use crate::{PATIENCE, Server, pause, python, wait_a_little};

/// Readings that may be unacknowledged: more than that are not sent, so that an absent broker is felt.
const LIMIT: usize = 1_500;
/// How long a publisher waits before it connects again.
const RETRY: Duration = Duration::from_millis(50);
/// How often readings are sent.
const TICK: Duration = Duration::from_millis(10);

/// What a publisher sends.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The port of the broker on this machine.
    pub port: u16,
    /// Its name: its client id, the `source` of its readings, and the stem of its devices' names.
    pub name: &'static str,
    /// Readings per second.
    pub rate: u32,
    /// 1 or 2.
    pub qos: u8,
    /// Readings until the temperature changes.
    pub stretch: u32,
}

/// What has become of a publisher's readings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Readings 1 to this were handed to the client.
    pub sent: u64,
    /// Readings 1 to this were acknowledged.
    pub acked_up_to: u64,
    /// These were acknowledged too.
    pub acked_beyond: BTreeSet<u64>,
    /// Readings that the client library gave up, as its session was lost, and that were sent anew.
    pub given_up: u64,
}

impl Progress {
    /// How many were acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked_up_to + self.acked_beyond.len() as u64
    }

    fn acknowledge(&mut self, n: u64) {
        self.acked_beyond.insert(n);
        while self.acked_beyond.remove(&(self.acked_up_to + 1)) {
            self.acked_up_to += 1;
        }
    }
}

/// A running publisher. Dropped, it is stopped without a word.
#[derive(Debug)]
pub struct Load {
    name: &'static str,
    progress: Arc<Mutex<Progress>>,
    client: Option<Client>,
}

#[derive(Debug)]
enum Client {
    Python { child: Child, stdin: ChildStdin, reader: JoinHandle<bool> },
    Rust { stop: Arc<AtomicBool>, thread: JoinHandle<()> },
}

impl Load {
    /// paho-mqtt, MQTT 3.1.1; `None` with a printed reason where it is not installed.
    pub fn paho(options: &LoadOptions) -> Option<Self> {
        let python = python("paho.mqtt.client")?;
        let LoadOptions { port, name, rate, qos, stretch } = options;
        let mut child = Command::new(python)
            .args(["-c", include_str!("load/publisher.py")])
            .args([&port.to_string(), *name, &rate.to_string(), &qos.to_string(), &stretch.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let progress = Arc::new(Mutex::new(Progress::default()));
        let told = progress.clone();
        let reader = std::thread::spawn(move || {
            let mut is_done = false;
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                is_done = hear(&line, &mut told.lock());
            }
            is_done
        });
        Some(Self { name, progress, client: Some(Client::Python { child, stdin, reader }) })
    }

    /// rumqttc, MQTT 5.
    pub fn rumqttc(options: &LoadOptions) -> Self {
        let progress = Arc::new(Mutex::new(Progress::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let publisher = Publisher::new(options.clone(), progress.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(publisher.run());
        });
        Self { name: options.name, progress, client: Some(Client::Rust { stop, thread }) }
    }

    /// The publisher's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What has become of the readings so far.
    pub fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }

    /// Waits until so many readings were acknowledged.
    pub fn wait_for_acked(&self, count: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.progress().acked() < count {
            assert!(std::time::Instant::now() < deadline, "{}: {:?}", self.name, self.progress());
            wait_a_little();
        }
    }

    /// Sends nothing new, and waits until everything is acknowledged.
    pub fn finish(mut self) -> Progress {
        let ended = match self.client.take().expect("it runs until it is finished") {
            Client::Python { mut child, stdin, reader } => {
                drop(stdin);
                let is_done = reader.join().expect("the reader does not panic");
                is_done && child.wait().is_ok_and(|status| status.success())
            }
            Client::Rust { stop, thread } => {
                stop.store(true, Ordering::Release);
                let deadline = std::time::Instant::now() + 2 * PATIENCE;
                while !thread.is_finished() && std::time::Instant::now() < deadline {
                    wait_a_little();
                }
                thread.is_finished()
            }
        };
        let progress = self.progress();
        assert!(ended, "`{}` did not get everything acknowledged: {progress:?}", self.name);
        assert_eq!((progress.acked_up_to, progress.acked_beyond.len()), (progress.sent, 0), "{}", self.name);
        progress
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        match &mut self.client {
            Some(Client::Python { child, .. }) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Client::Rust { stop, .. }) => stop.store(true, Ordering::Release),
            None => {}
        }
    }
}

/// Takes in a line of the python program. Returns whether it was its last word.
fn hear(line: &str, progress: &mut Progress) -> bool {
    let mut words = line.split(' ');
    let kind = words.next();
    let mut numbers = words.filter_map(|word| word.parse::<u64>().ok());
    match kind {
        Some("s") => progress.sent = numbers.next_back().unwrap_or(progress.sent),
        Some("a") => numbers.for_each(|n| progress.acknowledge(n)),
        _ => {}
    }
    kind == Some("done")
}

/// The publisher in Rust.
struct Publisher {
    options: LoadOptions,
    progress: Arc<Mutex<Progress>>,
    stop: Arc<AtomicBool>,
    client: AsyncClient,
    events: Option<EventLoop>,
    clock: Clock,
    open: FuturesUnordered<BoxFuture<'static, (u64, Result<(), PublishNoticeError>)>>,
}

impl Publisher {
    fn new(options: LoadOptions, progress: Arc<Mutex<Progress>>, stop: Arc<AtomicBool>) -> Self {
        let mut mqtt = MqttOptions::new(options.name, Broker::tcp("127.0.0.1", options.port));
        mqtt.set_session_mode(SessionMode::Persistent)
            .set_session_expiry_interval(Some(3_600))
            .set_keep_alive(30)
            .set_outgoing_inflight_upper_limit(500);
        let (client, events) = AsyncClient::builder(mqtt).capacity(2 * LIMIT).build();
        let (events, clock, open) = (Some(events), Clock::system(), FuturesUnordered::new());
        Self { options, progress, stop, client, events, clock, open }
    }

    async fn run(mut self) {
        let events = self.events.take().expect("it runs once");
        let driver = tokio::spawn(drive(events));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let per_tick = u64::from(self.options.rate) * TICK.as_millis() as u64 / 1_000;
        loop {
            tokio::select! {
                Some((n, outcome)) = self.open.next() => self.settle(n, outcome),
                _ = tick.tick() => {
                    let is_stopping = self.stop.load(Ordering::Acquire);
                    if is_stopping && self.open.is_empty() {
                        break;
                    }
                    for _ in 0..per_tick.max(1) {
                        if !is_stopping && self.open.len() < LIMIT {
                            self.send_next();
                        }
                    }
                }
            }
        }
        let _ = self.client.disconnect().await;
        pause(RETRY);
        driver.abort();
    }

    fn settle(&mut self, n: u64, outcome: Result<(), PublishNoticeError>) {
        if outcome.is_ok() {
            return self.progress.lock().acknowledge(n);
        }
        self.progress.lock().given_up += 1;
        self.send(n);
    }

    fn send_next(&mut self) {
        let n = self.progress.lock().sent + 1;
        self.send(n);
        self.progress.lock().sent = n;
    }

    fn send(&mut self, n: u64) {
        let LoadOptions { name, stretch, .. } = self.options;
        let (ts, device) = (self.clock.now_micros() / 1_000, n % 5);
        let temperature = if n / u64::from(stretch) % 2 == 1 { 90 } else { 20 };
        let payload = format!(r#"{{"ts":{ts},"source":"{name}","n":{n},"temperature":{temperature}}}"#);
        let qos = if self.options.qos == 2 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
        let topic = format!("devices/{name}-{device}/telemetry");
        let notice = self.client.try_publish_tracked(topic, payload, PublishOptions::new(qos));
        let notice = notice.expect("the queue is longer than what may be open");
        self.open.push(Box::pin(async move { (n, notice.wait_completion_async().await) }));
    }
}

async fn drive(mut events: EventLoop) {
    loop {
        if events.poll().await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Fails unless every reading that was acknowledged is in the stream `readings` exactly once, and no other more
/// than once.
pub fn assert_stored_once(server: &Server, name: &str, progress: &Progress) {
    let up_to = progress.acked_up_to;
    let within = format!("FROM readings WHERE source = '{name}' AND n <= {up_to}");
    let counts = &server.query(&format!("SELECT count(*) AS rows, count(DISTINCT n) AS kinds {within}"))[0];
    let found = (counts["rows"].as_u64(), counts["kinds"].as_u64());
    if found != (Some(up_to), Some(up_to)) {
        let doubled =
            format!("SELECT n, count(*) AS c, min(_seq), max(_seq) {within} GROUP BY n HAVING count(*) > 1");
        let examples: Vec<_> = server.query(&doubled).into_iter().take(10).collect();
        panic!(
            "`{name}`: of {up_to} acknowledged readings there are (rows, kinds) {found:?}; doubled: {examples:?}"
        );
    }
    let beyond =
        format!("SELECT n, count(*) AS c FROM readings WHERE source = '{name}' AND n > {up_to} GROUP BY n");
    let beyond = server.query(&beyond);
    let doubled: Vec<_> = beyond.iter().filter(|row| row["c"] != 1).collect();
    assert!(doubled.is_empty(), "`{name}`: doubled: {doubled:?}");
    let there: BTreeSet<u64> = beyond.iter().filter_map(|row| row["n"].as_u64()).collect();
    let lost: Vec<_> = progress.acked_beyond.difference(&there).collect();
    assert!(lost.is_empty(), "`{name}`: acknowledged and lost: {lost:?}");
}
