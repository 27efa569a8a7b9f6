//! Events that come over HTTP, handed to ingest.

use std::sync::Arc;

use iot_ingest::{Ingest, Message, Receipt};
use iot_schemas::catalog::Format;
use iot_schemas::raw::RawStreams;
use iot_schemas::write::{EventWriter, Written};
use iot_schemas::{Error, Result};

/// Writes to the streams of this process.
#[derive(Debug)]
pub(super) struct Writer(pub(super) Arc<Ingest>);

#[async_trait::async_trait]
impl EventWriter for Writer {
    async fn write(&self, Written { stream, content_type, payload }: Written) -> Result<()> {
        let missing = || Error::NotFound {
            kind: "stream",
            name: stream.clone(),
            hint: "; `iotctl get streams` shows which there are".into(),
        };
        let def = self.0.definition(&stream).ok_or_else(missing)?;
        if def.format == Format::SparkplugB {
            return Err(Error::invalid(format!(
                "the stream `{stream}` takes Sparkplug B, whose messages mean nothing without their topics; publish them over MQTT"
            )));
        }
        match self.0.submit(Message::written(&stream, &content_type, payload)).await {
            Ok(Receipt::Ignored) => Err(missing()),
            Ok(Receipt::Stored(_) | Receipt::Redelivered(_)) => Ok(()),
            // What is written waits for room. Should that change, the writer must not be told that it is there.
            Ok(Receipt::Shed) => {
                let why = "more comes than can be taken; write them again later";
                Err(Error::io("the events were not taken", std::io::Error::other(why)))
            }
            Err(refused) => Err(Error::io("the events were not taken", std::io::Error::other(refused))),
        }
    }
}
