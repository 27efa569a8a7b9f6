//! The alert log, or a view, as a stream that survives lost connections and restarts of the server.
//!
//! The server gives ids to what it sends. After a lost connection the reader names the last id that it saw, so
//! that it misses no transition, or closed window, and sees none twice.

use std::time::Duration;

use anyhow::{Result, anyhow};
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};

use super::{Client, SseEvent, SseParser, path_segments, root_cause};
use crate::exit::{Code, Failure};
use crate::output;

/// A connection without even a heartbeat for this long is dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// The first wait before a reconnection, unless the server wants another.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Which alerts to follow.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// Pairs of a query parameter of the endpoint (`rule`, `severity`, `device_id`, `label.team`) and its value.
    pub parameters: Vec<(String, String)>,
    /// Whether the stream begins with the present state of all alerts.
    pub snapshot: bool,
}

/// Follows the alert log or a view.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    /// The segments of the endpoint's path.
    path: Vec<String>,
    filter: AlertFilter,
    parser: SseParser,
    connection: Option<Response>,
    ready: std::collections::VecDeque<SseEvent>,
    wait: Duration,
    was_connected: bool,
}

impl EventStream {
    pub(super) fn new(client: Client, path: &[&str], filter: AlertFilter) -> Self {
        Self {
            client,
            path: path.iter().map(ToString::to_string).collect(),
            filter,
            parser: SseParser::default(),
            connection: None,
            ready: std::collections::VecDeque::new(),
            wait: FIRST_WAIT,
            was_connected: false,
        }
    }

    /// The next event. Reconnects for as long as it takes, but fails if the very first connection does.
    pub async fn next(&mut self) -> Result<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Err(error) = self.advance().await {
                self.connection = None;
                if !self.may_come_back(&error) {
                    return Err(error);
                }
                output::notice(format_args!("connection lost ({error:#}); trying again"));
                self.pause().await;
            }
        }
    }

    /// Connects, or takes in the next bytes.
    async fn advance(&mut self) -> Result<()> {
        let Some(connection) = &mut self.connection else {
            self.connection = Some(self.connect().await?);
            self.was_connected = true;
            self.parser.reconnected();
            return Ok(());
        };
        let bytes = match tokio::time::timeout(SILENCE_LIMIT, connection.chunk()).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => return Err(anyhow!("the server closed the stream")),
            Ok(Err(error)) => return Err(anyhow!(root_cause(&error))),
            Err(_) => return Err(anyhow!("no sign of life for {} s", SILENCE_LIMIT.as_secs())),
        };
        self.wait = FIRST_WAIT;
        let events = self.parser.push(&bytes).map_err(|_| anyhow!("an event is too long"))?;
        self.ready.extend(events);
        Ok(())
    }

    async fn connect(&self) -> Result<Response> {
        let mut url = self.client.url("/v1")?;
        path_segments(&mut url)?.extend(&self.path);
        let request = self.client.authorized(self.client.http.request(Method::GET, url));
        let mut request = request.header(ACCEPT, "text/event-stream").query(&self.filter.parameters);
        match self.parser.last_event_id() {
            Some(id) => request = request.header("last-event-id", id),
            None if self.filter.snapshot => request = request.query(&[("snapshot", "true")]),
            None => {}
        }
        self.client.send(request).await
    }

    /// Whether it may help to connect again: not if nobody was ever there, and not if the server said no.
    fn may_come_back(&self, error: &anyhow::Error) -> bool {
        let refused =
            error.downcast_ref::<Failure>().is_some_and(|failure| failure.code != Code::Unreachable);
        self.was_connected && !refused
    }

    async fn pause(&mut self) {
        let wait = self.parser.retry().map_or(self.wait, |retry| retry.max(self.wait));
        tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::args::ServerArgs;

    async fn read_request(socket: &mut TcpStream) -> String {
        let mut request = vec![0; 4096];
        let length = socket.read(&mut request).await.expect("a request");
        String::from_utf8_lossy(&request[..length]).to_lowercase()
    }

    async fn answer(socket: &mut TcpStream, events: &str) {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(format!("{head}{events}").as_bytes()).await.expect("written");
    }

    #[tokio::test]
    async fn a_lost_connection_resumes_after_the_last_id() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = Some(listener.local_addr().expect("an address").to_string());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let first = read_request(&mut socket).await;
            answer(&mut socket, "retry: 10\nid: 4\ndata: one\n\nid: 5\ndata: ha").await;
            drop(socket);
            let (mut socket, _) = listener.accept().await.expect("the client again");
            let second = read_request(&mut socket).await;
            answer(&mut socket, "id: 5\ndata: two\n\n").await;
            (first, second)
        });
        let client = Client::new(&ServerArgs { url, ..ServerArgs::default() }).expect("a client");
        let filter = AlertFilter { parameters: vec![("rule".into(), "hot".into())], snapshot: true };
        let mut stream = client.follow_alerts(filter);
        assert_eq!(stream.next().await.expect("an event").data, "one");
        assert_eq!(stream.next().await.expect("an event").data, "two");
        let (first, second) = server.await.expect("the server");
        assert!(first.contains("rule=hot&snapshot=true"), "{first}");
        assert!(second.contains("last-event-id: 4") && !second.contains("snapshot"), "{second}");
    }

    #[tokio::test]
    async fn a_server_that_was_never_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = Some(listener.local_addr().expect("an address").to_string());
        drop(listener);
        let client = Client::new(&ServerArgs { url, ..ServerArgs::default() }).expect("a client");
        let error = client.follow_alerts(AlertFilter::default()).next().await.expect_err("nobody there");
        assert_eq!(error.downcast_ref::<Failure>().expect("a failure").code, Code::Unreachable);
    }
}
