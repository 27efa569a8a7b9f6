//! The names and types of the columns that every raw table carries, and where tables live under the store.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// When the event happened: microseconds since 1970, UTC.
pub const EVENT_TIME: &str = "event_time";
/// The device that the event is about.
pub const DEVICE_ID: &str = "device_id";
/// Provenance: the ingest node that accepted the message.
pub const NODE: &str = "_node";
/// Provenance: the message's number at its node.
pub const SEQ: &str = "_seq";
/// Provenance: the event's index within its message, from 0.
pub const INDEX: &str = "_index";
/// Provenance: when the message was accepted, microseconds since 1970, UTC.
pub const INGEST_TIME: &str = "_ingest_time";
/// Provenance: the MQTT topic of the message.
pub const TOPIC: &str = "_topic";
/// A boolean column of some streams: whether the event is from the past, sent late on purpose. Such an event
/// counts everywhere, but never raises a live alert.
pub const IS_HISTORICAL: &str = "is_historical";
/// The partition column of raw tables: the UTC date of `event_time`.
pub const EVENT_DATE: &str = "event_date";

/// Column names that a stream's own fields may not take.
pub const RESERVED: [&str; 8] = [EVENT_TIME, DEVICE_ID, NODE, SEQ, INDEX, INGEST_TIME, TOPIC, EVENT_DATE];

/// The one timestamp type of the platform: microseconds, UTC. Delta Lake has no other instant.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The schema of a stream's raw rows in memory: time and device, the stream's own fields, then provenance.
///
/// `event_date` is not part of it; it is derived when rows are written.
pub fn raw_schema(own_fields: impl IntoIterator<Item = Field>) -> SchemaRef {
    let mut fields =
        vec![Field::new(EVENT_TIME, timestamp_type(), false), Field::new(DEVICE_ID, DataType::Utf8, false)];
    fields.extend(own_fields);
    fields.extend([
        Field::new(TOPIC, DataType::Utf8, false),
        Field::new(INGEST_TIME, timestamp_type(), false),
        Field::new(NODE, DataType::Utf8, false),
        Field::new(SEQ, DataType::Int64, false),
        Field::new(INDEX, DataType::Int32, false),
    ]);
    Arc::new(Schema::new(fields))
}

/// The folder of a stream's raw table under the store's root.
pub fn raw_path(stream: &str) -> String {
    format!("raw/{stream}")
}

/// The folder of a view's state table under the store's root.
pub fn view_path(view: &str) -> String {
    format!("views/{view}")
}

/// The folder of the dead-letter table under the store's root.
pub const DEAD_PATH: &str = "dead";
/// The folder of the alert table under the store's root.
pub const ALERTS_PATH: &str = "alerts";
/// The folder of catalog documents under the store's root.
pub const CATALOG_PATH: &str = "catalog";
/// The folder of the schemas' histories under the store's root.
pub const SCHEMAS_PATH: &str = "catalog/schemas";

/// The Delta application id under which `node`'s frontier is committed together with rows.
pub fn frontier_app_id(node: &str) -> String {
    format!("iot/frontier/{node}")
}

/// The Delta application id that counts the batch generations of a view.
pub const GENERATION_APP_ID: &str = "iot/generation";

/// The Delta application id whose version is the fingerprint of the view that made the state.
pub const DEFINITION_APP_ID: &str = "iot/definition";
