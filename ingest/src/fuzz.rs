//! The decoders as targets of fuzzing: `ingest/fuzz` feeds them from outside, a test of ours with a bounded number
//! of damaged payloads.

use std::cell::RefCell;

use iot_schemas::catalog::{Definition, Format, parse};
use iot_schemas::layout::raw_schema;

use crate::decode::{Captures, Origin, StreamDecoder, is_defect};

/// Ways in which a stream can be defined; each has its own paths through the decoders.
const VARIANTS: [&str; 3] = [
    "topics: [\"d/{device_id}\"]\nproperties: [site]\n",
    "topics: [d]\nunknown_fields: reject\nfields: {v: double, n: bigint, ok: boolean, text: text, due: timestamp}\n",
    "topics: [\"d/{device_id}\"]\nunknown_fields: ignore\nfields: {ts: timestamp, gps_lat: double, a: text, measurement: text}\n",
];
/// Inputs after which the rows are finished and the decoder begins anew: its columns may be used up.
const PER_ROUND: u64 = 512;
/// What a decoder may keep between two messages, however large the last one was.
const MAX_KEPT_BYTES: usize = 12 << 20;

/// Decoders of one format that are fed with whatever comes.
#[derive(Debug)]
pub struct Target {
    definitions: Vec<String>,
    decoders: Vec<(StreamDecoder, Captures)>,
    fed: u64,
    good: u64,
}

impl Target {
    /// Decoders for the format that the catalog calls `format`.
    ///
    /// # Panics
    /// If there is no such format.
    pub fn new(format: &str) -> Self {
        let head = format!("kind: stream\nname: fuzz\nformat: {format}\n");
        let mut definitions: Vec<String> =
            VARIANTS.iter().map(|variant| format!("{head}{variant}")).collect();
        let first = definitions[0].clone();
        if ["json", "json_lines", "auto", "cbor", "msgpack"].contains(&format) {
            definitions.push(format!("{first}rows: a.rows\n"));
        }
        if format == Format::Csv.word() {
            definitions.push(format!("{first}csv: {{columns: [ts, v, text], delimiter: \";\"}}\n"));
        }
        let decoders = definitions.iter().map(|text| decoder(text)).collect();
        Self { definitions, decoders, fed: 0, good: 0 }
    }

    /// Decodes a payload in all ways.
    ///
    /// # Panics
    /// If a decoder fails, keeps more memory or has more columns than it may.
    pub fn feed(&mut self, payload: &[u8]) {
        self.fed += 1;
        for (decoder, captures) in &mut self.decoders {
            let origin = Origin::plain("d/x", captures, 1_700_000_000_000_000, self.fed);
            match decoder.decode(payload, origin) {
                Ok(_) => self.good += 1,
                Err(reason) => assert!(!is_defect(&reason), "{reason}"),
            }
            decoder.check_bounds(MAX_KEPT_BYTES);
        }
        if self.fed.is_multiple_of(PER_ROUND) {
            self.begin_anew();
        }
    }

    /// How often a decoder has taken a payload.
    pub fn good(&self) -> u64 {
        self.good
    }

    fn begin_anew(&mut self) {
        for ((decoder, captures), definition) in self.decoders.iter_mut().zip(&self.definitions) {
            // Fails where a column is not what the schema says.
            _ = decoder.finish("n");
            (*decoder, *captures) = self::decoder(definition);
        }
    }
}

thread_local! {
    static TARGET: RefCell<Option<(String, Target)>> = const { RefCell::new(None) };
}

/// Feeds the decoders of `format`, which are kept for the next call: what `fuzz_target!` calls.
pub fn feed(format: &str, payload: &[u8]) {
    TARGET.with_borrow_mut(|kept| {
        let known = kept.take_if(|(name, _)| name == format);
        let (_, target) = kept.insert(known.unwrap_or_else(|| (format.to_owned(), Target::new(format))));
        target.feed(payload);
    });
}

fn decoder(definition: &str) -> (StreamDecoder, Captures) {
    let documents = parse(definition, "the fuzzer").expect("the definitions are catalog text");
    let Some(Definition::Stream(def)) = documents.into_iter().next().map(|document| document.def) else {
        panic!("the text defines a stream");
    };
    let decoder = StreamDecoder::new(&def, &raw_schema([])).expect("the stream has few columns");
    let topic = def.topics[0].to_string().replace("{device_id}", "x");
    let captures = decoder.capture(&def.topics[0], &topic).expect("the topic matches");
    (decoder, captures)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// So many inputs over all formats, unless `IOT_FUZZ_INPUTS` says another number.
    const INPUTS: usize = 20_000;

    /// The golden payloads whose folder begins with the name of the format.
    fn seeds(format: &str) -> Vec<Vec<u8>> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        let mut seeds = Vec::new();
        for dir in fs::read_dir(golden).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
            if !(name.starts_with(format) || name == "compressed") || !dir.is_dir() {
                continue;
            }
            for file in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                let is_payload =
                    !file.extension().is_some_and(|extension| extension == "expect" || extension == "yaml");
                // The bombs take a second each: they are tried as they are, elsewhere.
                if is_payload && !file.to_string_lossy().contains("bomb") {
                    seeds.push(fs::read(file).expect("a readable file"));
                }
            }
        }
        seeds.sort();
        seeds
    }

    fn damaged(seeds: &[Vec<u8>], chance: &mut StdRng) -> Vec<u8> {
        let any = |chance: &mut StdRng| seeds[chance.random_range(0..seeds.len())].clone();
        let mut payload = any(chance);
        if chance.random_ratio(1, 8) {
            payload = (0..chance.random_range(0..64)).map(|_| chance.random()).collect();
        }
        for _ in 0..chance.random_range(0..6) {
            let at = chance.random_range(0..=payload.len());
            match chance.random_range(0..7) {
                0 if at < payload.len() => payload[at] = chance.random(),
                1 if at < payload.len() => payload[at] ^= 1 << chance.random_range(0..8),
                2 if at < payload.len() => _ = payload.remove(at),
                3 => payload.insert(at, b"{}[]\",:0e-\\;=\n#"[chance.random_range(0..15)]),
                4 => payload.truncate(at),
                5 => _ = payload.splice(at..at, any(chance)),
                _ => {
                    let piece = payload[at..].to_vec();
                    payload.extend_from_slice(&piece);
                }
            }
            payload.truncate(1 << 16);
        }
        payload
    }

    #[test]
    fn damaged_payloads_of_every_format_neither_panic_nor_leave_memory_behind() {
        let inputs = std::env::var_os("IOT_FUZZ_INPUTS").map_or(INPUTS, |text| {
            text.to_str().and_then(|text| text.parse().ok()).expect("IOT_FUZZ_INPUTS is a number")
        });
        // Sparkplug B needs births before anything else; its test stands beside its decoder.
        let formats = Format::ALL.iter().filter(|format| **format != Format::SparkplugB);
        let formats: Vec<&str> = formats.map(|format| format.word()).collect();
        let mut chance = StdRng::seed_from_u64(4);
        for format in &formats {
            let mut seeds = seeds(format);
            if seeds.is_empty() {
                seeds = self::seeds("json");
            }
            let mut target = Target::new(format);
            for _ in 0..inputs.div_ceil(formats.len()) {
                target.feed(&damaged(&seeds, &mut chance));
            }
            let (good, all) = (target.good(), target.fed);
            assert!(
                good > all / 50,
                "of {all} payloads as {format} only {good} were taken: nothing is tried"
            );
            target.feed(b"");
        }
    }
}
