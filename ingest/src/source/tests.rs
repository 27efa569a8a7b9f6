//! The sources, spoken to in plain bytes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::source::MqttBroker;
use crate::source::embedded::{Broker, BrokerOptions, Door};
use crate::source::external::Subscriber;
use crate::source::remote::Remote;
use crate::tests::{EVENTS, World, start};

/// A v3.1.1 client that says exactly what it is told.
struct Client(TcpStream);

impl Client {
    async fn connect(addr: SocketAddr, id: &str, clean: bool) -> Self {
        let mut stream = TcpStream::connect(addr).await.expect("it connects");
        let mut packet = vec![0x10, 12 + id.len() as u8];
        packet.extend_from_slice(b"\x00\x04MQTT\x04");
        packet.extend_from_slice(&[if clean { 2 } else { 0 }, 0, 60, 0, id.len() as u8]);
        packet.extend_from_slice(id.as_bytes());
        stream.write_all(&packet).await.expect("it writes");
        let mut ack = [0; 4];
        stream.read_exact(&mut ack).await.expect("a CONNACK");
        assert_eq!((ack[0], ack[3]), (0x20, 0));
        Self(stream)
    }

    async fn publish(&mut self, qos: u8, packet_id: u16, dup: bool, payload: &str) {
        self.0.write_all(&publish(qos, packet_id, dup, payload)).await.expect("it writes");
    }

    /// The next packet of four bytes: type and packet identifier. `None` if the connection ends.
    async fn answer(&mut self) -> Option<(u8, u16)> {
        let mut packet = [0; 4];
        let read = tokio::time::timeout(Duration::from_secs(10), self.0.read_exact(&mut packet)).await;
        read.expect("an answer in time").ok()?;
        Some((packet[0] >> 4, u16::from_be_bytes([packet[2], packet[3]])))
    }
}

fn publish(qos: u8, packet_id: u16, dup: bool, payload: &str) -> Vec<u8> {
    let topic = "devices/a/telemetry";
    let id_bytes = if qos > 0 { 2 } else { 0 };
    let mut packet = vec![0x30 | (qos << 1) | (u8::from(dup) << 3)];
    packet.push((2 + topic.len() + id_bytes + payload.len()) as u8);
    packet.extend_from_slice(&[0, topic.len() as u8]);
    packet.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        packet.extend_from_slice(&packet_id.to_be_bytes());
    }
    packet.extend_from_slice(payload.as_bytes());
    packet
}

async fn broker(world: &World) -> Broker {
    let addr = "127.0.0.1:0".parse().expect("an address");
    Broker::start(Door::local(addr), world.ingest.clone(), BrokerOptions::default())
        .await
        .expect("it listens")
}

fn remote(addr: SocketAddr) -> Remote {
    Remote::new(format!("mqtt://{addr}").parse().expect("an address"), "iot")
}

fn addr_of(broker: &Broker) -> SocketAddr {
    broker.addrs()[0].1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_puback_means_stored_and_a_copy_over_a_new_connection_is_not_stored_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let broker = broker(&world).await;
    let mut client = Client::connect(addr_of(&broker), "gw", false).await;
    client.publish(1, 7, false, "{}").await;
    assert_eq!(client.answer().await, Some((4, 7)));
    assert_eq!(world.ingest.stats().messages, 1);
    client.publish(2, 8, false, "{}").await;
    assert_eq!(client.answer().await, Some((5, 8)), "PUBREC");
    drop(client);

    let mut client = Client::connect(addr_of(&broker), "gw", false).await;
    client.publish(1, 7, true, "{}").await;
    assert_eq!(client.answer().await, Some((4, 7)));
    client.publish(2, 8, true, "{}").await;
    assert_eq!(client.answer().await, Some((5, 8)));
    client.publish(1, 7, false, "{}").await;
    assert_eq!(client.answer().await, Some((4, 7)), "a new message under an old identifier");
    let stats = world.ingest.stats();
    assert_eq!((stats.messages, stats.redelivered), (3, 2));
    broker.stop().await;
    TcpStream::connect(addr_of(&broker)).await.expect_err("nobody listens any more");
}

/// PUBLISH of MQTT 5 with the user property `site` and the content type of CSV.
fn publish_5(qos: u8, packet_id: u16, site: &str, payload: &str) -> Vec<u8> {
    let mut body = b"\x00\x13devices/a/telemetry".to_vec();
    if qos > 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    body.push((11 + 9 + site.len()) as u8);
    body.extend_from_slice(b"\x03\x00\x08text/csv\x26\x00\x04site\x00");
    body.push(site.len() as u8);
    body.extend_from_slice(site.as_bytes());
    body.extend_from_slice(payload.as_bytes());
    [&[0x30 | (qos << 1), body.len() as u8], &body[..]].concat()
}

const AUTO: &str = "kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\"]\nformat: auto\nproperties: [site]\n";

/// Publishes nine messages all at once, with each QoS below `qos` in turn, and returns what came out as `site`.
async fn sites(world: &World, addr: SocketAddr, qos: u16) -> Vec<String> {
    let mut stream = TcpStream::connect(addr).await.expect("it connects");
    stream.write_all(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02gw").await.expect("it writes");
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.expect("a CONNACK");
    stream.read_exact(&mut vec![0; usize::from(head[1])]).await.expect("its rest");
    let all: Vec<u8> =
        (0..9_u16).flat_map(|i| publish_5((i % qos) as u8, i + 1, &format!("site-{i}"), "v\n1\n")).collect();
    stream.write_all(&all).await.expect("it writes");
    let stored = async {
        while world.ingest.stats().events < 9 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stored).await.expect("all are stored");
    world.ingest.seal_now().await.expect("it seals");
    let mut sites = world.texts("events", "site").await;
    sites.sort();
    sites
}

#[tokio::test(flavor = "multi_thread")]
async fn content_type_and_user_properties_come_through_the_embedded_broker() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[AUTO]).await;
    let broker = broker(&world).await;
    let expect: Vec<String> = (0..9).map(|i| format!("site-{i}")).collect();
    assert_eq!(sites(&world, addr_of(&broker), 3).await, expect);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_type_and_user_properties_come_through_another_broker() {
    let (near, far) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (world, other) = (start(near.path(), &[AUTO]).await, start(far.path(), &[]).await);
    let far_broker = broker(&other).await;
    let addr = addr_of(&far_broker);
    let subscriber = Subscriber::start(&remote(addr), world.ingest.clone()).expect("a good address");
    while !subscriber.stats().connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let expect: Vec<String> = (0..9).map(|i| format!("site-{i}")).collect();
    assert_eq!(sites(&world, addr, 2).await, expect);
    subscriber.stop().await;
    far_broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_will_of_a_client_is_stored_when_it_ends_without_a_word() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let broker = broker(&world).await;
    let connect = async |id: &str| {
        let mut stream = TcpStream::connect(addr_of(&broker)).await.expect("it connects");
        let mut rest = b"\x00\x04MQTT\x04\x0e\x00\x3c".to_vec();
        for text in [id, "devices/a/telemetry", r#"{"gone":true}"#] {
            rest.extend_from_slice(&(text.len() as u16).to_be_bytes());
            rest.extend_from_slice(text.as_bytes());
        }
        stream.write_all(&[&[0x10, rest.len() as u8], &rest[..]].concat()).await.expect("it writes");
        let mut ack = [0; 4];
        stream.read_exact(&mut ack).await.expect("a CONNACK");
        assert_eq!((ack[0], ack[3]), (0x20, 0));
        stream
    };
    let mut polite = connect("polite").await;
    polite.write_all(&[0xe0, 0]).await.expect("it says DISCONNECT");
    drop(polite);
    drop(connect("rude").await);
    world.decoded(1).await;
    broker.stop().await;
    assert_eq!(world.positions("events").await, [(1, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_arrive_together_share_an_fsync() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let broker = broker(&world).await;
    let mut client = Client::connect(addr_of(&broker), "gw", true).await;
    let all: Vec<u8> = (1..=2_000).flat_map(|id| publish(1, id, false, &format!("{{\"v\":{id}}}"))).collect();
    let (mut reader, mut writer) = client.0.split();
    let write = async { writer.write_all(&all).await.expect("it writes") };
    let read = async {
        let mut acks = vec![0; 4 * 2_000];
        reader.read_exact(&mut acks).await.expect("all are acknowledged");
        acks.chunks(4).map(|ack| u16::from_be_bytes([ack[2], ack[3]])).collect::<Vec<_>>()
    };
    let ((), acks) = tokio::join!(write, read);
    assert_eq!(acks, (1..=2_000).collect::<Vec<_>>(), "in order");
    world.ingest.seal_now().await.expect("it seals");
    let positions: Vec<i64> = world.positions("events").await.iter().map(|position| position.0).collect();
    assert_eq!(positions, (1..=2_000).collect::<Vec<_>>());
    let fsyncs = world.ingest.stats().fsyncs;
    assert!(fsyncs < 200, "{fsyncs} fsyncs for 2000 messages of one client");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ingest_refuses_is_never_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let broker = broker(&world).await;
    let mut client = Client::connect(addr_of(&broker), "gw", true).await;
    world.ingest.shutdown().await;
    client.publish(1, 7, false, "{}").await;
    assert_eq!(client.answer().await, None, "the connection ends instead");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_users_the_embedded_broker_listens_on_loopback_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let addr = "0.0.0.0:0".parse().expect("an address");
    let refused = Broker::start(Door::local(addr), world.ingest.clone(), BrokerOptions::default()).await;
    assert!(refused.expect_err("it is refused").to_string().contains("nobody could connect"));
}

/// The other broker is our own, of another ingest that wants nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_takes_what_the_streams_want_and_survives_the_broker() {
    let (near, far) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (world, other) = (start(near.path(), &[EVENTS]).await, start(far.path(), &[]).await);
    let far_broker = broker(&other).await;
    let addr = addr_of(&far_broker);
    let subscriber = Subscriber::start(&remote(addr), world.ingest.clone()).expect("a good URL");
    let connected = async |reconnects: u64| {
        while !subscriber.stats().connected || subscriber.stats().reconnects < reconnects {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The subscription follows the connection.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    connected(0).await;
    let publish_all = async |from: u16, to: u16| {
        let mut client = Client::connect(addr, "gw", true).await;
        for id in from..=to {
            client.publish(1, id, false, &format!("{{\"v\":{id}}}")).await;
            assert_eq!(client.answer().await, Some((4, id)));
        }
    };
    publish_all(1, 50).await;
    let stored = async |count: u64| {
        while world.ingest.stats().messages < count || subscriber.stats().acknowledged < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = Duration::from_secs(20);
    tokio::time::timeout(in_time, stored(50)).await.expect("all arrive");
    far_broker.stop().await;
    drop(far_broker);
    let again = Broker::start(Door::local(addr), other.ingest.clone(), BrokerOptions::default())
        .await
        .expect("it listens");
    tokio::time::timeout(in_time, connected(1)).await.expect("it comes back");
    publish_all(51, 60).await;
    tokio::time::timeout(in_time, stored(60)).await.expect("all arrive");
    subscriber.stop().await;
    assert_eq!(world.ingest.stats().messages, 60);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_retained_any_more_is_stored_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let addr = "127.0.0.1:0".parse().expect("an address");
    let options = BrokerOptions { max_retained_messages: 2, ..BrokerOptions::default() };
    let broker = Broker::start(Door::local(addr), world.ingest.clone(), options).await.expect("it listens");
    let mut client = Client::connect(addr_of(&broker), "gw", true).await;
    for (packet_id, device) in (1..).zip(["a", "b", "c", "a"]) {
        let mut packet = publish(1, packet_id, false, "{}");
        packet[0] |= 1;
        let level = packet.windows(3).position(|bytes| bytes == b"/a/").expect("the device") + 1;
        packet[level] = device.as_bytes()[0];
        client.0.write_all(&packet).await.expect("it writes");
        assert_eq!(client.answer().await, Some((4, packet_id)), "{device}");
    }
    assert_eq!(world.ingest.stats().messages, 4);
    // SUBSCRIBE to all: what is retained comes at once.
    client.0.write_all(b"\x82\x10\x00\x09\x00\x0bdevices/+/+\x00").await.expect("it writes");
    let mut all = Vec::new();
    let reading = client.0.read_to_end(&mut all);
    _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
    assert_eq!(all.windows(8).filter(|bytes| bytes == b"devices/").count(), 2, "{all:?}");
    broker.stop().await;
}

/// The next packet: its first byte and what follows the length.
async fn packet(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let first = stream.read_u8().await.expect("a packet");
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.expect("its length");
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("its body");
    (first, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_how_much_it_may_have_in_flight() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let broker = broker(&world).await;
    let mut stream = TcpStream::connect(addr_of(&broker)).await.expect("it connects");
    stream.write_all(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02gw").await.expect("it writes");
    let (first, body) = packet(&mut stream).await;
    assert_eq!(first, 0x20, "CONNACK");
    let [high, low] = crate::redelivery::RECEIVE_MAXIMUM.to_be_bytes();
    assert!(body.windows(3).any(|property| property == [0x21, high, low]), "{body:?}");
    broker.stop().await;
}

/// What a broker that says exactly what it is told has been asked for: filter and options.
async fn subscription(stream: &mut TcpStream, answer: u8) -> (String, u8) {
    let (first, body) = packet(stream).await;
    assert_eq!(first, 0x82, "SUBSCRIBE");
    stream.write_all(&[0x90, 4, body[0], body[1], 0, answer]).await.expect("it writes");
    // After the packet identifier the properties, which are the identifier of the subscription.
    let properties = usize::from(body[2]);
    assert_eq!(body[3], 0x0b, "{body:?}");
    let filter = &body[3 + properties + 2..body.len() - 1];
    (String::from_utf8_lossy(filter).into_owned(), body[body.len() - 1])
}

/// Takes a connection; the session is there already if `present`.
async fn welcome(listener: &tokio::net::TcpListener, present: bool) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("it connects");
    assert_eq!(packet(&mut stream).await.0, 0x10, "CONNECT");
    stream.write_all(&[0x20, 3, u8::from(present), 0, 0]).await.expect("it writes");
    stream
}

const QOS_1_AND_RETAINED_IF_NEW: u8 = 0x11;
const ACCEPTED: u8 = 1;
const NOT_AUTHORIZED: u8 = 0x87;

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_subscribes_to_everything_and_what_is_refused_is_seen_and_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let subscriber = Subscriber::start(&remote(addr), world.ingest.clone()).expect("a good address");
    let refused = async |is_refused: bool| {
        while subscriber.stats().refused.is_some() != is_refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let test = async {
        let filter = "devices/+/telemetry";
        let mut stream = welcome(&listener, false).await;
        let (asked, options) = subscription(&mut stream, NOT_AUTHORIZED).await;
        assert_eq!((asked.as_str(), options), (filter, QOS_1_AND_RETAINED_IF_NEW));
        refused(true).await;
        let why = subscriber.stats().refused.expect("it is told");
        assert!(why.contains(filter) && why.contains("NotAuthorized"), "{why}");
        assert_eq!(subscription(&mut stream, ACCEPTED).await.0, filter, "it is tried again");
        refused(false).await;
        drop(stream);
        // The session is there, but the store may be an older one.
        let mut stream = welcome(&listener, true).await;
        let (asked, options) = subscription(&mut stream, ACCEPTED).await;
        assert_eq!((asked.as_str(), options), (filter, QOS_1_AND_RETAINED_IF_NEW));
    };
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("in time");
    subscriber.stop().await;
}
