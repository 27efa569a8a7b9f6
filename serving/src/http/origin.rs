//! Web pages of other origins may not change anything here.
//!
//! On loopback no token is needed, so any page that a person opens could otherwise post to this server. A
//! browser tells where a request comes from; other programs send neither header and pass. The decision is
//! the one of Go's `http.CrossOriginProtection`.

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::{Problem, ProblemKind};

/// Lets everything pass that only reads, or does not come from a page of another origin.
pub(super) async fn refuse_cross_site(request: Request, next: Next) -> Response {
    if request.method().is_safe() || is_same_origin(request.headers()) {
        return next.run(request).await;
    }
    let detail =
        "a page of another origin may not change anything here; use the command line or this server's pages";
    Problem::new(ProblemKind::CROSS_SITE, detail).into_response()
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text(header::ORIGIN.as_str()), text(header::HOST.as_str())) {
        (Some(site), _, _) => matches!(site, "same-origin" | "none"),
        (None, None, _) => true,
        (None, Some(origin), host) => origin.split_once("://").map(|(_, authority)| authority) == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], passes: bool) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        assert_eq!(is_same_origin(&map), passes, "{headers:?}");
    }

    #[test]
    fn only_pages_of_other_origins_are_refused() {
        check(&[("host", "127.0.0.1:8080")], true);
        check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")], true);
        check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:3000")], false);
        check(&[("host", "127.0.0.1:8080"), ("origin", "https://evil.example")], false);
        check(&[("host", "127.0.0.1:8080"), ("origin", "null")], false);
        check(&[("origin", "https://iot.example"), ("sec-fetch-site", "same-origin")], true);
        check(&[("sec-fetch-site", "cross-site")], false);
        check(&[("sec-fetch-site", "same-site")], false);
    }
}
