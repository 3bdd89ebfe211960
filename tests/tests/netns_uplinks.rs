//! Nodes with two uplinks, where clients are on one and backends behind the other. Reverse path filtering is strict: a
//! packet on the wrong uplink is lost.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Capture, Echo, Expect, Place, Rows, Setup, World,
    client::Transport,
    kube::{PodSpec, Service},
    needs_root,
};

const TARGET: u16 = 9376;
const NODE_PORT: u16 = 30080;

/// Addresses of an uplink's segment, both families.
fn segment(number: u8, host: u8) -> [String; 2] {
    [format!("192.168.{number}.{host}"), format!("fd00:192:168:{number}::{host}")]
}

/// A world of two uplinks a node; the pod of node 2 is the only backend.
fn world() -> World {
    let world = World::builder().pods(1).uplinks(2).rp_filter(1).drop_invalid(true).build().expect("a world");
    world.apply_nodes().expect("nodes");
    world.apply_pod(world.node(1).pod(0), &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&service.load_balancer(&["203.0.113.10", "fd00:203:0:113::10"])).expect("a Service");
    // What the client sends to the second uplink comes back by it: the nodes' routes lead to this source there.
    for (net, source) in [("192.168.11.0/24", "192.168.101.2"), ("fd00:192:168:11::/64", "fd00:192:168:101::2")] {
        world.client().namespace().ip(&format!("route add {net} via {} src {source}\n", gateway(net))).expect("ip");
    }
    world
}

/// The client's.
fn gateway(like: &str) -> &'static str {
    if like.contains(':') { "fd00:192:168:101::1" } else { "192.168.101.1" }
}

/// Leads node 1 to the pods of node 2 over its second uplink, and their answers back.
fn lead_over_the_second_uplink(world: &World) {
    let (near, far) = (world.node(0).pod_cidrs(), world.node(1).pod_cidrs());
    let (router, node) = (segment(11, 1), segment(11, 2));
    for family in 0..2 {
        let there = format!("route replace {} via {} dev eth1\n", far[family], router[family]);
        world.node(0).namespace().ip(&there).expect("ip");
        let back = format!("route replace {} via {}\n", near[family], node[family]);
        world.router().ip(&back).expect("ip");
    }
}

/// Every path to the backend; `enters` and `leaves` are uplinks of node 1.
fn every_path(setup: &Setup, enters: u8, leaves: u8) {
    let world = world();
    if leaves == 1 {
        lead_over_the_second_uplink(&world);
    }
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("ethtool");
    }
    let (node, far) = (world.node(0), world.node(1).pod(0));
    let _server = Echo::start(far, &[TARGET], &[TARGET]).expect("a server");
    let agents = Agent::start_all(&world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
        let devices = agent.status().expect("a status").devices;
        let uplinks: Vec<_> = devices.iter().filter(|device| device.role == "uplink").collect();
        let hooks = if setup.xdp == "on" { "xdp+tcx" } else { "tcx" };
        assert!(uplinks.len() == 2 && uplinks.iter().all(|device| device.hooks == hooks), "{devices:?}");
    }
    let over = |uplink: u8| if uplink == 0 { "node1" } else { "node1u1" };
    let capture = Capture::start(world.router(), over(leaves)).expect("a capture");
    let address = |uplink: u8, like: IpAddr| -> IpAddr {
        let own = node.addresses().into_iter().filter(|ip| ip.is_ipv4() == like.is_ipv4()).nth(usize::from(uplink));
        own.expect("an address")
    };
    let backends: [&Place; 1] = [far];
    let mut rows = Rows::default();
    for vip in agents[0].cluster_ips("web", 2).expect("cluster IPs") {
        let port = SocketAddr::new(address(enters, vip), NODE_PORT);
        let vip = SocketAddr::new(vip, 80);
        let source = address(leaves, vip.ip());
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let masqueraded = Expect::Reach(&backends, source);
            rows.row("2.4.2 outside to nodePort", world.client(), transport, port, &masqueraded);
            let own = Expect::Reach(&backends, node.pod(0).ip_like(vip.ip()));
            rows.row("pod to VIP", node.pod(0), transport, vip, &own);
            rows.row("host to VIP", node, transport, vip, &masqueraded);
        }
    }
    rows.finish(&agents);
    let seen = capture.stop().expect("a capture");
    for ip in far.ips() {
        let (to, from) = (address(leaves, ip), ip);
        assert!(seen.iter().any(|seen| (seen.source, seen.destination) == (to, from)), "{to} to {from}: {seen:?}");
    }
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
}

#[test]
fn clients_on_the_first_uplink_and_backends_behind_the_second_at_tcx() {
    needs_root!();
    every_path(&Setup::tcx(false), 0, 1);
}

#[test]
fn clients_on_the_first_uplink_and_backends_behind_the_second_at_xdp() {
    needs_root!();
    every_path(&Setup::xdp(true), 0, 1);
}

#[test]
fn clients_on_the_second_uplink_and_backends_behind_the_first_at_tcx() {
    needs_root!();
    every_path(&Setup::tcx(true), 1, 0);
}

#[test]
fn clients_on_the_second_uplink_and_backends_behind_the_first_at_xdp() {
    needs_root!();
    every_path(&Setup::xdp(false), 1, 0);
}
