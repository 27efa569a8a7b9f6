//! The alert log as server-sent events.
//!
//! ```text
//! retry: 2000            how long to wait before coming back
//! id: 41                 where the reader stands; an id without data moves its resume point and nothing else
//!
//! event: alert
//! id: 42                 the number of the transition in the alert log
//! data: {"id":42,...}
//!
//! :                      a heartbeat, or an `id:` alone if only unwanted transitions went by
//! ```
//! If the log no longer has what a reader resumes from, `event: missed` says which transitions it cannot have.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use futures::stream::{self, Stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::follow::{Follower, Next, Signal};

/// The times of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The longest silence.
    pub(crate) heartbeat: Duration,
    /// How long the reader is told to wait before it comes back.
    pub(crate) retry: Duration,
}

/// The events for one reader. Ends at `shutdown`, and when the log cannot be read: the reader then comes back
/// and resumes. The slot is given back when the stream is dropped.
pub(crate) fn event_stream(
    follower: Follower,
    pace: Pace,
    shutdown: CancellationToken,
    slot: OwnedSemaphorePermit,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let mut silence = interval_at(Instant::now() + pace.heartbeat, pace.heartbeat);
    silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let opening = Event::default().retry(pace.retry);
    let reader = Reader { follower, silence, shutdown, opening, _slot: slot };
    Sse::new(stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        reader.silence.reset();
        Some((Ok(event), reader))
    }))
}

struct Reader {
    follower: Follower,
    silence: Interval,
    shutdown: CancellationToken,
    /// Goes out as part of the first event.
    opening: Event,
    _slot: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        while !self.shutdown.is_cancelled() {
            match self.follower.next() {
                Ok(Next::Signal(signal)) => return self.event(signal),
                Ok(Next::Skipped) => tokio::select! {
                    biased;
                    _ = self.silence.tick() => return self.heartbeat(),
                    // A reader who wants little of a long log must not keep the others waiting.
                    () = tokio::task::yield_now() => {}
                },
                Ok(Next::CaughtUp) => tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return None,
                    _ = self.silence.tick() => return self.heartbeat(),
                    grown = self.follower.grown() => if !grown { return None },
                },
                Err(e) => {
                    tracing::warn!("an alert stream ends because the alert log cannot be read: {e}");
                    return None;
                }
            }
        }
        None
    }

    fn heartbeat(&mut self) -> Option<Event> {
        match self.follower.moved() {
            Some(position) => self.event(position),
            None => Some(self.opened().comment("")),
        }
    }

    fn event(&mut self, signal: Signal) -> Option<Event> {
        let event = self.opened();
        let written = match signal {
            Signal::Position(id) => Ok(event.id(id.to_string())),
            Signal::Transition(t) => event.event("alert").id(t.id.to_string()).json_data(&t),
            Signal::Missed { first, last } => {
                event.event("missed").id(last.to_string()).json_data(json!({"first": first, "last": last}))
            }
        };
        written.inspect_err(|e| tracing::error!("an alert cannot be written as JSON: {e}")).ok()
    }

    fn opened(&mut self) -> Event {
        std::mem::take(&mut self.opening)
    }
}
