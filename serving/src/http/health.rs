//! `/healthz`, `/readyz` and `/metrics`: for those who run the server.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::routing::get;

use super::App;
use super::problem::{Problem, ProblemKind};

/// The Prometheus text format.
const EXPOSITION: [(HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    match app.control.not_ready() {
        None => Ok("ready\n"),
        Some(reason) => Err(Problem::new(ProblemKind::NOT_READY, reason)),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> ([(HeaderName, &'static str); 1], String) {
    (EXPOSITION, expose(&app.control.metrics()))
}

fn expose(metrics: &[(&str, &str, f64)]) -> String {
    let mut text = String::new();
    for (name, help, value) in metrics {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", number(*value));
    }
    text
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let text = expose(&[
            ("iot_events_total", "events\naccepted", 12.0),
            ("iot_lag_seconds", "lag", f64::INFINITY),
        ]);
        assert_eq!(
            text,
            "# HELP iot_events_total events\\naccepted\n# TYPE iot_events_total counter\niot_events_total 12\n\
             # HELP iot_lag_seconds lag\n# TYPE iot_lag_seconds gauge\niot_lag_seconds +Inf\n"
        );
    }
}
