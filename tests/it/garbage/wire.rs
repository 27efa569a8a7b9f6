//! MQTT packets by hand, for those that no library would send.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TOPIC: &[u8] = b"devices/bad/telemetry";

/// A connection of a client that has said CONNECT (3.1.1) and was let in.
pub(super) struct Wire(TcpStream);

impl Wire {
    pub(super) fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker is there");
        stream.set_read_timeout(Some(Duration::from_millis(700))).expect("a time-out");
        stream.write_all(&packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x03odd")).expect("CONNECT is sent");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("CONNACK arrives");
        assert_eq!(answer, [0x20, 2, 0, 0], "the client is let in");
        Self(stream)
    }

    /// The other side may have hung up in the middle.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The packet identifiers that were acknowledged until the connection ended, or fell silent.
    pub(super) fn acknowledged_before_the_end(mut self) -> Vec<u16> {
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => break,
            }
        }
        answer.chunks_exact(4).filter(|p| p[0] == 0x40).map(|p| u16::from_be_bytes([p[2], p[3]])).collect()
    }
}

/// Packets after a CONNECT that break the protocol, with what is wrong with them.
pub(super) fn broken(payload: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let to = |topic: &[u8]| publish(0x32, topic, &[0, 1], payload);
    vec![
        ("a `+` in the topic", to(b"devices/+/telemetry")),
        ("a `#` in the topic", to(b"devices/#/telemetry")),
        ("a `+` within a level", to(b"devices/a+b/telemetry")),
        ("a NUL in the topic", to(b"devices/a\0b/telemetry")),
        ("a topic that is no UTF-8", to(b"devices/\xff\xfe/telemetry")),
        ("a surrogate in the topic", to(b"devices/\xed\xa0\x80/telemetry")),
        ("no topic", to(b"")),
        ("QoS 3", publish(0x36, TOPIC, &[0, 1], payload)),
        ("DUP at QoS 0 and a wildcard", publish(0x38, b"devices/+/telemetry", &[], payload)),
        ("a topic longer than its packet", packet(0x32, b"\xff\xffdevices/bad/telemetry\x00\x01{}")),
        ("a length without end", b"\x32\xff\xff\xff\xff\xff\x00".to_vec()),
        ("a packet of 256 MiB", b"\x32\xff\xff\xff\x7f\x00\x15devices/bad/telemetry".to_vec()),
        ("a PUBLISH without a body", packet(0x32, b"")),
        ("half a PUBLISH", to(TOPIC)[..30].to_vec()),
        ("a second CONNECT", packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x03odd")),
        ("a packet type that does not exist", packet(0x00, b"abc")),
        ("a PUBREL without flags", packet(0x60, b"\x00\x01")),
        ("a SUBSCRIBE to nothing", packet(0x82, b"\x00\x01")),
        ("a SUBSCRIBE to a broken filter", packet(0x82, b"\x00\x01\x00\x04a/#b\x01")),
        ("noise", (0..4_096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
    ]
}

fn publish(first: u8, topic: &[u8], packet_id: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = (topic.len() as u16).to_be_bytes();
    packet(first, &[&length, topic, packet_id, payload].concat())
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    loop {
        let more = if rest > 127 { 0x80 } else { 0 };
        packet.push((rest % 128) as u8 | more);
        rest /= 128;
        if rest == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}
