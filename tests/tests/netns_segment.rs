//! Nodes and router on one bridged segment, and uplinks that are ports of a bridge of the node.

use std::net::SocketAddr;

use lb_tests::{
    Agent, Capture, Echo, Expect, Network, Place, Rows, Setup, World,
    client::Transport,
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const TARGET: u16 = 9376;
const NODE_PORT: u16 = 30080;
const LOCAL: u16 = 30081;

/// The pod of node 2 is the only backend; the outside asks node 1, and for Local policy node 2.
fn every_path(world: &World, setup: &Setup) -> Vec<Agent> {
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("ethtool");
    }
    world.apply_nodes().expect("nodes");
    let (node1, node2) = (world.node(0), world.node(1));
    let far = node2.pod(0);
    world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
    let service = Service::new("local", "app", "web").port(80, TARGET, Some(LOCAL));
    let fields = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    world.apply_service(&service.fields(fields)).expect("a Service");
    let _server = Echo::start(far, &[TARGET], &[TARGET]).expect("a server");
    let agents = Agent::start_all(world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
        agent.wait_service("local", 2).expect("the Service");
    }
    let backends: [&Place; 1] = [far];
    let mut rows = Rows::default();
    for vip in agents[0].cluster_ips("web", 2).expect("cluster IPs") {
        let port = |node: &Place, port| SocketAddr::new(node.ip_like(vip), port);
        let vip = SocketAddr::new(vip, 80);
        let from = |place: &Place| Expect::Reach(&backends, place.ip_like(vip.ip()));
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let client = world.client();
            let masqueraded = Expect::Reach(&backends, world.source_towards(node1, far.name(), vip.ip()));
            rows.row("2.4.2 outside to nodePort", client, transport, port(node1, NODE_PORT), &masqueraded);
            rows.row("2.4.3 outside to Local nodePort", client, transport, port(node2, LOCAL), &from(client));
            rows.row("2.3.3 Local elsewhere", client, transport, port(node1, LOCAL), &Expect::Silence);
            rows.row("pod to VIP", node1.pod(0), transport, vip, &from(node1.pod(0)));
            rows.row("host to VIP", node1, transport, vip, &masqueraded);
            rows.row("another node to nodePort", node2, transport, port(node1, NODE_PORT), &masqueraded);
        }
    }
    rows.finish(&agents);
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
    agents
}

/// What nodes have for each other does not pass the router.
fn on_a_segment(network: Network, setup: &Setup) {
    let world = World::builder().pods(1).network(network).segment(true).rp_filter(1).drop_invalid(true);
    let world = world.build().expect("a world");
    let capture = Capture::start(world.router(), "nodes0").expect("a capture");
    drop(every_path(&world, setup));
    let seen = capture.stop().expect("a capture");
    let far = world.node(1).pod(0);
    let through = |ip| seen.iter().any(|seen| seen.source == ip);
    assert!(world.node(0).ips().into_iter().any(through), "answers to the client: {seen:?}");
    let between = seen.iter().find(|seen| {
        let ends = [seen.source, seen.destination];
        ends.iter().any(|end| far.ips().contains(end)) && ends.iter().any(|end| world.node(0).ips().contains(end))
    });
    assert_eq!(between, None);
}

#[test]
fn nodes_on_one_segment_reach_each_others_pods_at_tcx() {
    needs_root!();
    on_a_segment(Network::Routed, &Setup::tcx(false));
}

#[test]
fn nodes_on_one_segment_reach_each_others_pods_at_xdp() {
    needs_root!();
    on_a_segment(Network::Bridge, &Setup::xdp(true));
}

#[test]
fn nodes_on_one_segment_reach_each_others_pods_through_a_tunnel() {
    needs_root!();
    on_a_segment(Network::Vxlan, &Setup::tcx(true));
}

/// Puts a bridge over `eth0` of each node, with all that `eth0` had.
fn bridge_uplinks(world: &World) {
    for node in world.nodes() {
        let namespace = node.namespace();
        let link = namespace.ip_output(&["-o", "link", "show", "eth0"]).expect("ip");
        let mac = link.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()).expect("a MAC");
        let mut batch = format!("link add br0 address {mac} type bridge\nlink set br0 up\n");
        let addresses = namespace.ip_output(&["-o", "addr", "show", "dev", "eth0", "scope", "global"]).expect("ip");
        for line in addresses.lines() {
            let address = line.split_whitespace().nth(3).expect("an address");
            let nodad = if address.contains(':') { "nodad" } else { "" };
            batch.push_str(&format!("addr del {address} dev eth0\naddr add {address} dev br0 {nodad}\n"));
        }
        batch.push_str("link set eth0 master br0\n");
        let gateways: Vec<String> = ["-4", "-6"]
            .map(|family| {
                let route = namespace.ip_output(&[family, "route", "show", "default"]).expect("ip");
                route.split_whitespace().nth(2).expect("a gateway").to_owned()
            })
            .into();
        for gateway in gateways {
            batch.push_str(&format!("route replace default via {gateway} dev br0\n"));
        }
        namespace.ip(&batch).expect("ip");
    }
}

fn uplink_behind_a_bridge(network: Network, setup: &Setup, expected: (&str, &str)) {
    let world = World::builder().pods(0).network(network).rp_filter(1).drop_invalid(true);
    let mut world = world.build().expect("a world");
    // Before the pods: their routes name the node's address, and would go with it.
    bridge_uplinks(&world);
    for (node, name) in [(0, "pod-1-1"), (1, "pod-2-1")] {
        world.add_pod(node, name, &[]).expect("a pod");
    }
    world.settle().expect("settled");
    let agents = every_path(&world, setup);
    for (agent, node) in agents.iter().zip(world.nodes()) {
        let devices = agent.status().expect("a status").devices;
        let device = |name: &str| devices.iter().find(|device| device.name == name).expect("a device");
        let (port, bridge) = (device("eth0"), device("br0"));
        assert_eq!((&*port.role, &*port.hooks), expected, "{port:?}");
        assert_eq!((&*bridge.role, &*bridge.hooks), ("ignored", "none"), "{bridge:?}");
        // The address of the default route, not the one of a bridge of pods.
        let routes = node.namespace().ip_output(&["route", "show", "10.96.0.0/16"]).expect("ip");
        assert!(routes.contains(&format!("src {}", node.ipv4())), "{routes}");
    }
}

#[test]
fn the_port_of_a_bridged_uplink_has_the_hooks() {
    needs_root!();
    // A veth looks like a pod's, and has the same hooks.
    uplink_behind_a_bridge(Network::Bridge, &Setup::tcx(false), ("pod", "tcx"));
}

#[test]
fn the_port_of_a_bridged_uplink_has_xdp_where_its_role_is_told() {
    needs_root!();
    let more = "interfaces: [{match: eth0, role: uplink}]\n".to_owned();
    uplink_behind_a_bridge(Network::Routed, &Setup { more, ..Setup::xdp(false) }, ("uplink", "xdp+tcx"));
}
