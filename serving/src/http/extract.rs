//! The parts of a request as types. What does not fit leaves as a [`Problem`] that says where.

use std::error::Error;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::{Problem, ProblemKind};

/// The query string. Give `T` `deny_unknown_fields`: a mistyped filter must not widen an answer.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let read = Query::try_from_uri(&parts.uri);
        read.map(|Query(params)| Self(params))
            .map_err(|e| Problem::invalid(format!("the query string: {}", cause(&e))))
    }
}

/// The named segments of the path.
#[derive(Debug)]
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Path::from_request_parts(parts, state).await;
        read.map(|Path(segments)| Self(segments))
            .map_err(|e| Problem::invalid(format!("the path: {}", e.body_text())))
    }
}

/// A JSON body, whatever its content type says; no body counts as `{}`.
///
/// The content type may be ignored because requests of other sites are refused by [`super::origin`].
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = read_body(request, state).await?;
        let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(body).map(Self).map_err(|e| Problem::invalid(format!("the JSON body: {e}")))
    }
}

/// A UTF-8 body.
#[derive(Debug)]
pub(super) struct TextBody(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for TextBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = read_body(request, state).await?;
        String::from_utf8(body.into())
            .map(Self)
            .map_err(|e| Problem::invalid(format!("the body: {}", e.utf8_error())))
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(ProblemKind::BODY_TOO_LARGE, "send it in smaller parts, or raise the server's limit")
        }
        _ => Problem::invalid(format!("the body could not be read: {}", cause(&e))),
    })
}

/// The error at the bottom of the chain, which names the field; those above it only say what failed.
fn cause(error: &dyn Error) -> String {
    let mut bottom = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    bottom.to_string()
}
