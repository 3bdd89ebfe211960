//! Bulk data through Services, both ways at once, with the offloads that a network has: packets of 64 KiB, unfinished
//! checksums, a tunnel's MTU.

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Echo, Network, Place, Setup, World, client,
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const TARGET: u16 = 9376;
const NODE_PORT: u16 = 30080;
const LIMIT: Duration = Duration::from_mins(2);

/// Moves `megabytes` each way from a pod, the node itself and the client outside, by both families.
fn transfer(network: Network, setup: &Setup, megabytes: u64) {
    let world = World::builder().pods(1).network(network).rp_filter(1).drop_invalid(true).build().expect("a world");
    // XDP cannot tell a partial checksum from a whole one: its senders deliver as a wire does.
    world.set_tx_checksum(setup.xdp != "on").expect("ethtool");
    world.apply_nodes().expect("nodes");
    let (node, far) = (world.node(0), world.node(1).pod(0));
    world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
    let _server = Echo::start(far, &[TARGET], &[]).expect("a server");
    let agents = Agent::start_all(&world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
    }
    for vip in agents[0].cluster_ips("web", 2).expect("cluster IPs") {
        let port = SocketAddr::new(node.ip_like(vip), NODE_PORT);
        let vip = SocketAddr::new(vip, 80);
        let from: [(&Place, SocketAddr); 3] = [(node.pod(0), vip), (node, vip), (world.client(), port)];
        for (from, to) in from {
            let row = format!("{network:?}, {} to {to}", from.name());
            let report = client::bulk(from, to, megabytes << 20, LIMIT).expect(&row);
            assert!(report.is_intact() && report.sent == megabytes << 20, "{row}: {report:?}");
            println!("{row}: {:.0} ms", report.elapsed_ms);
        }
    }
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
}

#[test]
fn bulk_data_arrives_whole_over_routed_veths() {
    needs_root!();
    transfer(Network::Routed, &Setup::tcx(false), 200);
}

#[test]
fn bulk_data_arrives_whole_over_a_bridge() {
    needs_root!();
    transfer(Network::Bridge, &Setup::xdp(false), 50);
}

#[test]
fn bulk_data_arrives_whole_through_a_tunnel() {
    needs_root!();
    transfer(Network::Vxlan, &Setup::tcx(false), 200);
}

#[test]
#[ignore = "the full product"]
fn bulk_data_arrives_whole_everywhere() {
    needs_root!();
    for network in [Network::Routed, Network::Bridge, Network::Vxlan] {
        for setup in [Setup::tcx(true), Setup::tcx(false), Setup::xdp(true), Setup::xdp(false)] {
            transfer(network, &setup, 200);
        }
    }
}
