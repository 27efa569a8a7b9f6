//! Readers that come, drop, and come back.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use futures::StreamExt;
use iot_schemas::alert::AlertState::{Firing, Inactive, Pending, Resolved};
use iot_schemas::alert::{AlertFeed, Transition};

use super::filter::TransitionFilter;
use super::follow::{Follower, Next, Signal, Start};
use crate::http::HttpLimits;
use crate::http::fakes::{Fixture, oneshot, soon};

/// A client of an event stream that reads as the specification of server-sent events says.
struct EventSource {
    body: BodyDataStream,
    buffered: String,
    last_event_id: String,
}

impl EventSource {
    async fn open(router: Router, query: &str, last_event_id: Option<&str>) -> Self {
        let mut request = Request::get(format!("/v1/alerts/stream{query}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = oneshot(router, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body().into_data_stream(),
            buffered: String::new(),
            last_event_id: String::new(),
        }
    }

    /// The next block of lines, up to an empty line. `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffered.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffered = rest;
                if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id: ")) {
                    self.last_event_id = id.to_owned();
                }
                return Some(block);
            }
            let bytes = soon(self.body.next()).await?.unwrap();
            self.buffered.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// The next alert; what has no data is passed over.
    async fn alert(&mut self) -> Transition {
        loop {
            let block = self.block().await.expect("the stream goes on");
            if let Some(data) = block.lines().find_map(|line| line.strip_prefix("data: ")) {
                assert!(block.contains("event: alert\n"), "{block}");
                return serde_json::from_str(data).unwrap();
            }
        }
    }

    async fn alerts(&mut self, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.alert().await.id);
        }
        ids
    }
}

fn quick_heartbeat() -> Fixture {
    Fixture::with_limits(HttpLimits { heartbeat: Duration::from_millis(20), ..HttpLimits::default() })
}

#[tokio::test]
async fn a_reader_without_an_id_starts_at_the_newest() {
    let fixture = Fixture::new();
    fixture.feed.push("a", Firing);
    let mut source = EventSource::open(fixture.router(), "", None).await;
    assert_eq!(source.block().await.unwrap(), "retry: 2000\nid: 1");
    fixture.feed.push("a", Resolved);
    let block = source.block().await.unwrap();
    assert!(block.starts_with("event: alert\nid: 2\ndata: {\"id\":2,"), "{block}");
}

#[tokio::test]
async fn a_reader_that_drops_before_its_first_alert_misses_none() {
    let fixture = Fixture::new();
    fixture.feed.push("a", Firing);
    let mut source = EventSource::open(fixture.router(), "", None).await;
    source.block().await;
    let id = source.last_event_id.clone();
    drop(source);
    fixture.feed.push("a", Resolved);
    let mut source = EventSource::open(fixture.router(), "", Some(&id)).await;
    assert_eq!(source.alerts(1).await, [2]);
}

#[tokio::test]
async fn a_reader_that_drops_and_returns_sees_each_transition_once_across_restarts() {
    let fixture = Fixture::new();
    for i in 0..200 {
        fixture.feed.push(&format!("d{}", i % 7), Firing);
    }
    let mut seen = Vec::new();
    let mut id = "0".to_owned();
    for round in 0..20 {
        // Every router is new, and so is everything in it: only the log outlives a restart.
        let mut source = EventSource::open(fixture.router(), "", Some(&id)).await;
        seen.extend(source.alerts(10 + round).await);
        id = source.last_event_id.clone();
        fixture.feed.push("late", Firing);
        if seen.len() > 380 {
            break;
        }
        for _ in 0..10 {
            fixture.feed.push("more", Pending);
        }
    }
    let expect: Vec<u64> = (1..=seen.len() as u64).collect();
    assert_eq!(seen, expect);
}

#[tokio::test]
async fn the_header_says_more_than_the_query_string() {
    let fixture = Fixture::new();
    for _ in 0..5 {
        fixture.feed.push("a", Firing);
    }
    let mut from_query = EventSource::open(fixture.router(), "?last_event_id=3", None).await;
    assert_eq!(from_query.alerts(2).await, [4, 5]);
    let mut from_header =
        EventSource::open(fixture.router(), "?last_event_id=1&snapshot=true", Some("4")).await;
    assert_eq!(from_header.alerts(1).await, [5]);
}

#[tokio::test]
async fn an_id_beyond_the_newest_counts_as_the_newest() {
    let fixture = Fixture::new();
    fixture.feed.push("a", Firing);
    let mut source = EventSource::open(fixture.router(), "", Some("99")).await;
    assert_eq!(source.block().await.unwrap(), "retry: 2000\nid: 1");
    fixture.feed.push("a", Resolved);
    assert_eq!(source.alerts(1).await, [2]);
}

#[tokio::test]
async fn what_is_no_id_or_no_filter_is_refused() {
    let fixture = Fixture::new();
    let request = Request::get("/v1/alerts/stream").header("last-event-id", "x").body(Body::empty()).unwrap();
    fixture.send(request).await.is_problem(400, "invalid-request");
    fixture.get("/v1/alerts/stream?last_event_id=-1").await.is_problem(400, "invalid-request");
    fixture.get("/v1/alerts/stream?snapshot=yes").await.is_problem(400, "invalid-request");
    fixture.get("/v1/alerts/stream?state=burning").await.is_problem(400, "invalid-request");
}

#[tokio::test]
async fn a_snapshot_has_what_is_open_and_then_what_comes() {
    let fixture = Fixture::new();
    fixture.feed.push("a", Pending);
    fixture.feed.push("b", Firing);
    fixture.feed.push("a", Firing);
    fixture.feed.push("c", Resolved);
    fixture.feed.push("d", Inactive);
    let mut source = EventSource::open(fixture.router(), "?snapshot=true", None).await;
    assert!(source.block().await.unwrap().starts_with("retry: 2000\nevent: alert\nid: 2\n"));
    assert!(source.block().await.unwrap().starts_with("event: alert\nid: 3\n"));
    assert_eq!(source.block().await.unwrap(), "id: 5");
    fixture.feed.push("b", Resolved);
    assert_eq!(source.alerts(1).await, [6]);
}

#[tokio::test]
async fn filters_hold_for_snapshot_and_stream() {
    let fixture = Fixture::new();
    fixture.feed.push("a", Firing);
    fixture.feed.push("b", Firing);
    let mut source =
        EventSource::open(fixture.router(), "?snapshot=true&device_id=b&state=firing,resolved", None).await;
    assert_eq!(source.alerts(1).await, [2]);
    fixture.feed.push("a", Resolved);
    fixture.feed.push("b", Pending);
    fixture.feed.push("b", Resolved);
    assert_eq!(source.alerts(1).await, [5]);
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let fixture = quick_heartbeat();
    let mut source = EventSource::open(fixture.router(), "", None).await;
    source.block().await;
    assert_eq!(source.block().await.unwrap(), ": ");
    assert_eq!(source.block().await.unwrap(), ": ");
}

#[tokio::test]
async fn unwanted_transitions_move_the_resume_point() {
    let fixture = quick_heartbeat();
    let mut source = EventSource::open(fixture.router(), "?state=resolved", None).await;
    source.block().await;
    for _ in 0..300 {
        fixture.feed.push("a", Firing);
    }
    while source.last_event_id != "300" {
        source.block().await.unwrap();
    }
    fixture.feed.push("a", Resolved);
    assert_eq!(source.alerts(1).await, [301]);
}

#[tokio::test]
async fn streams_over_the_limit_are_refused_until_one_closes() {
    let fixture = Fixture::with_limits(HttpLimits { event_streams: 1, ..HttpLimits::default() });
    let router = fixture.router();
    let source = EventSource::open(router.clone(), "", None).await;
    let request = || Request::get("/v1/alerts/stream").body(Body::empty()).unwrap();
    let refused = oneshot(router.clone(), request()).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["content-type"]),
        (503, &"application/problem+json".parse().unwrap())
    );
    drop(source);
    EventSource::open(router, "", None).await;
}

#[tokio::test]
async fn a_stream_ends_when_the_server_does() {
    let fixture = Fixture::new();
    let mut source = EventSource::open(fixture.router(), "", None).await;
    source.block().await;
    fixture.app.shutdown.cancel();
    assert_eq!(source.block().await, None);
}

#[tokio::test]
async fn transitions_that_are_no_longer_kept_are_named() {
    let fixture = Fixture::new();
    for _ in 0..5 {
        fixture.feed.push("a", Firing);
    }
    fixture.feed.forget(3);
    let mut source = EventSource::open(fixture.router(), "", Some("1")).await;
    source.block().await;
    assert_eq!(source.block().await.unwrap(), "event: missed\nid: 3\ndata: {\"first\":2,\"last\":3}");
    assert_eq!(source.alerts(2).await, [4, 5]);
}

#[test]
fn a_reader_far_behind_has_no_more_than_a_chunk_in_hand() {
    let fixture = Fixture::new();
    for _ in 0..10_000 {
        fixture.feed.push("a", Firing);
    }
    let mut follower = Follower::new(fixture.feed.clone(), TransitionFilter::default(), Start::After(0));
    let mut last = 0;
    while let Next::Signal(signal) = follower.next().unwrap() {
        assert!(follower.in_hand() < 64);
        if let Signal::Transition(transition) = signal {
            assert_eq!(transition.id, last + 1);
            last = transition.id;
        }
    }
    assert_eq!(last, *fixture.feed.latest().borrow());
}

#[test]
fn a_snapshot_of_many_alerts_goes_out_in_parts_and_each_alert_once() {
    let fixture = Fixture::new();
    for device in 0..3_000 {
        fixture.feed.push(&format!("d{device}"), Firing);
    }
    let mut follower = Follower::new(fixture.feed.clone(), TransitionFilter::default(), Start::Snapshot);
    let mut ids = Vec::new();
    while let Next::Signal(signal) = follower.next().unwrap() {
        if let Signal::Transition(transition) = signal {
            ids.push(transition.id);
        }
        if ids.len() == 1_000 {
            // One that is yet to go out, and one that has.
            fixture.feed.push("d2900", Resolved);
            fixture.feed.push("d0", Resolved);
        }
    }
    let mut expect: Vec<u64> = (1..=3_000).filter(|id| *id != 2_901).collect();
    expect.extend([3_001, 3_002]);
    assert_eq!(ids, expect);
}
