//! Questions over real sockets, written by hand: the server's own library would not write the wrong ones.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::*;
use crate::{
    dns::{listen, zone},
    model::{Endpoint, EndpointSlice, IpFamily, Model, ObjectName},
};

const A: u16 = 1;
const ANY: u16 = 255;
const AXFR: u16 = 252;
const IN: u16 = 1;

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
    _server: hickory_server::Server<Handler>,
    at: SocketAddr,
    zones: Arc<Zones>,
}

async fn start(endpoints: Option<u8>) -> Running {
    let zones = Arc::new(Zones::default());
    if let Some(endpoints) = endpoints {
        let options = zone::Options::new("cluster.local".to_owned(), 5);
        zones.set(Zone::new(&model(endpoints), options));
    }
    // A port that is free for TCP is most often free for UDP: try until one is.
    for _ in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        if let Ok(server) = listen(&[free], &zones, "--listen").await {
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
    let server = start(None).await;
    assert_eq!(server.code(&question(NAME, A, IN)).await, 2, "SERVFAIL");
    server.zones.set(Zone::new(&model(1), zone::Options::new("cluster.local".to_owned(), 5)));
    assert_eq!(server.code(&question(NAME, A, IN)).await, 0);
}

#[tokio::test]
async fn wrong_questions_get_the_code_of_the_rfcs() {
    let server = start(Some(1)).await;
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
    let server = start(Some(1)).await;
    let asked = question("dB.sHOP.svc.CLUSTER.local", A, IN);
    let answer = server.udp(&asked).await.expect("an answer");
    assert_eq!(answer[12..asked.len()], asked[12..]);
    assert_eq!(answer[2] & 4, 4, "authoritative");
    assert_eq!(answer[answer.len() - 4..], [10, 0, 0, 1]);
}

#[tokio::test]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let server = start(Some(200)).await;
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

#[tokio::test]
async fn answers_begin_with_another_record_each_time() {
    let server = start(Some(2)).await;
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let answer = server.udp(&question(NAME, A, IN)).await.expect("an answer");
        first.insert(answer[answer.len() - 4..].to_vec());
    }
    assert_eq!(first.len(), 2);
}
