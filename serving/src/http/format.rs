//! The formats in which rows leave, and which of them a client's `Accept` header asks for.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use super::problem::{Problem, ProblemKind};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One object: columns, rows, provenance.
    Json,
    /// One JSON object per line and row.
    JsonLines,
    /// Comma-separated, with a header line.
    Csv,
    /// The Arrow IPC stream format.
    Arrow,
    /// One Parquet file.
    Parquet,
}

/// Media types and the formats they name. The first of a format is what a response says; the ranges with `*`
/// stand for the format that a reader of that kind most likely wants.
const MEDIA_TYPES: [(&str, Format); 11] = [
    ("application/json", Format::Json),
    ("application/x-ndjson", Format::JsonLines),
    ("application/jsonl", Format::JsonLines),
    ("application/ndjson", Format::JsonLines),
    ("text/csv", Format::Csv),
    ("application/vnd.apache.arrow.stream", Format::Arrow),
    ("application/vnd.apache.parquet", Format::Parquet),
    ("*/*", Format::Json),
    ("*", Format::Json),
    ("application/*", Format::Json),
    ("text/*", Format::Csv),
];

impl Format {
    /// The media type of a response in this format.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The format that an `Accept` header likes best; of equals, the first. `None` if there is none.
    fn accepted_by(accept: &str) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        for range in accept.split(',') {
            let (media_type, weight) = parse_range(range);
            let Some(format) = Self::named(media_type) else { continue };
            if weight > best.map_or(0.0, |(weight, _)| weight) {
                best = Some((weight, format));
            }
        }
        best.map(|(_, format)| format)
    }

    fn named(media_type: &str) -> Option<Self> {
        MEDIA_TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(media_type)).map(|(_, format)| *format)
    }
}

impl<S: Sync> FromRequestParts<S> for Format {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let headers = parts.headers.get_all(header::ACCEPT).iter();
        let accept = headers.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
        if accept.trim().is_empty() {
            return Ok(Self::Json);
        }
        Self::accepted_by(&accept).ok_or_else(|| not_acceptable(&accept))
    }
}

fn parse_range(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let weight = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    (media_type, weight.map_or(1.0, |text| text.parse().unwrap_or(0.0)))
}

fn not_acceptable(accept: &str) -> Problem {
    let names = MEDIA_TYPES.iter().map(|(name, _)| *name).filter(|name| !name.contains('*'));
    let detail = format!("`Accept: {accept}` names no format of: {}", names.collect::<Vec<_>>().join(", "));
    Problem::new(ProblemKind::NOT_ACCEPTABLE, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expect: Option<Format>) {
        assert_eq!(Format::accepted_by(accept), expect, "{accept}");
    }

    #[test]
    fn the_best_liked_format_is_chosen() {
        check("application/json", Some(Format::Json));
        check("*/*", Some(Format::Json));
        check("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Some(Format::Json));
        check("text/csv", Some(Format::Csv));
        check("TEXT/CSV; charset=utf-8", Some(Format::Csv));
        check("application/jsonl", Some(Format::JsonLines));
        check("application/x-ndjson, application/json", Some(Format::JsonLines));
        check("application/json;q=0.5, application/vnd.apache.parquet", Some(Format::Parquet));
        check("application/vnd.apache.arrow.stream;q=0.9, */*;q=0.1", Some(Format::Arrow));
        check("application/xml", None);
        check("application/json;q=0", None);
    }
}
