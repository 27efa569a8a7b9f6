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

#[test]
fn a_failure_of_everything_forgets_nothing_that_was_confirmed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    log.append(2, b"kept").expect("appends");
    log.sync().expect("syncs");
    let (path, aside) = (log.active.path.clone(), dir.path().join("aside"));
    // Neither written nor read: a directory is in the file's place.
    fs::rename(&path, &aside).expect("moved");
    fs::create_dir(&path).expect("made");
    log.file = File::open(&aside).expect("opens");
    log.append(1, b"lost").expect_err("cannot write");
    assert_eq!(log.next(), 3, "what was confirmed is known without reading it");
    fs::remove_dir(&path).expect("removed");
    fs::rename(&aside, &path).expect("moved back");
    assert_eq!(log.append(1, b"next").expect("the log has recovered"), 3);
    log.sync().expect("syncs");
    let expect = [(1, 2, b"kept".to_vec()), (3, 3, b"next".to_vec())];
    assert_eq!(bodies(&log, 0), expect);
    drop(log);
    assert_eq!(bodies(&open(dir.path()).0, 0), expect);
}

#[test]
fn what_was_not_confirmed_and_could_not_be_cut_off_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    log.append(1, b"kept").expect("appends");
    log.sync().expect("syncs");
    let spoilt = log.active.path.clone();
    log.append(1, b"never confirmed").expect("appends");
    // Cutting fails on a file that is open for reading only.
    log.file = File::open(&spoilt).expect("opens");
    log.roll_back("syncing", io::Error::other("on purpose"));
    assert_eq!(log.append(1, b"next").expect("appends"), 2);
    log.sync().expect("syncs");
    let expect = [(1, 1, b"kept".to_vec()), (2, 2, b"next".to_vec())];
    assert_eq!(bodies(&log, 0), expect);
    drop(log);
    let (log, recovery) = open(dir.path());
    assert_eq!((bodies(&log, 0), log.next(), recovery.frames), (expect.to_vec(), 3, 2));
}

#[test]
fn nothing_is_appended_to_a_spoilt_segment_while_no_other_can_be_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path());
    log.append(1, b"kept").expect("appends");
    log.sync().expect("syncs");
    let taken = dir.path().join(format!("{:020}.log", 2));
    fs::create_dir(&taken).expect("made");
    log.append(1, b"never confirmed").expect("appends");
    log.roll_back("syncing", io::Error::other("on purpose"));
    for _ in 0..2 {
        log.append(1, b"refused").expect_err("there is no other segment");
        assert_eq!(log.next(), 2);
    }
    fs::remove_dir(&taken).expect("removed");
    assert_eq!(log.append(1, b"next").expect("appends"), 2);
    log.sync().expect("syncs");
    assert_eq!(bodies(&log, 0), [(1, 1, b"kept".to_vec()), (2, 2, b"next".to_vec())]);
}

#[test]
fn a_segment_that_must_be_new_does_not_take_the_place_of_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(format!("{:020}.log", 7));
    fs::write(&path, [1; 100]).expect("written");
    create_segment(dir.path(), 7).expect_err("there is one");
    assert_eq!(fs::read(&path).expect("it is there"), [1; 100]);
    fs::write(&path, [0; 3]).expect("what a full disk has left");
    create_segment(dir.path(), 7).expect("it held nothing");
    assert_eq!(fs::metadata(&path).expect("it is there").len(), HEADER_BYTES);
}
