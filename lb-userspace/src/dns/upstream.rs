//! Questions for other names, passed on to a server that knows them. Nothing is kept: the asked server caches.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::server::UDP_LIMIT;

/// Time a server has for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds over the servers.
const ROUNDS: usize = 2;
/// Questions that wait at a time: each holds a socket.
const ROOM: usize = 256;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Too many questions wait already.
    #[error("{ROOM} questions wait already")]
    Busy,
    /// No server answered in time.
    #[error("no server answered")]
    Silent,
}

/// The servers.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    room: Semaphore,
}

impl Upstream {
    /// Asks these, in this order.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, room: Semaphore::new(ROOM) }
    }

    /// The answer of the first server that gives one.
    ///
    /// # Errors
    /// None does, or too many questions wait.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Failure> {
        let Ok(_room) = self.room.try_acquire() else { return Err(Failure::Busy) };
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            match timeout(PATIENCE, ask(*server, name, kind)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => tracing::debug!("upstream {server}: {error}"),
                Err(_) => tracing::debug!("upstream {server}: no answer"),
            }
        }
        Err(Failure::Silent)
    }
}

/// The id is random, and so is the port, as the kernel gives it: an answer is hard to forge.
async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_LIMIT);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(answer) = of(&question, buffer.get(..length).unwrap_or_default()) else { continue };
        return if answer.metadata.truncation { by_tcp(server, &question, &bytes).await } else { Ok(answer) };
    }
}

async fn by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    of(question, &answer).ok_or_else(|| io::Error::other("an answer to something else"))
}

/// The answer, if these bytes are one to this question.
fn of(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let matches = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && answer.queries == question.queries;
    matches.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii("example.org.").expect("a name"), RecordType::A));
        question
    }

    #[test]
    fn only_an_answer_to_this_question_is_taken() {
        let question = question();
        let mut answer = question.clone();
        assert!(of(&question, &answer.to_vec().expect("bytes")).is_none(), "a question");
        answer.metadata.message_type = MessageType::Response;
        assert!(of(&question, &answer.to_vec().expect("bytes")).is_some());
        let mut other = answer.clone();
        other.metadata.id ^= 1;
        assert!(of(&question, &other.to_vec().expect("bytes")).is_none(), "another id");
        let mut other = answer.clone();
        other.queries = vec![Query::query(Name::from_ascii("example.com.").expect("a name"), RecordType::A)];
        assert!(of(&question, &other.to_vec().expect("bytes")).is_none(), "another name");
        other.queries.clear();
        assert!(of(&question, &other.to_vec().expect("bytes")).is_none(), "no question");
        assert!(of(&question, &[0; 5]).is_none(), "no message");
    }
}
