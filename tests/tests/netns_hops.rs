//! TTL and hop limit: every node that forwards a packet takes one, once, and nobody gives one back.
//!
//! A host's own packet is not forwarded by its host: with kube-proxy it is rewritten in OUTPUT and leaves as it was made.
//! From `ballast0` it goes on by `bpf_redirect_neigh`, which takes nothing either, so that the backend sees the same. A
//! packet that slipped past its interface's hook has been forwarded when it comes to `ballast0`: it has paid.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Capture, Echo, NODE_PORT, Namespace, Place, Seen, Setup, TARGET, World,
    client::{Call, Transport},
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

/// What sockets send with.
const FULL: u8 = 64;

/// `near` is served by the second pod of node 1, `far` by the first of node 2.
struct Hops {
    agents: Vec<Agent>,
    _servers: Vec<Echo>,
    world: World,
}

impl Hops {
    fn new(setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        for (node, pod, name, node_port) in [(0, 1, "near", NODE_PORT), (1, 0, "far", NODE_PORT + 1)] {
            world.apply_pod(world.node(node).pod(pod), &PodSpec::labelled("app", name)).expect("a pod");
            let service = Service::new(name, "app", name).port(80, TARGET, Some(node_port));
            world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        }
        let servers = world.pods().map(|pod| Echo::start(pod, &[TARGET], &[TARGET]).expect("a server")).collect();
        let agents = Agent::start_all(&world, setup).expect("agents");
        for (agent, name) in agents.iter().flat_map(|agent| ["near", "far"].map(|name| (agent, name))) {
            agent.wait_service(name, 2).expect("the Service");
        }
        Self { agents, _servers: servers, world }
    }

    fn vip(&self, service: &str, like: IpAddr) -> SocketAddr {
        let ips = self.agents[0].cluster_ips(service, 2).expect("cluster IPs");
        SocketAddr::new(ips.into_iter().find(|ip| ip.is_ipv4() == like.is_ipv4()).expect("an address"), 80)
    }
}

/// The hop limits of what an interface received, by what `wanted` tells of it.
fn hops(capture: Capture, wanted: impl Fn(&Seen) -> bool) -> Vec<u8> {
    let mut hops: Vec<u8> =
        capture.stop().expect("a capture").into_iter().filter(wanted).map(|seen| seen.hops).collect();
    hops.sort_unstable();
    hops.dedup();
    hops
}

/// Questions and answers of `from` to `to` pass `forwarders` nodes and routers each.
fn check(name: &str, (from, device): (&Place, &str), to: SocketAddr, backend: &Place, forwarders: u8) {
    let start = |namespace: &Namespace, device: &str| Capture::start(namespace, device).expect("a capture");
    for transport in [Transport::Tcp, Transport::Udp] {
        let (questions, answers) = (start(backend.namespace(), "eth0"), start(from.namespace(), device));
        let answer = Call::new(transport, to).run_one(from).expect("a run");
        let reached = answer.reached().unwrap_or_else(|error| panic!("{name}, {transport:?} to {to}: {error}"));
        assert_eq!(reached.0, backend.name(), "{name}");
        let own = backend.ip_like(to.ip());
        let questions = hops(questions, |seen| seen.destination == own);
        let answers = hops(answers, |seen| seen.source == to.ip());
        let expected = vec![FULL - forwarders];
        assert_eq!((questions, answers), (expected.clone(), expected), "{name}, {transport:?} to {to}");
    }
}

fn every_path(setup: &Setup) {
    let hops = Hops::new(setup);
    let world = &hops.world;
    let (node1, node2, client) = (world.node(0), world.node(1), world.client());
    let (pod, near, far) = (node1.pod(0), node1.pod(1), node2.pod(0));
    for any in [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])] {
        let (near_vip, far_vip) = (hops.vip("near", any), hops.vip("far", any));
        let direct = |place: &Place| SocketAddr::new(place.ip_like(any), TARGET);
        let port = |node: &Place, offset| SocketAddr::new(node.ip_like(any), NODE_PORT + offset);
        // Without a Service: what the network itself takes.
        check("host, direct, near", (node1, near.interface()), direct(near), near, 0);
        check("host, direct, far", (node1, "eth0"), direct(far), far, 2);
        check("pod, direct, near", (pod, "eth0"), direct(near), near, 1);
        check("pod, direct, far", (pod, "eth0"), direct(far), far, 3);
        check("host by ballast0, near", (node1, "ballast0"), near_vip, near, 0);
        check("host by ballast0, far", (node1, "ballast0"), far_vip, far, 2);
        check("pod, near", (pod, "eth0"), near_vip, near, 1);
        check("pod, far", (pod, "eth0"), far_vip, far, 3);
        check("outside, backend on the node", (client, "eth0"), port(node1, 0), near, 2);
        check("outside, backend elsewhere", (client, "eth0"), port(node1, 1), far, 4);
        check("outside, the backend's own node", (client, "eth0"), port(node2, 1), far, 2);
    }
}

#[test]
fn a_service_takes_the_hops_of_its_path_and_no_other_at_tcx() {
    needs_root!();
    every_path(&Setup::tcx(false));
}

#[test]
fn a_service_takes_the_hops_of_its_path_and_no_other_at_xdp() {
    needs_root!();
    every_path(&Setup::xdp(false));
}

#[test]
fn what_slipped_past_its_interface_has_paid_once_behind_ballast0() {
    needs_root!();
    let more = "interfaces: [{match: pod1, role: ignored}]\n".to_owned();
    let hops_of = Hops::new(&Setup { more, ..Setup::tcx(false) });
    let node = hops_of.world.node(0);
    let pod = node.pod(0);
    assert_eq!(pod.interface(), "pod1");
    for any in [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])] {
        for (service, backend, left) in
            [("near", node.pod(1), FULL - 1), ("far", hops_of.world.node(1).pod(0), FULL - 3)]
        {
            let capture = Capture::start(backend.namespace(), "eth0").expect("a capture");
            let call = Call::udp(hops_of.vip(service, any)).timeout(std::time::Duration::from_millis(300));
            // No answer: the way back leads by the interface that has no hook.
            call.run_one(pod).expect("a run");
            let own = backend.ip_like(any);
            assert_eq!(hops(capture, |seen| seen.destination == own), [left], "{service}");
        }
    }
}
