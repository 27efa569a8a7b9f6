use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::sync::Arc;

use iot_schemas::alert::AlertState;
use iot_schemas::catalog::Severity;
use iot_schemas::table::Store;

use super::*;

/// A transition of alert `alert` at position (`seq`, `ordinal`).
fn transition(alert: &str, state: AlertState, seq: u64, ordinal: u32) -> Transition {
    Transition {
        id: 0,
        alert_id: alert.to_owned(),
        rule: "hot".to_owned(),
        state,
        previous: None,
        severity: Severity::Warning,
        labels: BTreeMap::from([("device_id".to_owned(), alert.to_owned())]),
        annotations: BTreeMap::new(),
        values: [("temp".to_owned(), 81.25.into())].into_iter().collect(),
        started_at: 1_000_001,
        at: 2_000_000,
        recorded_at: 3_000_000,
        node: "n".into(),
        seq,
        ordinal,
        historical: false,
    }
}

fn firing(alert: &str, seq: u64) -> Transition {
    transition(alert, AlertState::Firing, seq, 0)
}

fn resolved(alert: &str, seq: u64) -> Transition {
    transition(alert, AlertState::Resolved, seq, 0)
}

fn open(dir: &Path) -> AlertLog {
    AlertLog::open(dir, AlertLogLimits::default()).expect("opens")
}

fn append(log: &AlertLog, transitions: Vec<Transition>) -> Vec<TransitionId> {
    ids(&log.append(transitions).expect("appends"))
}

fn ids(transitions: &[Transition]) -> Vec<TransitionId> {
    transitions.iter().map(|transition| transition.id).collect()
}

fn read(log: &AlertLog, after: TransitionId, limit: usize) -> Vec<TransitionId> {
    ids(&log.read_after(after, limit).expect("reads"))
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path());
    assert_eq!(*log.latest().borrow(), 0);
    assert_eq!(append(&log, vec![firing("a", 1), transition("b", AlertState::Pending, 1, 1)]), [1, 2]);
    assert_eq!(append(&log, vec![resolved("a", 2)]), [3]);
    let before = (log.read_after(0, 10).expect("reads"), log.current());
    drop(log);
    let log = open(dir.path());
    assert_eq!((log.read_after(0, 10).expect("reads"), log.current()), before);
    assert_eq!(ids(&log.current()), [2, 3]);
    assert_eq!(*log.latest().borrow(), 3);
    assert_eq!(log.recorded("n"), Some((2, 0)));
    assert_eq!(log.stats().active, 1);
    assert_eq!(ids(&log.history("a").expect("reads")), [1, 3]);
    assert!(log.history("unknown").expect("reads").is_empty());
    assert_eq!(append(&log, vec![firing("a", 3)]), [4]);
}

#[test]
fn a_replay_is_recognised() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = |seq| vec![firing("a", seq), transition("b", AlertState::Firing, seq, 1)];
    let log = open(dir.path());
    assert_eq!(append(&log, group(5)), [1, 2]);
    assert!(append(&log, group(5)).is_empty());
    drop(log);
    let log = open(dir.path());
    assert!(append(&log, group(4)).is_empty());
    let mut more = group(5);
    more.push(transition("c", AlertState::Firing, 5, 2));
    more.push(resolved("a", 6));
    assert_eq!(append(&log, more), [3, 4], "half of an append is new");
    let other = Transition { node: "m".into(), ..firing("d", 1) };
    assert_eq!(append(&log, vec![other]), [5], "another node has positions of its own");
    let again = transition("c", AlertState::Firing, 6, 1);
    assert!(append(&log, vec![again]).is_empty(), "an alert cannot enter the state that it is in");
    assert_eq!(read(&log, 0, 10), [1, 2, 3, 4, 5]);
}

#[test]
fn a_reader_that_resumes_anywhere_sees_each_transition_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = AlertLogLimits { recent: 4, ..AlertLogLimits::default() };
    let mut log = AlertLog::open(dir.path(), limits).expect("opens");
    for seq in 1..=20 {
        let alert = format!("a{seq}");
        append(&log, vec![firing(&alert, seq), transition(&alert, AlertState::Resolved, seq, 1)]);
        if seq % 7 == 0 {
            drop(log);
            log = AlertLog::open(dir.path(), limits).expect("opens");
        }
    }
    for from in 0..=41 {
        for limit in [1, 3, 100] {
            let mut seen = Vec::new();
            let mut after = from;
            while let Some(last) = {
                seen.extend(read(&log, after, limit));
                seen.last().copied()
            } {
                if last == after {
                    break;
                }
                after = last;
            }
            assert_eq!(seen, (from + 1..=40).collect::<Vec<_>>(), "from {from} by {limit}");
        }
    }
}

#[test]
fn watchers_are_woken() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path());
    let mut latest = log.latest();
    latest.mark_unchanged();
    append(&log, vec![firing("a", 1)]);
    assert!(latest.has_changed().expect("the log lives"));
    assert_eq!(*latest.borrow_and_update(), 1);
}

#[test]
fn a_torn_tail_is_cut_and_its_number_given_to_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path());
    append(&log, vec![firing("a", 1)]);
    append(&log, vec![firing("b", 2)]);
    drop(log);
    let segment = newest_segment(dir.path());
    let length = fs::metadata(&segment).expect("a file").len();
    OpenOptions::new().write(true).open(&segment).and_then(|f| f.set_len(length - 3)).expect("cut");
    let log = open(dir.path());
    assert!(log.stats().torn_bytes > 0);
    assert_eq!(read(&log, 0, 10), [1]);
    assert_eq!(log.recorded("n"), Some((1, 0)));
    assert_eq!(append(&log, vec![firing("b", 2)]), [2], "the replay records it again");
}

fn newest_segment(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "log")).max().expect("a segment")
}

#[test]
fn a_long_log_is_shortened_and_active_alerts_survive() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = AlertLogLimits { max_bytes: 64 << 10, recent: 10, ended: 5, ..AlertLogLimits::default() };
    let log = AlertLog::open(dir.path(), limits).expect("opens");
    append(&log, vec![firing("old", 1)]);
    for seq in 2..=600 {
        let alert = format!("a{seq}");
        append(&log, vec![firing(&alert, seq), transition(&alert, AlertState::Resolved, seq, 1)]);
        assert!(log.stats().bytes <= (64 << 10) + 1024);
    }
    let current = log.current();
    assert_eq!(current.len(), 6);
    assert_eq!((current[0].alert_id.as_str(), current[0].id), ("old", 1));
    drop(log);
    let log = AlertLog::open(dir.path(), limits).expect("opens");
    assert_eq!(log.current(), current);
    let rest = read(&log, 0, usize::MAX);
    assert!(rest[0] > 1 && rest.len() > 50, "{} from {}", rest.len(), rest[0]);
    assert_eq!(rest, (rest[0]..=1199).collect::<Vec<_>>());
    assert_eq!(ids(&log.history("old").expect("reads")), [1], "its newest transition at least");
    assert_eq!(append(&log, vec![resolved("old", 601)]), [1200]);
}

#[test]
fn what_was_over_when_it_was_recorded_takes_no_room_from_news() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = AlertLogLimits { ended: 5, ..AlertLogLimits::default() };
    let log = AlertLog::open(dir.path(), limits).expect("opens");
    for seq in 1..=20 {
        let (alert, historical) = (format!("a{seq}"), seq > 8);
        let steps = [firing(&alert, seq), transition(&alert, AlertState::Resolved, seq, 1)];
        append(&log, steps.map(|step| Transition { historical, ..step }).to_vec());
    }
    let listed: Vec<String> = log.current().into_iter().map(|alert| alert.alert_id).collect();
    assert_eq!(listed, ["a4", "a5", "a6", "a7", "a8", "a16", "a17", "a18", "a19", "a20"]);
    assert_eq!(ids(&log.history("a10").expect("reads")), [19, 20], "the log has the others");
}

#[test]
fn a_damaged_snapshot_is_an_error_and_not_silence() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path());
    append(&log, vec![firing("a", 1)]);
    let snapshot = log.index.read().snapshot();
    snapshot.store(dir.path()).expect("stored");
    assert!(Snapshot::load(dir.path()).expect("loads").is_some());
    drop(log);
    let path = dir.path().join("alerts.snapshot");
    let mut bytes = fs::read(&path).expect("a file");
    bytes[20] ^= 1;
    fs::write(&path, bytes).expect("written");
    let error = AlertLog::open(dir.path(), AlertLogLimits::default()).expect_err("damaged").to_string();
    assert!(error.contains("alerts.snapshot") && error.contains("checksum"), "{error}");
}

#[test]
fn a_failed_append_changes_nothing_and_may_be_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    // Each append begins a new segment, which fails while the directory is gone, as it does on a full disk.
    let limits = AlertLogLimits { max_bytes: 4096, ..AlertLogLimits::default() };
    let log = AlertLog::open(dir.path(), limits).expect("opens");
    append(&log, vec![firing("a", 1)]);
    let hidden = dir.path().with_extension("hidden");
    fs::rename(dir.path(), &hidden).expect("renamed");
    let error = log.append(vec![resolved("a", 2)]).expect_err("no directory").to_string();
    assert!(error.contains("appending"), "{error}");
    fs::rename(&hidden, dir.path()).expect("renamed");
    assert_eq!((*log.latest().borrow(), log.recorded("n"), ids(&log.current())), (1, Some((1, 0)), vec![1]));
    assert_eq!(append(&log, vec![resolved("a", 2)]), [2]);
    assert_eq!(read(&log, 0, 10), [1, 2]);
}

#[tokio::test]
async fn the_table_follows_the_log_exactly() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::local(&dir.path().join("store")).expect("a store");
    let log = Arc::new(open(&dir.path().join("wal")));
    let table = AlertTable::open(&store, log.clone()).await.expect("opens");
    assert_eq!(table.mirror().await.expect("mirrors"), 0);
    append(&log, vec![firing("a", 1), transition("b", AlertState::Pending, 1, 1)]);
    assert_eq!(table.rows().expect("rows").tail.num_rows(), 2);
    assert_eq!(table.mirror().await.expect("mirrors"), 2);
    append(&log, vec![resolved("a", 2)]);
    drop(table);
    let table = AlertTable::open(&store, log.clone()).await.expect("opens");
    let rows = table.rows().expect("rows");
    assert_eq!((rows.sealed.row_count(), rows.tail.num_rows()), (2, 1));
    assert_eq!(table.mirror().await.expect("mirrors"), 1);
    assert_eq!(table.mirror().await.expect("mirrors"), 0);
    let rows = table.rows().expect("rows");
    assert_eq!((rows.sealed.row_count(), rows.tail.num_rows()), (3, 0));

    let lost = Arc::new(open(&dir.path().join("another-wal")));
    let table = AlertTable::open(&store, lost.clone()).await.expect("opens");
    assert_eq!(append(&lost, vec![firing("c", 1)]), [4], "no number is given twice");
    assert_eq!(table.mirror().await.expect("mirrors"), 1);
}

#[test]
fn rows_have_the_tables_columns() {
    let batch = to_batch(&[firing("a", 1)]);
    assert_eq!(batch.schema(), alert_schema());
    assert_eq!(batch.num_rows(), 1);
    assert_eq!(to_batch(&[]).num_rows(), 0);
}
