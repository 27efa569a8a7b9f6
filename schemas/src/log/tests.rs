use std::io::{Seek, SeekFrom};

use super::*;

fn bodies(log: &Log, after: Seq) -> Vec<(Seq, Seq, Vec<u8>)> {
    let frames = log.read_after(after).expect("readable");
    frames.map(|frame| frame.expect("whole")).map(|f| (f.first, f.last, f.body)).collect()
}

fn open(dir: &Path) -> (Log, Recovery) {
    Log::open(dir, 200, 1).expect("opens")
}

#[test]
fn what_was_synced_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    assert_eq!(log.append(3, b"abc").expect("appends"), 1);
    assert_eq!(log.append(1, b"d").expect("appends"), 4);
    log.sync().expect("syncs");
    drop(log);
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery, Recovery { frames: 2, ..Recovery::default() });
    assert_eq!(log.next(), 5);
    assert_eq!(bodies(&log, 0), [(1, 3, b"abc".to_vec()), (4, 4, b"d".to_vec())]);
    assert_eq!(bodies(&log, 3), [(4, 4, b"d".to_vec())]);
}

#[test]
fn a_torn_tail_is_cut_at_every_length() {
    let whole = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(whole.path());
    log.append(1, b"first").expect("appends");
    log.append(1, b"second").expect("appends");
    log.sync().expect("syncs");
    let path = log.active.path.clone();
    let bytes = fs::read(&path).expect("readable");
    let first_end = HEADER_BYTES as usize + FRAME_HEADER_BYTES + 5;
    for len in 0..bytes.len() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(path.file_name().expect("a name")), &bytes[..len]).expect("written");
        let (mut log, recovery) = open(dir.path());
        let expect = u64::from(len >= first_end);
        assert_eq!(recovery.frames, expect, "cut at {len}");
        assert_eq!(log.next(), expect + 1);
        log.append(1, b"again").expect("appends");
        log.sync().expect("syncs");
        assert_eq!(bodies(&log, expect), [(expect + 1, expect + 1, b"again".to_vec())]);
    }
}

#[test]
fn a_flipped_bit_ends_the_log_there_and_never_panics() {
    let whole = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(whole.path());
    log.append(1, b"first").expect("appends");
    log.append(1, b"second").expect("appends");
    log.sync().expect("syncs");
    let path = log.active.path.clone();
    let bytes = fs::read(&path).expect("readable");
    for at in 0..bytes.len() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x40;
        fs::write(dir.path().join(path.file_name().expect("a name")), &bytes).expect("written");
        let (_, recovery) = open(dir.path());
        assert!(recovery.frames < 2, "bit {at} went unnoticed");
    }
}

#[test]
fn trimming_frees_whole_segments_and_keeps_what_is_newer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    for _ in 0..20 {
        log.append(1, &[7; 90]).expect("appends");
        log.sync().expect("syncs");
    }
    let before = log.bytes();
    assert!(log.trim(10).expect("trims") > 0);
    assert!(log.bytes() < before);
    let rest: Vec<Seq> = bodies(&log, 10).iter().map(|frame| frame.0).collect();
    assert_eq!(rest, (11..=20).collect::<Vec<_>>());
    log.trim(20).expect("trims");
    assert_eq!(log.bytes(), HEADER_BYTES);
    drop(log);
    assert_eq!(open(dir.path()).0.next(), 21, "positions go on after everything was trimmed");
}

#[test]
fn a_failed_append_leaves_the_log_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    log.append(1, b"kept").expect("appends");
    log.sync().expect("syncs");
    // A file that is open for reading only fails every write, as a full disk does.
    log.file = File::open(&log.active.path).expect("opens");
    log.file.seek(SeekFrom::End(0)).expect("seeks");
    log.append(1, b"lost").expect_err("cannot write");
    assert_eq!(log.append(1, b"next").expect("the log has recovered"), 2);
    log.sync().expect("syncs");
    assert_eq!(bodies(&log, 0), [(1, 1, b"kept".to_vec()), (2, 2, b"next".to_vec())]);
}
