//! The decoder by itself, for benchmarks only: no log, no threads.

use std::sync::Arc;

use arrow::array::RecordBatch;
use iot_schemas::catalog::{Definition, StreamDef, parse};
use iot_schemas::layout::raw_schema;

use crate::decode::{Captures, Origin, StreamDecoder};

/// Decodes JSON messages of one device into rows.
#[derive(Debug)]
pub struct JsonBench {
    decoder: StreamDecoder,
    captures: Captures,
}

impl JsonBench {
    /// A decoder with the given fields, as the catalog writes them: `temperature: double, status: text`.
    ///
    /// # Panics
    /// If the fields are no catalog text.
    pub fn new(fields: &str) -> Self {
        let text = format!(
            "kind: stream\nname: bench\ntopics: [\"d/{{device_id}}\"]\nevent_time: {{field: ts}}\nfields: {{{fields}}}\n"
        );
        let documents = parse(&text, "the benchmark").expect("the fields are catalog text");
        let Some(Definition::Stream(def)) = documents.into_iter().next().map(|document| document.def) else {
            panic!("the text defines a stream");
        };
        let def: Arc<StreamDef> = def;
        let decoder = StreamDecoder::new(&def, &raw_schema([])).expect("the stream has few columns");
        let captures = decoder.capture(&def.topics[0], "d/device-1").expect("the topic matches");
        Self { decoder, captures }
    }

    /// Decodes messages into one batch.
    ///
    /// # Panics
    /// If a message is no event.
    pub fn decode(&mut self, messages: &[String]) -> RecordBatch {
        for (seq, message) in messages.iter().enumerate() {
            let origin = Origin::plain("d/device-1", &self.captures, 0, seq as u64 + 1);
            self.decoder.decode(message.as_bytes(), origin).expect("a good message");
        }
        self.decoder.finish("n").expect("messages have rows")
    }
}
