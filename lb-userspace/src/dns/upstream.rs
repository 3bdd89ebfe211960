//! Questions for other names, passed on to a server that knows them. Nothing is kept: the asked server caches.
//!
//! A server may lead back here, at once or by others. So a question that waits already is not sent again: whoever asks it
//! too waits for the same answer, and a circle costs no more than one question of each round. Each server is asked for a
//! name that nobody else knows; if that arrives here, it is left alone for a while, and said to be wrong.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use super::server::UDP_LIMIT;

/// Time a server has for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds over the servers.
const ROUNDS: usize = 2;
/// Questions that wait at a time.
const ROOM: usize = 256;
/// Those of one client's address: names that nobody answers take no more of it.
const ROOM_OF_CLIENT: usize = 64;
/// The top of the names by which a server is recognized that leads back here.
const PROBE: &str = "ballast-loop";
/// How long a server that leads back here is left alone, and one that is silent is not probed again.
const PAUSE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Too many questions wait already.
    #[error("{ROOM} questions wait already, or {ROOM_OF_CLIENT} of this client")]
    Busy,
    /// No server answered in time.
    #[error("no server answered")]
    Silent,
}

/// The servers.
#[derive(Clone, Debug)]
pub struct Upstream {
    shared: Arc<Servers>,
}

#[derive(Debug)]
struct Servers {
    servers: Vec<Server>,
    waiting: Mutex<Waiting>,
}

type Found = Shared<BoxFuture<'static, Option<Arc<Message>>>>;
type Key = (Name, RecordType);

/// Who waits for what.
#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    of_clients: HashMap<IpAddr, usize>,
    questions: HashMap<Key, (usize, Found)>,
}

/// One that waits, until this is dropped.
struct Place<'a> {
    servers: &'a Servers,
    client: IpAddr,
    key: Key,
}

impl Upstream {
    /// Asks these, in this order.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        let servers = servers.into_iter().map(Server::new).collect();
        Self { shared: Arc::new(Servers { servers, waiting: Mutex::default() }) }
    }

    /// The answer of the first server that gives one.
    ///
    /// # Errors
    /// None does, or too many questions wait.
    pub async fn ask(&self, name: &Name, kind: RecordType, client: IpAddr) -> Result<Arc<Message>, Failure> {
        let (_place, found) = self.wait((name.clone(), kind), client.to_canonical()).ok_or(Failure::Busy)?;
        found.await.ok_or(Failure::Silent)
    }

    fn wait(&self, key: Key, client: IpAddr) -> Option<(Place<'_>, Found)> {
        let mut waiting = self.shared.lock();
        let of_client = waiting.of_clients.get(&client).copied().unwrap_or(0);
        if waiting.all >= ROOM || of_client >= ROOM_OF_CLIENT {
            return None;
        }
        waiting.all += 1;
        waiting.of_clients.insert(client, of_client + 1);
        let begin = || (0, Arc::clone(&self.shared).resolve(key.clone()).boxed().shared());
        let (count, found) = waiting.questions.entry(key.clone()).or_insert_with(begin);
        *count += 1;
        Some((Place { servers: &self.shared, client, key }, found.clone()))
    }

    /// Asks each server for its own name, unless that has been done.
    pub(super) fn probe(&self) {
        for server in &self.shared.servers {
            server.probe();
        }
    }

    /// Whether this is a question of ours that came back, and of which server.
    pub(super) fn came_back(&self, name: &str) -> bool {
        let Some((label, PROBE)) = name.split_once('.') else { return false };
        let Some(server) = self.shared.servers.iter().find(|server| server.label == label) else { return false };
        tracing::error!(
            "--upstream {}: what it is asked comes back to this server; it is not asked for {} s (give a server that \
             knows other names)",
            server.at,
            PAUSE.as_secs()
        );
        *server.lock() = Known { looped: Some(Instant::now()), ..Known::default() };
        true
    }
}

impl Servers {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(self: Arc<Self>, (name, kind): Key) -> Option<Arc<Message>> {
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            if server.leads_back() {
                continue;
            }
            server.probe();
            match timeout(PATIENCE, ask(server.at, &name, kind)).await {
                Ok(Ok(answer)) => return Some(Arc::new(answer)),
                Ok(Err(error)) => tracing::debug!("upstream {}: {error}", server.at),
                Err(_) => tracing::debug!("upstream {}: no answer", server.at),
            }
            server.lock().silent = true;
        }
        None
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.servers.lock();
        waiting.all = waiting.all.saturating_sub(1);
        if let Entry::Occupied(mut of_client) = waiting.of_clients.entry(self.client) {
            *of_client.get_mut() = of_client.get().saturating_sub(1);
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
        if let Entry::Occupied(mut question) = waiting.questions.entry(self.key.clone()) {
            question.get_mut().0 = question.get().0.saturating_sub(1);
            if question.get().0 == 0 {
                drop(question.remove());
            }
        }
    }
}

/// One server.
#[derive(Debug)]
struct Server {
    at: SocketAddr,
    /// Made up by chance: nobody else can say it.
    label: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    probed: Option<Instant>,
    looped: Option<Instant>,
    /// It gave no answer since it was probed.
    silent: bool,
}

impl Server {
    fn new(at: SocketAddr) -> Self {
        let label = format!("{:016x}", RandomState::new().hash_one(at));
        Self { at, label, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leads_back(&self) -> bool {
        self.lock().looped.is_some_and(|since| since.elapsed() < PAUSE)
    }

    /// Asks for its name, once, and again when it has been silent: whom an address leads to may change.
    fn probe(&self) {
        let mut known = self.lock();
        if known.probed.is_some_and(|since| !known.silent || since.elapsed() < PAUSE) {
            return;
        }
        (known.probed, known.silent) = (Some(Instant::now()), false);
        let (at, name) = (self.at, Name::from_ascii(format!("{}.{PROBE}.", self.label)));
        drop(tokio::spawn(async move {
            let Ok(name) = name else { return };
            if let Ok(Err(error)) = timeout(PATIENCE, ask(at, &name, RecordType::TXT)).await {
                tracing::debug!("upstream {at}: {error}");
            }
        }));
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
#[path = "upstream_tests.rs"]
mod tests;
