use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Schema;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use iot_schemas::catalog::{self, Definition, StreamDef};

use crate::decode::{Captures, StreamDecoder};
use crate::wal::sparkplug_file;

use super::*;

const ARRIVAL: i64 = 1_700_000_100_000_000;
const STREAM: &str = "kind: stream\nname: plant\nformat: sparkplug_b\n";
const EVERY: Duration = Duration::from_secs(10);

fn def(yaml: &str) -> Arc<StreamDef> {
    match &catalog::parse(yaml, "test").expect("the catalog parses")[0].def {
        Definition::Stream(def) => def.clone(),
        other => panic!("a stream, not {other:?}"),
    }
}

/// A decoder and the time.
struct Bench {
    def: Arc<StreamDef>,
    decoder: StreamDecoder,
    seq: u64,
    arrival: i64,
}

impl Bench {
    fn new(yaml: &str) -> Self {
        let def = def(yaml);
        let decoder = StreamDecoder::new(&def, &Schema::empty()).expect("a decoder");
        Self { def, decoder, seq: 0, arrival: ARRIVAL }
    }

    /// What becomes of a message: its rows, or why it has none; then who is asked for a rebirth.
    fn take(&mut self, topic: &str, payload: &[u8]) -> String {
        self.take_as(topic, payload, false)
    }

    /// The same of a message that was a dead letter.
    fn replay(&mut self, topic: &str, payload: &[u8]) -> String {
        self.take_as(topic, payload, true)
    }

    fn take_as(&mut self, topic: &str, payload: &[u8], is_replay: bool) -> String {
        self.seq += 1;
        self.arrival += 1_000_000;
        let captures = self.decoder.capture(&self.def.topics[0], topic).expect("it matches");
        let origin = Origin { is_replay, ..Origin::plain(topic, &captures, self.arrival, self.seq) };
        let mut told = match self.decoder.decode(payload, origin) {
            Ok(_) => self.rows(),
            Err(reason) => format!("  dead: {reason}\n"),
        };
        let rebirth = self.nodes().lock().rebirth(self.arrival, EVERY);
        if let Some(Rebirth { group, node }) = rebirth {
            told.push_str(&format!("  rebirth of {group}/{node}\n"));
        }
        told
    }

    fn nodes(&self) -> &Arc<Mutex<Nodes>> {
        self.decoder.nodes().expect("the format has nodes")
    }

    fn rows(&mut self) -> String {
        self.decoder.finish("n").map_or_else(String::new, |batch| {
            (0..batch.num_rows()).map(|row| format!("  {}\n", print_row(&batch, row))).collect()
        })
    }

    /// A decoder after a restart, from what was saved.
    fn restart(self) -> Self {
        let saved = sparkplug_file::encode(&[("plant", &*self.nodes().lock())].into_iter().collect());
        let dir = tempfile::tempdir().expect("a directory");
        sparkplug_file::save(dir.path(), &saved).expect("it writes");
        let decoder = StreamDecoder::new(&self.def, self.decoder.schema()).expect("a decoder");
        let nodes =
            sparkplug_file::load(dir.path()).expect("it reads").remove("plant").expect("it was saved");
        *decoder.nodes().expect("the format has nodes").lock() = nodes;
        Self { decoder, ..self }
    }
}

/// Time, device, then what is not null, by name.
fn print_row(batch: &RecordBatch, row: usize) -> String {
    let options = FormatOptions::default();
    let schema = batch.schema();
    let shown = batch.columns().iter().zip(schema.fields()).take(batch.num_columns() - 5);
    let cells = shown.filter(|(column, field)| {
        let is_false =
            field.name().starts_with("is_") && column.as_boolean_opt().is_some_and(|flags| !flags.value(row));
        column.is_valid(row) && !is_false && !["group_id", "edge_node"].contains(&field.name().as_str())
    });
    let cells: Vec<String> = cells
        .map(|(column, field)| {
            let value = ArrayFormatter::try_new(column, &options).expect("printable").value(row).to_string();
            if ["event_time", "device_id", "message_type"].contains(&field.name().as_str()) {
                value
            } else {
                format!("{}={value:?}", field.name())
            }
        })
        .collect();
    cells.join(" ")
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/sparkplug")
}

/// The golden messages: file, topic, payload.
fn golden() -> Vec<(String, String, Vec<u8>)> {
    let index = std::fs::read_to_string(golden_dir().join("messages.txt")).expect("it is there");
    let message = |line: &str| {
        let (file, topic) = line.split_once(' ').expect("a number and a topic");
        let payload = std::fs::read(golden_dir().join(file).with_extension("bin")).expect("it is there");
        (file.to_owned(), topic.to_owned(), payload)
    };
    index.lines().map(message).collect()
}

fn tell(bench: &mut Bench, messages: &[(String, String, Vec<u8>)]) -> String {
    let tell = |(file, topic, payload): &(String, String, Vec<u8>)| {
        format!("{file} {topic}\n{}", bench.take(topic, payload))
    };
    messages.iter().map(tell).collect()
}

#[test]
fn messages_of_another_encoder_become_the_expected_rows() {
    let told = tell(&mut Bench::new(STREAM), &golden());
    let path = golden_dir().join("expected.txt");
    if std::env::var_os("IOT_BLESS").is_some() {
        std::fs::write(&path, &told).expect("it writes");
    }
    let expected = std::fs::read_to_string(&path).expect("it is there");
    for (told, expected) in told.lines().zip(expected.lines()) {
        assert_eq!(told, expected);
    }
    assert_eq!(told.lines().count(), expected.lines().count());
}

#[test]
fn a_restart_anywhere_changes_nothing() {
    let messages = golden();
    let straight = tell(&mut Bench::new(STREAM), &messages);
    for cut in 0..=messages.len() {
        let mut bench = Bench::new(STREAM);
        let before = tell(&mut bench, &messages[..cut]);
        let mut bench = bench.restart();
        assert_eq!(before + &tell(&mut bench, &messages[cut..]), straight, "cut at {cut}");
        // What is in the state is not taken in again.
        bench.seq = 0;
        let again = tell(&mut bench, &messages);
        assert_eq!(again.lines().count(), messages.len(), "{again}");
    }
}

/// A payload from parts.
fn payload(seq: Option<u64>, metrics: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    wire::put_varint(&mut payload, 1, 1_700_000_000_000);
    metrics.iter().for_each(|metric| wire::put_bytes(&mut payload, 2, metric));
    seq.into_iter().for_each(|seq| wire::put_varint(&mut payload, 3, seq));
    payload
}

/// An integer metric.
fn int(name: Option<&str>, alias: Option<u64>, datatype: Option<u64>, value: u64) -> Vec<u8> {
    let mut metric = Vec::new();
    name.into_iter().for_each(|name| wire::put_bytes(&mut metric, 1, name.as_bytes()));
    alias.into_iter().for_each(|alias| wire::put_varint(&mut metric, 2, alias));
    datatype.into_iter().for_each(|datatype| wire::put_varint(&mut metric, 4, datatype));
    wire::put_varint(&mut metric, 10, value);
    metric
}

const NBIRTH: &str = "spBv1.0/g/NBIRTH/n";
const NDATA: &str = "spBv1.0/g/NDATA/n";
const DBIRTH: &str = "spBv1.0/g/DBIRTH/n/d";
const DDATA: &str = "spBv1.0/g/DDATA/n/d";

fn birth(seq: u64, alias: u64) -> Vec<u8> {
    payload(Some(seq), &[int(Some("v"), Some(alias), Some(3), 0)])
}

fn data(seq: u64, alias: u64) -> Vec<u8> {
    payload(Some(seq), &[int(None, Some(alias), None, 5)])
}

#[test]
fn sequence_numbers_go_round_and_gaps_are_counted_once() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    bench.take(DBIRTH, &birth(1, 2));
    for seq in 2..600u64 {
        let (topic, alias) = if seq % 3 == 0 { (NDATA, 1) } else { (DDATA, 2) };
        let told = bench.take(topic, &data(seq % 256, alias));
        assert!(told.contains("v=\"5\"") && !told.contains("rebirth"), "{seq}: {told}");
    }
    let told = bench.take(NDATA, &data(601 % 256, 1));
    assert!(told.contains("v=\"5\"") && told.contains("rebirth of g/n"), "the data are kept: {told}");
    let told = bench.take(NDATA, &data(602 % 256, 1));
    assert!(told.contains("v=\"5\"") && !told.contains("rebirth"), "{told}");
    let status = bench.nodes().lock().status();
    assert_eq!((status[0].gaps, status[0].rebirths, status[0].seq), (1, 1, Some((602 % 256) as u8)));
    // Nodes that do not number their messages have no gaps.
    let unnumbered = payload(None, &[int(None, Some(1), None, 5)]);
    assert!(!bench.take(NDATA, &unnumbered).contains("rebirth"));
}

#[test]
fn a_node_is_asked_for_a_rebirth_once_in_a_while() {
    let mut bench = Bench::new(STREAM);
    let asked: Vec<bool> =
        (0..25).map(|_| bench.take(NDATA, &data(0, 1)).contains("rebirth of g/n")).collect();
    let when: Vec<usize> = (0..25).filter(|i| asked[*i]).collect();
    assert_eq!(when, [0, 10, 20], "a message comes every second");
    let told = bench.take("spBv1.0/g/NDATA/other", &data(0, 1));
    assert!(told.contains("rebirth of g/other"), "each node has its own limit: {told}");
    // A clock that is set back does not keep a node silent.
    bench.arrival -= 3_600_000_000;
    assert!(bench.take(NDATA, &data(0, 1)).contains("rebirth of g/n"));
}

#[test]
fn a_new_birth_replaces_the_aliases_of_the_old_one() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    bench.take(DBIRTH, &birth(1, 2));
    let other = payload(Some(0), &[int(Some("w"), Some(1), Some(3), 0)]);
    bench.take(NBIRTH, &other);
    assert!(bench.take(NDATA, &data(1, 1)).contains("w=\"5\""));
    let told = bench.take(DDATA, &data(2, 2));
    assert!(told.contains("data of the device `d` before its birth") && told.contains("rebirth"), "{told}");
    // A device may be born before its node; what it declares is good.
    let mut bench = Bench::new(STREAM);
    assert!(bench.take(DBIRTH, &birth(1, 2)).contains("rebirth of g/n"));
    assert!(bench.take(DDATA, &data(2, 2)).contains("v=\"5\""));
}

#[test]
fn a_death_counts_unless_it_is_of_an_older_session() {
    let device = birth(1, 2);
    let numbered = |bd_seq| payload(Some(0), &[int(Some(BD_SEQ), None, Some(4), bd_seq)]);
    for (birth, death, counts) in [(7, 7, true), (7, 6, false), (0, 255, false), (7, 8, true), (255, 0, true)]
    {
        let mut bench = Bench::new(STREAM);
        bench.take(NBIRTH, &numbered(birth));
        bench.take(DBIRTH, &device);
        let told = bench.take("spBv1.0/g/NDEATH/n", &numbered(death));
        assert_eq!(told.contains("NDEATH"), counts, "{birth} {death}: {told}");
        let status = bench.nodes().lock().status();
        assert!(status.iter().all(|node| node.is_online != counts), "the node and its device: {status:?}");
        assert_eq!(status[0].stale_deaths, u64::from(!counts));
    }
}

#[test]
fn a_birth_that_contradicts_itself_declares_nothing() {
    let check = |metrics: &[Vec<u8>], why: &str| {
        let mut bench = Bench::new(STREAM);
        let told = bench.take(NBIRTH, &payload(Some(0), metrics));
        assert!(told.contains(why), "{told}");
        assert!(bench.take(NDATA, &data(1, 1)).contains("before its birth"));
    };
    let named = |name, alias, datatype| int(Some(name), Some(alias), Some(datatype), 0);
    check(&[named("a", 1, 3), named("b", 1, 3)], "the alias 1 to two metrics");
    check(&[named("a", 1, 3), named("a", 2, 3)], "the metric `a` in two ways");
    check(&[named("a", 1, 3), named("a", 1, 4)], "the metric `a` in two ways");
    check(&[int(None, Some(1), Some(3), 0)], "has no name");
    check(&vec![named("a", 1, 3); 70_000], "more than 65536 metrics");
    check(&[named(&"a".repeat(1_025), 1, 3)], "is longer than 1024 bytes");
}

#[test]
fn a_birth_whose_values_cannot_be_stored_declares_its_metrics_all_the_same() {
    let mut bench = Bench::new(&format!("{STREAM}fields: {{bad: text}}\n"));
    let told = bench.take(
        NBIRTH,
        &payload(Some(0), &[int(Some("v"), Some(1), Some(3), 0), int(Some("bad"), Some(2), Some(3), 0)]),
    );
    assert!(told.contains("dead: field `bad`: expected text, found integer `0`"), "{told}");
    assert!(bench.take(NDATA, &data(1, 1)).contains("v=\"5\""));
}

#[test]
fn a_birth_that_is_refused_ends_what_was_declared_before() {
    let named = |name, alias| int(Some(name), Some(alias), Some(3), 0);
    let bad = payload(Some(0), &[named("b", 1), named("a", 1)]);
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &payload(Some(0), &[named("a", 1), named("b", 2)]));
    bench.take(DBIRTH, &birth(1, 1));
    assert!(bench.take(DBIRTH, &bad).contains("the alias 1 to two metrics"));
    assert!(bench.take(DDATA, &data(2, 1)).contains("data of the device `d` before its birth"));
    assert!(bench.take(NDATA, &data(3, 1)).contains("a=\"5\""), "the node itself is as it was");
    assert!(bench.take(NBIRTH, &bad).contains("the alias 1 to two metrics"));
    assert!(bench.take(NDATA, &data(1, 1)).contains("data of the edge node `n` before its birth"));
    let nodes = bench.nodes().lock();
    assert_eq!(nodes.bytes(), nodes.count_bytes());
    drop(nodes);
    // So does one that is damaged, or of which only the beginning was kept.
    bench.take(NBIRTH, &birth(0, 1));
    assert!(bench.take(NBIRTH, &[0x12, 0xff]).contains("not usable as Sparkplug B"));
    assert!(bench.take(NDATA, &data(1, 1)).contains("before its birth"));
    bench.take(NBIRTH, &birth(0, 1));
    let captures = Captures::default();
    bench.seq += 1;
    bench.decoder.cut(Origin::plain(NBIRTH, &captures, ARRIVAL, bench.seq));
    assert!(bench.take(NDATA, &data(1, 1)).contains("before its birth"));
}

/// A template with one member.
fn template(name: Option<&str>, alias: Option<u64>, member: &[u8]) -> Vec<u8> {
    let (mut metric, mut template) = (Vec::new(), Vec::new());
    name.into_iter().for_each(|name| wire::put_bytes(&mut metric, 1, name.as_bytes()));
    alias.into_iter().for_each(|alias| wire::put_varint(&mut metric, 2, alias));
    wire::put_varint(&mut metric, 4, 19);
    wire::put_bytes(&mut template, 2, member);
    wire::put_bytes(&mut metric, 18, &template);
    metric
}

#[test]
fn a_template_is_known_by_its_alias() {
    let mut bench = Bench::new(STREAM);
    let speed = |value| int(Some("Speed"), None, Some(3), value);
    let motors =
        [template(Some("Motor 1"), Some(5), &speed(1)), template(Some("Motor 2"), Some(6), &speed(2))];
    let told = bench.take(NBIRTH, &payload(Some(0), &motors));
    assert!(told.contains("Motor_1_Speed=\"1\" Motor_2_Speed=\"2\""), "{told}");
    let untyped = int(Some("Speed"), None, None, 9);
    let told = bench.take(NDATA, &payload(Some(1), &[template(None, Some(6), &untyped)]));
    assert!(told.contains("Motor_2_Speed=\"9\"") && !told.contains("Motor_1"), "{told}");
    let told = bench.take(NDATA, &payload(Some(2), &[template(None, Some(7), &speed(1))]));
    assert!(told.contains("the alias 7 is not in the last birth") && told.contains("rebirth"), "{told}");
}

#[test]
fn metrics_whose_columns_would_be_the_same_get_columns_of_their_own() {
    let mut bench = Bench::new(STREAM);
    let named = |name, alias| int(Some(name), Some(alias), Some(3), alias);
    let told = bench.take(
        NBIRTH,
        &payload(Some(0), &[named("T-1", 1), named("T/1", 2), named("T_1", 3), named("Druck ä", 4)]),
    );
    assert!(told.contains("T_1=\"3\"") && told.contains("Druck_ä=\"4\""), "{told}");
    assert_eq!(told.matches(" T_1_").count(), 2, "{told}");
    // Each of them keeps its column, by alias or by name.
    let column =
        |value: &str| told.split(' ').find(|cell| cell.ends_with(value)).map(|cell| cell.replace(value, ""));
    let (first, second) = (column("=\"1\"").expect("a column"), column("=\"2\"").expect("a column"));
    assert!(bench.take(NDATA, &data(1, 1)).contains(&format!("{first}=\"5\"")));
    let by_name = payload(Some(2), &[int(Some("T/1"), None, Some(3), 6)]);
    assert!(bench.take(NDATA, &by_name).contains(&format!("{second}=\"6\"")));
}

#[test]
fn a_dead_letter_that_comes_again_changes_nothing_that_is_known() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    bench.take(DBIRTH, &birth(1, 2));
    let before = bench.nodes().lock().status();
    let old = payload(Some(0), &[int(Some("old"), Some(1), Some(3), 7)]);
    assert!(bench.replay(NBIRTH, &old).contains("old=\"7\""), "it is read by what it declares itself");
    assert!(bench.replay(DDATA, &data(77, 2)).contains("v=\"5\""), "data by what is declared now");
    assert!(bench.replay(DDATA, &data(77, 3)).contains("the alias 3 is not in the last birth"));
    assert!(bench.replay("spBv1.0/g/NDATA/other", &data(1, 1)).contains("before its birth"));
    assert!(bench.replay("spBv1.0/g/NDEATH/n", &payload(None, &[])).contains("NDEATH"));
    assert_eq!(bench.nodes().lock().status(), before);
    let told = bench.take(NDATA, &data(2, 1));
    assert!(told.contains("v=\"5\"") && !told.contains("rebirth"), "{told}");
}

#[test]
fn a_node_is_asked_until_it_is_born_anew() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    assert!(bench.take(NDATA, &data(2, 1)).contains("rebirth"));
    bench.take(NBIRTH, &birth(0, 1));
    // Another gap, too soon after the request: it is made later, although nothing is missing any more.
    let asked: Vec<bool> = (0..12).map(|i| bench.take(NDATA, &data(5 + i, 1)).contains("rebirth")).collect();
    let mut bench = bench.restart();
    assert_eq!(asked.iter().position(|asked| *asked), Some(8), "{asked:?}");
    bench.arrival += 10_000_000;
    assert!(bench.take(NDATA, &data(17, 1)).contains("rebirth"), "a restart does not forget it");
    bench.take(NBIRTH, &birth(0, 1));
    bench.arrival += 10_000_000;
    assert!(!bench.take(NDATA, &data(1, 1)).contains("rebirth"));
}

#[test]
fn a_value_that_no_birth_can_mend_asks_for_none() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    let mut wrong = Vec::new();
    wire::put_varint(&mut wrong, 2, 1);
    wire::put_bytes(&mut wrong, 15, b"text");
    let told = bench.take(NDATA, &payload(Some(1), &[wrong]));
    assert!(told.contains("dead: metric `v`") && !told.contains("rebirth"), "{told}");
}

#[test]
fn what_comes_late_is_missing_no_more() {
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &birth(0, 1));
    let gaps = |bench: &Bench| bench.nodes().lock().status()[0].gaps;
    for seq in [1, 2, 5, 4, 6, 3, 7] {
        bench.take(NDATA, &data(seq, 1));
    }
    assert_eq!(gaps(&bench), 1, "3 and 4 were late");
    bench.take(NDATA, &data(4, 1));
    assert_eq!(gaps(&bench), 2, "4 was there already");
}

#[test]
fn compressed_payloads_are_expanded() {
    use std::io::Write;
    let inner = payload(Some(0), &[int(Some("v"), Some(1), Some(3), 7)]);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(&inner).expect("memory");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&inner).expect("memory");
    let outer = |body: &[u8]| {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 4, b"SPBV1.0_COMPRESSED");
        wire::put_bytes(&mut outer, 5, body);
        outer
    };
    for body in [zlib.finish().expect("memory"), gzip.finish().expect("memory")] {
        let mut bench = Bench::new(STREAM);
        assert!(bench.take(NBIRTH, &outer(&body)).contains("v=\"7\""));
        assert!(bench.take(NDATA, &data(1, 1)).contains("v=\"5\""), "its sequence number counts");
        let told = bench.take(NDATA, &outer(&body[..body.len() - 6]));
        assert!(told.contains("neither gzip nor DEFLATE"), "{told}");
    }
    // A body of another kind is its sender's own affair.
    let mut with_body = birth(0, 1);
    wire::put_bytes(&mut with_body, 5, b"custom");
    assert!(Bench::new(STREAM).take(NBIRTH, &with_body).contains("v=\"0\""));
}

#[test]
fn a_death_that_is_said_twice_is_one() {
    let numbered = |bd_seq| payload(Some(0), &[int(Some(BD_SEQ), None, Some(4), bd_seq)]);
    let mut bench = Bench::new(STREAM);
    bench.take(NBIRTH, &numbered(3));
    assert!(bench.take("spBv1.0/g/NDEATH/n", &numbered(3)).contains("NDEATH"));
    assert_eq!(bench.take("spBv1.0/g/NDEATH/n", &numbered(3)), "");
    // The death of a device whose node is not known shows that a birth was missed.
    assert!(bench.take("spBv1.0/g/DDEATH/m/d", &payload(Some(3), &[])).contains("rebirth of g/m"));
}

#[test]
fn metrics_with_names_of_the_system_do_not_displace_it() {
    let mut bench = Bench::new(STREAM);
    let named = |name| payload(Some(0), &[int(Some(name), None, Some(3), 7)]);
    assert!(bench.take(NBIRTH, &named("ts")).contains("2023-11-14T22:13:20Z g/n NBIRTH ts=\"7\""));
    assert!(bench.take(NBIRTH, &named("device_id")).contains("a name that the system uses itself"));
    assert!(bench.take(NBIRTH, &named("edge_node")).contains("the name of a topic level"));
    let mut bench = Bench::new(&format!("{STREAM}unknown_fields: ignore\nfields: {{a_b: double}}\n"));
    assert_eq!(bench.take(NBIRTH, &named("edge_node")), "  2023-11-14T22:13:20Z g/n NBIRTH\n");
    assert!(bench.take(NBIRTH, &named("a/b")).contains("a_b=\"7.0\""), "declared by its column's name");
}

#[test]
fn named_levels_that_the_format_knows_are_its_columns() {
    let topics = "topics: [\"spBv1.0/{group_id}/+/{edge_node}/#\"]\n";
    let mut bench = Bench::new(&format!("{STREAM}{topics}"));
    bench.take(NBIRTH, &birth(0, 1));
    let captures = Captures::default();
    let origin = Origin::plain(NDATA, &captures, ARRIVAL, 9);
    bench.decoder.decode(&data(1, 1), origin).expect("good");
    let rows = bench.decoder.finish("n").expect("rows");
    let text =
        |name: &str| rows.column_by_name(name).expect("a column").as_string::<i32>().value(0).to_owned();
    assert_eq!(
        (text("group_id"), text("edge_node"), text("device_id")),
        ("g".into(), "n".into(), "g/n".into())
    );
}

#[test]
fn what_is_known_of_nodes_has_a_limit() {
    let mut bench = Bench::new(STREAM);
    *bench.nodes().lock() = Nodes::with_limit(100_000);
    for i in 0..1_000 {
        // Half of the nodes die again.
        bench.take(&format!("spBv1.0/g/NBIRTH/n{i}"), &birth(0, 1));
        if i % 2 == 0 {
            bench.take(&format!("spBv1.0/g/NDEATH/n{i}"), &payload(None, &[]));
        }
        bench.take(&format!("spBv1.0/g/NDATA/ghost{i}"), &data(0, 1));
        let nodes = bench.nodes().lock();
        assert!(nodes.bytes() <= 100_000 && nodes.bytes() == nodes.count_bytes(), "{i}");
    }
    let status = bench.nodes().lock().status();
    assert!(status.iter().any(|node| node.node == "n1" && node.is_online), "those that are online are kept");
    let told = bench.take("spBv1.0/g/NBIRTH/n999", &birth(0, 1));
    assert!(told.contains("takes up more than 100000 bytes"), "{told}");
    assert!(bench.take("spBv1.0/g/NDATA/n1", &data(1, 1)).contains("v=\"5\""));
}

#[test]
fn damaged_messages_never_panic_and_good_ones_in_between_are_unharmed() {
    let samples = golden();
    let mut bench = Bench::new(STREAM);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    for i in 0..INPUTS {
        let (_, topic, payload) = &samples[next() % samples.len()];
        let mut payload = payload.clone();
        for _ in 0..next() % 5 {
            let at = next() % payload.len().max(1);
            match next() % 4 {
                _ if payload.is_empty() => break,
                0 => payload[at] = next() as u8,
                1 => _ = payload.remove(at),
                2 => payload.insert(at, next() as u8),
                _ => payload.truncate(at),
            }
        }
        let told = bench.take(topic, &payload);
        assert!(!told.contains("defect"), "{told}");
        if i % 1_000 == 0 {
            bench.take("spBv1.0/good/NBIRTH/n", &birth(0, 1));
            assert!(bench.take("spBv1.0/good/NDATA/n", &data(1, 1)).contains("v=\"5\""), "after {i}");
        }
    }
    let nodes = bench.nodes().lock();
    assert_eq!(nodes.bytes(), nodes.count_bytes());
    assert!(nodes.bytes() < 1 << 20, "few nodes, however much they were damaged");
}

/// Damaged inputs in a run of the tests.
const INPUTS: usize = 100_000;
