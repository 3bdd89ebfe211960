//! The objects, and the questions about them.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_tests::api_server::ApiServer;
use serde_json::{Value, json};

use super::wire::{A, AAAA, PTR, Question, SRV};

/// Namespaces that the Services are spread over.
const NAMESPACES: u32 = 100;
/// Every so manieth Service is headless.
const HEADLESS: u32 = 10;
const CLUSTER_IPS: u32 = u32::from_be_bytes([10, 96, 0, 0]);
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// The headless Service whose endpoints change.
pub(super) const CHANGING: &str = "changing.team-0.svc.cluster.local";

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) services: u32,
    pub(super) endpoints: u32,
}

impl Size {
    /// Puts them all on the server.
    pub(super) fn fill(self, api: &ApiServer) {
        for number in 0..NAMESPACES.min(self.services) {
            api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(number)}}));
        }
        for number in 0..self.services {
            api.put(service(number));
            let share = |number: u32| u64::from(self.endpoints) * u64::from(number) / u64::from(self.services);
            let endpoints: Vec<_> =
                (share(number)..share(number + 1)).filter_map(|at| u32::try_from(at).ok()).collect();
            // No slice has more than 100, as the endpoint controller keeps it.
            for (index, part) in endpoints.chunks(100).enumerate() {
                let name = format!("service-{number}-{index}");
                let endpoints: Vec<_> = part.iter().map(|at| endpoint(Ipv4Addr::from(PODS + at + 1), true)).collect();
                api.put(slice(&name, &format!("service-{number}"), &namespace(number), &endpoints));
            }
        }
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "changing", "namespace": "team-0"},
            "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ports": ports()},
        }));
        change(api, true);
        // What was is forgotten: nobody watches yet.
        api.compact();
    }

    /// So many questions that pods would ask: by a search list of three domains and ndots 5.
    pub(super) fn questions(self, count: u32) -> Vec<Question> {
        (0..count).map(|at| question(at, at.wrapping_mul(2_654_435_761) % self.services)).collect()
    }

    /// A name that is known once all are.
    pub(super) fn last(self) -> Question {
        Question::new(&name(self.services - 1), A, false)
    }
}

/// The question of this number, about the Service of that one.
fn question(at: u32, number: u32) -> Question {
    let (edns, full) = (at.is_multiple_of(2), name(number));
    let headless = number / HEADLESS * HEADLESS;
    // 100 places: how often each is asked.
    match at % 100 {
        0..40 => Question::new(&full, A, edns),
        40..50 => Question::new(&full, AAAA, edns),
        50..60 => Question::new(&format!("_http._tcp.{full}"), SRV, edns),
        60..70 => Question::new(&name(headless), A, edns),
        70..75 => Question::new(&reverse(cluster_ip(number)), PTR, edns),
        // `service.team` from a pod of another namespace, and a name outside.
        75..85 => Question::new(&full.replacen(".svc.", ".team-1.svc.", 1), A, edns),
        85..90 => Question::new(&format!("www.example.com.{}.svc.cluster.local", namespace(number)), A, edns),
        90..95 => Question::new("www.example.com.svc.cluster.local", AAAA, edns),
        _ => Question::new("www.example.com.cluster.local", A, edns),
    }
}

/// Makes one of the two endpoints of the Service that changes ready or not.
pub(super) fn change(api: &ApiServer, ready: bool) {
    let [first, second] = [1, 2].map(|at| Ipv4Addr::from(PODS - at));
    api.put(slice("changing-0", "changing", "team-0", &[endpoint(first, true), endpoint(second, ready)]));
}

fn namespace(number: u32) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn name(number: u32) -> String {
    format!("service-{number}.{}.svc.cluster.local", namespace(number))
}

/// That of a headless Service stays unused.
fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(CLUSTER_IPS + 1 + if number.is_multiple_of(HEADLESS) { number + 1 } else { number })
}

fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

fn ports() -> Value {
    json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
           {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": 9090}])
}

/// Every second one has both families.
fn service(number: u32) -> Value {
    let (v4, v6) = (cluster_ip(number), Ipv6Addr::from_bits(0xfd00_0010_0096 << 80 | u128::from(number + 1)));
    let ips = match number {
        headless if headless % HEADLESS == 0 => json!(["None"]),
        dual if dual % 2 == 0 => json!([v4, v6]),
        _ => json!([v4]),
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": format!("service-{number}"), "namespace": namespace(number), "labels": {"app": format!("app-{number}")},
            "uid": format!("5eed0000-0000-4000-8000-{number:012}"), "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ports": ports(),
            "selector": {"app": format!("app-{number}")}, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(name: &str, service: &str, namespace: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": name, "namespace": namespace, "generation": 1,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "metrics", "port": 9090, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// As the controller writes one.
fn endpoint(address: Ipv4Addr, ready: bool) -> Value {
    let pod = format!("pod-{address}").replace('.', "-");
    json!({
        "addresses": [address], "conditions": {"ready": ready, "serving": ready, "terminating": false},
        "nodeName": format!("node-{}", address.to_bits() % 1000),
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod},
    })
}
