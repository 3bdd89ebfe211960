//! TCP: connections and their questions are bounded, for each client and in all. Whoever is silent longest makes room: a
//! client that asks when it has connected always gets its answer.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::server::{Handler, Outcome, Transport};

/// A connection has so long for each question to come and for each answer to be taken.
const IDLE: Duration = Duration::from_secs(5);
/// Connections of a listener at a time.
const CONNECTIONS: usize = 256;
/// Those of one client's address.
pub(super) const CONNECTIONS_OF_CLIENT: usize = 32;
/// Questions of a connection, which then ends: its client connects again, behind those who wait.
pub(super) const QUESTIONS: usize = 128;
/// After an error of the listener itself, such as no more files.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for ever.
pub(super) async fn answer(listener: TcpListener, handler: Handler) {
    let seats = Arc::new(Seats::default());
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let place = Place::take(&seats, client.ip());
                let id = place.id;
                let task = connections.spawn(converse(stream, client, handler.clone(), place));
                seats.lock().occupied(id, task);
            }
            Err(error) => {
                tracing::debug!("a TCP connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Question by question, until the client is silent or gone.
async fn converse(mut stream: TcpStream, client: SocketAddr, handler: Handler, place: Place) {
    let mut answer = Vec::new();
    for _ in 0..QUESTIONS {
        let Ok(Ok(question)) = timeout(IDLE, question(&mut stream)).await else { return };
        place.heard();
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
        if !matches!(timeout(IDLE, stream.write_all(&answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The connections of a listener.
#[derive(Debug, Default)]
struct Seats {
    all: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Connections and questions so far: the time that counts here.
    clock: u64,
    seats: BTreeMap<u64, Seat>,
}

#[derive(Debug)]
struct Seat {
    client: IpAddr,
    /// When it asked last, or came.
    heard: u64,
    task: Option<AbortHandle>,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn tick(&mut self) -> u64 {
        self.clock = self.clock.wrapping_add(1);
        self.clock
    }

    /// A seat for this client; somebody may have to leave theirs.
    fn take(&mut self, client: IpAddr) -> u64 {
        let own = self.seats.values().filter(|seat| seat.client == client).count();
        if own >= CONNECTIONS_OF_CLIENT {
            self.free(|seat| seat.client == client);
        } else if self.seats.len() >= CONNECTIONS {
            self.free(|_| true);
        }
        let now = self.tick();
        self.seats.insert(now, Seat { client, heard: now, task: None });
        now
    }

    /// Ends the connection that is silent longest, of those.
    fn free(&mut self, of: impl Fn(&Seat) -> bool) {
        let those = self.seats.iter().filter(|(_, seat)| of(seat));
        let Some(id) = those.min_by_key(|(_, seat)| seat.heard).map(|(id, _)| *id) else { return };
        if let Some(task) = self.seats.remove(&id).and_then(|seat| seat.task) {
            task.abort();
        }
    }

    fn occupied(&mut self, id: u64, task: AbortHandle) {
        if let Some(seat) = self.seats.get_mut(&id) {
            seat.task = Some(task);
        }
    }
}

/// A seat, until this is dropped.
#[derive(Debug)]
struct Place {
    seats: Arc<Seats>,
    id: u64,
}

impl Place {
    fn take(seats: &Arc<Seats>, client: IpAddr) -> Self {
        let id = seats.lock().take(client.to_canonical());
        Self { seats: Arc::clone(seats), id }
    }

    fn heard(&self) {
        let mut taken = self.seats.lock();
        let now = taken.tick();
        if let Some(seat) = taken.seats.get_mut(&self.id) {
            seat.heard = now;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.lock().seats.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(number).expect("a small number")].into()
    }

    #[test]
    fn the_client_with_too_many_connections_makes_room_itself() {
        let seats = Arc::new(Seats::default());
        let other = Place::take(&seats, client(2));
        let places: Vec<_> = (0..CONNECTIONS_OF_CLIENT).map(|_| Place::take(&seats, client(1))).collect();
        places[0].heard();
        let last = Place::take(&seats, client(1));
        let taken = seats.lock();
        assert_eq!(taken.seats.len(), CONNECTIONS_OF_CLIENT + 1);
        assert!([&other, &places[0], &last].iter().all(|place| taken.seats.contains_key(&place.id)));
        assert!(!taken.seats.contains_key(&places[1].id), "the one that is silent longest");
    }

    #[test]
    fn when_all_are_taken_whoever_is_silent_longest_makes_room() {
        let seats = Arc::new(Seats::default());
        let places: Vec<_> = (0..CONNECTIONS).map(|index| Place::take(&seats, client(index / 16))).collect();
        places[0].heard();
        let last = Place::take(&seats, client(200));
        assert_eq!(seats.lock().seats.len(), CONNECTIONS);
        assert!(!seats.lock().seats.contains_key(&places[1].id) && seats.lock().seats.contains_key(&last.id));
        drop((places, last));
        assert!(seats.lock().seats.is_empty());
    }

    #[test]
    fn an_ipv4_client_is_one_through_any_socket() {
        let seats = Arc::new(Seats::default());
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into();
        let places: Vec<_> = (0..CONNECTIONS_OF_CLIENT).map(|_| Place::take(&seats, client(1))).collect();
        let _last = Place::take(&seats, mapped);
        assert!(seats.lock().seats.len() == CONNECTIONS_OF_CLIENT && !seats.lock().seats.contains_key(&places[0].id));
    }

    /// Time passes as soon as everybody waits for it.
    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_is_let_go_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let at = listener.local_addr().expect("an address");
        let handler = Handler::new(Arc::default(), crate::dns::server::Rules::default());
        let server = tokio::spawn(answer(listener, handler));
        let mut stream = TcpStream::connect(at).await.expect("connected");
        let begin = tokio::time::Instant::now();
        assert_eq!(stream.read(&mut [0; 1]).await.expect("an end"), 0);
        assert!((IDLE..IDLE * 2).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        server.abort();
    }
}
