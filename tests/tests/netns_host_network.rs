//! A backend in its node's own network: its address is the node's.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Echo, Expect, Network, Rows, Setup, World,
    client::Transport,
    kube::{Service, host_network_pod},
    needs_root,
};
use serde_json::json;

const TARGET: u16 = 9376;
const CLUSTER: u16 = 30080;
const LOCAL: u16 = 30081;

/// The only backend is node 2 itself.
fn every_path(network: Network, setup: &Setup) {
    let world = World::builder().rp_filter(1).drop_invalid(true).network(network).pods(1).build().expect("a world");
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("ethtool");
    }
    world.apply_nodes().expect("nodes");
    let (node1, node2) = (world.node(0), world.node(1));
    world.apply_documents("backend.yaml", &[host_network_pod(node2, "backend", ("app", "web"))]).expect("a Pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(CLUSTER));
    world.apply_service(&service.load_balancer(&["203.0.113.10", "fd00:203:0:113::10"])).expect("a Service");
    let local = Service::new("local", "app", "web").port(80, TARGET, Some(LOCAL));
    let fields = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    world.apply_service(&local.fields(fields)).expect("a Service");
    let _server = Echo::start_on(node2, &[TARGET], &[TARGET], &node2.ips()).expect("a server");
    let agents = Agent::start_all(&world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
        agent.wait_service("local", 2).expect("the Service");
    }
    let (far, near, client) = (node1.pod(0), node2.pod(0), world.client());
    let backends = [node2.place()];
    let mut rows = Rows::default();
    for vip in agents[0].cluster_ips("web", 2).expect("cluster IPs") {
        let reach = |source: IpAddr| Expect::Reach(&backends, source);
        // What leaves a pod for a node is masqueraded where pods have a tunnel.
        let of_far = if network == Network::Vxlan { node1.ip_like(vip) } else { far.ip_like(vip) };
        let balancer = if vip.is_ipv4() {
            IpAddr::from([203, 0, 113, 10])
        } else {
            IpAddr::from([0xfd00, 0x203, 0, 0x113, 0, 0, 0, 0x10])
        };
        let (vip, balancer) = (SocketAddr::new(vip, 80), SocketAddr::new(balancer, 80));
        let port = |node: &lb_tests::Node, port| SocketAddr::new(node.ip_like(vip.ip()), port);
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let own = |place: &lb_tests::Place| reach(place.ip_like(vip.ip()));
            rows.row("pod of the same node to VIP", near, transport, vip, &own(near));
            rows.row("pod of another node to VIP", far, transport, vip, &reach(of_far));
            rows.row("another node to VIP", node1, transport, vip, &own(node1));
            if setup.socket_hooks {
                rows.row("the node itself to VIP", node2, transport, vip, &own(node2));
            } else if transport != Transport::UdpUnconnected {
                // From `ballast0` there is no way up that is no martian.
                rows.row("the node itself to VIP without a hook", node2, transport, vip, &Expect::Refused);
            }
            rows.row("2.4.2 outside to nodePort elsewhere", client, transport, port(node1, CLUSTER), &own(node1));
            rows.row("2.4.2 outside to LoadBalancer address", client, transport, balancer, &own(node1));
            // What arrives for the node itself passes no POSTROUTING.
            rows.row("outside to nodePort of the node", client, transport, port(node2, CLUSTER), &own(client));
            rows.row("2.4.3 outside to its Local nodePort", client, transport, port(node2, LOCAL), &own(client));
            rows.row(
                "2.3.3 outside to a Local nodePort elsewhere",
                client,
                transport,
                port(node1, LOCAL),
                &Expect::Silence,
            );
        }
    }
    rows.finish(&agents);
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
}

#[test]
fn a_node_is_a_backend_on_routed_veths() {
    needs_root!();
    every_path(Network::Routed, &Setup::tcx(true));
}

#[test]
fn a_node_is_a_backend_on_a_bridge() {
    needs_root!();
    every_path(Network::Bridge, &Setup::xdp(false));
}

#[test]
fn a_node_is_a_backend_beside_a_tunnel() {
    needs_root!();
    every_path(Network::Vxlan, &Setup::tcx(false));
}

#[test]
#[ignore = "the full product"]
fn a_node_is_a_backend_everywhere() {
    needs_root!();
    for network in [Network::Routed, Network::Bridge, Network::Vxlan] {
        for setup in [Setup::tcx(true), Setup::tcx(false), Setup::xdp(true), Setup::xdp(false)] {
            println!("{network:?}, {setup:?}");
            every_path(network, &setup);
        }
    }
}
