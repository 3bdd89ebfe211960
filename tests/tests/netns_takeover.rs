//! The first start beside kube-proxy's rules: connections that they opened go on by them, new ones are Ballast's.

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Cluster, Echo, NODE_PORT, Setup, TARGET, World,
    client::{Call, Hold, HoldReport},
    kube::{PodSpec, Service},
    needs_root, wait_until,
};
use serde_json::json;

struct Beside {
    world: World,
    held: Vec<Hold>,
    to: Vec<SocketAddr>,
    _server: Echo,
}

/// A node with rules as kube-proxy's nftables mode has them, and connections of both families through them.
fn beside_kube_proxy() -> Beside {
    let world = World::builder().nodes(1).pods(1).rp_filter(1).drop_invalid(true).build().expect("a world");
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    world.apply_nodes().expect("nodes");
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    let web = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&web.fields(json!({"type": "NodePort"}))).expect("a Service");
    let server = Echo::start(pod, &[TARGET], &[TARGET]).expect("a server");
    let to: Vec<SocketAddr> = Cluster::node_ports_of(node).into();
    for at in &to {
        let (family, backend) = (if at.is_ipv4() { "ip" } else { "ip6" }, pod.place().ip_like(at.ip()));
        let rules = format!(
            "table {family} kube-proxy {{\n\
             chain nat-prerouting {{\ntype nat hook prerouting priority dstnat\n\
             {family} daddr {} tcp dport {NODE_PORT} dnat to {}\n}}\n}}\n",
            at.ip(),
            SocketAddr::new(backend, TARGET)
        );
        node.place().namespace().nft(&rules).expect("kube-proxy's rules");
    }
    let held = to.iter().map(|to| Hold::start(world.client(), *to).expect("a connection by kube-proxy")).collect();
    Beside { world, held, to, _server: server }
}

fn ends(held: Vec<Hold>) -> Vec<HoldReport> {
    held.into_iter().map(|hold| hold.stop().expect("a report")).collect()
}

#[test]
fn connections_of_kube_proxy_go_on_by_its_rules() {
    needs_root!();
    for setup in [Setup::tcx(true), Setup::xdp(true)] {
        let Beside { world, held, to, _server } = beside_kube_proxy();
        let mut agent = Agent::start(&world, world.node(0), &setup).expect("an agent");
        agent.wait_service("web", 2).expect("the Service");
        let taken_over = |agent: &Agent| {
            let status = agent.status().expect("a status");
            let passed = status.counters.get("TakenOver").copied().unwrap_or(0);
            if passed > 20 { Ok(status.takeover_seconds) } else { Err(format!("{passed} packets passed")) }
        };
        let left = wait_until("packets of old connections", Duration::from_secs(10), || taken_over(&agent));
        let left = left.expect("packets that are left to kube-proxy").expect("a takeover");
        assert!((500..=600).contains(&left), "{left}");
        // A restart begins none anew.
        agent.kill().expect("killed");
        agent.launch().expect("launched");
        assert!(agent.status().expect("a status").takeover_seconds.is_some_and(|seconds| seconds <= left));
        // What opens now is Ballast's.
        for to in &to {
            Call::tcp(*to).run_one(world.client()).expect("a run").reached().expect("an answer");
        }
        assert!(agent.status().expect("a status").counters.get("NewFlow").is_some_and(|flows| *flows >= 2));
        for report in ends(held) {
            assert!(report.error.is_none() && report.rounds > 20 && report.max_gap_ms < 1000.0, "{report:?}");
        }
    }
}

#[test]
fn without_a_takeover_they_are_reset() {
    needs_root!();
    let Beside { world, held, _server, .. } = beside_kube_proxy();
    let setup = Setup { more: "takeoverSeconds: 0\n".to_owned(), ..Setup::tcx(true) };
    let agent = Agent::start(&world, world.node(0), &setup).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let refused = || {
        let refused = agent.status().expect("a status").counters.get("NoState").copied().unwrap_or(0);
        if refused >= 2 { Ok(()) } else { Err(format!("{refused} refused")) }
    };
    wait_until("old connections refused", Duration::from_secs(10), refused).expect("refused");
    assert_eq!(agent.status().expect("a status").takeover_seconds, None);
    for report in ends(held) {
        assert_eq!(report.error.as_deref(), Some("ECONNRESET"), "{report:?}");
    }
}
