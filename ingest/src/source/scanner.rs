//! Reads along as a client's bytes arrive and picks out its PUBLISH packets.
//!
//! The embedded broker hands a message to its hook one at a time, without the DUP flag, the content type and the
//! user properties. Reading along gives all of them, and the messages that are already here behind the one that
//! the broker is busy with, so that one fsync can cover them all. Sans-IO; whatever it does not understand it leaves to the broker and
//! is silent from then on.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};

use crate::message::Properties;

use super::access::is_topic;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const DUP: u8 = 0b1000;
const MQTT_5: u8 = 5;

/// The largest CONNECT, in bytes. Until it has come nobody knows who the client is, and both we and the broker keep what
/// it sends. Names, a password and a will fit in.
const MAX_CONNECT_BYTES: usize = 64 << 10;

/// A PUBLISH packet: of QoS 1 or 2, or of QoS 0 and MQTT 5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None` at QoS 0.
    pub(super) packet_id: Option<u16>,
    pub(super) dup: bool,
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) properties: Option<Box<Properties>>,
}

/// The state of one connection, client to broker.
#[derive(Debug)]
pub(super) struct Scanner {
    partial: BytesMut,
    max_packet_bytes: usize,
    version: Option<u8>,
    aliases: HashMap<u16, String>,
    /// Something was not understood: nothing more is reported.
    blind: bool,
    connect_is_too_large: bool,
}

impl Scanner {
    pub(super) fn new(max_packet_bytes: usize) -> Self {
        let (version, blind, connect_is_too_large) = (None, false, false);
        let (partial, aliases) = (BytesMut::new(), HashMap::new());
        Self { partial, max_packet_bytes, version, aliases, blind, connect_is_too_large }
    }

    /// Whether the connection is to end, because a stranger sends more than a stranger has to say.
    pub(super) fn connect_is_too_large(&self) -> bool {
        self.connect_is_too_large
    }

    /// Takes the next bytes and returns the packets that are complete with them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        if self.blind {
            return seen;
        }
        self.partial.extend_from_slice(bytes);
        loop {
            match self.next_packet() {
                Step::Packet(first_byte, body) => match self.packet(first_byte, body) {
                    Some(publish) => seen.extend(publish),
                    None => break,
                },
                Step::Incomplete => return seen,
                Step::Malformed => break,
            }
        }
        self.blind = true;
        self.partial = BytesMut::new();
        seen
    }

    fn next_packet(&mut self) -> Step {
        let Some((header, length)) = fixed_header(&self.partial) else {
            return if self.partial.len() < 5 { Step::Incomplete } else { Step::Malformed };
        };
        if self.version.is_none() && header + length > MAX_CONNECT_BYTES {
            self.connect_is_too_large = true;
            return Step::Malformed;
        }
        if header + length > self.max_packet_bytes {
            return Step::Malformed;
        }
        if self.partial.len() < header + length {
            return Step::Incomplete;
        }
        let mut packet = self.partial.split_to(header + length).freeze();
        let first_byte = packet[0];
        packet.advance(header);
        Step::Packet(first_byte, packet)
    }

    /// `None` if the packet is not understood; `Some(None)` if it is of no interest.
    fn packet(&mut self, first_byte: u8, body: Bytes) -> Option<Option<Seen>> {
        match (first_byte >> 4, self.version) {
            (CONNECT, None) => {
                self.version = Some(protocol_version(&body)?);
                Some(None)
            }
            (_, None) => None,
            (PUBLISH, Some(version)) => self.publish(first_byte, version, body),
            _ => Some(None),
        }
    }

    fn publish(&mut self, first_byte: u8, version: u8, mut body: Bytes) -> Option<Option<Seen>> {
        let qos = (first_byte >> 1) & 3;
        if qos == 3 {
            return None;
        }
        let mut topic = take_text(&mut body)?;
        let packet_id = if qos > 0 { Some(body.try_get_u16().ok()?) } else { None };
        let mut properties = None;
        if version == MQTT_5 {
            let length = take_varint(&mut body)?;
            if length > body.len() {
                return None;
            }
            let (alias, found) = take_properties(body.split_to(length))?;
            if let Some(alias) = alias {
                topic = self.resolve(alias, topic)?;
            }
            properties = found.boxed();
        }
        // The broker ends the connection of a client that tries others, so ingest must not take them first.
        if !is_topic(&topic) {
            return None;
        }
        let dup = first_byte & DUP != 0;
        // Before MQTT 5 there is nothing to say about a message that nobody acknowledges.
        let is_seen = packet_id.is_some() || version == MQTT_5;
        Some(is_seen.then_some(Seen { packet_id, dup, topic, payload: body, properties }))
    }

    fn resolve(&mut self, alias: u16, topic: String) -> Option<String> {
        if topic.is_empty() {
            return self.aliases.get(&alias).cloned();
        }
        self.aliases.insert(alias, topic.clone());
        Some(topic)
    }
}

enum Step {
    /// The first byte and the body.
    Packet(u8, Bytes),
    Incomplete,
    Malformed,
}

/// The length of the fixed header and of the body.
fn fixed_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut rest = bytes.get(1..)?;
    let before = rest.len();
    let length = take_varint(&mut rest)?;
    Some((1 + before - rest.len(), length))
}

fn take_varint(bytes: &mut impl Buf) -> Option<usize> {
    let mut value = 0;
    for i in 0..4 {
        let byte = bytes.try_get_u8().ok()?;
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let length = usize::from(bytes.try_get_u16().ok()?);
    if length > bytes.len() {
        return None;
    }
    String::from_utf8(bytes.split_to(length).to_vec()).ok()
}

fn protocol_version(connect: &Bytes) -> Option<u8> {
    let mut body = connect.clone();
    take_text(&mut body)?;
    body.try_get_u8().ok()
}

/// The topic alias among the properties of a PUBLISH, if there is one, and those that matter to decoding.
fn take_properties(mut bytes: Bytes) -> Option<(Option<u16>, Properties)> {
    let (mut alias, mut properties) = (None, Properties::default());
    while bytes.has_remaining() {
        match bytes.get_u8() {
            // Payload format indicator.
            0x01 => _ = bytes.try_get_u8().ok()?,
            // Message expiry interval.
            0x02 => _ = bytes.try_get_u32().ok()?,
            // Content type.
            0x03 => properties.set_content_type(&take_text(&mut bytes)?),
            // Response topic.
            0x08 => _ = take_text(&mut bytes)?,
            // Correlation data.
            0x09 => {
                let length = usize::from(bytes.try_get_u16().ok()?);
                if length > bytes.len() {
                    return None;
                }
                bytes.advance(length);
            }
            // Subscription identifier.
            0x0b => _ = take_varint(&mut bytes)?,
            // Topic alias.
            0x23 => alias = Some(bytes.try_get_u16().ok()?),
            // User property.
            0x26 => {
                let name = take_text(&mut bytes)?;
                properties.add_user(&name, &take_text(&mut bytes)?);
            }
            _ => return None,
        }
    }
    Some((alias, properties))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT_5: &[u8] = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a";
    const CONNECT_4: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a";

    fn feed_in_pieces(bytes: &[u8], size: usize) -> Vec<Seen> {
        let mut scanner = Scanner::new(1 << 20);
        bytes.chunks(size).flat_map(|piece| scanner.feed(piece)).collect()
    }

    #[test]
    fn publish_packets_are_seen_however_the_bytes_are_cut() {
        let mut bytes = CONNECT_4.to_vec();
        bytes.extend_from_slice(b"\x32\x09\x00\x03a/b\x00\x07hi");
        bytes.extend_from_slice(b"\x3a\x09\x00\x03a/b\x00\x07hi");
        bytes.extend_from_slice(b"\x30\x05\x00\x03a/b");
        bytes.extend_from_slice(b"\xc0\x00\x34\x07\x00\x03a/b\x00\x08");
        for size in 1..bytes.len() {
            let seen = feed_in_pieces(&bytes, size);
            let brief: Vec<_> = seen.iter().map(|s| (s.packet_id, s.dup, s.payload.as_ref())).collect();
            assert_eq!(
                brief,
                [(Some(7), false, &b"hi"[..]), (Some(7), true, b"hi"), (Some(8), false, b"")],
                "pieces of {size}"
            );
            assert!(seen.iter().all(|s| s.topic == "a/b"));
        }
    }

    #[test]
    fn topic_aliases_are_resolved() {
        let mut bytes = CONNECT_5.to_vec();
        bytes.extend_from_slice(b"\x32\x0e\x00\x03a/b\x00\x01\x05\x01\x00\x23\x00\x09x");
        bytes.extend_from_slice(b"\x32\x09\x00\x00\x00\x02\x03\x23\x00\x09y");
        let seen = feed_in_pieces(&bytes, 3);
        let brief: Vec<_> = seen.iter().map(|s| (s.topic.as_str(), s.payload.as_ref())).collect();
        assert_eq!(brief, [("a/b", &b"x"[..]), ("a/b", b"y")]);
    }

    #[test]
    fn content_type_and_user_properties_are_read_at_every_qos() {
        let properties = b"\x01\x01\x03\x00\x08text/csv\x26\x00\x04site\x00\x05north\x02\x00\x00\x00\x09";
        let length = properties.len() as u8;
        let mut bytes = CONNECT_5.to_vec();
        bytes.extend_from_slice(&[0x30, 5 + length, 0, 1, b'a', length]);
        bytes.extend_from_slice(properties);
        bytes.extend_from_slice(&[b'x', 0x32, 7 + length, 0, 1, b'a', 0, 9, length]);
        bytes.extend_from_slice(properties);
        bytes.extend_from_slice(b"y\x30\x05\x00\x01a\x00z");
        let seen = feed_in_pieces(&bytes, 5);
        let mut expect = Properties::default();
        expect.set_content_type("text/csv");
        expect.add_user("site", "north");
        let brief: Vec<_> = seen.iter().map(|s| (s.packet_id, s.payload.as_ref())).collect();
        assert_eq!(brief, [(None, &b"x"[..]), (Some(9), b"y"), (None, b"z")]);
        let found: Vec<_> = seen.iter().map(|s| s.properties.as_deref()).collect();
        assert_eq!(found, [Some(&expect), Some(&expect), None]);
    }

    #[test]
    fn a_stranger_can_send_a_large_will_but_not_more() {
        let connect = |bytes: usize| {
            let length = bytes - 4;
            let mut packet = vec![0x10];
            packet.extend(
                [(length & 0x7f) | 0x80, ((length >> 7) & 0x7f) | 0x80, length >> 14].map(|n| n as u8),
            );
            packet.extend_from_slice(b"\x00\x04MQTT\x04\x06\x00\x3c\x00\x01a\x00\x01w");
            let will = bytes - packet.len() - 2;
            packet.extend_from_slice(&(will as u16).to_be_bytes());
            packet.resize(bytes, b'x');
            packet
        };
        for (bytes, is_too_large) in [(MAX_CONNECT_BYTES, false), (MAX_CONNECT_BYTES + 1, true)] {
            let mut scanner = Scanner::new(8 << 20);
            let packet = [&connect(bytes)[..], b"\x32\x09\x00\x03a/b\x00\x07hi"].concat();
            let seen: usize = packet.chunks(1_000).map(|piece| scanner.feed(piece).len()).sum();
            assert_eq!((scanner.connect_is_too_large(), seen), (is_too_large, usize::from(!is_too_large)));
            assert!(scanner.partial.capacity() < 4 * MAX_CONNECT_BYTES);
        }
    }

    #[test]
    fn what_the_broker_will_refuse_is_not_reported() {
        let good = b"\x32\x09\x00\x03a/b\x00\x07hi";
        let bad: [(usize, u8); 4] = [(0, 0x36), (5, b'+'), (5, b'#'), (5, 0)];
        assert_eq!(feed_in_pieces(&[CONNECT_4, good].concat(), 100).len(), 1);
        for (at, byte) in bad {
            let mut packet = good.to_vec();
            packet[at] = byte;
            assert_eq!(feed_in_pieces(&[CONNECT_4, &packet, good].concat(), 100), [], "{byte} at {at}");
        }
    }

    #[test]
    fn what_is_not_understood_is_left_to_the_broker() {
        for bad in [&b"\x32\x05\x00\x01a\x00\x01"[..], b"\xff\xff\xff\xff\xff\xff", b"\x10\x02\x00\x09"] {
            assert_eq!(feed_in_pieces(bad, 1), []);
        }
        let mut bytes = CONNECT_5.to_vec();
        bytes.extend_from_slice(b"\x32\x05\x00\x09a\x00\x01");
        bytes.extend_from_slice(b"\x32\x08\x00\x03a/b\x00\x07\x00");
        assert_eq!(feed_in_pieces(&bytes, 100), [], "nothing is reported after something malformed");
    }
}
