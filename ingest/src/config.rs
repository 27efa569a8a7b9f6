//! What an operator can set about ingest, with the reason for each default.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use iot_schemas::position::NodeId;

/// The settings of one ingest node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// The node's name. It is part of every position, so it must stay the same across restarts.
    pub node: NodeId,
    /// Where the write-ahead log and the re-delivery window live: a local disk.
    pub wal_dir: PathBuf,
    /// The log begins a new file beyond this size; whole files are deleted once they are sealed.
    pub segment_bytes: u64,
    /// An epoch is sealed into the raw tables when its events take up this much memory.
    pub seal_bytes: u64,
    /// An epoch is sealed into the raw tables when its first event has waited this long.
    #[serde(with = "duration_text")]
    pub seal_age: Duration,
    /// A stream that is made or changed waits this long until the tables have what came before; then it is left as it was.
    #[serde(with = "duration_text")]
    pub change_wait: Duration,
    /// Unsealed events may take up this much memory; at the limit nothing more is acknowledged.
    pub max_unsealed_bytes: u64,
    /// Messages that may wait for the log. At the limit the sources wait.
    pub queue_messages: usize,
    /// Bytes that may wait for the log. At the limit the sources wait.
    pub queue_bytes: usize,
    /// Messages that one fsync may cover.
    pub group_messages: usize,
    /// Bytes that one fsync may cover; a single larger message makes its own group.
    pub group_bytes: usize,
    /// A larger payload becomes a dead letter that keeps this many of its bytes.
    pub max_payload_bytes: usize,
    /// What can be set about Sparkplug B.
    pub sparkplug: SparkplugConfig,
}

/// The settings of the Sparkplug host application that ingest is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparkplugConfig {
    /// The name under which edge nodes see whether it is there: `spBv1.0/STATE/HOST_ID`.
    #[serde(deserialize_with = "topic_level")]
    pub host_id: String,
    /// An edge node is asked for a rebirth this often at most.
    #[serde(with = "duration_text")]
    pub rebirth_every: Duration,
}

impl Default for SparkplugConfig {
    fn default() -> Self {
        // A rebirth is the largest message of a node; a node that never answers it costs one request in 10 s.
        Self { host_id: "iotctl".into(), rebirth_every: Duration::from_secs(10) }
    }
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            node: "local".into(),
            wal_dir: "wal".into(),
            segment_bytes: 64 << 20,
            // A file of a few MB after compression; large enough to keep the number of files low under load.
            seal_bytes: 64 << 20,
            seal_age: Duration::from_secs(30),
            // As long as a failing store is asked.
            change_wait: Duration::from_secs(60),
            // Eight epochs: a store that is down for minutes does not stop the gateways.
            max_unsealed_bytes: 512 << 20,
            queue_messages: 16_384,
            queue_bytes: 64 << 20,
            group_messages: 8_192,
            group_bytes: 8 << 20,
            max_payload_bytes: 4 << 20,
            sparkplug: SparkplugConfig::default(),
        }
    }
}

/// A name that can stand as a level of a topic.
fn topic_level<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    if name.is_empty() || name.contains(['/', '+', '#', '\0']) {
        return Err(serde::de::Error::custom(format!(
            "`{name}` cannot be part of a topic; leave `/`, `+` and `#` out"
        )));
    }
    Ok(name)
}

/// A duration as people write it: `30s`, `500ms`.
mod duration_text {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use iot_schemas::catalog::duration_text;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        duration_text::deserialize(d)?
            .ok_or_else(|| serde::de::Error::custom("a duration is missing; write 30s, 5m"))
    }

    pub(super) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        duration_text::serialize(&Some(*duration), s)
    }
}
