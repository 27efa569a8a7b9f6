//! What one reader of a view has still to be given: for each row the newest value, never a queue of them.
//!
//! A reader that is slow finds, when it comes back, each row that has changed since once, as it is now. A row that
//! was closed and corrected in the meantime comes as one closed row with the corrected value, so that a window is
//! closed for each reader exactly once. Beyond [`MAX_ROWS`] rows the oldest are left out and counted; the reader is
//! told how many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Rows that wait for one reader at most. Their text is shared by all readers.
const MAX_ROWS: usize = 20_000;

/// A row of a view on its way to readers.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The values of its group keys: what makes two values ones of the same row.
    pub(crate) key: Arc<[u8]>,
    /// Its device, if the view shows one.
    pub(crate) device: Option<Arc<str>>,
    /// The end of its window, microseconds since 1970; `None` if it belongs to none.
    pub(crate) window_end: Option<i64>,
    /// The row as a JSON object.
    pub(crate) json: Arc<str>,
    pub(crate) state: RowState,
}

/// Where a row is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowState {
    /// Its window is open, or it belongs to none.
    Open,
    /// The watermark has just passed the end of its window.
    Closed,
    /// It was closed before and has changed since; how often its window was corrected.
    Corrected(u64),
}

/// A row as the reader is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) json: Arc<str>,
    pub(crate) closed: bool,
    /// The reader was given this row as closed before.
    pub(crate) correction: bool,
    pub(crate) revision: u64,
}

/// What a reader is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Row(Delivery),
    /// All windows that end by then have been given; here the reader may resume.
    Position(i64),
    /// So many rows were left out.
    Missed(u64),
    /// The view is gone, or another one.
    End,
}

/// What a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Only rows of this device.
    pub(crate) device: Option<String>,
    /// Only rows that are closed, and their corrections.
    pub(crate) closed_only: bool,
    /// The reader was given all windows that end by then.
    pub(crate) resume_after: Option<i64>,
}

/// What waits for one reader.
#[derive(Debug)]
pub(crate) struct Mailbox {
    wish: Wish,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    order: VecDeque<Entry>,
    rows: HashMap<Arc<[u8]>, Delivery>,
    missed: u64,
    ended: bool,
}

#[derive(Debug)]
enum Entry {
    Row(Arc<[u8]>),
    Position(i64),
}

impl Mailbox {
    pub(crate) fn new(wish: Wish) -> Self {
        Self { wish, waiting: Mutex::default(), arrived: Notify::new(), emptied: Notify::new() }
    }

    pub(crate) fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Leaves a row for the reader, if it wants it.
    pub(crate) fn post(&self, row: &Row) {
        if self.wants(row) {
            self.waiting.lock().put(row);
            self.arrived.notify_one();
        }
    }

    /// Everything that closed by then has been posted.
    pub(crate) fn post_position(&self, closed_up_to: i64) {
        if self.wish.resume_after.is_some_and(|known| closed_up_to <= known) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if let Some(Entry::Position(_)) = waiting.order.back() {
            waiting.order.pop_back();
        }
        waiting.order.push_back(Entry::Position(closed_up_to));
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Rows could not be looked at; nobody knows whether the reader wanted them.
    pub(crate) fn post_missed(&self, rows: u64) {
        self.waiting.lock().missed += rows;
        self.arrived.notify_one();
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        self.waiting.lock().ended = true;
        self.arrived.notify_one();
    }

    /// The next thing to tell; waits until there is one.
    pub(crate) async fn next(&self) -> Told {
        loop {
            let arrived = self.arrived.notified();
            if let Some(told) = self.take() {
                return told;
            }
            arrived.await;
        }
    }

    /// Waits until the reader has taken half of what may wait.
    pub(crate) async fn has_room(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.waiting.lock().rows.len() < MAX_ROWS / 2 {
                return;
            }
            emptied.await;
        }
    }

    fn take(&self) -> Option<Told> {
        let mut waiting = self.waiting.lock();
        let told = waiting.take();
        if waiting.rows.len() < MAX_ROWS / 2 {
            self.emptied.notify_one();
        }
        told
    }

    fn wants(&self, row: &Row) -> bool {
        let known = |end: Option<i64>| {
            self.wish.resume_after.is_some_and(|known| end.is_some_and(|end| end <= known))
        };
        let by_state = match row.state {
            RowState::Open => !self.wish.closed_only,
            RowState::Closed => !known(row.window_end),
            RowState::Corrected(_) => true,
        };
        by_state && self.wish.device.as_ref().is_none_or(|wanted| row.device.as_deref() == Some(wanted))
    }
}

impl Waiting {
    fn put(&mut self, row: &Row) {
        let mut delivery = Delivery::of(row);
        if let Some(known) = self.rows.get_mut(&row.key) {
            // If it waits as closed, the reader has not heard of that yet: this is how it hears it.
            delivery.correction &= known.correction || !known.closed;
            *known = delivery;
            return;
        }
        if self.rows.len() >= MAX_ROWS {
            self.drop_oldest();
        }
        self.rows.insert(row.key.clone(), delivery);
        self.order.push_back(Entry::Row(row.key.clone()));
    }

    fn drop_oldest(&mut self) {
        while let Some(entry) = self.order.pop_front() {
            if let Entry::Row(key) = entry {
                self.rows.remove(&key);
                self.missed += 1;
                return;
            }
        }
    }

    fn take(&mut self) -> Option<Told> {
        if self.missed > 0 {
            return Some(Told::Missed(std::mem::take(&mut self.missed)));
        }
        loop {
            match self.order.pop_front() {
                Some(Entry::Row(key)) => {
                    if let Some(delivery) = self.rows.remove(&key) {
                        return Some(Told::Row(delivery));
                    }
                }
                Some(Entry::Position(position)) => return Some(Told::Position(position)),
                None => return self.ended.then_some(Told::End),
            }
        }
    }
}

impl Delivery {
    fn of(row: &Row) -> Self {
        let (closed, correction, revision) = match row.state {
            RowState::Open => (false, false, 0),
            RowState::Closed => (true, false, 0),
            RowState::Corrected(revision) => (true, true, revision),
        };
        Self { json: row.json.clone(), closed, correction, revision }
    }

    /// The row's JSON object with what is told about it.
    pub(crate) fn to_json(&self) -> String {
        let row = self.json.strip_suffix('}').unwrap_or(&self.json);
        let comma = if row.ends_with('{') { "" } else { "," };
        let closed = self.closed;
        if !closed {
            return format!("{row}{comma}\"closed\":false}}");
        }
        let (correction, revision) = (self.correction, self.revision);
        format!("{row}{comma}\"closed\":true,\"correction\":{correction},\"revision\":{revision}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, value: &str, state: RowState) -> Row {
        Row {
            key: key.as_bytes().into(),
            device: Some(key.into()),
            window_end: Some(60),
            json: format!("{{\"v\":{value}}}").into(),
            state,
        }
    }

    /// What the reader is told, as text.
    fn told(mailbox: &Mailbox) -> Vec<String> {
        std::iter::from_fn(|| mailbox.take())
            .take_while(|told| *told != Told::End)
            .map(|told| match told {
                Told::Row(delivery) => delivery.to_json(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_slow_reader_gets_the_newest_value_of_each_row() {
        let mailbox = Mailbox::new(Wish::default());
        for value in ["1", "2", "3"] {
            mailbox.post(&row("a", value, RowState::Open));
            mailbox.post(&row("b", value, RowState::Open));
        }
        mailbox.post(&row("a", "4", RowState::Closed));
        mailbox.post_position(60);
        mailbox.post_position(90);
        assert_eq!(
            told(&mailbox),
            [
                r#"{"v":4,"closed":true,"correction":false,"revision":0}"#,
                r#"{"v":3,"closed":false}"#,
                "Position(90)"
            ]
        );
    }

    #[test]
    fn a_window_is_closed_once_for_each_reader_and_corrected_after_that() {
        let (fast, slow) = (Mailbox::new(Wish::default()), Mailbox::new(Wish::default()));
        let mut seen = Vec::new();
        for (value, state) in
            [("1", RowState::Closed), ("2", RowState::Corrected(1)), ("3", RowState::Corrected(2))]
        {
            fast.post(&row("a", value, state));
            slow.post(&row("a", value, state));
            seen.extend(told(&fast));
        }
        assert_eq!(
            seen,
            [
                r#"{"v":1,"closed":true,"correction":false,"revision":0}"#,
                r#"{"v":2,"closed":true,"correction":true,"revision":1}"#,
                r#"{"v":3,"closed":true,"correction":true,"revision":2}"#,
            ]
        );
        assert_eq!(told(&slow), [r#"{"v":3,"closed":true,"correction":false,"revision":2}"#]);
        slow.post(&row("a", "4", RowState::Corrected(3)));
        assert_eq!(told(&slow), [r#"{"v":4,"closed":true,"correction":true,"revision":3}"#]);
    }

    #[test]
    fn a_reader_gets_what_it_wished_for() {
        let check = |wish: Wish, expect: usize| {
            let mailbox = Mailbox::new(wish.clone());
            for state in [RowState::Open, RowState::Closed, RowState::Corrected(1)] {
                mailbox.post(&row("a", "1", state));
                let other = Row { key: b"b2".as_slice().into(), ..row("b", "1", state) };
                mailbox.post(&Row { window_end: Some(120), ..other });
            }
            assert_eq!(told(&mailbox).len(), expect, "{wish:?}");
        };
        check(Wish::default(), 2);
        check(Wish { device: Some("a".into()), ..Wish::default() }, 1);
        check(Wish { device: Some("nobody".into()), ..Wish::default() }, 0);
        let only_closed = |row: &Row| {
            let mailbox = Mailbox::new(Wish { closed_only: true, resume_after: Some(60), ..Wish::default() });
            mailbox.post(row);
            told(&mailbox).len()
        };
        assert_eq!(only_closed(&row("a", "1", RowState::Open)), 0);
        assert_eq!(only_closed(&row("a", "1", RowState::Closed)), 0, "it was given before");
        assert_eq!(only_closed(&Row { window_end: Some(61), ..row("a", "1", RowState::Closed) }), 1);
        assert_eq!(only_closed(&row("a", "1", RowState::Corrected(1))), 1);
    }

    #[test]
    fn a_reader_that_never_reads_costs_no_more_than_the_limit() {
        let mailbox = Mailbox::new(Wish::default());
        for i in 0..3 * MAX_ROWS {
            mailbox.post(&row(&i.to_string(), "1", RowState::Open));
            mailbox.post_position(i as i64);
        }
        let waiting = mailbox.waiting.lock();
        assert_eq!((waiting.rows.len(), waiting.missed), (MAX_ROWS, 2 * MAX_ROWS as u64));
        assert!(waiting.order.len() <= 2 * MAX_ROWS + 1);
        drop(waiting);
        assert_eq!(mailbox.take(), Some(Told::Missed(2 * MAX_ROWS as u64)));
    }

    #[test]
    fn a_row_without_columns_is_still_an_object() {
        let empty = Row { json: "{}".into(), ..row("a", "1", RowState::Open) };
        assert_eq!(Delivery::of(&empty).to_json(), r#"{"closed":false}"#);
    }
}
