//! Bytes as a question to the name service.

use std::sync::{Arc, LazyLock};

use futures_util::FutureExt as _;
use hickory_proto::op::{Message, ResponseCode};
use lb_userspace::{
    dns::{
        Zones,
        limit::Limit,
        server::{Handler, Rules},
        zone::{Options, Pods, Zone},
    },
    file_source,
};

/// Longest answer over UDP, and the longest one to a client that does not speak EDNS.
const LONGEST: [usize; 2] = [1232, 512];
/// Octets of a header.
const HEADER: usize = 12;

static HANDLER: LazyLock<Handler> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let documents = folder.path().join("documents.yaml");
    std::fs::write(&documents, DOCUMENTS).expect("a file");
    let mut options = file_source::Options::new(documents);
    options.allocations = Some(folder.path().join("allocations.json"));
    let model = file_source::load(&options).expect("documents").model;
    let zones = Arc::new(Zones::default());
    zones.set(Zone::new(&model, Options { pods: Pods::Insecure, ..Options::new("cluster.local".to_owned(), 5) }));
    Handler::new(zones, Rules { limit: Limit::new(0, Vec::new()), ..Rules::default() })
});

/// Asks the name service. What is answered is a whole answer to that question, which comes back as it was written, no longer
/// than its client can take; without records it is no longer than what was asked.
pub fn dns(bytes: &[u8]) {
    let client = ([192, 0, 2, 1], 4096).into();
    // Nobody else is asked, so there is nothing to wait for.
    let Some(answer) = HANDLER.datagram(bytes, client).now_or_never().expect("an answer at once") else { return };
    assert!(bytes.len() >= HEADER && bytes[2] & 0x80 == 0, "an answer to what is no question");
    let count = |of: &[u8], at: usize| u16::from_be_bytes([of[at], of[at + 1]]);
    let longest = LONGEST[usize::from(count(bytes, 10) == 0)];
    assert!(answer.len() <= longest, "{} octets", answer.len());
    assert!(answer[..2] == bytes[..2], "another id");
    // The opcode and whether recursion is desired; of the rest nothing but whether it is authoritative or cut.
    assert!(answer[2] & 0x80 != 0 && (answer[2] ^ bytes[2]) & 0x79 == 0, "flags {:08b}", answer[2]);
    let message = Message::from_vec(&answer).expect("a message");
    let code = message.metadata.response_code;
    let records = message.answers.len() + message.authorities.len();
    match message.queries.as_slice() {
        [] => assert!(answer.len() == HEADER, "no question, and more than a header"),
        [query] => {
            // Labels with their lengths, the root, type and class.
            let length = query.name().iter().map(|label| label.len() + 1).sum::<usize>() + 5;
            assert_eq!(answer[HEADER..HEADER + length], bytes[HEADER..HEADER + length], "another question");
        }
        more => panic!("{} questions", more.len()),
    }
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        assert_eq!(records, 0, "{code} with records");
    }
    if records == 0 {
        assert!(answer.len() <= bytes.len().max(HEADER), "{} octets for {}", answer.len(), bytes.len());
    }
    if code == ResponseCode::NXDomain {
        assert_eq!((message.answers.len(), message.authorities.len()), (0, 1), "no such name: the SOA alone");
    }
    assert!(message.edns.is_none() || count(bytes, 10) > 0, "EDNS to a client that does not speak it");
}

const DOCUMENTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: empty}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:10:96::7'],
  ipFamilyPolicy: RequireDualStack, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: ExternalName, externalName: b.default.svc.cluster.local}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {type: ExternalName, externalName: a.default.svc.cluster.local}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db, labels: {kubernetes.io/service-name: db}},
  addressType: IPv4, ports: [{name: sql, port: 5432}], endpoints: [{addresses: [10.244.0.1], hostname: db-0}, {addresses: [10.244.0.2]}]}
";
