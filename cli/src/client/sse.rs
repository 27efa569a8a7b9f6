//! The wire format of server-sent events, without any I/O.
//!
//! Bytes go in as they arrive, in pieces of any size; complete events come out. As the standard asks: `\n`, `\r`
//! and `\r\n` all end a line, lines that start with `:` are comments (heartbeats), an event without data is no
//! event, and the last id stays in force until another one comes.

use std::time::Duration;

/// The most that one line or one event may hold. A stream that exceeds it is not ours.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Its type, `message` if the sender gave none.
    pub event: String,
    /// Its data, lines joined by `\n`.
    pub data: String,
}

/// The stream broke the format's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Turns bytes into events.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    after_cr: bool,
    event: String,
    data: String,
    id: Option<String>,
    last_event_id: Option<String>,
    retry: Option<Duration>,
}

impl SseParser {
    /// Takes the next bytes and returns the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let follows_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => events.extend(self.end_of_line()),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    /// Forgets a half-received event, for a new connection. The last id and the retry time stay.
    pub fn reconnected(&mut self) {
        self.line.clear();
        self.data.clear();
        self.event.clear();
        self.id = None;
        self.after_cr = false;
    }

    /// The id of the newest complete event: where to resume.
    pub fn last_event_id(&self) -> Option<&str> {
        self.last_event_id.as_deref()
    }

    /// How long the sender wants readers to wait before they reconnect.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn end_of_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value));
        None
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" => {
                if let Ok(millis) = value.parse() {
                    self.retry = Some(Duration::from_millis(millis));
                }
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let mut data = std::mem::take(&mut self.data);
        let event = std::mem::take(&mut self.event);
        if let Some(id) = self.id.take() {
            self.last_event_id = Some(id);
        }
        data.pop()?;
        Some(SseEvent { event: if event.is_empty() { "message".to_owned() } else { event }, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of `stream`, which must not depend on how it is cut into pieces.
    fn check(stream: &str, expect: &[(&str, &str)], last_id: Option<&str>) {
        for piece in [1, 2, 3, 7, stream.len().max(1)] {
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            for bytes in stream.as_bytes().chunks(piece) {
                events.extend(parser.push(bytes).expect("short enough"));
            }
            let got: Vec<_> =
                events.iter().map(|event| (event.event.as_str(), event.data.as_str())).collect();
            assert_eq!(got, expect, "in pieces of {piece}");
            assert_eq!(parser.last_event_id(), last_id, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_event_has_type_data_and_id() {
        check("event: alert\nid: 7\ndata: {\"a\":1}\n\n", &[("alert", "{\"a\":1}")], Some("7"));
    }

    #[test]
    fn all_line_ends_are_understood() {
        check(
            "data: a\r\ndata:b\r\n\r\ndata: c\r\rdata: d\n\n",
            &[("message", "a\nb"), ("message", "c"), ("message", "d")],
            None,
        );
    }

    #[test]
    fn comments_and_empty_events_are_no_events() {
        check(": heartbeat\n\nid: 3\n\n:x\n\n", &[], Some("3"));
    }

    #[test]
    fn an_id_of_a_half_received_event_does_not_count() {
        check("id: 1\ndata: x\n\nid: 2\ndata: y\n", &[("message", "x")], Some("1"));
    }

    #[test]
    fn text_beyond_ascii_survives_being_cut_anywhere() {
        check("\u{feff}data: 81 °C — zu heiß\n\n", &[("message", "81 °C — zu heiß")], None);
    }

    #[test]
    fn the_sender_may_say_when_to_come_back() {
        let mut parser = SseParser::default();
        parser.push(b"retry: 1500\nretry: soon\n").expect("short enough");
        assert_eq!(parser.retry(), Some(Duration::from_millis(1500)));
        parser.push(b"id: 9\ndata: half").expect("short enough");
        parser.reconnected();
        assert_eq!(parser.push(b"data: whole\n\n").expect("short enough").len(), 1);
        assert_eq!(parser.last_event_id(), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        assert_eq!(parser.push(&vec![b'x'; MAX_EVENT_BYTES + 1]), Err(TooLong));
    }
}
