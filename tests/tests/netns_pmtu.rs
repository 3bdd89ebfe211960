//! Path MTU discovery through a Service: a router between node and backend, or between client and node, that takes no more
//! than 1300 bytes tells so, and the sender learns it (semantics.md 2.10).

use std::{net::SocketAddr, time::Duration};

use lb_common::verdict::Counter;
use lb_tests::{
    Agent, Cluster, Echo, NODE_PORT, Place, Setup, TARGET, World, client,
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

/// More than any socket buffer holds back; without the news it stalls after the first window.
const BYTES: u64 = 4 << 20;

/// A world whose only backend is on one node.
struct Path {
    agents: Vec<Agent>,
    _server: Echo,
    world: World,
}

impl Path {
    fn new(setup: &Setup, node: usize) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).pods(1).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("checksums");
        }
        world.apply_nodes().expect("nodes");
        let pod = world.node(node).pod(0);
        world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let server = Echo::start(pod.place(), &[TARGET], &[TARGET]).expect("a server");
        let agents = Agent::start_all(&world, setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
        }
        Self { agents, _server: server, world }
    }

    /// The link between the router and a node takes 1300 bytes.
    fn narrow_link(&self, node: usize) {
        let node = self.world.node(node);
        let (at_router, at_node) = (node.router_interface(), node.uplinks().first().expect("an uplink").clone());
        self.world.router().ip(&format!("link set {at_router} mtu 1300\n")).expect("ip");
        node.namespace().ip(&format!("link set {at_node} mtu 1300\n")).expect("ip");
    }

    /// The router takes 1300 bytes for the client, who does not know.
    fn narrow_route(&self) {
        for route in ["route replace 192.168.100.2/32", "route replace fd00:192:168:100::2/128"] {
            self.world.router().ip(&format!("{route} dev client mtu lock 1300\n")).expect("ip");
        }
    }

    #[track_caller]
    fn transfer(&self, from: &Place, to: SocketAddr, translating: usize) {
        let report = client::bulk(from, to, BYTES, Duration::from_secs(20)).expect("a transfer");
        assert!(report.is_intact() && report.sent == BYTES, "{} to {to}: {report:?}", from.name());
        let counters = self.agents[translating].status().expect("a status").counters;
        let name = format!("{:?}", Counter::IcmpError);
        assert!(counters.get(&name).is_some_and(|count| *count > 0), "{to}: nobody told: {counters:?}");
    }
}

#[test]
fn a_client_learns_of_a_narrow_hop_behind_the_node() {
    needs_root!();
    for setup in [Setup::tcx(true), Setup::xdp(true)] {
        let path = Path::new(&setup, 1);
        path.narrow_link(1);
        for to in Cluster::node_ports_of(path.world.node(0)) {
            path.transfer(path.world.client(), to, 0);
        }
    }
}

#[test]
fn a_backend_learns_of_a_narrow_hop_before_the_node() {
    needs_root!();
    for setup in [Setup::tcx(true), Setup::xdp(true)] {
        for backend in [0, 1] {
            let path = Path::new(&setup, backend);
            path.narrow_route();
            for to in Cluster::node_ports_of(path.world.node(0)) {
                path.transfer(path.world.client(), to, 0);
            }
        }
    }
}

#[test]
fn a_host_process_without_socket_hook_learns_of_a_narrow_hop() {
    needs_root!();
    for setup in [Setup::tcx(false), Setup::xdp(false)] {
        let path = Path::new(&setup, 1);
        path.narrow_link(1);
        for ip in path.agents[0].cluster_ips("web", 2).expect("cluster IPs") {
            path.transfer(path.world.node(0).place(), SocketAddr::new(ip, 80), 0);
        }
    }
}
