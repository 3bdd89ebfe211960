//! Bytes as a question to the name service.

use std::sync::{Arc, LazyLock};

use lb_userspace::{
    dns::{
        Zones,
        limit::Limit,
        server::{Handler, Rules},
        zone::{Options, Pods, Zone},
    },
    file_source,
};

/// Longest answer over UDP.
const LONGEST: usize = 1232;
/// Header, and the longest name with type and class.
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

/// Asks the name service. What is answered is a whole answer to that question, no longer than its client can take, and to
/// `ANY` no longer than the question.
pub fn dns(bytes: &[u8]) {
    let client = ([192, 0, 2, 1], 4096).into();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let Some(answer) = runtime.block_on(HANDLER.datagram(bytes, client)) else { return };
    assert!(answer.len() <= LONGEST, "{} octets", answer.len());
    assert!(answer.len() >= HEADER && answer[..2] == bytes[..2], "another id");
    assert!(answer[2] & 0x80 != 0, "no answer");
    let code = answer[3] & 15;
    let count = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
    let records = count(6) + count(8);
    if !matches!(code, 0 | 3) {
        assert_eq!(records, 0, "code {code} with records");
        // The option record of the answer is as long as that of the question.
        assert!(answer.len() <= bytes.len(), "{} octets for {}", answer.len(), bytes.len());
    }
    if code == 3 {
        assert_eq!((count(6), count(8)), (0, 1), "no such name: the SOA alone");
    }
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
