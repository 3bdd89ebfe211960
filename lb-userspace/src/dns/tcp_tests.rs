//! Connections: how many, how long, and what is no question.

use super::*;
use crate::dns::tcp::{CONNECTIONS_OF_CLIENT, QUESTIONS};

/// An answer by this connection; none if it has ended.
async fn by_tcp(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let bytes = question(NAME, A, IN);
    let length = u16::try_from(bytes.len()).expect("a short question");
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.ok()?;
    let mut answer = vec![0; stream.read_u16().await.ok()?.into()];
    stream.read_exact(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test]
async fn idle_connections_of_one_client_keep_nobody_out() {
    let server = start(Some(1));
    let mut connections = Vec::new();
    for _ in 0..=CONNECTIONS_OF_CLIENT {
        connections.push(TcpStream::connect(server.at).await.expect("connected"));
    }
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bound");
    let mut other = socket.connect(server.at).await.expect("connected");
    assert!(by_tcp(&mut other).await.is_some(), "another client");
    assert!(by_tcp(connections.last_mut().expect("one")).await.is_some(), "the newest one");
    assert!(by_tcp(&mut connections[1]).await.is_some(), "one of the allowed");
    assert!(by_tcp(&mut connections[0]).await.is_none(), "the one that was silent longest");
}

#[tokio::test]
async fn a_connection_has_so_many_questions() {
    let server = start(Some(1));
    let mut stream = TcpStream::connect(server.at).await.expect("connected");
    for asked in 0..QUESTIONS {
        assert!(by_tcp(&mut stream).await.is_some(), "question {asked}");
    }
    assert!(by_tcp(&mut stream).await.is_none(), "one more");
    let mut again = TcpStream::connect(server.at).await.expect("connected");
    assert!(by_tcp(&mut again).await.is_some(), "a new one");
}

/// Lengths that lie, questions that are cut, several in one piece, and octets that are none.
#[tokio::test]
async fn whatever_comes_the_next_one_is_answered() {
    let server = start(Some(1));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chance = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).expect("small")).expect("small")
    };
    for round in 0..500 {
        let mut bytes = Vec::new();
        for _ in 0..=chance(3) {
            let question = with_edns(question(NAME, A, IN), 0, 1232);
            let length = u16::try_from(question.len()).expect("short").to_be_bytes();
            bytes.extend([&length[..], &question].concat());
        }
        for _ in 0..chance(6) {
            let at = chance(bytes.len());
            bytes[at] = u8::try_from(chance(256)).expect("an octet");
        }
        bytes.truncate(bytes.len() - chance(2) * chance(bytes.len()));
        let mut stream = TcpStream::connect(server.at).await.expect("connected");
        stream.write_all(&bytes).await.expect("written");
        stream.shutdown().await.expect("said to be all");
        let mut answers = Vec::new();
        // It may end the connection while octets are left that it has not read.
        drop(timeout(Duration::from_secs(10), stream.read_to_end(&mut answers)).await.expect("an end"));
        let mut rest = answers.as_slice();
        while let [high, low, more @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            assert!(length >= 12 && more[2] & 0x80 != 0, "round {round}: {answers:?}");
            rest = &more[length..];
        }
        assert!(rest.is_empty(), "round {round}: {answers:?}");
    }
    let mut stream = TcpStream::connect(server.at).await.expect("connected");
    assert!(by_tcp(&mut stream).await.is_some());
}
