//! Sparkplug's edge nodes and devices as a table: `iot.sparkplug_nodes`.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use iot_ingest::{Ingest, NodeStatus};
use iot_schemas::Result;

/// One row per stream and node, and one per device of it. What counts messages counts those of the whole node.
pub(super) fn rows(ingest: &Ingest) -> Result<RecordBatch> {
    let nodes = ingest.sparkplug_nodes();
    let text = |of: &dyn Fn(&NodeStatus) -> Option<String>| -> ArrayRef {
        Arc::new(nodes.iter().map(|(_, node)| of(node)).collect::<StringArray>())
    };
    let number = |of: &dyn Fn(&NodeStatus) -> Option<u64>| -> ArrayRef {
        let number = |node| of(node).and_then(|number| i64::try_from(number).ok());
        Arc::new(nodes.iter().map(|(_, node)| number(node)).collect::<Int64Array>())
    };
    let streams: StringArray = nodes.iter().map(|(stream, _)| Some(stream.to_string())).collect();
    let online: BooleanArray = nodes.iter().map(|(_, node)| Some(node.is_online)).collect();
    let births: TimestampMicrosecondArray = nodes.iter().map(|(_, node)| node.born).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("stream", Arc::new(streams)),
        ("group_id", text(&|node| Some(node.group.clone()))),
        ("edge_node", text(&|node| Some(node.node.clone()))),
        ("device", text(&|node| node.device.clone())),
        ("online", Arc::new(online)),
        ("last_birth", Arc::new(births.with_timezone("UTC"))),
        ("bd_seq", number(&|node| node.bd_seq)),
        ("last_seq", number(&|node| node.seq.map(u64::from))),
        ("gaps", number(&|node| Some(node.gaps))),
        ("stale_deaths", number(&|node| Some(node.stale_deaths))),
        ("rebirths_requested", number(&|node| Some(node.rebirths))),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}
