use std::sync::mpsc::{Receiver, sync_channel};

use tokio::sync::Semaphore;

use super::*;
use crate::message::Delivery;
use crate::redelivery::fingerprint;

/// A writer on a log in `dir`, what goes into its queue, and what it hands on.
fn writer(dir: &Path) -> (Writer, mpsc::Sender<Input>, Receiver<Work>) {
    let (log, _) = Log::open(dir, 1 << 20, 1).expect("it opens");
    let (input, queue) = mpsc::channel(16);
    let (decoder, work) = sync_channel(16);
    let writer = Writer {
        wal: Arc::new(Mutex::new(Wal::new(log, Redelivery::default(), dir.to_owned()))),
        queue,
        decoder,
        config: Arc::default(),
        counters: Arc::default(),
        gate: Arc::default(),
        clock: Clock::system(),
    };
    (writer, input, work)
}

fn waiting(packet_id: u16) -> (Waiting, oneshot::Receiver<Result<Receipt, Refused>>) {
    let (reply, answer) = oneshot::channel();
    let delivery = Some(Delivery { client: "gateway".into(), packet_id, dup: false, copies_before: 0 });
    let message = Message { delivery, ..Message::new("devices/a/telemetry", "{}") };
    let _room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("there is room");
    (Waiting { message, arrival: 1, resolution: None, sheddable: None, reply, _room }, answer)
}

#[test]
fn a_window_that_is_saved_before_the_answers_knows_what_the_log_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let (writer, ..) = writer(dir.path());
    let Draft { first, frame, answers } = writer.number(vec![waiting(7).0]);
    writer.append(frame.count(), first, &frame.finish(), &answers).expect("it is durable");
    // Here a seal trims the log, and then the power fails.
    Wal::trim(&writer.wal, 0).expect("it trims");
    let (window, up_to) = window_file::load(dir.path()).expect("it is readable");
    assert_eq!(up_to, 1);
    assert_eq!(window.lookup("gateway", 7, fingerprint("devices/a/telemetry", b"{}")), Some(1));
}

#[test]
fn without_a_decoder_nothing_more_is_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let (writer, input, work) = writer(dir.path());
    let (counters, wal) = (writer.counters.clone(), writer.wal.clone());
    counters.started.store(true, Ordering::Relaxed);
    let thread = std::thread::spawn(move || writer.run());
    let (first, answer) = waiting(1);
    input.blocking_send(Input::Message(first)).expect("it is taken");
    assert_eq!(answer.blocking_recv(), Ok(Ok(Receipt::Stored(1))));
    assert!(matches!(work.recv(), Ok(Work::Group(_))), "it is handed on after the answer");
    drop(work);
    let (last, answer) = waiting(2);
    input.blocking_send(Input::Message(last)).expect("it is taken");
    assert_eq!(answer.blocking_recv(), Ok(Ok(Receipt::Stored(2))), "nobody could know yet");
    thread.join().expect("it ends");
    assert!(input.blocking_send(Input::Message(waiting(3).0)).is_err(), "it takes no more");
    assert_eq!(wal.lock().log.next(), 3, "the log does not grow");
    let trouble = counters.not_ready().expect("it is not ready");
    assert!(trouble.contains("has ended; restart the server"), "{trouble}");
}
