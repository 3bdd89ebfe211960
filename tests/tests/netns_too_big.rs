//! Packets to a Service that are larger than the way to its backend takes: whoever sent one is told, and learns it
//! (semantics.md 2.10). Where no frame may be fragmented, the first answer comes after the first refusal.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Echo, NODE_PORT, Network, Place, Setup, TARGET, World,
    client::{self, PathReport},
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const BYTES: u64 = 1 << 20;

struct Narrow {
    agents: Vec<Agent>,
    _server: Echo,
    world: World,
}

impl Narrow {
    /// The only backend is on node 2; `prepare` narrows the way there.
    fn new(network: Network, setup: &Setup, prepare: impl FnOnce(&World)) -> Self {
        let world = World::builder().network(network).rp_filter(1).drop_invalid(true).pods(1).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("checksums");
        }
        prepare(&world);
        world.apply_nodes().expect("nodes");
        let far = world.node(1).pod(0);
        world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let server = Echo::start(far, &[TARGET], &[TARGET]).expect("a server");
        let agents = Agent::start_all(&world, setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
        }
        Self { agents, _server: server, world }
    }

    /// From a pod, a process of the node, and outside; what each learns is `mtu`.
    fn check(&self, what: &str, mtu: u32) {
        let (node, client) = (self.world.node(0), self.world.client());
        for vip in self.agents[0].cluster_ips("web", 2).expect("cluster IPs") {
            let port = SocketAddr::new(node.ip_like(vip), NODE_PORT);
            let vip = SocketAddr::new(vip, 80);
            let from: [(&Place, SocketAddr); 4] = [(node.pod(0), vip), (node, vip), (client, port), (client, vip)];
            for (from, to) in from {
                let row = format!("{what}, {} to {to}", from.name());
                let headers = if to.is_ipv4() { 28 } else { 48 };
                let report = client::path(from, to).expect(&row);
                println!("{row}: {report:?}");
                let PathReport { error, mtu: learned, too_long, answered, .. } = report.clone();
                assert_eq!((error, learned), (None, mtu), "{row}: {report:?}");
                assert!(too_long >= 1 && answered == mtu as usize - headers, "{row}: {report:?}");
                let start = Instant::now();
                let report = client::bulk(from, to, BYTES, Duration::from_secs(20)).expect(&row);
                assert!(report.is_intact() && report.sent == BYTES, "{row}: {report:?}");
                // A sender that is not told tries smaller ones only after seconds.
                assert!(start.elapsed() < Duration::from_secs(5), "{row}: {report:?}");
            }
        }
    }
}

/// Pods send more than the tunnel takes.
fn before_a_tunnel(setup: &Setup) {
    let narrow = Narrow::new(Network::Vxlan, setup, |world| {
        for node in world.nodes() {
            let pod = node.pod(0);
            node.namespace().ip(&format!("link set {} mtu 1500\n", pod.interface())).expect("ip");
            pod.namespace().ip("link set eth0 mtu 1500\n").expect("ip");
        }
    });
    narrow.check(&format!("tunnel, XDP {}, socket hooks {}", setup.xdp, setup.socket_hooks), 1450);
}

/// The node's next hop takes less than its device.
fn behind_a_router(setup: &Setup) {
    let narrow = Narrow::new(Network::Routed, setup, |world| {
        world.router().ip("link set node2 mtu 1300\n").expect("ip");
        world.node(1).namespace().ip("link set eth0 mtu 1300\n").expect("ip");
    });
    narrow.check(&format!("router, XDP {}, socket hooks {}", setup.xdp, setup.socket_hooks), 1300);
}

#[test]
fn a_tunnel_that_takes_less_is_told_at_tcx() {
    needs_root!();
    before_a_tunnel(&Setup::tcx(false));
}

#[test]
fn a_tunnel_that_takes_less_is_told_with_socket_hooks() {
    needs_root!();
    before_a_tunnel(&Setup::tcx(true));
}

#[test]
fn a_tunnel_that_takes_less_is_told_at_xdp() {
    needs_root!();
    before_a_tunnel(&Setup::xdp(false));
}

#[test]
fn a_router_that_takes_less_is_told_at_tcx() {
    needs_root!();
    behind_a_router(&Setup::tcx(false));
}

#[test]
fn a_router_that_takes_less_is_told_with_socket_hooks() {
    needs_root!();
    behind_a_router(&Setup::tcx(true));
}

#[test]
fn a_router_that_takes_less_is_told_at_xdp() {
    needs_root!();
    behind_a_router(&Setup::xdp(false));
}
