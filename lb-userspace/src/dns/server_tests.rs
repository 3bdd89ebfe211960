//! Questions over real sockets, written by hand: the server's own library would not write the wrong ones.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use hickory_proto::rr::{RData, Record as WireRecord, rdata};

use super::*;
use crate::{
    dns::{Clients, Server, listen, zone, zones::now},
    model::{Endpoint, EndpointSlice, IpFamily, Model, ObjectName, ServiceType, Touched},
};

#[path = "circle_tests.rs"]
mod circles;
#[path = "message_tests.rs"]
mod messages;
#[path = "tcp_tests.rs"]
mod over_tcp;

const A: u16 = 1;
const ANY: u16 = 255;
const AXFR: u16 = 252;
const IN: u16 = 1;

fn named(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

/// Makes an `ExternalName` Service of this name.
fn alias(model: &mut Model, name: &str, target: &str) {
    let mut alias = model.services[&named("db")].clone();
    alias.service_type = ServiceType::ExternalName;
    alias.external_name = Some(target.to_owned());
    model.services.insert(named(name), alias);
}

/// A headless Service with so many endpoints.
fn model(endpoints: u8) -> Model {
    let endpoint = |last: u8| Endpoint {
        address: [10, 0, 0, last].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hostname: None,
    };
    let slice = EndpointSlice {
        service: "db".to_owned(),
        family: IpFamily::V4,
        ports: Vec::new(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
        triggered: None,
        of_controller: false,
    };
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None}\n";
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("db.yaml");
    std::fs::write(&path, text).expect("written");
    let mut options = crate::file_source::Options::new(&path);
    options.allocations = Some(directory.path().join("allocations.json"));
    let mut model = crate::file_source::load(&options).expect("documents").model;
    model.slices.insert(ObjectName { namespace: "shop".to_owned(), name: "db-1".to_owned() }, slice);
    model
}

struct Running {
    _server: Server,
    at: SocketAddr,
    zones: Arc<Zones>,
}

fn start(endpoints: Option<u8>) -> Running {
    start_at([127, 0, 0, 1].into(), endpoints)
}

fn start_at(address: IpAddr, endpoints: Option<u8>) -> Running {
    let zones = Arc::new(Zones::default());
    if let Some(endpoints) = endpoints {
        let options = zone::Options::new("cluster.local".to_owned(), 5);
        zones.set(Zone::new(&model(endpoints), options));
    }
    // A port that is free for TCP is most often free for UDP: try until one is.
    for _ in 0..20 {
        let free = std::net::TcpListener::bind((address, 0)).expect("a port").local_addr().expect("an address");
        if let Ok(server) = listen(&[free], &Handler::new(Arc::clone(&zones), Rules::default()), "--listen") {
            return Running { _server: server, at: free, zones };
        }
    }
    panic!("no port is free");
}

fn question(name: &str, kind: u16, class: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&class.to_be_bytes());
    bytes
}

fn with_edns(mut bytes: Vec<u8>, version: u8, size: u16) -> Vec<u8> {
    bytes[11] = 1;
    bytes.extend_from_slice(&[0, 0, 41]);
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(&[0, version, 0, 0, 0, 0]);
    bytes
}

impl Running {
    async fn udp(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        socket.send_to(bytes, self.at).await.expect("sent");
        let mut answer = vec![0; 65_535];
        let length = timeout(Duration::from_secs(2), socket.recv(&mut answer)).await.ok()?.expect("received");
        answer.truncate(length);
        Some(answer)
    }

    async fn code(&self, bytes: &[u8]) -> u8 {
        self.udp(bytes).await.expect("an answer")[3] & 15
    }
}

const NAME: &str = "db.shop.svc.cluster.local";

#[tokio::test]
async fn d14_no_answer_before_the_first_state_and_then_one() {
    let server = start(None);
    assert_eq!(server.code(&question(NAME, A, IN)).await, 2, "SERVFAIL");
    server.zones.set(Zone::new(&model(1), zone::Options::new("cluster.local".to_owned(), 5)));
    assert_eq!(server.code(&question(NAME, A, IN)).await, 0);
}

#[tokio::test]
async fn wrong_questions_get_the_code_of_the_rfcs() {
    let server = start(Some(1));
    assert_eq!(server.code(&question("none.shop.svc.cluster.local", A, IN)).await, 3, "NXDOMAIN");
    for (kind, class) in [(ANY, IN), (AXFR, IN), (A, 3)] {
        assert_eq!(server.code(&question(NAME, kind, class)).await, 5, "REFUSED {kind} {class}");
    }
    assert_eq!(server.code(&question("example.org", A, IN)).await, 5, "REFUSED");
    let mut status = question(NAME, A, IN);
    status[2] = 2 << 3;
    assert_eq!(server.code(&status).await, 4, "NOTIMP");
    let mut two = question(NAME, A, IN);
    let copy = two[12..].to_vec();
    two.extend(copy);
    two[5] = 2;
    assert_eq!(server.code(&two).await, 1, "FORMERR");
    // A name that points to itself.
    let endless = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1];
    assert_eq!(server.code(&endless).await, 1, "FORMERR");
    let version = server.udp(&with_edns(question(NAME, A, IN), 1, 1232)).await.expect("an answer");
    // BADVERS is 16: its upper bits are the first octet of the OPT record's TTL.
    assert_eq!((version[3] & 15, version[version.len() - 6]), (0, 1), "BADVERS");
    let mut answer = question(NAME, A, IN);
    answer[2] |= 0x80;
    assert!(server.udp(&answer).await.is_none(), "an answer was answered");
    assert_eq!(server.code(&question(NAME, A, IN)).await, 0, "still there");
}

#[tokio::test]
async fn the_question_comes_back_in_its_case() {
    let server = start(Some(1));
    let asked = question("dB.sHOP.svc.CLUSTER.local", A, IN);
    let answer = server.udp(&asked).await.expect("an answer");
    assert_eq!(answer[12..asked.len()], asked[12..]);
    assert_eq!(answer[2] & 4, 4, "authoritative");
    assert_eq!(answer[answer.len() - 4..], [10, 0, 0, 1]);
}

#[tokio::test]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let server = start(Some(200));
    for (bytes, limit) in [(question(NAME, A, IN), 512), (with_edns(question(NAME, A, IN), 0, 65_000), 1232)] {
        let answer = server.udp(&bytes).await.expect("an answer");
        assert!(answer.len() <= limit, "{} octets", answer.len());
        assert_eq!(answer[2] & 2, 2, "truncated");
    }
    let bytes = question(NAME, A, IN);
    let mut tcp = TcpStream::connect(server.at).await.expect("connected");
    let length = u16::try_from(bytes.len()).expect("a short question");
    tcp.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.expect("written");
    let length = timeout(Duration::from_secs(2), tcp.read_u16()).await.expect("in time").expect("a length");
    let mut answer = vec![0; length.into()];
    tcp.read_exact(&mut answer).await.expect("an answer");
    assert_eq!((answer[2] & 2, answer[6..8].to_vec()), (0, 200_u16.to_be_bytes().to_vec()));
}

/// Linux has all of 127.0.0.0/8: whoever asks 127.0.0.2 by a connected socket takes no answer of 127.0.0.1.
#[tokio::test]
async fn who_listens_everywhere_answers_from_the_address_that_was_asked() {
    for everywhere in [IpAddr::from([0; 4]), IpAddr::from([0_u16; 8])] {
        let server = start_at(everywhere, Some(1));
        let mut asked = vec!["127.0.0.1", "127.0.0.2"];
        if everywhere.is_ipv6() {
            asked.push("::1");
        }
        for asked in asked {
            let asked: IpAddr = asked.parse().expect("an address");
            let any = if asked.is_ipv4() { IpAddr::from([0; 4]) } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).await.expect("a socket");
            socket.connect((asked, server.at.port())).await.expect("connected");
            socket.send(&question(NAME, A, IN)).await.expect("sent");
            let mut answer = [0; 512];
            let length = timeout(Duration::from_secs(5), socket.recv(&mut answer)).await;
            let length = length.unwrap_or_else(|_| panic!("no answer of {asked} at {everywhere}")).expect("received");
            assert_eq!(answer[length - 4..length], [10, 0, 0, 1], "{asked}");
        }
    }
}

#[tokio::test]
async fn answers_begin_with_another_record_each_time() {
    let server = start(Some(2));
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let answer = server.udp(&question(NAME, A, IN)).await.expect("an answer");
        first.insert(answer[answer.len() - 4..].to_vec());
    }
    assert_eq!(first.len(), 2);
}

/// A server of everything else: every name has 192.0.2.53, but `long.` answers are cut over UDP.
async fn elsewhere() -> SocketAddr {
    use hickory_proto::op::MessageType;
    let (udp, tcp) = loop {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("an address")).await {
            break (udp, tcp);
        }
    };
    let at = udp.local_addr().expect("an address");
    let answer = |bytes: &[u8], cut: bool| {
        let mut message = Message::from_vec(bytes).expect("a question");
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name().clone();
        message.metadata.truncation = cut && name.to_ascii().starts_with("long.");
        if name.to_ascii().starts_with("none.") {
            message.metadata.response_code = ResponseCode::NXDomain;
        } else if !message.metadata.truncation {
            message.add_answer(WireRecord::from_rdata(name, 60, RData::A(rdata::A([192, 0, 2, 53].into()))));
        }
        message.to_vec().expect("bytes")
    };
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut bytes).await {
            udp.send_to(&answer(&bytes[..length], true), from).await.expect("sent");
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut bytes = vec![0; stream.read_u16().await.expect("a length").into()];
            stream.read_exact(&mut bytes).await.expect("a question");
            let answer = answer(&bytes, false);
            let length = u16::try_from(answer.len()).expect("short");
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.expect("written");
        }
    });
    at
}

fn handler(model: &Model, rules: Rules, upstream: bool) -> Handler {
    let mut options = zone::Options::new("cluster.local".to_owned(), 5);
    options.ranges = vec!["10.0.0.0/8".parse().expect("a range")];
    options.upstream = upstream;
    let zones = Arc::new(Zones::default());
    zones.set(Zone::new(model, options));
    Handler::new(zones, rules)
}

async fn ask(handler: &Handler, from: &str, bytes: Vec<u8>) -> Option<Message> {
    let answer = handler.datagram(&bytes, from.parse().expect("an address")).await?;
    Some(Message::from_vec(&answer).expect("a message"))
}

#[tokio::test]
async fn other_names_are_passed_on_for_those_who_may_and_for_nobody_else() {
    let upstream = Some(Upstream::new(vec![elsewhere().await]));
    let rules = || Rules { recursion: vec!["127.0.0.0/8".parse().expect("a range")], ..Rules::default() };
    let handler = handler(&model(1), Rules { upstream, ..rules() }, true);
    let (own, foreign) = ("127.0.0.1:999", "192.0.2.7:999");
    for name in ["example.org", "long.example.org", "1.2.0.192.in-addr.arpa"] {
        let answer = ask(&handler, own, question(name, A, IN)).await.expect("an answer");
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1), "{name}");
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative, "{name}");
        let answer = ask(&handler, foreign, question(name, A, IN)).await.expect("an answer");
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::Refused, 0), "{name}");
        assert!(!answer.metadata.recursion_available, "{name}");
    }
    let answer = ask(&handler, own, question("none.example.org", A, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    // Nobody else knows our ranges, and our zone is ours.
    for name in ["1.2.3.10.in-addr.arpa", "nobody.cluster.local"] {
        let answer = ask(&handler, own, question(name, A, IN)).await.expect("an answer");
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(answer.metadata.authoritative && answer.authorities.len() == 1, "{name}");
    }
    let mut not_desired = question("example.org", A, IN);
    not_desired[2] = 0;
    let answer = ask(&handler, own, not_desired).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "recursion is not desired");
}

#[tokio::test]
async fn d11_the_target_of_an_alias_is_asked_for_elsewhere() {
    let mut model = model(1);
    alias(&mut model, "alias", "target.example.org");
    let upstream = Some(Upstream::new(vec![elsewhere().await]));
    let rules = Rules { upstream, recursion: vec!["127.0.0.0/8".parse().expect("a range")], ..Rules::default() };
    let handler = handler(&model, rules, true);
    let asked = || question("alias.shop.svc.cluster.local", A, IN);
    let answer = ask(&handler, "127.0.0.1:9", asked()).await.expect("an answer");
    let kinds: Vec<_> = answer.answers.iter().map(WireRecord::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    let answer = ask(&handler, "192.0.2.7:9", asked()).await.expect("an answer");
    assert_eq!(answer.answers.len(), 1, "the alias alone");
    let cname = question("alias.shop.svc.cluster.local", 5, IN);
    assert_eq!(ask(&handler, "127.0.0.1:9", cname).await.expect("an answer").answers.len(), 1);
}

#[tokio::test]
async fn a_silent_server_elsewhere_is_a_failure_of_ours() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let upstream = Some(Upstream::new(vec![silent.local_addr().expect("an address")]));
    let rules = Rules { upstream, recursion: vec!["127.0.0.0/8".parse().expect("a range")], ..Rules::default() };
    let handler = handler(&model(1), rules, true);
    let answer = ask(&handler, "127.0.0.1:9", question("example.org", A, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn over_the_limit_there_is_advice_or_nothing() {
    let rules = Rules { limit: Limit::new(1, Vec::new()), ..Rules::default() };
    let handler = handler(&model(1), rules, false);
    let mut seen = Vec::new();
    // Two seconds at most: of four questions one or two are answered.
    for _ in 0..4 {
        let answer = ask(&handler, "192.0.2.7:9", question(NAME, A, IN)).await;
        seen.push(answer.map(|answer| (answer.metadata.truncation, answer.answers.len())));
    }
    assert!(seen.contains(&Some((true, 0))) && seen.contains(&Some((false, 1))), "{seen:?}");
    assert!(seen.iter().filter(|answer| **answer == Some((false, 1))).count() <= 2, "{seen:?}");
}

#[test]
fn the_serial_does_not_begin_anew_with_the_process() {
    let zones = Zones::default();
    let before = now();
    zones.set(Zone::new(&model(1), zone::Options::new("cluster.local".to_owned(), 5)));
    let first = zones.sizes().serial;
    assert!(before > 1 && first >= before, "{first}");
    assert!(zones.follow(&model(2), &Touched::All) && zones.sizes().serial > first);
}
