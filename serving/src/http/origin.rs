//! Web pages of other origins may not change anything here.
//!
//! On loopback no token is needed, so any page that a person opens could otherwise post to this server. A
//! browser tells where a request comes from; other programs send neither header and pass. The decision is
//! the one of Go's `http.CrossOriginProtection`.
//!
//! A page whose name was made to lead to this machine (DNS rebinding) is of the same origin as this server, to the
//! browser. Its requests give themselves away by the host that they ask for.

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use iot_schemas::host;

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

/// Whether a request asks for this machine by a name that only this machine has, or by none.
pub(super) fn names_this_machine(headers: &HeaderMap) -> bool {
    headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(host::is_loopback))
}

/// What a request from this machine is told that asks for another one and shows no token.
pub(super) fn foreign_host(headers: &HeaderMap) -> Problem {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("?");
    let detail = format!(
        "a request from this machine for the host `{host}` may be a web page's, so it needs a token; ask for \
         localhost or 127.0.0.1 instead, and behind a proxy name tokens and set `token_on_loopback`"
    );
    Problem::new(ProblemKind::FOREIGN_HOST, detail)
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

    #[test]
    fn a_name_that_a_page_may_have_made_up_is_not_this_machine() {
        let names = |hosts: &[&'static str]| {
            let mut map = HeaderMap::new();
            for host in hosts {
                map.append(header::HOST, host.parse().unwrap());
            }
            names_this_machine(&map)
        };
        assert!(names(&[]) && names(&["localhost:8080"]) && names(&["[::1]:8080"]));
        assert!(!names(&["evil.example:8080"]) && !names(&["localhost", "evil.example"]));
    }
}
