//! UDP and TCP, in a thread of their own: what else the process does delays no answer.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use super::{
    server::{Handler, Outcome, Transport},
    worker::Worker,
};

/// Longest question that is read over UDP; a longer one is cut, and so none.
const QUESTION: usize = 4096;
/// Questions that are taken before others of the thread get their turn.
const TURN: usize = 64;
/// A TCP connection has so long for each question to come and for each answer to be taken.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// TCP connections at a time; more wait to be accepted until one ends.
const TCP_CONNECTIONS: usize = 256;
/// After an error of the listener itself, such as no more files.
const TCP_PAUSE: Duration = Duration::from_millis(100);

/// The sockets of one address.
pub(super) type Sockets = (UdpSocket, TcpListener);

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    worker: Worker,
}

impl Server {
    /// Begins to answer.
    pub(super) fn start(handler: &Handler, bound: Vec<Sockets>) -> anyhow::Result<Self> {
        let handler = handler.clone();
        let begin = async move || {
            let mut tasks = JoinSet::new();
            for (udp, listener) in bound {
                udp.set_nonblocking(true)?;
                listener.set_nonblocking(true)?;
                tasks.spawn(answer_udp(Arc::new(udp.try_into()?), handler.clone()));
                tasks.spawn(answer_tcp(listener.try_into()?, handler.clone()));
            }
            Ok(async move {
                let ended = tasks.join_next().await;
                tracing::error!("DNS: a socket is answered no more: {ended:?}");
            })
        };
        Ok(Self { worker: Worker::start("dns", begin)? })
    }

    /// Waits for its end, which is a fault: it goes on until it is dropped.
    pub async fn ended(&self) {
        self.worker.ended().await;
    }
}

async fn answer_udp(socket: Arc<tokio::net::UdpSocket>, handler: Handler) {
    let (mut bytes, mut answer) = ([0; QUESTION], Vec::new());
    let mut asking = JoinSet::new();
    loop {
        if let Err(error) = socket.readable().await {
            tracing::debug!("a UDP socket cannot be waited for: {error}");
            return;
        }
        for _ in 0..TURN {
            let (length, client) = match socket.try_recv_from(&mut bytes) {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Of an earlier answer: its client is gone.
                Err(_) => continue,
            };
            let question = bytes.get(..length).filter(|_| can_be_answered(client));
            match question.map_or(Outcome::Nothing, |it| handler.respond(it, client, Transport::Udp, &mut answer)) {
                Outcome::Answered => send(&socket, &answer, client),
                Outcome::Nothing => {}
                Outcome::Elsewhere(elsewhere) => {
                    let (handler, socket) = (handler.clone(), Arc::clone(&socket));
                    asking.spawn(async move {
                        if let Some(answer) = handler.finish(*elsewhere).await {
                            send(&socket, &answer, client);
                        }
                    });
                }
            }
        }
        while asking.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

/// An answer for which there is no room is lost, as datagrams are; its client asks again.
fn send(socket: &tokio::net::UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, client) {
        tracing::debug!("an answer to {client} cannot be sent: {error}");
    }
}

/// What cannot be the source of a question.
fn can_be_answered(client: SocketAddr) -> bool {
    let address = client.ip();
    client.port() != 0 && !address.is_unspecified() && !address.is_multicast() && address != IpAddr::from([255; 4])
}

async fn answer_tcp(listener: tokio::net::TcpListener, handler: Handler) {
    let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => drop(connections.spawn(converse(stream, client, handler.clone(), place))),
            Err(error) => {
                tracing::debug!("a TCP connection cannot be accepted: {error}");
                tokio::time::sleep(TCP_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Question by question, until the client is silent or gone.
async fn converse(mut stream: TcpStream, client: SocketAddr, handler: Handler, _place: OwnedSemaphorePermit) {
    let mut answer = Vec::new();
    while let Ok(Ok(question)) = timeout(TCP_IDLE, question(&mut stream)).await {
        match handler.respond(&question, client, Transport::Tcp, &mut answer) {
            Outcome::Answered => {}
            Outcome::Nothing => return,
            Outcome::Elsewhere(elsewhere) => match handler.finish(*elsewhere).await {
                Some(found) => answer = found,
                None => return,
            },
        }
        let Ok(length) = u16::try_from(answer.len()) else { return };
        answer.splice(0..0, length.to_be_bytes());
        if !matches!(timeout(TCP_IDLE, stream.write_all(&answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
