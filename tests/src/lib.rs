//! What the integration tests share: real processes, started on free ports and never left behind.

pub mod line;
pub mod load;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a process may take to start or to stop.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The path of an outside program, or `None` with a printed reason where it is missing.
///
/// With `IOT_REQUIRE_EXTERNAL=1` a missing program fails the test.
pub fn external(program: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&dirs).collect();
    dirs.extend(["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from));
    let found = dirs.into_iter().map(|dir| dir.join(program)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("the program `{program}` is not installed"));
    }
    found
}

/// A python that can import `modules`, or `None` with a printed reason.
pub fn python(modules: &str) -> Option<PathBuf> {
    let python = external("python3")?;
    let imports = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip(&format!("python cannot import {modules}"));
    None
}

/// A file or folder of the shared data beside the checkout, or `None` with a printed reason.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = workspace().join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: ../shared/{path} is not there");
    None
}

/// The checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn skip(why: &str) {
    let required = std::env::var_os("IOT_REQUIRE_EXTERNAL").is_some_and(|value| value == "1");
    assert!(!required, "{why}, and IOT_REQUIRE_EXTERNAL=1");
    eprintln!("skipped: {why}");
}

/// The `iotctl` that was built together with the tests.
pub fn iotctl_path() -> PathBuf {
    let this = std::env::current_exe().expect("a test has a path");
    let dir = this.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let path = dir.join("iotctl");
    assert!(path.is_file(), "{} is missing; build with `cargo test --workspace`", path.display());
    path
}

/// Runs `iotctl` to its end and returns stdout; panics with stderr if it fails.
pub fn iotctl(args: &[&str]) -> String {
    let output = Command::new(iotctl_path()).args(args).output().expect("iotctl starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iotctl {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("utf-8")
}

/// How a run of `iotctl` ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// The results.
    pub stdout: Vec<u8>,
    /// Everything else that was said.
    pub stderr: String,
}

/// Runs `iotctl` to its end, whatever that is, with `stdin` as its input.
pub fn run(args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(iotctl_path())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iotctl starts");
    // It may end without having read its input.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    Ran {
        code: output.status.code().expect("no signal ended it"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running `iotctl serve`. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// Where the embedded broker listens.
    pub mqtt: Option<SocketAddr>,
    /// Where it listens for what (`mqtts`, `ws`, ...).
    listening: Vec<(String, SocketAddr)>,
    extra: Vec<String>,
}

impl Server {
    /// Starts a server on free ports and waits until it is ready.
    pub fn start(data_dir: &Path, extra: &[&str]) -> Self {
        Self::start_at(data_dir, "127.0.0.1:0", "127.0.0.1:0", extra)
    }

    /// Starts a server with these settings and this catalog, which it reads from files in `dir`; its data are below it.
    pub fn with_catalog(dir: &Path, settings: &str, catalog: &str, extra: &[&str]) -> Self {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("utf-8").to_owned()
        };
        let (settings, catalog) = (file("serve.yaml", settings), file("catalog.yaml", catalog));
        let mut args = vec!["--config", settings.as_str(), "--catalog", catalog.as_str()];
        args.extend(extra);
        Self::start(&dir.join("data"), &args)
    }

    /// Starts a server on given addresses and waits until it is ready.
    pub fn start_at(data_dir: &Path, mqtt: &str, http: &str, extra: &[&str]) -> Self {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(data_dir.with_extension("stderr"));
        let mut child = Command::new(iotctl_path())
            .arg("serve")
            .args(["--data-dir", data_dir.to_str().expect("utf-8"), "--http", http, "--mqtt", mqtt])
            .args(extra)
            .stdout(Stdio::piped())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("iotctl starts");
        let stdout = child.stdout.take().expect("piped");
        let mut listening = Vec::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["listening", what, addr] => {
                    listening.extend(addr.parse().ok().map(|addr: SocketAddr| (what.to_string(), addr)));
                }
                ["ready"] => break,
                _ => {}
            }
        }
        let log = || std::fs::read_to_string(data_dir.with_extension("stderr")).unwrap_or_default();
        let find = |what| listening.iter().find(|(name, _)| name == what).map(|(_, addr)| *addr);
        let (http, mqtt) = (find("http"), find("mqtt"));
        let http = http.unwrap_or_else(|| panic!("the server did not start: {}", log()));
        let extra = extra.iter().map(ToString::to_string).collect();
        Self { child, data_dir: data_dir.to_owned(), http, mqtt, listening, extra }
    }

    /// Kills it with SIGKILL and starts it again on the same ports and directory.
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        self.restart()
    }

    /// Starts it again after its end, on the same ports and directory.
    pub fn restart(self) -> Self {
        let mqtt = self.mqtt.map_or_else(|| "127.0.0.1:0".to_owned(), |addr| addr.to_string());
        let (data_dir, http, extra) = (self.data_dir.clone(), self.http.to_string(), self.extra.clone());
        drop(self);
        Self::start_at(&data_dir, &mqtt, &http, &extra.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// SIGKILL, now.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end. Returns whether it ended with code 0.
    pub fn stop(mut self) -> bool {
        self.terminate()
    }

    /// Stops it in order, which must work, and starts it again on the same ports and directory.
    pub fn stop_and_restart(mut self) -> Self {
        assert!(self.terminate(), "the server did not end well");
        self.restart()
    }

    fn terminate(&mut self) -> bool {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            wait_a_little();
        }
        false
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Runs `iotctl ARGS --url ITS_URL`.
    pub fn iotctl(&self, args: &[&str]) -> String {
        let url = self.url();
        let mut all = args.to_vec();
        all.extend(["--url", &url]);
        iotctl(&all)
    }

    /// Runs `iotctl ARGS --url ITS_URL` to its end, whatever that is.
    pub fn run(&self, args: &[&str], stdin: &str) -> Ran {
        let url = self.url();
        let mut all = args.to_vec();
        all.extend(["--url", &url]);
        run(&all, stdin)
    }

    /// The port on which it listens for `mqtt`, `mqtts`, `ws`, `wss` or `http`.
    pub fn port(&self, what: &str) -> u16 {
        let found = self.listening.iter().find(|(name, _)| name == what);
        found.unwrap_or_else(|| panic!("it does not listen for {what}")).1.port()
    }

    /// What it has said on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir.with_extension("stderr")).unwrap_or_default()
    }

    /// The embedded broker's address as a URL.
    pub fn broker(&self) -> String {
        format!("mqtt://{}", self.mqtt.expect("the server has a broker of its own"))
    }

    /// Publishes one message and waits for its acknowledgement.
    pub fn publish(&self, topic: &str, payload: &str) {
        iotctl(&["publish", topic, payload, "--mqtt", &self.broker()]);
    }

    /// Waits until every event of every stream is in a table.
    pub fn wait_for_seal(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let streams = self.get("/v1/catalog/streams");
            let streams = streams["items"].as_array().expect("a list");
            if streams.iter().all(|stream| stream["unsealed_rows"] == 0) {
                return;
            }
            assert!(Instant::now() < deadline, "not everything is sealed: {streams:?}");
            wait_a_little();
        }
    }

    /// Applies a catalog.
    pub fn apply(&self, yaml: &str) {
        let answer = self.post_text("/v1/apply", yaml);
        assert!(answer.get("applied").is_some(), "apply: {answer}");
    }

    /// The rows of a query; panics with the server's words if it fails.
    pub fn query(&self, sql: &str) -> Vec<Value> {
        self.query_layer(sql, "merged")
    }

    /// The rows of a query over one layer.
    pub fn query_layer(&self, sql: &str, layer: &str) -> Vec<Value> {
        let body = serde_json::json!({ "sql": sql, "layer": layer }).to_string();
        let answer = self.post_text("/v1/query", &body);
        answer["rows"].as_array().unwrap_or_else(|| panic!("{sql}: {answer}")).clone()
    }

    /// The single number that a query returns.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        let first = rows.first().and_then(Value::as_object).and_then(|row| row.values().next());
        first.and_then(Value::as_i64).unwrap_or_else(|| panic!("{sql}: {rows:?}"))
    }

    /// Runs all batch jobs; `full` recomputes. What is not sealed yet is not covered.
    pub fn batch(&self, full: bool) -> Value {
        self.post_text("/v1/batch/run", &serde_json::json!({ "full": full }).to_string())
    }

    /// The differences that `verify` finds, over all views.
    pub fn verify(&self) -> u64 {
        let answer = self.post_text("/v1/verify", "");
        let reports = answer["reports"].as_array().unwrap_or_else(|| panic!("verify: {answer}"));
        reports.iter().map(|report| report["differences"].as_u64().expect("a number")).sum()
    }

    /// The HTTP status of a GET and the body's text.
    pub fn get_text(&self, path: &str) -> (u16, String) {
        let url = format!("{}{path}", self.url());
        block(async {
            let answer = reqwest::get(url).await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }

    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.get_text("/readyz").0 == 200
    }

    /// The server's status.
    pub fn status(&self) -> Value {
        self.get("/v1/status")
    }

    /// Waits until `condition` holds of the status.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.status()) {
            assert!(Instant::now() < deadline, "timed out waiting for {what}: {}", self.status());
            wait_a_little();
        }
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.url());
        block(async { Ok(reqwest::get(url).await?.json().await?) })
    }

    /// Writes events of a stream, one JSON object a line, as one message. It is durable on return.
    pub fn write(&self, stream: &str, lines: &str) {
        let url = format!("{}/v1/write?stream={stream}", self.url());
        let (client, lines) = (reqwest::Client::new(), lines.to_owned());
        let (status, answer) = block(async {
            let request = client.post(url).header("Content-Type", "application/x-ndjson").body(lines);
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        });
        assert_eq!(status, 204, "{answer}");
    }

    /// POST, as JSON.
    pub fn post_text(&self, path: &str, body: &str) -> Value {
        let url = format!("{}{path}", self.url());
        let body = body.to_owned();
        block(async { Ok(reqwest::Client::new().post(url).body(body).send().await?.json().await?) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.data_dir.with_extension("stderr")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the server's last words:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

fn block<T>(work: impl Future<Output = anyhow::Result<T>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work).expect("the server answers")
}

/// A running Mosquitto with a persistent store. Dropped, it is killed.
#[derive(Debug)]
pub struct Mosquitto {
    program: PathBuf,
    child: Child,
    dir: tempfile::TempDir,
    /// Where it listens.
    pub port: u16,
}

impl Mosquitto {
    /// Starts one on a free port; `None` with a printed reason where it is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with("allow_anonymous true\n")
    }

    /// Starts one with these settings for its listener.
    pub fn start_with(settings: &str) -> Option<Self> {
        let program = external("mosquitto")?;
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let config = format!(
            "listener {port} 127.0.0.1\n{settings}persistence true\npersistence_location {}/\n\
             max_queued_messages 0\nmax_inflight_messages 0\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), config).expect("written");
        // Mosquitto drops root for a user of its own, who must be able to write here.
        let _ = Command::new("chmod").args(["-R", "a+rwx", dir.path().to_str().expect("utf-8")]).status();
        let child = Self::spawn(&program, dir.path(), port);
        Some(Self { program, child, dir, port })
    }

    fn spawn(program: &Path, dir: &Path, port: u16) -> Child {
        let child = Command::new(program)
            .arg("-c")
            .arg(dir.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts");
        wait_for_port(port);
        child
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in order (SIGTERM, so that it saves its store).
    pub fn stop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }

    /// SIGKILL: its store is what it last saved.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port and store.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(&self.program, self.dir.path(), self.port);
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Waits until somebody listens.
pub fn wait_for_port(port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on port {port}");
        wait_a_little();
    }
}

/// A pause between two looks at something outside that cannot wake us.
pub fn wait_a_little() {
    pause(Duration::from_millis(20));
}

/// Lets outside processes work for a while.
#[expect(clippy::disallowed_methods, reason = "an outside process has no event to wait for")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
