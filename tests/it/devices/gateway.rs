//! An MQTT client of which every byte is known, so that its end is as rude as it must be: dropped, its connection
//! breaks off without a word.

use std::io::{Read, Write};
use std::net::TcpStream;

use iot_tests::{PATIENCE, Server};

/// What the broker publishes once the client is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Will<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) retain: bool,
}

/// A connection (MQTT 3.1.1).
#[derive(Debug)]
pub(super) struct Gateway {
    stream: TcpStream,
    packet_id: u16,
}

impl Gateway {
    pub(super) fn connect(server: &Server, client: &str, will: Option<Will<'_>>) -> Self {
        let mut stream = TcpStream::connect(server.mqtt.expect("an embedded broker")).expect("it connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut flags = 0x02;
        let mut body = text(client.as_bytes());
        if let Some(Will { topic, payload, retain }) = will {
            flags |= 0x04 | 0x08 | if retain { 0x20 } else { 0 };
            body.extend([text(topic.as_bytes()), text(payload)].concat());
        }
        let head = [&text(b"MQTT")[..], &[4, flags, 0, 60]].concat();
        stream.write_all(&packet(0x10, &[head, body].concat())).expect("it writes");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("a CONNACK");
        assert_eq!((answer[0], answer[3]), (0x20, 0), "the broker lets it in");
        Self { stream, packet_id: 0 }
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    pub(super) fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) {
        self.packet_id = self.packet_id % u16::MAX + 1;
        let id = self.packet_id.to_be_bytes();
        let body = [&text(topic.as_bytes())[..], &id, payload].concat();
        self.stream.write_all(&packet(0x32 | u8::from(retain), &body)).expect("it writes");
        let mut answer = [0; 4];
        self.stream.read_exact(&mut answer).expect("a PUBACK");
        assert_eq!(answer, [0x40, 2, id[0], id[1]]);
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &varint(body.len() as u64), body].concat()
}

/// As MQTT has it, and Protocol Buffers.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The payload of a Sparkplug birth with this number that measures one value.
pub(super) fn birth(seq: u64, session: u64) -> Vec<u8> {
    // Temperature, a double (10): 21.5.
    let value = [&[0x69][..], &21.5f64.to_le_bytes()].concat();
    let temperature = [&[0x0a, 4][..], b"Temp", &[0x20, 10], &value].concat();
    let metrics = [field(0x12, &temperature), field(0x12, &session_metric(session))].concat();
    [&[0x18][..], &varint(seq), &metrics].concat()
}

/// The payload of the death of a Sparkplug node.
pub(super) fn death(session: u64) -> Vec<u8> {
    field(0x12, &session_metric(session))
}

/// `bdSeq`, an integer of 64 bits (4).
fn session_metric(session: u64) -> Vec<u8> {
    [&[0x0a, 5][..], b"bdSeq", &[0x20, 4, 0x58], &varint(session)].concat()
}

fn field(key: u8, body: &[u8]) -> Vec<u8> {
    [&[key][..], &varint(body.len() as u64), body].concat()
}
