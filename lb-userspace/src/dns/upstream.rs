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

    /// A server that counts what it is asked and says nothing.
    async fn silent() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let at = socket.local_addr().expect("an address");
        (socket, at)
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    #[tokio::test]
    async fn a_question_that_waits_is_not_sent_again() {
        let (socket, at) = silent().await;
        let upstream = Upstream::new(vec![at]);
        let client = IpAddr::from([10, 0, 0, 1]);
        let asking = async {
            let ask = |text: &str| {
                let (upstream, name) = (upstream.clone(), name(text));
                async move { upstream.ask(&name, RecordType::A, client).await.map(|answer| answer.answers.len()) }
            };
            tokio::join!(ask("example.org."), ask("EXAMPLE.org."), ask("example.org."))
        };
        let answering = async {
            let mut asked = Vec::new();
            let mut bytes = [0; 512];
            // The probe, and one question.
            while asked.len() < 2 {
                let (length, from) = socket.recv_from(&mut bytes).await.expect("a question");
                let mut message = Message::from_vec(&bytes[..length]).expect("a message");
                asked.push(message.queries[0].name().to_ascii().to_ascii_lowercase());
                message.metadata.message_type = MessageType::Response;
                socket.send_to(&message.to_vec().expect("bytes"), from).await.expect("sent");
            }
            asked
        };
        let ((first, second, third), asked) = tokio::join!(asking, answering);
        assert!([first, second, third].iter().all(|found| matches!(found, Ok(0))));
        assert_eq!(asked.iter().filter(|name| *name == "example.org.").count(), 1, "{asked:?}");
        assert!(socket.try_recv_from(&mut [0; 512]).is_err(), "more questions");
        let waiting = upstream.shared.lock();
        assert!(waiting.all == 0 && waiting.of_clients.is_empty() && waiting.questions.is_empty());
    }

    #[tokio::test]
    async fn one_client_does_not_take_all_the_room() {
        let (_socket, at) = silent().await;
        let upstream = Upstream::new(vec![at]);
        let wait = |number: usize, client: u8| {
            upstream.wait((name(&format!("n{number}.example.org.")), RecordType::A), [10, 0, 0, client].into())
        };
        let mut places: Vec<_> = (0..ROOM_OF_CLIENT).map(|number| wait(number, 1).expect("room")).collect();
        assert!(wait(1000, 1).is_none(), "one more of it");
        assert!(wait(1000, 2).is_some(), "another client");
        drop(places.pop());
        assert!(wait(1000, 1).is_some(), "one has got its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_leads_back_is_left_alone_for_a_while() {
        let (_socket, at) = silent().await;
        let upstream = Upstream::new(vec![at]);
        let server = &upstream.shared.servers[0];
        assert!(!upstream.came_back(&format!("0123.{PROBE}")) && !server.leads_back(), "somebody else's");
        assert!(upstream.came_back(&format!("{}.{PROBE}", server.label)) && server.leads_back());
        let found = upstream.ask(&name("example.org."), RecordType::A, [10, 0, 0, 1].into()).await;
        assert!(matches!(found, Err(Failure::Silent)));
        assert!(server.leads_back(), "at once: nobody was waited for");
        tokio::time::advance(PAUSE).await;
        assert!(!server.leads_back());
    }
}
