//! What a world of veths does not see by itself: every checksum on the way, over {routed, bridge, vxlan} x {tcx, XDP} x
//! {socket hooks on, off} x {sender's checksum offload}, both families, with packets of 64 KiB where senders make such.
//! Ignored tests have the product: the others have every pair of its values.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, ChecksumSink, Echo, Namespace, Network, Place, Setup, SinkReport, World,
    client::{self, Call, Transport},
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const TARGET: u16 = 9376;
const NODE_PORT: u16 = 30080;
/// Each way.
const BULK: u64 = 2 << 20;

/// Who finishes a packet's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Offload {
    /// The sender, before our programs: as a wire delivers packets.
    Sender,
    /// A device behind our programs, which also cuts packets of 64 KiB: as network cards do.
    Device,
    /// Nobody: veths pass on what is unfinished.
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    network: Network,
    xdp: bool,
    socket_hooks: bool,
    offload: Offload,
}

const NETWORKS: [Network; 3] = [Network::Routed, Network::Bridge, Network::Vxlan];
const OFFLOADS: [Offload; 3] = [Offload::Sender, Offload::Device, Offload::Nobody];

const fn tcx(network: Network, socket_hooks: bool, offload: Offload) -> Case {
    Case { network, xdp: false, socket_hooks, offload }
}

/// XDP cannot tell a partial checksum from a whole one: its senders deliver as a wire does.
const fn xdp(network: Network, socket_hooks: bool) -> Case {
    Case { network, xdp: true, socket_hooks, offload: Offload::Sender }
}

/// Every pair of values that there can be is in one of them.
const PAIRS: [Case; 10] = [
    tcx(Network::Routed, false, Offload::Sender),
    tcx(Network::Routed, false, Offload::Device),
    tcx(Network::Routed, true, Offload::Nobody),
    xdp(Network::Routed, true),
    tcx(Network::Bridge, true, Offload::Device),
    tcx(Network::Bridge, false, Offload::Nobody),
    xdp(Network::Bridge, false),
    tcx(Network::Vxlan, true, Offload::Device),
    tcx(Network::Vxlan, false, Offload::Nobody),
    xdp(Network::Vxlan, true),
];

fn product(network: Network) -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(move |hooks| {
        OFFLOADS.into_iter().map(move |offload| tcx(network, hooks, offload)).chain([xdp(network, hooks)])
    })
}

struct Checked {
    world: World,
    agents: Vec<Agent>,
    _server: Echo,
}

impl Checked {
    /// `web` has one backend, on node 2; `none` has none.
    fn new(case: Case) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).network(case.network);
        let world = world.build().expect("a world");
        world.apply_nodes().expect("nodes");
        let far = world.node(1).pod(0);
        world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
        for (name, app, node_port) in [("web", "web", NODE_PORT), ("none", "none", NODE_PORT + 1)] {
            let service = Service::new(name, "app", app).port(80, TARGET, Some(node_port));
            world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        }
        let server = Echo::start(far.place(), &[TARGET], &[TARGET]).expect("a server");
        let setup = if case.xdp { Setup::xdp(case.socket_hooks) } else { Setup::tcx(case.socket_hooks) };
        let agents = Agent::start_all(&world, &setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
            agent.wait_service("none", 0).expect("the Service");
        }
        let checked = Self { world, agents, _server: server };
        checked.world.set_tx_checksum(case.offload != Offload::Sender).expect("ethtool");
        match case.offload {
            // A packet that a node's device has coalesced is unfinished again.
            Offload::Sender => checked.turn_off("gro", (case.network == Network::Vxlan).then_some("vxlan0")),
            Offload::Device => checked.turn_off("tx", None),
            Offload::Nobody => {}
        }
        checked
    }

    /// Turns a feature off on the devices of all nodes.
    fn turn_off(&self, feature: &str, more: Option<&str>) {
        for node in self.world.nodes() {
            let pods = node.pods().iter().map(lb_tests::Pod::interface);
            for device in pods.chain(["eth0"]).chain(more) {
                node.namespace().offload(device, &[(feature, false)]).expect("ethtool");
            }
        }
    }

    /// Every NAT point, and every kind of refusal, both families.
    fn traffic(&self) {
        let near = self.world.node(0).pod(0).place();
        let (host, client) = (self.world.node(0).place(), self.world.client());
        for vip in self.agents[0].cluster_ips("web", 2).expect("cluster IPs") {
            let node_ports = self.world.nodes().iter().map(|node| SocketAddr::new(node.ip_like(vip), NODE_PORT));
            let outside = node_ports.map(|to| (client, to));
            let inside = [near, host].map(|from| (from, SocketAddr::new(vip, 80)));
            let ways: Vec<(&Place, SocketAddr)> = outside.chain(inside).collect();
            for transport in [Transport::Tcp, Transport::Udp] {
                for (from, to) in &ways {
                    for answer in Call::new(transport, *to).count(3).run(from).expect("a run") {
                        answer.reached().unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
                    }
                }
                let to = SocketAddr::new(host.ip_like(vip), NODE_PORT + 1);
                for answer in Call::new(transport, to).count(2).run(client).expect("a run") {
                    assert_eq!(answer.error.as_deref(), Some("ECONNREFUSED"), "{answer:?}");
                }
            }
            for (from, to) in ways {
                let report = client::bulk(from, to, BULK, Duration::from_secs(30)).expect("a transfer");
                assert!(report.is_intact() && report.sent == BULK, "{} to {to}: {report:?}", from.name());
            }
        }
    }
}

fn run(case: Case) {
    let checked = Checked::new(case);
    let world = &checked.world;
    let (near, far) = (world.node(0).pod(0), world.node(1).pod(0));
    let ends = [(world.client().namespace(), "eth0"), (near.namespace(), "eth0"), (far.namespace(), "eth0")];
    let behind = [(world.router(), "node1"), (world.router(), "node2"), ends[1], ends[2]];
    let places: &[(&Namespace, &str)] = if case.offload == Offload::Device { &behind } else { &ends };
    let listen = |(namespace, device): &(&Namespace, &str)| ChecksumSink::start(namespace, device).expect("a sink");
    let sinks: Vec<_> = places.iter().map(listen).collect();
    // Where the nodes receive what the client and the pods send, before our programs.
    let before = [(world.node(0).namespace(), near.interface()), (world.node(0).namespace(), "eth0")];
    let before: Vec<_> = before.iter().map(listen).collect();
    checked.traffic();
    for (sink, (namespace, device)) in sinks.into_iter().zip(places) {
        let report = sink.stop().expect("a report");
        println!("{case:?}, {} {device}: {report:?}", namespace.name());
        assert_checked(case, &report, &format!("{} {device}", namespace.name()));
    }
    for sink in before {
        let report = sink.stop().expect("a report");
        let is_large = report.largest > 32 << 10;
        assert_eq!(is_large, case.offload != Offload::Sender, "{case:?}: what our programs see: {report:?}");
    }
}

fn assert_checked(case: Case, report: &SinkReport, place: &str) {
    assert_eq!((report.wrong, report.lost), (0, 0), "{case:?}, {place}: {report:?}");
    if case.offload == Offload::Nobody {
        assert!(report.partial >= 20, "{case:?}, {place}: no sender leaves its checksums unfinished: {report:?}");
    } else {
        assert_eq!(report.partial, 0, "{case:?}, {place}: {report:?}");
        // A segment has at most 1448 bytes.
        assert!(report.verified >= BULK / 1448, "{case:?}, {place}: {report:?}");
    }
}

fn pairs(network: Network) {
    PAIRS.into_iter().filter(|case| case.network == network).for_each(run);
}

#[test]
fn every_checksum_is_right_over_routed_veths() {
    needs_root!();
    pairs(Network::Routed);
}

#[test]
fn every_checksum_is_right_over_a_bridge() {
    needs_root!();
    pairs(Network::Bridge);
}

#[test]
fn every_checksum_is_right_through_a_tunnel() {
    needs_root!();
    pairs(Network::Vxlan);
}

#[test]
#[ignore = "the full product"]
fn every_checksum_is_right_everywhere() {
    needs_root!();
    NETWORKS.into_iter().flat_map(product).for_each(run);
}

/// A case by its values, two of them at a time.
fn pairs_of(case: &Case) -> impl Iterator<Item = (String, String)> {
    let Case { network, xdp, socket_hooks, offload } = case;
    let values =
        [format!("{network:?}"), format!("XDP {xdp}"), format!("socket hooks {socket_hooks}"), format!("{offload:?}")];
    let two =
        |(at, first): (usize, &String)| values[at + 1..].iter().map(|second| (first.clone(), second.clone())).collect();
    let all: Vec<Vec<_>> = values.iter().enumerate().map(two).collect();
    all.into_iter().flatten()
}

#[test]
fn every_pair_of_the_product_is_tried() {
    let tried: BTreeSet<_> = PAIRS.iter().flat_map(pairs_of).collect();
    let all: Vec<Case> = NETWORKS.into_iter().flat_map(product).collect();
    let wanted: BTreeSet<_> = all.iter().flat_map(pairs_of).collect();
    assert_eq!((all.len(), wanted.difference(&tried).collect::<Vec<_>>()), (24, vec![]));
}
