//! `/v1/views/{name}/stream`: the rows of a view as they change, and once more when their windows are closed.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::alerts::{parse_flag, parse_number};
use super::extract::{Params, Segments};
use super::problem::Problem;
use super::{Streams, UNBUFFERED};
use crate::live::mailbox::Wish;
use crate::live::view_sse::view_events;

pub(super) fn routes(streams: Streams) -> Router {
    Router::new().route("/v1/views/{name}/stream", get(follow)).with_state(streams)
}

/// The query string of a view's stream.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamParams {
    device_id: Option<String>,
    /// `true`: only closed rows and corrections.
    closed: Option<String>,
    last_event_id: Option<String>,
}

impl StreamParams {
    /// The header wins over the query string, which a browser repeats as it was when it reconnects.
    fn into_wish(self, headers: &HeaderMap) -> Result<Wish, Problem> {
        let header = headers.get("last-event-id").map(|value| String::from_utf8_lossy(value.as_bytes()));
        let last = header.map(|value| value.into_owned()).or(self.last_event_id).filter(|id| !id.is_empty());
        Ok(Wish {
            device: self.device_id,
            closed_only: self.closed.map_or(Ok(false), |value| parse_flag("closed", &value))?,
            resume_after: last.map(|id| parse_number("Last-Event-ID", &id)).transpose()?,
        })
    }
}

async fn follow(
    State(streams): State<Streams>,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    Params(params): Params<StreamParams>,
) -> Result<Response, Problem> {
    let wish = params.into_wish(&headers)?;
    let (slot, pace) = streams.slot()?;
    let subscription = streams.app.feeds.subscribe(&name, wish)?;
    Ok((UNBUFFERED, view_events(subscription, pace, streams.app.shutdown.clone(), slot)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(params: StreamParams, header: Option<&str>) -> Result<Wish, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("last-event-id", header.parse().unwrap());
        }
        params.into_wish(&headers)
    }

    #[test]
    fn a_reader_says_what_it_wants_and_where_it_was() {
        let params = || StreamParams {
            device_id: Some("a".into()),
            closed: Some("true".into()),
            last_event_id: Some("60".into()),
        };
        let expect = |resume_after| Wish { device: Some("a".into()), closed_only: true, resume_after };
        assert_eq!(wish(params(), None).unwrap(), expect(Some(60)));
        assert_eq!(wish(params(), Some("120")).unwrap(), expect(Some(120)));
        assert_eq!(wish(StreamParams::default(), None).unwrap(), Wish::default());
        assert!(
            wish(StreamParams { closed: Some("maybe".into()), ..StreamParams::default() }, None).is_err()
        );
        assert!(wish(params(), Some("yesterday")).is_err());
    }
}
