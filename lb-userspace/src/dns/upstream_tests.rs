//! Questions for other names, against servers of the tests.

use std::sync::atomic::{AtomicUsize, Ordering};

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

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// The next question for a name that is no probe, and from whom.
async fn next(socket: &UdpSocket) -> (Message, SocketAddr) {
    let mut bytes = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut bytes).await.expect("a question");
        let message = Message::from_vec(&bytes[..length]).expect("a message");
        if !message.queries[0].name().to_ascii().contains(PROBE) {
            return (message, from);
        }
    }
}

fn answer_to(question: &Message) -> Vec<u8> {
    let mut answer = question.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.to_vec().expect("bytes")
}

#[tokio::test]
async fn a_question_says_what_we_take_and_another_address_does_not_answer_it() {
    let (socket, at) = silent().await;
    let (forger, _) = silent().await;
    let upstream = Upstream::new(vec![at]);
    let asked = name("example.org.");
    let asking = upstream.ask(&asked, RecordType::A, CLIENT);
    let answering = async {
        let (question, from) = next(&socket).await;
        assert!(question.metadata.recursion_desired);
        assert_eq!(question.edns.as_ref().map(Edns::max_payload), Some(UDP_LIMIT));
        let mut forged = question.clone();
        forged.metadata.authoritative = true;
        forger.send_to(&answer_to(&forged), from).await.expect("sent");
        socket.send_to(&answer_to(&question), from).await.expect("sent");
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert!(!answer.expect("an answer").metadata.authoritative, "the one of another port");
}

/// Each time that the first server has for an answer passes without one.
#[tokio::test]
async fn when_a_server_is_silent_the_next_is_asked_and_then_the_first_again() {
    let ((first, one), (second, other)) = (silent().await, silent().await);
    let upstream = Upstream::new(vec![one, other]);
    let asked = name("example.org.");
    let begin = Instant::now();
    let asking = upstream.ask(&asked, RecordType::A, CLIENT);
    let answering = async {
        next(&first).await;
        next(&second).await;
        let (question, from) = next(&first).await;
        first.send_to(&answer_to(&question), from).await.expect("sent");
    };
    let (answer, ()) = tokio::join!(asking, answering);
    answer.expect("an answer");
    assert!(begin.elapsed() < PATIENCE * 4);
}

#[tokio::test]
async fn there_is_room_for_so_many_questions_in_all() {
    let (_socket, at) = silent().await;
    let upstream = Upstream::new(vec![at]);
    let wait = |number: usize, client: usize| {
        let client = IpAddr::from([10, 0, 0, u8::try_from(client).expect("small")]);
        upstream.wait((name(&format!("n{number}.example.org.")), RecordType::A), client)
    };
    let mut places: Vec<_> = (0..ROOM).map(|number| wait(number, number / 32).expect("room")).collect();
    assert!(wait(1000, 200).is_none(), "one more of anybody");
    drop(places.pop());
    assert!(wait(1000, 200).is_some());
}

/// Through a socket of both families an IPv4 client is the one that it is through a socket of IPv4.
#[tokio::test]
async fn an_ipv4_client_has_its_room_once() {
    let (_socket, at) = silent().await;
    let upstream = Upstream::new(vec![at]);
    let wait =
        |number: usize| upstream.wait((name(&format!("n{number}.example.org.")), RecordType::A), CLIENT).expect("room");
    let _places: Vec<_> = (0..ROOM_OF_CLIENT).map(wait).collect();
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into();
    let asked = name("one-more.example.org.");
    assert!(matches!(upstream.ask(&asked, RecordType::A, mapped).await, Err(Failure::Busy)));
}

#[tokio::test]
async fn a_server_is_probed_once_and_again_after_it_was_silent() {
    let probes = Arc::new(AtomicUsize::new(0));
    let (socket, at) = silent().await;
    let counted = Arc::clone(&probes);
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            let message = Message::from_vec(&bytes[..length]).expect("a message");
            counted.fetch_add(1, Ordering::Relaxed);
            socket.send_to(&answer_to(&message), from).await.expect("sent");
        }
    });
    let server = Server::new(at);
    let told = |count: usize| {
        let probes = Arc::clone(&probes);
        let counted = async move {
            while probes.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            probes.load(Ordering::Relaxed)
        };
        timeout(Duration::from_secs(10), counted)
    };
    server.probe();
    server.probe();
    assert_eq!(told(1).await, Ok(1));
    server.lock().silent = true;
    server.probe();
    assert!(server.lock().silent, "not so soon");
    server.lock().probed = Instant::now().checked_sub(PAUSE);
    server.probe();
    assert_eq!(told(2).await, Ok(2));
    server.lock().probed = Instant::now().checked_sub(PAUSE);
    server.probe();
    assert!(!server.lock().silent && server.lock().probed.is_some_and(|since| since.elapsed() >= PAUSE), "it was not");
}

#[tokio::test]
async fn who_gives_no_answer_is_silent() {
    let (_socket, at) = silent().await;
    let upstream = Upstream::new(vec![at]);
    let found = upstream.ask(&name("example.org."), RecordType::A, CLIENT).await;
    assert!(matches!(found, Err(Failure::Silent)) && upstream.shared.servers[0].lock().silent);
}
