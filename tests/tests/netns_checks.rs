//! What a world of veths does not see by itself: every checksum on the way.

use std::net::SocketAddr;

use lb_tests::{
    Agent, ChecksumSink, Echo, Namespace, Network, Setup, World,
    client::{Call, Transport},
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const TARGET: u16 = 9376;

struct Checked {
    world: World,
    agents: Vec<Agent>,
    _server: Echo,
}

impl Checked {
    /// `web` has one backend, on node 2; `none` has none.
    fn new(network: Network, setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).network(network).build().expect("a world");
        world.apply_nodes().expect("nodes");
        let far = world.node(1).pod(0);
        world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
        for (name, app, node_port) in [("web", "web", 30080), ("none", "none", 30081)] {
            let service = Service::new(name, "app", app).port(80, TARGET, Some(node_port));
            world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        }
        let server = Echo::start(far.place(), &[TARGET], &[TARGET]).expect("a server");
        let agents = Agent::start_all(&world, setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
            agent.wait_service("none", 0).expect("the Service");
        }
        Self { world, agents, _server: server }
    }

    /// Every NAT point, and every kind of refusal, both families.
    fn traffic(&self) {
        let near = self.world.node(0).pod(0).place();
        let (host, client) = (self.world.node(0).place(), self.world.client());
        let vips = self.agents[0].cluster_ips("web", 2).expect("cluster IPs");
        for vip in vips {
            for transport in [Transport::Tcp, Transport::Udp] {
                let node_ports =
                    self.world.nodes().iter().map(|node| SocketAddr::new(node.place().ip_like(vip), 30080));
                let outside = node_ports.map(|to| (client, to));
                let inside = [near, host].map(|from| (from, SocketAddr::new(vip, 80)));
                for (from, to) in outside.chain(inside) {
                    for answer in Call::new(transport, to).count(3).run(from).expect("a run") {
                        answer.reached().unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
                    }
                }
                let to = SocketAddr::new(host.ip_like(vip), 30081);
                for answer in Call::new(transport, to).count(2).run(client).expect("a run") {
                    assert_eq!(answer.error.as_deref(), Some("ECONNREFUSED"), "{answer:?}");
                }
            }
        }
    }
}

/// Runs the traffic with a sink on each interface; every packet that arrives must be right and finished.
fn watch(checked: &Checked, places: &[(&Namespace, &str)]) {
    let sinks: Vec<_> = places
        .iter()
        .map(|(namespace, interface)| ChecksumSink::start(namespace, interface).expect("a sink"))
        .collect();
    checked.traffic();
    for (sink, (namespace, interface)) in sinks.into_iter().zip(places) {
        let report = sink.stop().expect("a report");
        println!("{} {interface}: {report:?}", namespace.name());
        assert_eq!(report.wrong, 0, "{} {interface}: {report:?}", namespace.name());
        assert_eq!(report.partial, 0, "{} {interface}: {report:?}", namespace.name());
        assert!(report.verified >= 20, "{} {interface}: {report:?}", namespace.name());
    }
}

fn ends(checked: &Checked) -> [(&Namespace, &'static str); 3] {
    let (near, far) = (checked.world.node(0).pod(0), checked.world.node(1).pod(0));
    [
        (checked.world.client().namespace(), "eth0"),
        (near.place().namespace(), "eth0"),
        (far.place().namespace(), "eth0"),
    ]
}

/// Senders finish their checksums themselves, as a wire delivers packets.
fn whole(network: Network, setup: &Setup) {
    let checked = Checked::new(network, setup);
    checked.world.set_tx_checksum(false).expect("ethtool");
    watch(&checked, &ends(&checked));
}

#[test]
fn every_checksum_is_right_at_tcx() {
    needs_root!();
    whole(Network::Routed, &Setup::tcx(false));
}

#[test]
fn every_checksum_is_right_at_xdp() {
    needs_root!();
    whole(Network::Routed, &Setup::xdp(false));
}

#[test]
fn every_checksum_is_right_on_a_bridge() {
    needs_root!();
    whole(Network::Bridge, &Setup::xdp(false));
}

#[test]
fn every_checksum_is_right_behind_a_tunnel() {
    needs_root!();
    whole(Network::Vxlan, &Setup::tcx(false));
}

/// Senders leave the sum to the device; the devices behind our programs have to finish it.
fn partial(network: Network) {
    let checked = Checked::new(network, &Setup::tcx(false));
    checked.world.set_tx_checksum(true).expect("ethtool");
    let router = checked.world.router();
    for node in checked.world.nodes() {
        node.place().namespace().offload("eth0", &[("tx", false)]).expect("ethtool");
        for pod in node.pods() {
            node.place().namespace().offload(pod.interface(), &[("tx", false)]).expect("ethtool");
        }
    }
    let (near, far) = (checked.world.node(0).pod(0), checked.world.node(1).pod(0));
    let places =
        [(router, "node1"), (router, "node2"), (near.place().namespace(), "eth0"), (far.place().namespace(), "eth0")];
    watch(&checked, &places);
}

#[test]
fn partial_checksums_are_finished_right_behind_tcx() {
    needs_root!();
    partial(Network::Routed);
}

#[test]
fn partial_checksums_are_finished_right_on_a_bridge() {
    needs_root!();
    partial(Network::Bridge);
}

#[test]
fn partial_checksums_are_finished_right_behind_a_tunnel() {
    needs_root!();
    partial(Network::Vxlan);
}
