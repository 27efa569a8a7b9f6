//! From an accepted TCP connection to a stream of MQTT bytes: TLS, WebSocket, both or neither.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::select_all;
use mqtt5::broker::websocket_server::WebSocketStreamWrapper;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use iot_schemas::{Error, Result};

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
    pub(super) async fn open(&self, transport: Transport, stream: TcpStream) -> io::Result<Opened> {
        match transport {
            Transport::Mqtt => Ok(Opened { stream: Box::new(stream), certificate: None }),
            Transport::Ws => Ok(Opened { stream: self.web_socket(stream).await?, certificate: None }),
            Transport::Mqtts | Transport::Wss => {
                let tls = self.tls.clone().ok_or_else(|| io::Error::other("TLS is not set up"))?;
                let stream = TlsAcceptor::from(tls).accept(stream).await?;
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certificate = shown.map(|shown| certificate::subject(shown));
                let stream = match transport {
                    Transport::Wss => self.web_socket(stream).await?,
                    _ => Box::new(stream),
                };
                Ok(Opened { stream, certificate })
            }
        }
    }

    async fn web_socket<S: ByteStream + 'static>(&self, stream: S) -> io::Result<Box<dyn ByteStream>> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(self.max_message_bytes))
            .max_frame_size(Some(self.max_message_bytes));
        let socket = accept_hdr_async_with_config(stream, check_request, Some(config)).await;
        Ok(Box::new(WebSocketStreamWrapper::new(socket.map_err(io::Error::other)?)))
    }
}

/// MQTT 5, section 6: the client offers the protocol `mqtt`, and the server chooses it.
#[expect(clippy::result_large_err, reason = "the library's type")]
fn check_request(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let refuse = |status| {
        let mut response = ErrorResponse::new(None);
        *response.status_mut() = status;
        Err(response)
    };
    if request.uri().path() != WEB_SOCKET_PATH {
        return refuse(StatusCode::NOT_FOUND);
    }
    let offered = request.headers().get(PROTOCOL_HEADER).and_then(|offered| offered.to_str().ok());
    if !offered.unwrap_or_default().split(',').any(|protocol| protocol.trim() == "mqtt") {
        return refuse(StatusCode::BAD_REQUEST);
    }
    response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static("mqtt"));
    Ok(response)
}
