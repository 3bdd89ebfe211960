//! The networks of the test world, and the roles that their devices get.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Capture, Echo, Network, Node, Place, Pod, Setup, World,
    client::{Call, Transport},
    kube::{PodSpec, Service},
    needs_root,
};

const PORT: u16 = 7000;

/// Every kind of call from `from` to `to` arrives there, from `source`.
fn assert_reaches(from: &Place, to: &Place, source: impl Fn(std::net::IpAddr) -> std::net::IpAddr) {
    for ip in to.ips() {
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let row = format!("{} -> {} {ip} {transport:?}", from.name(), to.name());
            let answer = Call::new(transport, SocketAddr::new(ip, PORT)).run_one(from).expect(&row);
            assert_eq!(answer.reached().expect(&row), (to.name(), source(ip)), "{row}");
        }
    }
}

/// Without Ballast.
fn check_wires(network: Network, bridge_netfilter: bool) -> World {
    let world = World::builder().network(network).bridge_netfilter(bridge_netfilter).build().expect("a world");
    let places = world.nodes().iter().map(Node::place).chain(world.pods().map(Pod::place));
    let _servers: Vec<_> = places.map(|place| Echo::start(place, &[PORT], &[PORT]).expect("a server")).collect();
    let (node, other) = (world.node(0), world.node(1));
    let (pod, near, far) = (node.pod(0), node.pod(1), other.pod(0));
    let capture = Capture::start(other.namespace(), "eth0").expect("a capture");
    assert_reaches(pod, near, |ip| pod.ip_like(ip));
    assert_reaches(pod, far, |ip| pod.ip_like(ip));
    assert_reaches(node, pod, |ip| world.source_towards(node, pod.name(), ip));
    assert_reaches(node, far, |ip| world.source_towards(node, far.name(), ip));
    let seen = capture.stop().expect("a capture");
    let bare = seen.iter().any(|seen| far.ips().contains(&seen.destination));
    let wrapped = seen.iter().any(|seen| seen.destination == other.ipv4());
    assert_eq!((bare, wrapped), (network != Network::Vxlan, network == Network::Vxlan), "{seen:?}");
    let outside = if network == Network::Vxlan { node.place() } else { pod.place() };
    assert_reaches(pod, other, |ip| outside.ip_like(ip));
    assert_reaches(world.client(), pod, |ip| world.client().ip_like(ip));
    assert_reaches(pod, pod, |ip| pod.ip_like(ip));
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
    world
}

#[test]
fn a_bridge_carries_its_pods() {
    needs_root!();
    drop(check_wires(Network::Bridge, true));
    let world = check_wires(Network::Bridge, false);
    let ports = world.node(0).namespace().ip_output(&["-o", "link", "show", "master", "cni0"]).expect("ip");
    assert_eq!(ports.lines().count(), 2, "{ports}");
}

#[test]
fn a_tunnel_carries_pods_to_other_nodes() {
    needs_root!();
    let world = check_wires(Network::Vxlan, true);
    for namespace in [world.node(0).namespace(), world.node(0).pod(0).namespace()] {
        let links = namespace.ip_output(&["-o", "link"]).expect("ip");
        assert!(links.lines().any(|line| line.contains("mtu 1450")), "{links}");
    }
}

/// Name, role and hooks of the devices of a node, without loopback.
fn devices(network: Network) -> BTreeMap<String, (String, String, String)> {
    let world = World::builder().nodes(2).pods(1).network(network).build().expect("a world");
    world.apply_nodes().expect("nodes");
    let agent = Agent::start(&world, world.node(0), &Setup::tcx(true)).expect("an agent");
    let devices = agent.status().expect("a status").devices;
    let devices = devices.into_iter().filter(|device| device.name != "lo");
    devices.map(|device| (device.name, (device.role, device.hooks, device.why))).collect()
}

fn assert_device(
    devices: &BTreeMap<String, (String, String, String)>,
    name: &str,
    expected: (&str, &str),
    because: &str,
) {
    let (role, hooks, why) = devices.get(name).unwrap_or_else(|| panic!("no {name} in {devices:?}"));
    assert_eq!((&**role, &**hooks), expected, "{name}: {why}");
    assert!(why.contains(because), "{name}: {why}");
}

#[test]
fn ports_carry_the_hooks_and_their_bridge_none() {
    needs_root!();
    let devices = devices(Network::Bridge);
    assert_device(&devices, "pod1", ("pod", "tcx"), "port of bridge cni0");
    assert_device(&devices, "cni0", ("ignored", "none"), "its ports carry the hooks");
    assert_device(&devices, "eth0", ("uplink", "tcx"), "a default route");
}

#[test]
fn a_tunnel_carries_the_hooks_too() {
    needs_root!();
    let devices = devices(Network::Vxlan);
    assert_device(&devices, "vxlan0", ("overlay", "tcx"), "vxlan");
    assert_device(&devices, "pod1", ("pod", "tcx"), "another network namespace");
    assert_device(&devices, "eth0", ("uplink", "tcx"), "a default route");
}

/// Whether a connection of a pod to another one on its bridge, through a Service, answers; and what the status warns of.
fn through_a_bridge(bridge_netfilter: bool) -> (Result<(), String>, Vec<String>) {
    let world = World::builder().nodes(1).network(Network::Bridge).bridge_netfilter(bridge_netfilter);
    let world = world.drop_invalid(true).build().expect("a world");
    world.apply_nodes().expect("nodes");
    let (pod, near) = (world.node(0).pod(0), world.node(0).pod(1));
    world.apply_pod(near, &PodSpec::labelled("app", "web")).expect("a pod");
    world.apply_service(&Service::new("web", "app", "web").port(80, PORT, None)).expect("a Service");
    let _server = Echo::start(near, &[PORT], &[]).expect("a server");
    let agent = Agent::start(&world, world.node(0), &Setup::tcx(false)).expect("an agent");
    let to = SocketAddr::new(agent.cluster_ips("web", 2).expect("cluster IPs")[0], 80);
    let answer = Call::tcp(to).timeout(Duration::from_millis(700)).run_one(pod).expect("a run");
    let warnings = agent.status().expect("a status").warnings.into_iter().map(|warning| warning.object);
    (answer.reached().map(drop).map_err(|error| format!("{error:#}")), warnings.collect())
}

#[test]
fn a_bridge_that_netfilter_does_not_see_is_told_where_invalid_packets_are_dropped() {
    needs_root!();
    let (answer, warnings) = through_a_bridge(true);
    assert_eq!((answer, warnings), (Ok(()), vec![]));
    let (answer, warnings) = through_a_bridge(false);
    assert!(answer.is_err(), "it works, so the warning is wrong");
    assert_eq!(warnings, ["bridge cni0"]);
}
