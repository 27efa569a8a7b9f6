//! The body of a log frame: the messages of one group, with everything that decoding depends on.
//!
//! ```text
//! body     version u8 = 3 | record ...
//! record   arrival i64 | flags u8 | topic u16 + bytes
//!          [client u16 + bytes | packet id u16]   if flags & 1; flags & 2 is the DUP flag
//!          [original length u64]                  if flags & 4: the payload was cut
//!          [content type u16 + bytes]             if flags & 8
//!          [bytes u32 | name u16 + bytes | value u16 + bytes ...]   if flags & 16: user properties;
//!                                                 flags & 32: there were more of them
//!          [length u32 + JSON]                    if flags & 64: what is done about a dead letter
//!          [how it came u8]                       if flags & 128: 1 a will, 2 a retained copy
//!          payload u32 + bytes
//! ```
//! Version 1 is the same without what the flags from 8 on mean, version 2 without the last. Integers are little endian. The frame around it carries length, checksum and positions.

use iot_schemas::device::Via;

use crate::dead_letter::Resolution;
use crate::message::{Message, Properties};

const VERSION: u8 = 3;
/// The oldest version that can be read.
const FIRST_VERSION: u8 = 1;
const HAS_DELIVERY: u8 = 1;
const IS_DUP: u8 = 2;
const IS_CUT: u8 = 4;
const HAS_CONTENT_TYPE: u8 = 8;
const HAS_USER_PROPERTIES: u8 = 16;
const HAS_MORE_PROPERTIES: u8 = 32;
const HAS_RESOLUTION: u8 = 64;
const HAS_VIA: u8 = 128;
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
    pub(crate) content_type: Option<&'a str>,
    pub(crate) user_properties: UserProperties<'a>,
    /// The JSON of a [`Resolution`]: this is no new message, but what is done about a dead letter.
    pub(crate) resolution: Option<&'a [u8]>,
    /// How it came.
    pub(crate) via: Via,
}

/// The user properties of a message, as the body has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UserProperties<'a> {
    bytes: &'a [u8],
    /// Whether there were more than are kept.
    pub(crate) is_cut: bool,
}

impl<'a> UserProperties<'a> {
    /// Names and values, in the order in which they were sent.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut reader = Records { rest: self.bytes };
        std::iter::from_fn(move || Some((reader.text()?, reader.text()?)))
    }

    /// The first value under `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// All of them as a JSON array of pairs, `None` if there are none.
    pub(crate) fn to_json(self) -> Option<String> {
        let pairs: Vec<_> = self.iter().collect();
        (!pairs.is_empty()).then(|| serde_json::json!(pairs).to_string())
    }
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

    /// The part of a payload that is written.
    pub(crate) fn kept_of<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        &payload[..payload.len().min(self.max_payload_bytes)]
    }

    pub(crate) fn push(&mut self, message: &Message, arrival: i64, resolution: Option<&Resolution>) {
        let payload = self.kept_of(&message.payload);
        let cut = payload.len() < message.payload.len();
        let mut flags = if cut { IS_CUT } else { 0 };
        if let Some(delivery) = &message.delivery {
            flags |= HAS_DELIVERY | if delivery.dup { IS_DUP } else { 0 };
        }
        let properties = message.properties.as_deref();
        let content_type = properties.and_then(Properties::content_type);
        let user = properties.map(Properties::user).unwrap_or_default();
        flags |= if content_type.is_some() { HAS_CONTENT_TYPE } else { 0 };
        flags |= if user.is_empty() { 0 } else { HAS_USER_PROPERTIES };
        flags |= if properties.is_some_and(Properties::is_cut) { HAS_MORE_PROPERTIES } else { 0 };
        let resolution =
            resolution.map(|it| serde_json::to_vec(it).expect("texts and numbers can be written"));
        flags |= if resolution.is_some() { HAS_RESOLUTION } else { 0 };
        let via = via_code(properties.map(Properties::via).unwrap_or_default());
        flags |= if via == 0 { 0 } else { HAS_VIA };
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
        if let Some(content_type) = content_type {
            self.push_text(content_type);
        }
        self.push_user_properties(user);
        if let Some(resolution) = resolution {
            self.body.extend_from_slice(&(resolution.len() as u32).to_le_bytes());
            self.body.extend_from_slice(&resolution);
        }
        if via != 0 {
            self.body.push(via);
        }
        self.body.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.body.extend_from_slice(payload);
        self.count += 1;
    }

    fn push_user_properties(&mut self, user: &[(String, String)]) {
        if user.is_empty() {
            return;
        }
        let at = self.body.len();
        self.body.extend_from_slice(&[0; 4]);
        for (name, value) in user {
            self.push_text(name);
            self.push_text(value);
        }
        let bytes = (self.body.len() - at - 4) as u32;
        self.body[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
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

/// The byte that stands for it; 0 is left out.
fn via_code(via: Via) -> u8 {
    match via {
        Via::Live | Via::Replay => 0,
        Via::Will => 1,
        Via::Retained => 2,
    }
}

/// What [`via_code`] wrote. A code of a later build is a message like any other.
fn via_of(code: u8) -> Via {
    match code {
        1 => Via::Will,
        2 => Via::Retained,
        _ => Via::Live,
    }
}

/// The messages of a body, in order. `None` if the body is of an unknown version.
pub(crate) fn records(body: &[u8]) -> Option<Records<'_>> {
    let (version, rest) = body.split_first()?;
    (FIRST_VERSION..=VERSION).contains(version).then_some(Records { rest })
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

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
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
        let content_type = if flags & HAS_CONTENT_TYPE != 0 { Some(self.text()?) } else { None };
        let bytes = if flags & HAS_USER_PROPERTIES != 0 { self.sized()? } else { &[] };
        let user_properties = UserProperties { bytes, is_cut: flags & HAS_MORE_PROPERTIES != 0 };
        let resolution = if flags & HAS_RESOLUTION != 0 { Some(self.sized()?) } else { None };
        let via = if flags & HAS_VIA != 0 { via_of(self.take(1)?[0]) } else { Via::Live };
        // Whatever it was at first: it is read again now.
        let via = if resolution.is_some() { Via::Replay } else { via };
        let payload = self.sized()?;
        Some(Record {
            arrival,
            topic,
            payload,
            cut_from,
            delivery,
            content_type,
            user_properties,
            resolution,
            via,
        })
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

    fn properties() -> Properties {
        let mut properties = Properties::default();
        properties.set_content_type("text/csv");
        properties.add_user("site", "north");
        properties.add_user("site", "south");
        properties.add_user("", "");
        properties.add_user("line", "4");
        properties
    }

    fn sample() -> Vec<Message> {
        let delivery = Delivery { client: "gw-1".into(), packet_id: 7, dup: true, copies_before: 0 };
        vec![
            Message::new("a/b", &b"{}"[..]),
            Message { delivery: Some(delivery), ..Message::new("c", vec![0xff; 9]) },
            Message { properties: properties().boxed(), ..Message::new("", &b""[..]) },
        ]
    }

    fn resolution() -> Resolution {
        Resolution {
            node: "n1".into(),
            seq: 7,
            stream: "readings".into(),
            received_at: 5,
            first: "n1:3".into(),
            action: iot_schemas::dead::DeadAction::Replay,
            at: 9,
            by: "me".into(),
            note: String::new(),
        }
    }

    #[test]
    fn a_resolution_is_kept() {
        let mut writer = GroupWriter::new(100);
        writer.push(&sample()[0], 1, None);
        writer.push(&sample()[0], 5, Some(&resolution()));
        let body = writer.finish();
        let read: Vec<Record<'_>> = records(&body).expect("this version").collect();
        assert_eq!((read[0].resolution, read[1].payload), (None, &b"{}"[..]));
        let json = read[1].resolution.expect("a resolution");
        assert_eq!(serde_json::from_slice::<Resolution>(json).expect("ours"), resolution());
    }

    #[test]
    fn how_a_message_came_is_kept() {
        let mut writer = GroupWriter::new(100);
        for via in [Via::Live, Via::Will, Via::Retained] {
            let mut properties = properties();
            properties.set_via(via);
            let message = Message { properties: properties.boxed(), ..Message::new("t", &b"{}"[..]) };
            writer.push(&message, 1, None);
            writer.push(&message, 1, Some(&resolution()));
        }
        let body = writer.finish();
        let read: Vec<Via> = records(&body).expect("this version").map(|record| record.via).collect();
        let expect = [Via::Live, Via::Will, Via::Retained].map(|via| [via, Via::Replay]);
        assert_eq!(read, expect.concat());
        assert!(records(&body).expect("this version").all(|record| record.payload == b"{}"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = GroupWriter::new(4);
        for (i, message) in sample().iter().enumerate() {
            writer.push(message, 1_000 + i as i64, None);
        }
        assert_eq!(writer.count(), 3);
        let body = writer.finish();
        let read: Vec<Record<'_>> = records(&body).expect("this version").collect();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].topic, read[0].payload, read[0].arrival), ("a/b", &b"{}"[..], 1_000));
        assert_eq!(read[1].delivery, Some(RecordDelivery { client: "gw-1", packet_id: 7 }));
        assert_eq!((read[1].payload.len(), read[1].cut_from), (4, Some(9)));
        assert_eq!((read[2].topic, read[2].payload.len(), read[2].cut_from), ("", 0, None));
        assert_eq!((read[0].content_type, read[0].user_properties), (None, UserProperties::default()));
        let user = read[2].user_properties;
        assert_eq!((read[2].content_type, user.is_cut), (Some("text/csv"), false));
        assert_eq!([user.get("site"), user.get("line"), user.get("x")], [Some("north"), Some("4"), None]);
    }

    #[test]
    fn a_body_of_the_first_version_is_read() {
        let mut body = b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x05\x03\x00a/b".to_vec();
        body.extend_from_slice(b"\x02\x00gw\x07\x00\x09\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00{}");
        let read: Vec<Record<'_>> = records(&body).expect("a known version").collect();
        let delivery = Some(RecordDelivery { client: "gw", packet_id: 7 });
        let expect = Record {
            arrival: 0,
            topic: "a/b",
            payload: b"{}",
            cut_from: Some(9),
            delivery,
            content_type: None,
            user_properties: UserProperties::default(),
            resolution: None,
            via: Via::Live,
        };
        assert_eq!(read, [expect]);
    }

    #[test]
    fn user_properties_are_kept_within_bounds() {
        let mut many = Properties::default();
        (0..100).for_each(|i| many.add_user(&i.to_string(), "v"));
        assert_eq!((many.user().len(), many.is_cut()), (crate::MAX_USER_PROPERTIES, true));
        let mut large = Properties::default();
        large.add_user("a", &"v".repeat(crate::MAX_USER_PROPERTY_BYTES));
        large.add_user("b", "v");
        assert_eq!((large.user().len(), large.is_cut()), (0, true));
        let mut writer = GroupWriter::new(100);
        writer.push(&Message { properties: large.boxed(), ..Message::new("t", &b"{}"[..]) }, 0, None);
        let body = writer.finish();
        let read: Vec<Record<'_>> = records(&body).expect("this version").collect();
        assert!(read[0].user_properties.is_cut && read[0].payload == b"{}");
    }

    #[test]
    fn a_cut_or_unknown_body_ends_and_never_panics() {
        let mut writer = GroupWriter::new(100);
        sample().iter().for_each(|message| writer.push(message, 0, Some(&resolution())));
        let body = writer.finish();
        for end in 1..body.len() {
            assert!(records(&body[..end]).expect("this version").count() <= 3);
        }
        assert!(records(&[9, 1, 2]).is_none() && records(&[]).is_none());
    }
}
