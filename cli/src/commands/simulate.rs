//! `iotctl simulate`: the traffic of a simulated fleet.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use iot_schemas::clock::Clock;
use tokio::time::{Instant, MissedTickBehavior};

use crate::args::{MqttArgs, Span};
use crate::exit::Failure;
use crate::mqtt::{Message, Publisher, PublisherOptions};
use crate::output::{self, Progress};
use crate::simulate::{Faults, Fleet, FleetConfig, Publication};

/// How often the fleet is asked for messages: seldom enough to cost nothing, often enough to look continuous.
const TICK: Duration = Duration::from_millis(10);
/// How long the last acknowledgements may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// How many machines there are.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub devices: u32,
    /// Readings per second of the whole fleet.
    #[arg(long, default_value_t = 24.0, value_name = "EVENTS_PER_S")]
    pub rate: f64,
    /// Stop after this time; without it, on Ctrl-C.
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Span>,
    /// Fleets of the same seed do the same.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Nothing is late, duplicated, broken or missing.
    #[arg(long)]
    pub no_faults: bool,
    /// No machine overheats.
    #[arg(long)]
    pub no_overheating: bool,
    /// The quality of service.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// The broker.
    #[command(flatten)]
    pub mqtt: MqttArgs,
}

/// Runs the command.
pub async fn run(args: SimulateArgs) -> Result<()> {
    let config = config(&args)?;
    let publisher = Publisher::connect(PublisherOptions::new(&args.mqtt)?).await?;
    let deadline = args.duration.map(|Span(duration)| Instant::now() + duration);
    let (fleet, clock) = (Fleet::new(config), Clock::system());
    let mut simulation = Simulation { fleet, due: VecDeque::new(), publisher, qos: args.qos, clock };
    tokio::select! {
        result = simulation.run() => result?,
        () = until(deadline) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    simulation.finish().await
}

fn config(args: &SimulateArgs) -> Result<FleetConfig> {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(
            Failure::usage(format!("`{}` is no rate; it must be a positive number", args.rate)).into()
        );
    }
    let faults = if args.no_faults { Faults::none() } else { Faults::realistic() };
    Ok(FleetConfig {
        seed: args.seed,
        devices: args.devices,
        rate: args.rate,
        faults,
        overheating: !args.no_overheating,
    })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

struct Simulation {
    fleet: Fleet,
    /// What the fleet has handed out and the broker has not been sent, so that stopping at any moment loses nothing.
    due: VecDeque<Publication>,
    publisher: Publisher,
    qos: u8,
    clock: Clock,
}

impl Simulation {
    async fn run(&mut self) -> Result<()> {
        let mut progress = Progress::on_terminal();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.due.extend(self.fleet.tick(self.clock.now_micros()));
            self.publish().await?;
            let (counts, stats) = (self.publisher.counts()?, self.fleet.stats());
            progress.update(|| {
                format!(
                    "{} sent, {} acknowledged, {} overheatings",
                    counts.published, counts.acknowledged, stats.overheatings
                )
            });
        }
    }

    async fn publish(&mut self) -> Result<()> {
        while let Some(Publication { topic, payload, .. }) = self.due.front().cloned() {
            self.publisher
                .publish(Message { topic, payload, qos: self.qos, retain: false, ..Message::default() })
                .await?;
            self.due.pop_front();
        }
        Ok(())
    }

    /// Sends what was held back, waits for all acknowledgements and says what was sent.
    async fn finish(mut self) -> Result<()> {
        self.due.extend(self.fleet.flush());
        // If the broker takes nothing any more, finishing says so better than a time-out here could.
        if let Ok(published) = tokio::time::timeout(FINISH_TIMEOUT, self.publish()).await {
            published?;
        }
        let stats = self.fleet.stats();
        let counts = self.publisher.finish(FINISH_TIMEOUT).await?;
        output::notice(format_args!(
            "{} good, {} late, {} duplicate, {} broken, {} overheatings",
            stats.good, stats.late, stats.duplicates, stats.broken, stats.overheatings
        ));
        if counts.resent > 0 {
            output::notice(format_args!(
                "{} messages were sent again after a lost connection",
                counts.resent
            ));
        }
        output::line(format_args!("published {}, acknowledged {}", counts.published, counts.acknowledged))
    }
}
