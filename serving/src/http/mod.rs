//! The HTTP side of the serving layer: one file per resource, handlers without logic.
//!
//! It knows nothing of the layers behind it: queries, alerts, batch runs and the catalog are asked through
//! the traits in [`App`], so the whole surface runs in tests against fakes. Whatever goes wrong leaves as a
//! problem document, chosen in one place ([`problem`]).

mod alerts;
mod answer;
pub mod auth;
mod columns;
mod control;
mod dead;
pub(crate) mod encode;
mod extract;
mod format;
mod health;
mod listener;
mod origin;
pub mod problem;
mod query;
mod schemas;
mod view_stream;
mod views;
mod write;

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use iot_schemas::alert::AlertFeed;
use iot_schemas::batch::BatchRunner;
use iot_schemas::clock::Clock;
use iot_schemas::control::Control;
use iot_schemas::dead::DeadLetters;
use iot_schemas::registry::Schemas;
use iot_schemas::write::EventWriter;

use self::auth::{HttpAccess, Peer};
use self::listener::LimitedListener;
use self::problem::{Problem, ProblemKind};
use crate::dashboard;
use crate::live::sse::Pace;
use crate::live::view_hub::ViewFeeds;
use crate::query::Queries;

/// What the handlers ask. Everything behind it is shared, so a clone is cheap.
#[derive(Debug, Clone)]
pub struct App {
    /// SQL over views and streams.
    pub queries: Arc<dyn Queries>,
    /// The alert log.
    pub alerts: Arc<dyn AlertFeed>,
    /// The rows of views as they change.
    pub feeds: ViewFeeds,
    /// Batch runs by hand.
    pub batch: Arc<dyn BatchRunner>,
    /// The catalog, the server's health and the proof of its answers.
    pub control: Arc<dyn Control>,
    /// What columns streams have and had.
    pub schemas: Arc<dyn Schemas>,
    /// Whoever deals with dead letters.
    pub dead: Arc<dyn DeadLetters>,
    /// Whoever takes events.
    pub writer: Arc<dyn EventWriter>,
    /// The time.
    pub clock: Clock,
    /// Who may do what.
    pub access: HttpAccess,
    /// What clients may use up.
    pub limits: HttpLimits,
    /// Ends the event streams, which would otherwise never end by themselves.
    pub shutdown: CancellationToken,
}

/// What clients may use up, and how long the server waits for them.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Connections that are served at a time; further ones wait in the kernel's queue.
    pub connections: usize,
    /// The largest request body in bytes; a larger one is refused with status 413.
    pub body_bytes: usize,
    /// The largest body of events: of what is larger the log would keep the beginning only.
    pub write_bytes: usize,
    /// Event streams that are open at a time; a further one is refused with status 503.
    pub event_streams: usize,
    /// The longest silence on an event stream: shorter than the idle time-outs of common proxies.
    pub heartbeat: Duration,
    /// How long an event stream's reader is told to wait before it comes back.
    pub retry: Duration,
    /// How long open requests may go on after the server was told to stop.
    pub shutdown_grace: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            body_bytes: 8 << 20,
            write_bytes: 4 << 20,
            event_streams: 1_000,
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(2),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// Proxies that buffer would hold events back; this header is how nginx is told not to.
const UNBUFFERED: [(&str, &str); 1] = [("x-accel-buffering", "no")];

/// What the event streams of all kinds share: their slots.
#[derive(Debug, Clone)]
struct Streams {
    app: Arc<App>,
    slots: Arc<Semaphore>,
}

impl Streams {
    fn new(app: Arc<App>) -> Self {
        let slots = Arc::new(Semaphore::new(app.limits.event_streams));
        Self { app, slots }
    }

    /// The right to one more stream, and how it goes.
    fn slot(&self) -> Result<(OwnedSemaphorePermit, Pace), Problem> {
        let limits = &self.app.limits;
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            let open = limits.event_streams;
            let detail =
                format!("{open} event streams are open, which is this server's limit; try again later");
            Problem::new(ProblemKind::TOO_MANY_STREAMS, detail)
        })?;
        Ok((slot, Pace { heartbeat: limits.heartbeat, retry: limits.retry }))
    }
}

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    let streams = Streams::new(app.clone());
    Router::new()
        .merge(query::routes())
        .merge(views::routes())
        .merge(alerts::routes())
        .merge(control::routes())
        .merge(schemas::routes())
        .merge(dead::routes())
        .merge(write::routes())
        .merge(health::routes())
        .with_state(app.clone())
        .layer(DefaultBodyLimit::max(app.limits.body_bytes))
        .merge(alerts::stream_routes(streams.clone()))
        .merge(view_stream::routes(streams))
        .merge(dashboard::routes())
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(app.access.clone(), auth::check))
        .layer(axum::middleware::from_fn(origin::refuse_cross_site))
}

/// Serves all endpoints until `shutdown`, then lets open requests finish for [`HttpLimits::shutdown_grace`].
///
/// It cancels `app.shutdown` as well, so event streams end at once and do not use up the grace. A reader that
/// does not take its bytes any more cannot hold the server longer than that.
pub async fn serve(listener: TcpListener, app: Arc<App>, shutdown: CancellationToken) -> std::io::Result<()> {
    let grace = app.limits.shutdown_grace;
    let listener = LimitedListener::new(listener, app.limits.connections);
    let (stop, streams) = (shutdown.clone(), app.shutdown.clone());
    let service = router(app).into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        stop.cancelled().await;
        streams.cancel();
    });
    let grace_is_over = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = server.into_future() => served,
        () = grace_is_over => {
            tracing::warn!("some HTTP requests had not ended {grace:?} after the stop; they were cut off");
            Ok(())
        }
    }
}

async fn no_such_endpoint(uri: Uri) -> Problem {
    Problem::no_such_endpoint(uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::wrong_method(&method, uri.path())
}
