//! An answer of the query engine as an HTTP response: rows in the body, provenance in the headers.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::encode::encode;
use super::format::Format;
use super::problem::{Problem, ProblemKind};
use crate::query::{Answer, Meta};
use iot_schemas::position::Frontier;

const ROWS: HeaderName = HeaderName::from_static("x-iot-rows");
const ELAPSED_MS: HeaderName = HeaderName::from_static("x-iot-elapsed-ms");
const FRONTIER: HeaderName = HeaderName::from_static("x-iot-frontier");
const BATCH_GENERATION: HeaderName = HeaderName::from_static("x-iot-batch-generation");
/// All of [`Meta`] as JSON, for those who do not take their rows as JSON.
const META: HeaderName = HeaderName::from_static("x-iot-meta");
/// Clients and proxies refuse long headers. What is longer (a query over dozens of views) is left out.
const MAX_META_BYTES: usize = 4_096;

/// Writes the answer in the format asked for. Encoding is work for a processor, so it is done off the runtime.
pub(super) async fn respond(answer: Answer, format: Format) -> Result<Response, Problem> {
    let headers = provenance(&answer.meta);
    let encoding = tokio::task::spawn_blocking(move || encode(&answer, format));
    let body = encoding
        .await
        .map_err(|e| Problem::new(ProblemKind::INTERNAL, format!("encoding the answer: {e}")))??;
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], body).into_response();
    response.headers_mut().extend(headers);
    Ok(response)
}

fn provenance(meta: &Meta) -> Vec<(HeaderName, HeaderValue)> {
    let generations = meta.views.iter().map(|view| view.batch_generation.to_string());
    let texts = [
        (ROWS, meta.rows.to_string()),
        (ELAPSED_MS, format!("{:.3}", meta.elapsed_ms)),
        (FRONTIER, covered_by_all(meta).to_string()),
        (BATCH_GENERATION, generations.collect::<Vec<_>>().join(",")),
        (
            META,
            serde_json::to_string(meta).ok().filter(|text| text.len() <= MAX_META_BYTES).unwrap_or_default(),
        ),
    ];
    let values = texts.into_iter().filter(|(_, text)| !text.is_empty());
    values.filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?))).collect()
}

/// What every view and stream of the answer covers: up to there it is complete.
fn covered_by_all(meta: &Meta) -> Frontier {
    let mut frontiers = meta
        .views
        .iter()
        .map(|view| &view.frontier)
        .chain(meta.streams.iter().map(|stream| &stream.frontier));
    let Some(first) = frontiers.next() else { return Frontier::empty() };
    frontiers.fold(first.clone(), |common, other| {
        common
            .iter()
            .map(|(node, seq)| (node.clone(), seq.min(other.get(node))))
            .filter(|(_, seq)| *seq > 0)
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{StreamMeta, ViewMeta};

    #[test]
    fn the_frontier_of_an_answer_is_what_all_of_its_sources_cover() {
        let frontier =
            |entries: &[(&str, u64)]| entries.iter().map(|(node, seq)| ((*node).into(), *seq)).collect();
        let view = ViewMeta { frontier: frontier(&[("a", 5), ("b", 2)]), ..ViewMeta::default() };
        let stream = StreamMeta { frontier: frontier(&[("a", 7)]), ..StreamMeta::default() };
        let meta = Meta { views: vec![view], streams: vec![stream], ..Meta::default() };
        assert_eq!(covered_by_all(&meta).to_string(), "a:5");
        assert_eq!(covered_by_all(&Meta::default()).to_string(), "-");
    }
}
