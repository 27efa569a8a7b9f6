//! The dashboard: one page, built into the binary, that asks nothing of the world but this server.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
/// Nothing runs and nothing is loaded that is not part of this binary.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at `/`, and its files.
pub(crate) fn routes() -> Router {
    Router::new()
        .route("/", get(async || file(HTML, include_str!("index.html"))))
        .route("/app.js", get(async || file(SCRIPT, include_str!("app.js"))))
        .route("/alerts.js", get(async || file(SCRIPT, include_str!("alerts.js"))))
        .route("/chart.js", get(async || file(SCRIPT, include_str!("chart.js"))))
        .route("/page.js", get(async || file(SCRIPT, include_str!("page.js"))))
        .route("/style.css", get(async || file(STYLE, include_str!("style.css"))))
}

fn file(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, content_type),
        // The files change with the binary, and only then; asking again costs little.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
