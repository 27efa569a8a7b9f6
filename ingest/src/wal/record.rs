//! The body of a log frame: the messages of one group, with everything that decoding depends on.
//!
//! ```text
//! body     version u8 = 1 | record ...
//! record   arrival i64 | flags u8 | topic u16 + bytes
//!          [client u16 + bytes | packet id u16]   if flags & 1; flags & 2 is the DUP flag
//!          [original length u64]                  if flags & 4: the payload was cut
//!          payload u32 + bytes
//! ```
//! Integers are little endian. The frame around it carries length, checksum and positions.

use crate::message::Message;

const VERSION: u8 = 1;
const HAS_DELIVERY: u8 = 1;
const IS_DUP: u8 = 2;
const IS_CUT: u8 = 4;
/// MQTT has no longer strings. An HTTP client could send one; it is cut, as it cannot match a stream anyway.
const MAX_TEXT: usize = u16::MAX as usize;

/// One message of a group, borrowed from the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// When it arrived, microseconds since 1970.
    pub(crate) arrival: i64,
    pub(crate) topic: &'a str,
    /// The first bytes of the payload, all of them unless `cut_from` is given.
    pub(crate) payload: &'a [u8],
    /// The payload's original length if it was too large to keep.
    pub(crate) cut_from: Option<u64>,
    pub(crate) delivery: Option<RecordDelivery<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordDelivery<'a> {
    pub(crate) client: &'a str,
    pub(crate) packet_id: u16,
}

/// Builds the body of one group.
#[derive(Debug)]
pub(crate) struct GroupWriter {
    body: Vec<u8>,
    count: u64,
    max_payload_bytes: usize,
}

impl GroupWriter {
    pub(crate) fn new(max_payload_bytes: usize) -> Self {
        Self { body: vec![VERSION], count: 0, max_payload_bytes }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn push(&mut self, message: &Message, arrival: i64) {
        let payload = &message.payload[..message.payload.len().min(self.max_payload_bytes)];
        let cut = payload.len() < message.payload.len();
        let mut flags = if cut { IS_CUT } else { 0 };
        if let Some(delivery) = &message.delivery {
            flags |= HAS_DELIVERY | if delivery.dup { IS_DUP } else { 0 };
        }
        self.body.extend_from_slice(&arrival.to_le_bytes());
        self.body.push(flags);
        self.push_text(&message.topic);
        if let Some(delivery) = &message.delivery {
            self.push_text(&delivery.client);
            self.body.extend_from_slice(&delivery.packet_id.to_le_bytes());
        }
        if cut {
            self.body.extend_from_slice(&(message.payload.len() as u64).to_le_bytes());
        }
        self.body.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.body.extend_from_slice(payload);
        self.count += 1;
    }

    /// The finished body.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.body
    }

    fn push_text(&mut self, text: &str) {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.body.extend_from_slice(&(end as u16).to_le_bytes());
        self.body.extend_from_slice(&text.as_bytes()[..end]);
    }
}

/// The messages of a body, in order. `None` if the body is of an unknown version.
pub(crate) fn records(body: &[u8]) -> Option<Records<'_>> {
    (body.first() == Some(&VERSION)).then(|| Records { rest: &body[1..] })
}

/// Iterates over a body. It ends early where the body is not what [`GroupWriter`] writes.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(usize::from(length))?).ok()
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let arrival = self.u64()? as i64;
        let flags = self.take(1)?[0];
        let topic = self.text()?;
        let delivery = if flags & HAS_DELIVERY != 0 {
            Some(RecordDelivery { client: self.text()?, packet_id: self.u16()? })
        } else {
            None
        };
        let cut_from = if flags & IS_CUT != 0 { Some(self.u64()?) } else { None };
        let length = self.u32()?;
        let payload = self.take(length as usize)?;
        Some(Record { arrival, topic, payload, cut_from, delivery })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_none() {
            self.rest = &[];
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Delivery;

    fn sample() -> Vec<Message> {
        let delivery = Delivery { client: "gw-1".into(), packet_id: 7, dup: true };
        vec![
            Message::new("a/b", &b"{}"[..]),
            Message { topic: "c".into(), payload: vec![0xff; 9].into(), delivery: Some(delivery) },
            Message::new("", &b""[..]),
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = GroupWriter::new(4);
        for (i, message) in sample().iter().enumerate() {
            writer.push(message, 1_000 + i as i64);
        }
        assert_eq!(writer.count(), 3);
        let body = writer.finish();
        let read: Vec<Record<'_>> = records(&body).expect("this version").collect();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].topic, read[0].payload, read[0].arrival), ("a/b", &b"{}"[..], 1_000));
        assert_eq!(read[1].delivery, Some(RecordDelivery { client: "gw-1", packet_id: 7 }));
        assert_eq!((read[1].payload.len(), read[1].cut_from), (4, Some(9)));
        assert_eq!((read[2].topic, read[2].payload.len(), read[2].cut_from), ("", 0, None));
    }

    #[test]
    fn a_cut_or_unknown_body_ends_and_never_panics() {
        let mut writer = GroupWriter::new(100);
        sample().iter().for_each(|message| writer.push(message, 0));
        let body = writer.finish();
        for end in 1..body.len() {
            assert!(records(&body[..end]).expect("this version").count() <= 3);
        }
        assert!(records(&[9, 1, 2]).is_none() && records(&[]).is_none());
    }
}
