//! From an accepted TCP connection to a stream of MQTT bytes: TLS, WebSocket, both or neither.
//!
//! Any web page can open a WebSocket to this machine in the name of whoever looks at it. Where a client must give a
//! password that gains it nothing; where it is let in for its address or its certificate, the page's origin counts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::select_all;
use mqtt5::broker::websocket_server::WebSocketStreamWrapper;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use iot_schemas::{Error, Result, host};

use super::access::Access;
use super::certificate;

/// Where MQTT over WebSocket is served.
const WEB_SOCKET_PATH: &str = "/mqtt";
const PROTOCOL_HEADER: &str = "sec-websocket-protocol";

/// What is spoken below MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket, at the path `/mqtt`.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Transport {
    /// The scheme of its URLs, which is also its name in `listening` lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether it is encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }
}

/// A connection's bytes, whatever carries them.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for S {}

/// All addresses of the broker.
#[derive(Debug)]
pub(super) struct Listeners(Vec<(Transport, TcpListener)>);

impl Listeners {
    /// Binds all, or none.
    pub(super) async fn bind(addrs: &[(Transport, SocketAddr)]) -> Result<Self> {
        let mut bound = Vec::with_capacity(addrs.len());
        for (transport, addr) in addrs {
            let listener = TcpListener::bind(addr).await;
            let failed = |e| Error::io(format!("listening for {} on {addr}", transport.name()), e);
            bound.push((*transport, listener.map_err(failed)?));
        }
        match bound.is_empty() {
            true => Err(Error::invalid("the embedded broker has no address to listen on")),
            false => Ok(Self(bound)),
        }
    }

    /// Where they listen.
    pub(super) fn addrs(&self) -> Result<Vec<(Transport, SocketAddr)>> {
        let addr =
            |(transport, listener): &(Transport, TcpListener)| Ok((*transport, listener.local_addr()?));
        let addrs: io::Result<_> = self.0.iter().map(addr).collect();
        addrs.map_err(|e| Error::io("the address of a listener", e))
    }

    /// The next connection of any of them. Dropping the future loses none.
    pub(super) async fn accept(&self) -> io::Result<(Transport, TcpStream, SocketAddr)> {
        let each = self.0.iter().map(|(transport, listener)| {
            Box::pin(async move { listener.accept().await.map(|(stream, peer)| (*transport, stream, peer)) })
        });
        select_all(each).await.0
    }
}

/// How connections are opened.
#[derive(Clone)]
pub(super) struct Opener {
    /// Present where a listener needs it.
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    /// The largest WebSocket message: as large as a packet may be.
    pub(super) max_message_bytes: usize,
    /// Says who would be let in without a password.
    pub(super) access: Arc<Access>,
}

/// A connection that can speak MQTT.
pub(super) struct Opened {
    pub(super) stream: Box<dyn ByteStream>,
    /// The name in the client's verified certificate.
    pub(super) certificate: Option<Subject>,
}

/// Who a verified certificate is about; `None` inside if it does not say.
pub(super) type Subject = Option<String>;

impl Opener {
    /// Does the handshakes. May take as long as the other side likes, so the caller limits the time.
    pub(super) async fn open(
        &self,
        transport: Transport,
        stream: TcpStream,
        peer: IpAddr,
    ) -> io::Result<Opened> {
        let is_welcome = self.access.welcomes_strangers_from(peer);
        match transport {
            Transport::Mqtt => Ok(Opened { stream: Box::new(stream), certificate: None }),
            Transport::Ws => {
                let pages = if is_welcome { Pages::without_tls(peer) } else { Pages::All };
                Ok(Opened { stream: self.web_socket(stream, pages).await?, certificate: None })
            }
            Transport::Mqtts | Transport::Wss => {
                let tls = self.tls.clone().ok_or_else(|| io::Error::other("TLS is not set up"))?;
                let stream = TlsAcceptor::from(tls).accept(stream).await?;
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certificate = shown.map(|shown| certificate::subject(shown));
                let stream = match transport {
                    Transport::Wss => {
                        // A browser shows a client's certificate for any page.
                        let is_welcome = is_welcome || certificate.is_some();
                        let pages = if is_welcome { Pages::SameHost } else { Pages::All };
                        self.web_socket(stream, pages).await?
                    }
                    _ => Box::new(stream),
                };
                Ok(Opened { stream, certificate })
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the library's type")]
    async fn web_socket<S: ByteStream + 'static>(
        &self,
        stream: S,
        pages: Pages,
    ) -> io::Result<Box<dyn ByteStream>> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(self.max_message_bytes))
            .max_frame_size(Some(self.max_message_bytes));
        let check = |request: &Request, response| check_request(request, response, pages);
        let socket = accept_hdr_async_with_config(stream, check, Some(config)).await;
        Ok(Box::new(WebSocketStreamWrapper::new(socket.map_err(io::Error::other)?)))
    }
}

/// Which web pages may connect. Other programs send no origin and may always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// All: whoever connects must give a password, and a page has none.
    All,
    /// Those of this machine.
    Local,
    /// Those of this machine, and those of the host that they connect to.
    SameHost,
}

impl Pages {
    /// Those that may connect from `peer` without a password. A foreign page can make its own name lead to this machine
    /// (DNS rebinding); over TLS the certificate would not fit.
    fn without_tls(peer: IpAddr) -> Self {
        if peer.to_canonical().is_loopback() { Self::Local } else { Self::SameHost }
    }

    fn admit(self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let Some(origin) = text(header::ORIGIN) else { return true };
        // A page without an origin (`null`) is of no host.
        let Some((_, origin)) = origin.split_once("://") else { return self == Self::All };
        let is_same = || text(header::HOST).is_some_and(|host| host::host_of(host) == host::host_of(origin));
        match self {
            Self::All => true,
            Self::Local => host::is_loopback(origin),
            Self::SameHost => host::is_loopback(origin) || is_same(),
        }
    }
}

/// MQTT 5, section 6: the client offers the protocol `mqtt`, and the server chooses it.
#[expect(clippy::result_large_err, reason = "the library's type")]
fn check_request(request: &Request, mut response: Response, pages: Pages) -> Result<Response, ErrorResponse> {
    let refuse = |status, why: &str| {
        let mut response = ErrorResponse::new(Some(why.to_owned()));
        *response.status_mut() = status;
        Err(response)
    };
    if request.uri().path() != WEB_SOCKET_PATH {
        return refuse(StatusCode::NOT_FOUND, "MQTT is at the path `/mqtt`");
    }
    if !pages.admit(request.headers()) {
        return refuse(
            StatusCode::FORBIDDEN,
            "a page of another origin must log in with a password; name users",
        );
    }
    let offered = request.headers().get(PROTOCOL_HEADER).and_then(|offered| offered.to_str().ok());
    if !offered.unwrap_or_default().split(',').any(|protocol| protocol.trim() == "mqtt") {
        return refuse(StatusCode::BAD_REQUEST, "the client must offer the protocol `mqtt`");
    }
    response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static("mqtt"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origin: Option<&str>, host: &str, all: [bool; 3]) {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a host"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("an origin"));
        }
        let found = [Pages::All, Pages::SameHost, Pages::Local].map(|pages| pages.admit(&headers));
        assert_eq!(found, all, "{origin:?} {host}");
    }

    #[test]
    fn a_foreign_page_must_log_in() {
        check(None, "127.0.0.1:8083", [true, true, true]);
        check(Some("http://localhost:3000"), "127.0.0.1:8083", [true, true, true]);
        check(Some("https://[::1]"), "127.0.0.1:8083", [true, true, true]);
        check(Some("https://plant.example"), "plant.example:8084", [true, true, false]);
        // On loopback it would be a page that has made its name lead here.
        check(Some("http://evil.example:8083"), "evil.example:8083", [true, true, false]);
        check(Some("https://evil.example"), "127.0.0.1:8083", [true, false, false]);
        check(Some("https://localhost.evil.example"), "localhost:8083", [true, false, false]);
        check(Some("null"), "localhost:8083", [true, false, false]);
        check(Some(""), ":8083", [true, false, false]);
    }

    #[test]
    fn only_the_host_that_is_connected_to_counts_elsewhere() {
        assert_eq!(Pages::without_tls([127, 0, 0, 1].into()), Pages::Local);
        assert_eq!(Pages::without_tls("::ffff:127.0.0.1".parse().expect("an address")), Pages::Local);
        assert_eq!(Pages::without_tls([192, 0, 2, 1].into()), Pages::SameHost);
    }
}
