//! `iotctl replay`: files of readings as MQTT traffic, or a stream's history for rules that came after it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use iot_schemas::alert::micros_rfc3339;
use iot_schemas::clock::Clock;
use iot_schemas::replay::ReplayRequest;
use tokio::time::Instant;

use super::reports;
use crate::args::{MqttArgs, ServerArgs, Span};
use crate::client::Client;
use crate::exit::Failure;
use crate::mqtt::{Message, Publisher, PublisherOptions};
use crate::output::{self, ListFormat, Progress};
use crate::replay::{
    Device, FileFormat, MappingOptions, Replay, ReplayOptions, ReplayStats, Template, TimeField, TimeUnit,
};

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// CSV, JSON lines or Parquet files, also packed (.gz); sent one after the other.
    #[arg(required_unless_present = "from_raw", conflicts_with = "from_raw", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The format, where a file's name does not tell.
    #[arg(long, value_enum)]
    pub format: Option<FileFormat>,
    /// So many times as fast as it happened; as fast as possible by default.
    #[arg(long, value_name = "X")]
    pub speed: Option<f64>,
    /// The topic; `{column}` stands for the column's value, `{device_id}` for the device.
    #[arg(long, default_value = "devices/{device_id}/telemetry")]
    pub topic: Template,
    /// The column that names the device [default: device_id, device, name or sensor, else the file's name].
    #[arg(long, value_name = "COLUMN", conflicts_with = "device")]
    pub device_field: Option<String>,
    /// All readings are of this device.
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// The column that holds the time [default: ts, time, timestamp or date].
    #[arg(long, value_name = "COLUMN", conflicts_with = "no_time")]
    pub time_field: Option<String>,
    /// The unit of times that are numbers [default: what makes sense].
    #[arg(long, value_enum)]
    pub time_unit: Option<TimeUnit>,
    /// How the time is called in the messages.
    #[arg(long, value_name = "NAME", default_value = "ts")]
    pub time_as: String,
    /// Send no times: the time of arrival counts.
    #[arg(long)]
    pub no_time: bool,
    /// Repeat the columns of the topic in the messages.
    #[arg(long)]
    pub keep_topic_columns: bool,
    /// Stop after so many rows of each file.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Send this fraction of the readings late and in random order.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    pub shuffle_late: f64,
    /// What decides which readings are late.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Readings of a topic per message.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// The quality of service.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// How long to wait for the last acknowledgements.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub timeout: Span,
    /// The broker.
    #[command(flatten)]
    pub mqtt: MqttArgs,
    /// Instead of files: send the history of a stream through the speed layer again, for rules that came after it.
    #[arg(long, value_name = "STREAM", help_heading = FROM_RAW)]
    pub from_raw: Option<String>,
    /// The oldest event time, like 2026-11-01 or 2026-11-01T06:00:00Z, or so long ago, like 30d [default: all].
    #[arg(long, value_name = "TIME", requires = "from_raw", help_heading = FROM_RAW)]
    pub from: Option<String>,
    /// The event time before which it ends; without it the rules go on with what is active in the present.
    #[arg(long, value_name = "TIME", requires = "from_raw", help_heading = FROM_RAW)]
    pub to: Option<String>,
    /// The rule to replay for, may be given more than once; all rules on the stream and its views by default.
    #[arg(long = "rule", value_name = "RULE", requires = "from_raw", help_heading = FROM_RAW)]
    pub rules: Vec<String>,
    /// Only say what would be recorded.
    #[arg(long, requires = "from_raw", help_heading = FROM_RAW)]
    pub dry_run: bool,
    /// How to print what was found.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, help_heading = FROM_RAW)]
    pub report: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

const FROM_RAW: &str = "A stream's history";

/// Runs the command.
pub async fn run(args: ReplayArgs) -> Result<()> {
    if let Some(stream) = &args.from_raw {
        return from_raw(stream, &args).await;
    }
    check(&args)?;
    let publisher = Publisher::connect(PublisherOptions::new(&args.mqtt)?).await?;
    let pace = args.speed.map(|speed| Pace { speed, origin: None });
    let mut sender =
        Sender { publisher, qos: args.qos, pace, progress: Progress::on_terminal(), readings: 0 };
    for file in &args.files {
        let stats = sender.send(options(&args, file.clone())).await?;
        warn(&file.display().to_string(), &stats);
    }
    let Sender { publisher, mut progress, .. } = sender;
    progress.clear();
    let counts = publisher.finish(args.timeout.0).await?;
    if counts.resent > 0 {
        output::notice(format_args!("{} messages were sent again after a lost connection", counts.resent));
    }
    output::line(format_args!("published {}, acknowledged {}", counts.published, counts.acknowledged))
}

async fn from_raw(stream: &str, args: &ReplayArgs) -> Result<()> {
    let request = ReplayRequest {
        stream: stream.to_owned(),
        from: args.from.as_deref().map(time),
        to: args.to.as_deref().map(time),
        rules: args.rules.clone(),
        dry_run: args.dry_run,
    };
    let report = Client::new(&args.server)?.replay(&request).await?;
    reports::print_replay(&report, args.dry_run, args.report)
}

/// A time as the server reads it: one that is so long ago, as that.
fn time(text: &str) -> String {
    let Ok(ago) = text.parse::<Span>() else { return text.to_owned() };
    let ago = i64::try_from(ago.0.as_micros()).unwrap_or(i64::MAX);
    micros_rfc3339::to_text(Clock::system().now_micros().saturating_sub(ago))
}

fn check(args: &ReplayArgs) -> Result<()> {
    // That they require `--from-raw` is not enforced where a file excludes it.
    if args.from.is_some() || args.to.is_some() || !args.rules.is_empty() || args.dry_run {
        let why = "--from, --to, --rule and --dry-run are for --from-raw STREAM; a file is sent as it is";
        return Err(Failure::usage(why).into());
    }
    if !(0.0..=1.0).contains(&args.shuffle_late) {
        return Err(Failure::usage(format!(
            "`{}` is no fraction; --shuffle-late is from 0 to 1",
            args.shuffle_late
        ))
        .into());
    }
    match args.speed {
        Some(speed) if !(speed.is_finite() && speed > 0.0) => {
            Err(Failure::usage(format!("`{speed}` is no speed; it must be a positive number")).into())
        }
        _ => Ok(()),
    }
}

fn options(args: &ReplayArgs, file: PathBuf) -> ReplayOptions {
    let device = match (&args.device, &args.device_field) {
        (Some(name), _) => Device::Constant(name.clone()),
        (None, Some(column)) => Device::Column(column.clone()),
        (None, None) => Device::Guess,
    };
    let time = match (&args.time_field, args.no_time) {
        (_, true) => TimeField::None,
        (Some(column), false) => TimeField::Column(column.clone()),
        (None, false) => TimeField::Guess,
    };
    ReplayOptions {
        format: args.format,
        mapping: MappingOptions {
            topic: args.topic.clone(),
            device,
            time,
            time_unit: args.time_unit,
            time_as: args.time_as.clone(),
            keep_topic_columns: args.keep_topic_columns,
            ..MappingOptions::default()
        },
        limit: args.limit,
        batch: usize::from(args.batch),
        late_fraction: args.shuffle_late,
        seed: args.seed,
        ..ReplayOptions::new(file)
    }
}

struct Sender {
    publisher: Publisher,
    qos: u8,
    pace: Option<Pace>,
    progress: Progress,
    readings: u64,
}

impl Sender {
    async fn send(&mut self, options: ReplayOptions) -> Result<ReplayStats> {
        let mut replay = Replay::open(options)?;
        for message in replay.by_ref() {
            let message = message?;
            if let Some(pace) = &mut self.pace {
                pace.wait_for(message.time_us).await;
            }
            self.readings += message.readings;
            let (topic, payload) = (message.topic, message.payload);
            self.publisher
                .publish(Message { topic, payload, qos: self.qos, retain: false, ..Message::default() })
                .await?;
            self.show_progress()?;
        }
        Ok(replay.stats())
    }

    fn show_progress(&mut self) -> Result<()> {
        let (counts, readings) = (self.publisher.counts()?, self.readings);
        self.progress.update(|| {
            format!("{readings} readings, {} sent, {} acknowledged", counts.published, counts.acknowledged)
        });
        Ok(())
    }
}

/// Keeps the pace of the readings' own times.
struct Pace {
    speed: f64,
    origin: Option<(Instant, i64)>,
}

impl Pace {
    /// Waits until it is the turn of a reading of this time. What is older than the first reading does not wait.
    async fn wait_for(&mut self, time_us: Option<i64>) {
        let Some(time_us) = time_us else { return };
        let (start, first_us) = *self.origin.get_or_insert((Instant::now(), time_us));
        let behind_us = time_us.saturating_sub(first_us).max(0) as f64 / self.speed;
        tokio::time::sleep_until(start + Duration::from_secs_f64(behind_us / 1e6)).await;
    }
}

fn warn(file: &str, stats: &ReplayStats) {
    if stats.without_device > 0 {
        output::notice(format_args!(
            "{file}: {} of {} rows do not name what the topic needs; they were sent as `unknown`",
            stats.without_device, stats.readings
        ));
    }
}
