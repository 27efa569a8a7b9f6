//! Payloads that are no events, each for a reason of its own.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

/// A good message. `n` is its number.
pub(super) fn good(n: u64) -> String {
    let ts = 1_790_000_000_000 + n;
    format!(
        r#"{{"ts":{ts},"temperature":{}.5,"n":{n},"ok":true,"status":"fine °C","since":"2026-09-21T14:13:20Z"}}"#,
        n % 90
    )
}

/// A kind of bad message.
pub(super) struct Bad {
    topic: &'static str,
    /// What the reason says: one of these.
    pub(super) reasons: &'static [&'static str],
    make: fn(&mut ChaCha8Rng) -> Vec<u8>,
}

impl Bad {
    pub(super) fn topic(&self) -> &'static str {
        self.topic
    }

    pub(super) fn payload(&self, chance: &mut ChaCha8Rng) -> Vec<u8> {
        (self.make)(chance)
    }
}

const NO_JSON: &[&str] = &["not usable as JSON"];

const fn bad(
    topic: &'static str,
    reasons: &'static [&'static str],
    make: fn(&mut ChaCha8Rng) -> Vec<u8>,
) -> Bad {
    Bad { topic, reasons, make }
}

/// The small ones.
pub(super) const KINDS: &[Bad] = &[
    bad("devices/random-binary/telemetry", NO_JSON, |chance| {
        let mut bytes = vec![0; chance.random_range(1..2_000)];
        chance.fill_bytes(&mut bytes);
        bytes[0] = 0xf8;
        bytes
    }),
    bad("devices/cut-json/telemetry", NO_JSON, |chance| {
        let mut text = good(1).into_bytes();
        text.truncate(chance.random_range(1..text.len()));
        text
    }),
    bad("devices/empty/telemetry", &["empty"], |_| Vec::new()),
    bad("devices/wrong-type/telemetry", &["expected"], |chance| {
        one_of(
            chance,
            &[
                r#""temperature":"hot""#,
                r#""temperature":true"#,
                r#""temperature":[1]"#,
                r#""temperature":{"c":1}"#,
                r#""n":1.5"#,
                r#""n":"7""#,
                r#""ok":"yes""#,
                r#""ok":1"#,
                r#""status":5"#,
                r#""since":"yesterday""#,
                r#""since":true"#,
            ],
        )
    }),
    bad("devices/huge-number/telemetry", &["not usable as JSON", "expected"], |chance| {
        one_of(
            chance,
            &[
                r#""temperature":1e999"#,
                r#""temperature":-1e999"#,
                r#""n":1e999"#,
                r#""n":1e40"#,
                r#""n":1234567890123456789012345678901234567890"#,
                r#""n":9223372036854775808"#,
                r#""n":-9223372036854775809"#,
                r#""since":1e300"#,
            ],
        )
    }),
    bad("devices/no-number/telemetry", NO_JSON, |chance| {
        one_of(
            chance,
            &[
                r#""temperature":NaN"#,
                r#""temperature":Infinity"#,
                r#""temperature":-Infinity"#,
                r#""temperature":nan"#,
                r#""n":0x10"#,
                r#""n":01"#,
                r#""n":+1"#,
                r#""temperature":.5"#,
                r#""temperature":1."#,
            ],
        )
    }),
    bad("devices/deep-arrays/telemetry", &["not usable as JSON", "deep"], |_| nested(b"[", b"]", 10_000)),
    bad("devices/deep-objects/telemetry", &["not usable as JSON", "deep"], |_| {
        nested(br#"{"x":"#, b"}", 10_000)
    }),
    bad("devices/unclosed/telemetry", NO_JSON, |_| b"[".repeat(10_000)),
    bad("devices/one-bad-element/telemetry", &["not usable as JSON", "expected"], |chance| {
        let (first, last) = (good(chance.random_range(1..100)), good(3));
        let middle = ["5", "null", "[]", r#""x""#, r#"{"ts":1790000000000,"n":"x"}"#, "{]"];
        format!("[{first},{},{last}]", middle[chance.random_range(0..middle.len())]).into_bytes()
    }),
    bad("devices/no-object/telemetry", NO_JSON, |chance| {
        let texts = [
            "null",
            "5",
            "true",
            r#""text""#,
            "{}{}",
            "[1,2]",
            "hello",
            "<xml/>",
            "\u{feff}\u{feff}{}",
            "// no",
            ",",
        ];
        texts[chance.random_range(0..texts.len())].as_bytes().to_vec()
    }),
    bad("devices/key-twice/telemetry", &["twice"], |chance| {
        one_of(chance, &[r#""n":1,"n":2"#, r#""temperature":1,"temperature":1"#, r#""ts":1790000000001"#])
    }),
    bad("devices/no-utf8/telemetry", NO_JSON, |chance| {
        let mut text = br#"{"ts":1790000000000,"status":"a?b"}"#.to_vec();
        let at = text.iter().position(|byte| *byte == b'?').expect("there is one");
        text[at] = chance.random_range(0x80..=0xff);
        text
    }),
    bad("devices/half-surrogate/telemetry", NO_JSON, |_| {
        br#"{"ts":1790000000000,"status":"\ud800"}"#.to_vec()
    }),
    bad("devices/event-time/telemetry", &["time"], |chance| {
        let times = [
            "-5",
            "1e18",
            "9223372036854775807",
            r#""yesterday""#,
            r#""2026-13-01T00:00:00Z""#,
            "true",
            "null",
            "[]",
        ];
        format!(r#"{{"ts":{},"n":1}}"#, times[chance.random_range(0..times.len())]).into_bytes()
    }),
    bad("devices/no-event-time/telemetry", &["time is missing"], |_| br#"{"n":1,"temperature":20}"#.to_vec()),
    bad("devices/bad-names/telemetry", &["field"], |chance| {
        one_of(
            chance,
            &[r#""":1"#, r#""-":1"#, r#""event_date":"2026-01-01""#, r#""__":1"#, r#""Temperature":1"#],
        )
    }),
    bad("devices/many-fields/telemetry", &["beyond"], |_| {
        let fields: Vec<String> = (0..1_100).map(|i| format!(r#""f{i}":{i}"#)).collect();
        format!(r#"{{"ts":1790000000000,{}}}"#, fields.join(",")).into_bytes()
    }),
    bad("loose/telemetry", &["device_id"], |chance| {
        let devices = [
            "",
            r#","device_id":"""#,
            r#","device_id":null"#,
            r#","device_id":1.5"#,
            r#","device_id":["a"]"#,
        ];
        format!(r#"{{"temperature":20{}}}"#, devices[chance.random_range(0..devices.len())]).into_bytes()
    }),
];

/// The large ones.
pub(super) const BLOBS: &[Bad] = &[
    bad("devices/mib-of-zeros/telemetry", NO_JSON, |_| vec![0; 1 << 20]),
    bad("devices/mib-of-text/telemetry", NO_JSON, |_| b"all work and no play ".repeat((1 << 20) / 21)),
    bad("devices/mib-of-binary/telemetry", NO_JSON, |chance| {
        let mut bytes = vec![0; 1 << 20];
        chance.fill_bytes(&mut bytes);
        bytes[0] = 0xf8;
        bytes
    }),
    bad("devices/mib-of-string/telemetry", &["expected"], |_| {
        format!(r#"{{"ts":1790000000000,"n":"{}"}}"#, "x".repeat(1 << 20)).into_bytes()
    }),
    bad("devices/mib-of-digits/telemetry", &["not usable as JSON", "does not fit"], |_| {
        format!(r#"{{"ts":1790000000000,"n":{}}}"#, "9".repeat(1 << 20)).into_bytes()
    }),
    bad("devices/mib-of-objects/telemetry", &["time is missing"], |_| {
        format!("[{}{{}}]", "{},".repeat((1 << 20) / 3)).into_bytes()
    }),
];

/// An object that is good but for this.
fn one_of(chance: &mut ChaCha8Rng, fields: &[&str]) -> Vec<u8> {
    format!(r#"{{"ts":1790000000000,{}}}"#, fields[chance.random_range(0..fields.len())]).into_bytes()
}

fn nested(open: &[u8], close: &[u8], depth: usize) -> Vec<u8> {
    [br#"{"ts":1790000000000,"x":"#.as_slice(), &open.repeat(depth), b"1", &close.repeat(depth), b"}"]
        .concat()
}
