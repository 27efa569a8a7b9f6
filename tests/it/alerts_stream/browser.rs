//! A real browser: headless Chromium, driven over WebDriver.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use iot_tests::{free_port, wait_for_port};
use serde_json::{Value, json};

/// What keeps a browser to itself and away from the network.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];

/// A browser with one page. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Browser {
    driver: Child,
    session: String,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl Browser {
    /// Starts it with a profile of its own in `dir`.
    pub(super) fn start(driver: &Path, chromium: &Path, dir: &Path) -> Self {
        let port = free_port();
        let driver = Command::new(driver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        wait_for_port(port);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let session = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { driver, session: String::new(), runtime, client: reqwest::Client::new() };
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let flags: Vec<&str> = FLAGS.iter().copied().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags, "binary": chromium },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let id = browser.request(&session, &wanted)["sessionId"].as_str().map(str::to_owned);
        browser.session = format!("{session}/{}", id.expect("chromedriver opens a session"));
        browser
    }

    /// Opens a page.
    pub(super) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Runs JavaScript in the page and returns what it returns.
    pub(super) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs JavaScript that returns a number.
    pub(super) fn number(&self, script: &str) -> u64 {
        self.run(script).as_u64().expect("a number")
    }

    /// What the console has of errors since the last call.
    pub(super) fn errors(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().expect("a list").iter();
        let errors = entries.filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].to_string()).collect()
    }

    /// Keeps a picture of the page as NAME.png.base64 in the directory that `IOT_PICTURES` names, if it does.
    #[expect(clippy::disallowed_methods, reason = "pictures are for whoever runs the test to ask for")]
    pub(super) fn screenshot(&self, name: &str) {
        let Ok(dir) = std::env::var("IOT_PICTURES") else { return };
        let url = format!("{}/screenshot", self.session);
        let answer: Value = self.runtime.block_on(async {
            self.client.get(url).send().await.expect("an answer").json().await.expect("JSON")
        });
        let picture = answer["value"].as_str().expect("base64");
        std::fs::write(Path::new(&dir).join(format!("{name}.png.base64")), picture).expect("written");
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        self.request(&format!("{}{command}", self.session), body)
    }

    fn request(&self, url: &str, body: &Value) -> Value {
        let answer: Value = self.runtime.block_on(async {
            let request =
                self.client.post(url).header("content-type", "application/json").body(body.to_string());
            request.send().await.expect("chromedriver answers").json().await.expect("JSON")
        });
        let value = &answer["value"];
        assert!(value.get("error").is_none(), "{url}: {} {}", value["error"], value["message"]);
        value.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.runtime.block_on(self.client.delete(&self.session).send());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
