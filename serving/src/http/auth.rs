//! Who may use the HTTP side: everybody, or whoever shows a bearer token.
//!
//! A token is a long random text, so its SHA-256 is all that the server keeps. Each has a scope, and each scope holds
//! those before it: `read` (questions), `write` (alerts, events), `admin` (everything that changes the catalog or data).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use iot_schemas::{Error, Result};

use super::listener::LimitedListener;
use super::origin;
use super::problem::{Problem, ProblemKind};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Questions.
    Read,
    /// Also events and what is done about alerts.
    Write,
    /// Everything.
    Admin,
}

impl Scope {
    /// The name in a tokens file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Admin].into_iter().find(|scope| scope.name() == text)
    }

    /// What a request needs; `None` if anybody may make it.
    fn needed(method: &Method, path: &str) -> Option<Self> {
        match (method, path) {
            (_, "/healthz" | "/readyz" | "/ping") => None,
            (&Method::GET | &Method::HEAD, _) | (_, "/v1/query" | "/v1/verify" | "/v1/schemas/check") => {
                Some(Self::Read)
            }
            (&Method::POST, "/v1/write" | "/api/v2/write" | "/write") => Some(Self::Write),
            (&Method::POST, path) if path.starts_with("/v1/alerts/") => Some(Self::Write),
            _ => Some(Self::Admin),
        }
    }
}

/// The lines of a tokens file, `name:scope:hash`. Comments and empty lines stay where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokensFile {
    lines: Vec<String>,
}

impl TokensFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the tokens in {}", path.display()), e))?;
        let file = Self { lines: text.lines().map(str::to_owned).collect() };
        file.entries().map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
        Ok(file)
    }

    /// Adds a token under a new name.
    pub fn add(&mut self, name: &str, scope: Scope, token: &str) -> Result<()> {
        if name.is_empty() || name.contains([':', '#']) || name.contains(char::is_whitespace) {
            return Err(Error::invalid(format!(
                "`{name}` cannot be a token's name: no spaces, no `:`, no `#`"
            )));
        }
        if self.entries()?.iter().any(|(known, ..)| known == name) {
            return Err(Error::invalid(format!("there is a token `{name}` already; revoke it first")));
        }
        self.lines.push(format!("{name}:{}:{}", scope.name(), hash(token)));
        Ok(())
    }

    /// Takes a token out, and says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| name_of(line) != Some(name));
        self.lines.len() < before
    }

    /// The names and scopes.
    pub fn list(&self) -> Result<Vec<(String, Scope)>> {
        Ok(self.entries()?.into_iter().map(|(name, scope, _)| (name, scope)).collect())
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn entries(&self) -> Result<Vec<(String, Scope, String)>> {
        let mut entries = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            if name_of(line).is_none() {
                continue;
            }
            let mut parts = line.trim().split(':');
            let entry = (parts.next(), parts.next().and_then(Scope::parse), parts.next(), parts.next());
            let (Some(name), Some(scope), Some(hash), None) = entry else {
                return Err(Error::invalid(format!(
                    "line {} is no `name:read|write|admin:hash`; `iotctl token create` writes such lines",
                    i + 1
                )));
            };
            entries.push((name.to_owned(), scope, hash.to_owned()));
        }
        Ok(entries)
    }
}

/// The name in a line, as both reading and revoking see it; `None` in comments and empty lines.
fn name_of(line: &str) -> Option<&str> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with('#')).then(|| line.split(':').next().unwrap_or_default())
}

fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rules in force. Without tokens everybody may do everything.
#[derive(Debug, Clone, Default)]
pub struct HttpAccess(Option<Arc<Tokens>>);

#[derive(Debug)]
struct Tokens {
    path: PathBuf,
    /// Whether requests from this machine need none.
    loopback_is_free: bool,
    loaded: Mutex<Loaded>,
}

/// Scopes by hash, as the file was last read.
#[derive(Debug, Default)]
struct Loaded {
    version: Option<(SystemTime, u64)>,
    scopes: BTreeMap<String, Scope>,
}

impl HttpAccess {
    /// Whoever shows a token of this file, which is read again when it changes.
    pub fn tokens(path: &Path, loopback_is_free: bool) -> Result<Self> {
        let tokens = Tokens { path: path.to_owned(), loopback_is_free, loaded: Mutex::default() };
        TokensFile::read(path)?;
        Ok(Self(Some(Arc::new(tokens))))
    }

    /// Whether anybody has to show anything.
    pub fn is_guarded(&self) -> bool {
        self.0.is_some()
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        let Some(needed) = Scope::needed(request.method(), request.uri().path()) else { return Ok(()) };
        // Whoever cannot be told is a stranger.
        let peer = request.extensions().get::<ConnectInfo<Peer>>();
        let is_here = peer.is_some_and(|peer| peer.0.0.ip().to_canonical().is_loopback());
        let is_foreign = is_here && !origin::names_this_machine(request.headers());
        let shown = bearer(request.headers());
        match &self.0 {
            Some(tokens) if !(is_here && tokens.loopback_is_free) => tokens.check(shown, needed),
            _ if !is_foreign => Ok(()),
            Some(tokens) if shown.is_some() => tokens.check(shown, needed),
            _ => Err(origin::foreign_host(request.headers())),
        }
    }
}

impl Tokens {
    fn check(&self, shown: Option<&str>, needed: Scope) -> Result<(), Problem> {
        let shown = shown
            .ok_or_else(|| Problem::new(ProblemKind::UNAUTHORIZED, "this request needs a bearer token"))?;
        match self.scope_of(shown) {
            None => Err(Problem::new(
                ProblemKind::UNAUTHORIZED,
                "the token is not known; it may have been revoked",
            )),
            Some(has) if has < needed => {
                let (has, needed) = (has.name(), needed.name());
                let detail = format!("the token has the scope `{has}`, this request needs `{needed}`");
                Err(Problem::new(ProblemKind::FORBIDDEN, detail))
            }
            Some(_) => Ok(()),
        }
    }

    fn scope_of(&self, token: &str) -> Option<Scope> {
        let mut loaded = self.loaded.lock();
        let metadata = std::fs::metadata(&self.path).ok();
        let version = metadata.and_then(|file| Some((file.modified().ok()?, file.len())));
        if version.is_none() || loaded.version != version {
            match TokensFile::read(&self.path).and_then(|file| file.entries()) {
                Ok(entries) => {
                    loaded.scopes = entries.into_iter().map(|(_, scope, hash)| (hash, scope)).collect();
                    loaded.version = version;
                }
                // A file that cannot be read lets nobody in: a token in it may have been revoked.
                Err(e) => {
                    tracing::error!("nobody's token is accepted: {e}");
                    *loaded = Loaded::default();
                }
            }
        }
        loaded.scopes.get(&hash(token)).copied()
    }
}

/// `Bearer` is the word for it; InfluxDB's clients say `Token`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let is_known = ["bearer", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    is_known.then(|| token.trim())
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, LimitedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, LimitedListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Lets a request through, or not.
pub(super) async fn check(State(access): State<HttpAccess>, request: Request, next: Next) -> Response {
    match access.check(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(access: &HttpAccess, method: &str, path: &str, token: &str) -> u16 {
        let request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::empty()).expect("a request");
        access.check(&request).map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn a_token_allows_its_scope_and_what_is_below() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        let mut file = TokensFile { lines: vec!["# ours".to_owned()] };
        for scope in [Scope::Read, Scope::Write, Scope::Admin] {
            file.add(scope.name(), scope, &format!("secret-{}", scope.name())).expect("a token");
        }
        assert!(file.add("read", Scope::Admin, "x").is_err(), "the name is taken");
        assert!(!file.text().contains("secret-"), "{}", file.text());
        std::fs::write(&path, file.text()).expect("written");
        let access = HttpAccess::tokens(&path, true).expect("a file");
        for (method, path, [read, write, admin]) in [
            ("GET", "/v1/status", [200, 200, 200]),
            ("POST", "/v1/query", [200, 200, 200]),
            ("POST", "/v1/alerts/x/ack", [403, 200, 200]),
            ("POST", "/v1/apply", [403, 403, 200]),
            ("DELETE", "/v1/catalog/view/x", [403, 403, 200]),
            ("POST", "/v1/dead/replay", [403, 403, 200]),
        ] {
            let all =
                ["secret-read", "secret-write", "secret-admin"].map(|t| status(&access, method, path, t));
            assert_eq!(all, [read, write, admin], "{method} {path}");
            assert_eq!(status(&access, method, path, "secret"), 401);
        }
        assert_eq!(status(&access, "GET", "/healthz", ""), 200);
        assert!(file.remove("read"));
        std::fs::write(&path, file.text()).expect("written");
        assert_eq!(status(&access, "GET", "/v1/status", "secret-read"), 401, "revoked");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(status(&access, "GET", "/v1/status", "secret-admin"), 401, "nobody without a file");
    }

    #[test]
    fn whatever_can_be_used_can_be_revoked() {
        let mut file = TokensFile { lines: vec!["# ours".to_owned()] };
        file.add("ann", Scope::Admin, "secret").expect("a token");
        file.lines[1].insert_str(0, "  ");
        file.lines.push("  # indented".to_owned());
        assert_eq!(file.list().expect("a list"), [("ann".to_owned(), Scope::Admin)]);
        assert!(file.remove("ann") && !file.remove("# ours"));
        assert_eq!(file.text(), "# ours\n  # indented\n");
    }

    #[test]
    fn without_tokens_everybody_may_do_everything() {
        assert_eq!(status(&HttpAccess::default(), "POST", "/v1/apply", ""), 200);
    }

    /// What a request from `peer` for `host` gets.
    fn status_from(access: &HttpAccess, peer: &str, host: &str, token: Option<&str>) -> u16 {
        let peer = Peer(peer.parse().expect("an address"));
        let mut request = Request::get("/v1/status").header("host", host).extension(ConnectInfo(peer));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Body::empty()).expect("a request");
        access.check(&request).map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn a_page_that_calls_this_machine_by_its_own_name_is_refused() {
        const HERE: &str = "127.0.0.1:5000";
        const ELSEWHERE: &str = "192.0.2.1:5000";
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        let mut file = TokensFile::default();
        file.add("ann", Scope::Read, "secret").expect("a token");
        std::fs::write(&path, file.text()).expect("written");
        let open = HttpAccess::default();
        let free = HttpAccess::tokens(&path, true).expect("a file");
        let strict = HttpAccess::tokens(&path, false).expect("a file");
        for (access, peer, host, token, expect) in [
            (&open, HERE, "localhost:8080", None, 200),
            (&open, HERE, "evil.example:8080", None, 403),
            (&open, HERE, "evil.example:8080", Some("secret"), 403),
            (&open, ELSEWHERE, "plant.example", None, 200),
            (&free, HERE, "[::1]:8080", None, 200),
            (&free, HERE, "evil.example", None, 403),
            (&free, HERE, "plant.example", Some("secret"), 200),
            (&free, HERE, "plant.example", Some("wrong"), 401),
            (&free, ELSEWHERE, "plant.example", None, 401),
            (&strict, HERE, "plant.example", None, 401),
            (&strict, HERE, "plant.example", Some("secret"), 200),
            (&strict, HERE, "localhost", None, 401),
        ] {
            assert_eq!(status_from(access, peer, host, token), expect, "{peer} {host} {token:?}");
        }
    }
}
