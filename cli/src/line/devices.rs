//! Devices as the catalog side shows them: one by one, whatever has been seen or declared of it.

use arrow::array::RecordBatch;
use iot_schemas::{Error, Result};
use serde_json::{Map, Value, json};

use super::Line;

impl Line {
    /// Everything about the device of this id: a row per stream that it has sent to or is declared in.
    pub(super) fn describe_device(&self, name: &str, definition: Option<&str>) -> Result<Value> {
        let rows = self.speed.device_rows(Some(name));
        if rows.num_rows() == 0 {
            let hint = "; `iotctl get devices` lists those that have been seen or declared".to_owned();
            return Err(Error::NotFound { kind: "device", name: name.to_owned(), hint });
        }
        let mut described = json!({ "kind": "device", "name": name, "streams": objects(&[&rows])? });
        if let (Some(described), Some(definition)) = (described.as_object_mut(), definition) {
            described.insert("definition".to_owned(), definition.into());
        }
        Ok(described)
    }
}

/// Rows as JSON objects; NULL is left out.
pub(super) fn objects(batches: &[&RecordBatch]) -> Result<Vec<Map<String, Value>>> {
    let mut json = arrow::json::ArrayWriter::new(Vec::new());
    json.write_batches(batches)?;
    json.finish()?;
    let bytes = json.into_inner();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(e.to_string()))
}
