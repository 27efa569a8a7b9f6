//! `iotctl demo`: everything in one process, with a simulated fleet that now and then deserves an alert.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use iot_ingest::IngestConfig;
use iot_schemas::alert::{AlertFeed, AlertState, Transition, micros_rfc3339};
use iot_schemas::clock::Clock;
use iot_schemas::control::Control;
use iot_serving::http::auth::HttpAccess;
use tokio::time::{Instant, MissedTickBehavior};

use super::serve::{DEFAULT_HTTP, DEFAULT_MQTT, wait_for_signal};
use crate::args::Span;
use crate::exit::Failure;
use crate::line::server::{Listen, MqttSource, Server};
use crate::line::{Line, LineConfig};
use crate::mqtt::{Message, Publisher, PublisherOptions};
use crate::output;
use crate::simulate::{Faults, Fleet, FleetConfig, Publication};

/// The streams, views and rules of the demo.
const CATALOG: &str = include_str!("demo.yaml");
/// How often the fleet is asked for messages.
const TICK: Duration = Duration::from_millis(20);
/// Readings of one machine per second, unless told otherwise.
const RATE_PER_DEVICE: f64 = 4.0;
/// How long the last acknowledgements may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(15);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many machines the fleet has.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub devices: u32,
    /// Readings per second of the whole fleet [default: 4 for each device].
    #[arg(long, value_name = "EVENTS_PER_S")]
    pub rate: Option<f64>,
    /// Stop after this time.
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Span>,
    /// Keep nothing: the data goes to a temporary directory.
    #[arg(long)]
    pub ephemeral: bool,
    /// Where the data is kept [default: ./data/demo].
    #[arg(long, env = "IOTCTL_DATA_DIR", value_name = "DIR", conflicts_with = "ephemeral")]
    pub data_dir: Option<PathBuf>,
    /// Fleets of the same seed do the same.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the broker listens [default: 127.0.0.1:1883, or any free port].
    #[arg(long, env = "IOTCTL_MQTT", value_name = "ADDR")]
    pub mqtt: Option<SocketAddr>,
    /// Where HTTP is served [default: 127.0.0.1:8080, or any free port].
    #[arg(long, env = "IOTCTL_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
}

/// Runs the demo until it has lasted long enough or is told to stop.
pub async fn run(args: DemoArgs) -> Result<()> {
    let rate = args.rate.unwrap_or(f64::from(args.devices) * RATE_PER_DEVICE);
    if !(rate.is_finite() && rate > 0.0) {
        return Err(Failure::usage(format!("`{rate}` is no rate; it must be a positive number")).into());
    }
    let temporary = args.ephemeral.then(tempfile::tempdir).transpose()?;
    let data_dir = match (&temporary, &args.data_dir) {
        (Some(dir), _) => dir.path().to_owned(),
        (None, Some(dir)) => dir.clone(),
        (None, None) => PathBuf::from("data/demo"),
    };
    let clock = Clock::system();
    let server = start(&args, data_dir, clock.clone()).await?;
    let mqtt = server.mqtt().unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
    greet(&server, mqtt)?;
    let fleet = Fleet::new(FleetConfig {
        seed: args.seed,
        devices: args.devices,
        rate,
        faults: Faults::realistic(),
        overheating: true,
    });
    let publisher = Publisher::connect(PublisherOptions::open(&mqtt.to_string())?).await?;
    let mut traffic = Traffic { fleet, publisher, clock };
    let deadline = args.duration.map(|Span(duration)| Instant::now() + duration);
    tokio::select! {
        result = traffic.run() => result?,
        result = print_alerts(server.line().alerts.clone()) => result?,
        () = until(deadline) => {}
        result = wait_for_signal() => result?,
    }
    traffic.finish().await?;
    sum_up(server.line()).await?;
    server.stop().await
}

async fn start(args: &DemoArgs, data_dir: PathBuf, clock: Clock) -> Result<Server> {
    let config = LineConfig {
        // Sealed sooner than by default, so that all layers have something to show within seconds.
        ingest: IngestConfig { seal_age: Duration::from_secs(5), ..IngestConfig::default() },
        ..LineConfig::new(data_dir)
    };
    let line = Line::open(config, clock.clone()).await?;
    line.apply(CATALOG, "the demo's catalog").await?;
    let listen = |given: Option<SocketAddr>, default: &str| -> Result<Listen> {
        Ok(Listen { addr: given.map_or_else(|| default.parse(), Ok)?, or_any_port: given.is_none() })
    };
    let http = listen(args.http, DEFAULT_HTTP)?;
    let mqtt = MqttSource::local(listen(args.mqtt, DEFAULT_MQTT)?);
    Server::start(line, http, HttpAccess::default(), mqtt, clock).await
}

fn greet(server: &Server, mqtt: SocketAddr) -> Result<()> {
    let url = format!("http://{}", server.http());
    for line in server.listening() {
        output::line(line)?;
    }
    output::line("ready")?;
    output::line(format!("\n  dashboard  {url}/"))?;
    output::line(format!("  gateways   mqtt://{mqtt}, topic devices/<device_id>/telemetry\n"))?;
    output::line("  try in another terminal:")?;
    output::line(format!(
        "    iotctl query --url {url} \"SELECT * FROM climate_1m ORDER BY window_start DESC, device_id LIMIT 12\" --meta"
    ))?;
    output::line(format!("    iotctl verify --url {url}"))?;
    output::line(format!("    curl -N '{url}/v1/alerts/stream?snapshot=true'\n"))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The fleet's messages on their way through a real MQTT connection.
struct Traffic {
    fleet: Fleet,
    publisher: Publisher,
    clock: Clock,
}

impl Traffic {
    async fn run(&mut self) -> Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let due = self.fleet.tick(self.clock.now_micros());
            self.publish(due).await?;
        }
    }

    async fn publish(&mut self, due: Vec<Publication>) -> Result<()> {
        for Publication { topic, payload, qos, .. } in due {
            self.publisher
                .publish(Message { topic, payload, qos, retain: false, ..Message::default() })
                .await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        let rest = self.fleet.flush();
        self.publish(rest).await?;
        let (stats, counts) = (self.fleet.stats(), self.publisher.finish(FINISH_TIMEOUT).await?);
        output::line(format!(
            "\nsent {} messages ({} late, {} duplicate, {} broken), {} acknowledged",
            stats.messages(),
            stats.late,
            stats.duplicates,
            stats.broken,
            counts.acknowledged
        ))
    }
}

/// Prints a line for each alert that begins to fire or ends.
async fn print_alerts(alerts: Arc<impl AlertFeed>) -> Result<()> {
    let mut latest = alerts.latest();
    let mut seen = *latest.borrow_and_update();
    loop {
        for transition in alerts.read_after(seen, 64)? {
            seen = transition.id;
            if matches!(transition.state, AlertState::Firing | AlertState::Resolved) {
                output::line(alert_line(&transition))?;
            }
        }
        if *latest.borrow() == seen && latest.changed().await.is_err() {
            return Ok(());
        }
        latest.mark_unchanged();
    }
}

fn alert_line(transition: &Transition) -> String {
    let state = if transition.state == AlertState::Firing { "FIRING  " } else { "RESOLVED" };
    let device = transition.labels.get("device_id").map_or("", String::as_str);
    let summary = transition.annotations.get("summary").map_or("", String::as_str);
    let severity = transition.severity.to_string();
    let at = micros_rfc3339::to_text(transition.at);
    format!("{at:<24} {state} {severity:<8} {:<12} {device:<12} {summary}", transition.rule)
}

/// What the line made of it, and the proof that the layers agree.
async fn sum_up(line: &Line) -> Result<()> {
    line.settle().await;
    let stats = line.ingest.stats();
    output::line(format!(
        "stored {} messages as {} events, {} dead letters, {} copies recognised",
        stats.messages, stats.events, stats.dead_letters, stats.redelivered
    ))?;
    for report in line.verify(None).await? {
        let verdict = match report.differences {
            0 => "merged == recomputed".to_owned(),
            n => {
                format!("{n} DIFFERENCES, the first: {}", report.examples.first().map_or("", String::as_str))
            }
        };
        output::line(format!(
            "view {}: {verdict} ({} rows, {} events)",
            report.view, report.rows, report.events
        ))?;
    }
    Ok(())
}
