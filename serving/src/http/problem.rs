//! What goes wrong, as problem details (RFC 9457): a stable `type` to program against, a text to read.
//!
//! The status of an error is chosen here, in one `match`, and nowhere else.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use datafusion::error::DataFusionError;
use serde::Serialize;

use iot_schemas::Error;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// What a client that was turned away for lack of room should wait before it asks again, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// A problem document and, with it, the answer to a request that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    #[serde(flatten)]
    kind: ProblemKind,
    detail: String,
}

/// One kind of problem. Its `type` never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProblemKind {
    r#type: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
}

impl ProblemKind {
    /// A parameter, a header, a body or a definition is wrong.
    pub const INVALID_REQUEST: Self =
        Self::new("urn:iot:problem:invalid-request", "the request is not valid", 400);
    /// The SQL text is wrong, or fails on these rows.
    pub const INVALID_QUERY: Self = Self::new("urn:iot:problem:invalid-query", "the query is not valid", 400);
    /// The request needs a bearer token that is known.
    pub const UNAUTHORIZED: Self = Self::new("urn:iot:problem:unauthorized", "a token is needed", 401);
    /// The token does not allow this.
    pub const FORBIDDEN: Self = Self::new("urn:iot:problem:forbidden", "the token does not allow this", 403);
    /// A web page of another origin tried to change something.
    pub const CROSS_SITE: Self =
        Self::new("urn:iot:problem:cross-site", "the request comes from another site", 403);
    /// A request from this machine calls it by a name that a web page may have made up.
    pub const FOREIGN_HOST: Self =
        Self::new("urn:iot:problem:foreign-host", "the host is not this machine", 403);
    /// Something that was named does not exist.
    pub const NOT_FOUND: Self = Self::new("urn:iot:problem:not-found", "no such thing", 404);
    /// The path exists, the method does not.
    pub const METHOD_NOT_ALLOWED: Self =
        Self::new("urn:iot:problem:method-not-allowed", "the method is not supported here", 405);
    /// None of the formats that the client accepts can be had.
    pub const NOT_ACCEPTABLE: Self =
        Self::new("urn:iot:problem:not-acceptable", "the format is not supported", 406);
    /// The body is over the limit.
    pub const BODY_TOO_LARGE: Self =
        Self::new("urn:iot:problem:body-too-large", "the request body is too large", 413);
    /// The body is in a format that cannot be read.
    pub const UNSUPPORTED_MEDIA_TYPE: Self =
        Self::new("urn:iot:problem:unsupported-media-type", "the format of the body is not supported", 415);
    /// Our bug.
    pub const INTERNAL: Self = Self::new("urn:iot:problem:internal", "the server failed", 500);
    /// Bytes on disk or in the store are not what was written.
    pub const CORRUPT_DATA: Self = Self::new("urn:iot:problem:corrupt-data", "stored data is damaged", 500);
    /// The store or the disk failed; the same request may succeed later.
    pub const STORE_UNAVAILABLE: Self =
        Self::new("urn:iot:problem:store-unavailable", "the store cannot be used now", 503);
    /// The server is starting, or stopping.
    pub const NOT_READY: Self = Self::new("urn:iot:problem:not-ready", "the server is not ready", 503);
    /// As many event streams are open as the server allows.
    pub const TOO_MANY_STREAMS: Self =
        Self::new("urn:iot:problem:too-many-streams", "too many event streams are open", 503);
    /// The query needs more memory than it may have.
    pub const QUERY_TOO_LARGE: Self =
        Self::new("urn:iot:problem:query-too-large", "the query needs more memory than it may use", 507);

    const fn new(r#type: &'static str, title: &'static str, status: u16) -> Self {
        match StatusCode::from_u16(status) {
            Ok(status) => Self { r#type, title, status },
            Err(_) => panic!("a constant of this file is no HTTP status"),
        }
    }
}

impl Problem {
    /// A problem with what is particular about this occurrence.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    /// The request is wrong; the text says where and what to try.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::INVALID_REQUEST, detail)
    }

    /// The path leads nowhere.
    pub fn no_such_endpoint(path: &str) -> Self {
        Self::new(ProblemKind::NOT_FOUND, format!("there is no endpoint `{path}`"))
    }

    /// The path does not know the method.
    pub fn wrong_method(method: &Method, path: &str) -> Self {
        let detail = format!("`{path}` does not support {method}; the header `Allow` lists what it does");
        Self::new(ProblemKind::METHOD_NOT_ALLOWED, detail)
    }

    fn log(&self) {
        match self.kind.status.as_u16() {
            500 => tracing::error!(problem = self.kind.r#type, "a request failed: {}", self.detail),
            501.. => tracing::warn!(problem = self.kind.r#type, "a request failed: {}", self.detail),
            _ => tracing::debug!(problem = self.kind.r#type, "a request was refused: {}", self.detail),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(kind_of(&error), error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.log();
        let status = self.kind.status;
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}

fn kind_of(error: &Error) -> ProblemKind {
    match error {
        Error::Invalid(_) => ProblemKind::INVALID_REQUEST,
        Error::NotFound { .. } => ProblemKind::NOT_FOUND,
        Error::DataFusion(cause) => match cause.find_root() {
            DataFusionError::ResourcesExhausted(_) => ProblemKind::QUERY_TOO_LARGE,
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => ProblemKind::STORE_UNAVAILABLE,
            _ if error.is_users() => ProblemKind::INVALID_QUERY,
            _ => ProblemKind::INTERNAL,
        },
        Error::Io { .. } | Error::Store(_) | Error::Delta(_) => ProblemKind::STORE_UNAVAILABLE,
        Error::Corrupt { .. } => ProblemKind::CORRUPT_DATA,
        Error::Arrow(_) => ProblemKind::INTERNAL,
    }
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Error, expect: ProblemKind) {
        assert_eq!(Problem::from(error).kind, expect);
    }

    #[test]
    fn an_errors_kind_says_who_can_mend_it() {
        let io = || std::io::Error::other("disk full");
        check(Error::invalid("`x` is no name"), ProblemKind::INVALID_REQUEST);
        check(
            Error::NotFound { kind: "view", name: "x".into(), hint: String::new() },
            ProblemKind::NOT_FOUND,
        );
        check(DataFusionError::Plan("table 'x' not found".into()).into(), ProblemKind::INVALID_QUERY);
        check(DataFusionError::Execution("division by zero".into()).into(), ProblemKind::INVALID_QUERY);
        check(DataFusionError::Internal("oops".into()).into(), ProblemKind::INTERNAL);
        check(DataFusionError::ResourcesExhausted("1 GB".into()).into(), ProblemKind::QUERY_TOO_LARGE);
        check(DataFusionError::IoError(io()).context("reading").into(), ProblemKind::STORE_UNAVAILABLE);
        check(Error::io("sealing", io()), ProblemKind::STORE_UNAVAILABLE);
        check(Error::Corrupt { path: "wal".into(), reason: "checksum".into() }, ProblemKind::CORRUPT_DATA);
    }
}
