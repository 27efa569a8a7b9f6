//! The rows of a view as server-sent events.
//!
//! ```text
//! retry: 2000            how long to wait before coming back
//! id: 1760000000000000   all windows that end by then (microseconds since 1970) have been given as closed
//!
//! event: row
//! data: {"device_id":"a","window_start":"2026-11-24T10:00:00Z","n":7,"closed":false}
//!
//! event: row             the window is over: once for each window, whether or not anything comes for it
//! data: {...,"n":9,"closed":true,"correction":false,"revision":0}
//!
//! event: row             an event came late
//! data: {...,"n":10,"closed":true,"correction":true,"revision":1}
//!
//! :                      a heartbeat
//! ```
//! A reader that was too slow for a very large number of rows is told with `event: missed` how many it has lost.

use std::convert::Infallible;

use axum::response::sse::{Event, Sse};
use futures::stream::{self, Stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::mailbox::Told;
use super::sse::Pace;
use super::view_hub::Subscription;

/// The events for one reader. Ends at `shutdown` and with the view. The slot is given back when the stream is
/// dropped.
pub(crate) fn view_events(
    subscription: Subscription,
    pace: Pace,
    shutdown: CancellationToken,
    slot: OwnedSemaphorePermit,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let opening = Event::default().retry(pace.retry);
    let reader = Reader { subscription, pace, shutdown, opening: Some(opening), _slot: slot };
    Sse::new(stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    }))
}

struct Reader {
    subscription: Subscription,
    pace: Pace,
    shutdown: CancellationToken,
    /// Goes out at once, so that the reader knows that it is connected.
    opening: Option<Event>,
    _slot: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        let told = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return None,
            told = tokio::time::timeout(self.pace.heartbeat, self.subscription.mailbox.next()) => told,
        };
        match told {
            Ok(Told::Row(row)) => Some(Event::default().event("row").data(row.to_json())),
            Ok(Told::Position(position)) => Some(Event::default().id(position.to_string())),
            Ok(Told::Missed(rows)) => {
                Some(Event::default().event("missed").data(json!({ "rows": rows }).to_string()))
            }
            Ok(Told::End) => None,
            Err(_) => Some(Event::default().comment("")),
        }
    }
}
