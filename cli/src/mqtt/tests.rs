//! Addresses, and a broker that forgets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::exit::Code;

#[test]
fn a_wildcard_is_no_topic() {
    assert!(check_topic("a/b").is_ok());
    for bad in ["", "a/+", "#", "a\0"] {
        assert!(check_topic(bad).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_69_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let error = Publisher::connect(PublisherOptions::open(&address).expect("an address"))
        .await
        .expect_err("nobody there");
    assert_eq!(error.downcast_ref::<Failure>().expect("a failure").code, Code::Unreachable);
}

const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];

/// Reads one packet: its first byte and its body.
async fn read_packet(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let kind = socket.read_u8().await.ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = socket.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}

/// Serves one connection: acknowledges the first `acknowledge` messages, then goes away after `receive` of them.
async fn serve(listener: &TcpListener, acknowledge: usize, receive: usize) -> usize {
    let (mut socket, _) = listener.accept().await.expect("a client");
    let mut received = 0;
    while let Some((kind, body)) = read_packet(&mut socket).await {
        match kind >> 4 {
            1 => socket.write_all(&CONNACK).await.expect("written"),
            3 => {
                received += 1;
                let topic_length = usize::from(u16::from_be_bytes([body[0], body[1]]));
                if received <= acknowledge {
                    let id = &body[2 + topic_length..4 + topic_length];
                    socket.write_all(&[0x40, 2, id[0], id[1]]).await.expect("written");
                }
                if received == receive {
                    return received;
                }
            }
            _ => {}
        }
    }
    received
}

async fn publish_all(address: String, messages: usize) -> Publisher {
    let mut publisher = Publisher::connect(PublisherOptions::open(&address).expect("an address"))
        .await
        .expect("a connection");
    for n in 0..messages {
        let message = Message {
            topic: format!("t/{n}"),
            payload: Bytes::from_static(b"x"),
            qos: 1,
            retain: false,
            ..Message::default()
        };
        publisher.publish(message).await.expect("on its way");
    }
    publisher
}

#[tokio::test]
async fn what_a_broker_forgot_is_sent_again_and_counted_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let broker = tokio::spawn(async move {
        let first = serve(&listener, 30, 60).await;
        (first, serve(&listener, usize::MAX, usize::MAX).await)
    });
    let counts =
        publish_all(address, 100).await.finish(Duration::from_secs(20)).await.expect("all acknowledged");
    assert_eq!((counts.published, counts.acknowledged, counts.refused), (100, 100, 0));
    let (first, second) = broker.await.expect("the broker");
    assert_eq!(first, 60);
    assert!((40..=100).contains(&second), "{second} messages after the reconnection");
    assert!(counts.resent > 0);
}

#[tokio::test]
async fn a_broker_that_never_answers_ends_in_a_time_out_that_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let broker = tokio::spawn(async move { serve(&listener, 0, usize::MAX).await });
    let error =
        publish_all(address, 3).await.finish(Duration::from_millis(300)).await.expect_err("no answer");
    assert!(error.to_string().contains("has not acknowledged 3 messages"), "{error}");
    broker.abort();
}
