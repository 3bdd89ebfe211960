//! Every access path, in both families, over {routed, bridge, vxlan} x {tcx, XDP} x {socket hooks on, off}, the bridge with
//! netfilter on it and without, with strict reverse path filtering and INVALID packets dropped in FORWARD. Numbers are
//! rules of semantics.md. Ignored tests complete the product: the others have every pair of its values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_tests::{
    Agent, Echo, Expect, Network, Place, Rows, Setup, World,
    client::Transport,
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

/// Where the backends listen.
const TARGET: u16 = 9376;
struct Case {
    network: Network,
    bridge_netfilter: bool,
    setup: Setup,
}

struct Matrix {
    world: World,
    agents: Vec<Agent>,
    hooks: bool,
    all_seen: bool,
    rows: Rows,
}

impl Matrix {
    fn new(case: &Case) -> Self {
        let Case { network, bridge_netfilter, setup } = case;
        // Bridged answers pass netfilter by, which then calls what follows them INVALID (netns_networks.rs).
        let all_seen = *network != Network::Bridge || *bridge_netfilter;
        let world =
            World::builder().rp_filter(1).drop_invalid(all_seen).network(*network).bridge_netfilter(*bridge_netfilter);
        let world = world.build().expect("a world");
        // XDP cannot tell a partial checksum from a whole one: its senders deliver as a wire does.
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        for (pod, app) in
            [(0, 0, "own"), (0, 1, "near"), (1, 0, "far"), (1, 1, "idle")].map(|(n, p, app)| ((n, p), app))
        {
            world.apply_pod(world.node(pod.0).pod(pod.1), &PodSpec::labelled("app", app)).expect("a pod");
        }
        for service in [
            Service::new("own", "app", "own").port(80, TARGET, None),
            Service::new("near", "app", "near").port(80, TARGET, None),
            Service::new("far", "app", "far")
                .port(80, TARGET, Some(30081))
                .load_balancer(&["203.0.113.10", "fd00:203:0:113::10"]),
            Service::new("none", "app", "none")
                .port(80, TARGET, Some(30083))
                .load_balancer(&["203.0.113.11", "fd00:203:0:113::11"]),
            Service::new("local", "app", "far")
                .port(80, TARGET, Some(30084))
                .fields(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
        ] {
            world.apply_service(&service).expect("a Service");
        }
        let agents = Agent::start_all(&world, setup).expect("agents");
        for agent in &agents {
            let status = agent.status().expect("a status");
            assert_eq!(status.socket_hooks.attached, setup.socket_hooks, "{:?}", status.socket_hooks);
            let uplink = status.devices.iter().find(|device| device.name == "eth0").expect("the uplink");
            assert_eq!(uplink.hooks, if setup.xdp == "on" { "xdp+tcx" } else { "tcx" }, "{uplink:?}");
            let hook = status.problems.iter().any(|problem| problem.object == "socket hooks");
            assert_eq!(hook, !setup.socket_hooks, "status names a missing hook: {:?}", status.problems);
        }
        Self { world, agents, hooks: setup.socket_hooks, all_seen, rows: Rows::default() }
    }

    fn vip(&self, service: &str, backends: u64, like: IpAddr) -> IpAddr {
        let ips = self.agents[0].cluster_ips(service, backends).expect("cluster IPs");
        ips.into_iter().find(|ip| ip.is_ipv4() == like.is_ipv4()).expect("an address of the family")
    }

    fn finish(self) {
        self.rows.finish(&self.agents);
        for node in self.world.nodes().iter().filter(|_| self.all_seen) {
            assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table, one row a line")]
fn run(case: &Case) {
    let mut matrix = Matrix::new(case);
    let pods: Vec<Place> = matrix.world.pods().map(|pod| pod.place().clone()).collect();
    let nodes: Vec<Place> = matrix.world.nodes().iter().map(|node| node.place().clone()).collect();
    let client = matrix.world.client().clone();
    let [own, near, far, _idle] = pods.as_slice() else { panic!("four pods") };
    let [node1, node2] = nodes.as_slice() else { panic!("two nodes") };
    let _servers: Vec<Echo> =
        pods.iter().map(|pod| Echo::start(pod, &[TARGET], &[TARGET]).expect("a server")).collect();
    for agent in &matrix.agents {
        for (service, backends) in [("own", 2), ("near", 2), ("far", 2), ("none", 0), ("local", 2)] {
            agent.wait_service(service, backends).expect("the Service");
        }
    }
    for any in [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])] {
        let at = |place: &Place| place.ip_like(any);
        let source = |matrix: &Matrix, node: usize, backend: &Place| {
            matrix.world.source_towards(matrix.world.node(node), backend.name(), any)
        };
        let vip = |matrix: &Matrix, service: &str, backends| SocketAddr::new(matrix.vip(service, backends, any), 80);
        let lb = |last: u8| {
            let v6 = IpAddr::from([0xfd00, 0x203, 0, 0x113, 0, 0, 0, u16::from(last) - 10 + 0x10]);
            SocketAddr::new(if any.is_ipv4() { IpAddr::from([203, 0, 113, last]) } else { v6 }, 80)
        };
        let unallocated = SocketAddr::new(
            if any.is_ipv4() {
                IpAddr::from([10, 96, 200, 200])
            } else {
                IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xeeee])
            },
            80,
        );
        let (own_vip, near_vip, far_vip, none_vip) =
            (vip(&matrix, "own", 2), vip(&matrix, "near", 2), vip(&matrix, "far", 2), vip(&matrix, "none", 0));
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let tcp = transport == Transport::Tcp;
            let m = &mut matrix;
            let (of_own, of_near, of_far) = (source(m, 0, own), source(m, 0, near), source(m, 0, far));
            let of_far_here = source(m, 1, far);
            m.rows.row("pod to VIP, same node", own, transport, near_vip, &Expect::Reach(&[near], at(own)));
            m.rows.row("pod to VIP, other node", own, transport, far_vip, &Expect::Reach(&[far], at(own)));
            // At the socket hook nothing masquerades (docs/differences.md).
            let hairpin = if tcp && m.hooks { at(own) } else { of_own };
            m.rows.row("2.4.4 pod to itself by VIP", own, transport, own_vip, &Expect::Reach(&[own], hairpin));
            m.rows.row("host to VIP, pod of the node", node1, transport, near_vip, &Expect::Reach(&[near], of_near));
            m.rows.row("host to VIP, pod of another node", node1, transport, far_vip, &Expect::Reach(&[far], of_far));
            m.rows.row("host to LoadBalancer address", node1, transport, lb(10), &Expect::Reach(&[far], of_far));
            let own_port = SocketAddr::new(at(node1), 30081);
            let localhost =
                if any.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
            let loopback = SocketAddr::new(localhost, 30081);
            if m.hooks {
                m.rows.row("host to its own nodePort", node1, transport, own_port, &Expect::Reach(&[far], of_far));
                let reach = Expect::Reach(&[far], of_far);
                m.rows.row("2.9.3 host to a loopback nodePort", node1, transport, loopback, &reach);
            } else if transport != Transport::UdpUnconnected {
                m.rows.row(
                    "host to its own nodePort without a hook: untouched",
                    node1,
                    transport,
                    own_port,
                    &Expect::Refused,
                );
            }
            let there = SocketAddr::new(at(node2), 30081);
            m.rows.row(
                "2.4.2 outside to nodePort with the backend",
                &client,
                transport,
                there,
                &Expect::Reach(&[far], of_far_here),
            );
            m.rows.row(
                "2.4.2 outside to nodePort without the backend",
                &client,
                transport,
                own_port,
                &Expect::Reach(&[far], of_far),
            );
            m.rows.row(
                "2.4.2 outside to LoadBalancer address",
                &client,
                transport,
                lb(10),
                &Expect::Reach(&[far], of_far),
            );
            m.rows.row(
                "2.4.1 outside routed to ClusterIP",
                &client,
                transport,
                far_vip,
                &Expect::Reach(&[far], of_far),
            );
            let local = |node: &Place| SocketAddr::new(at(node), 30084);
            m.rows.row(
                "2.4.3 outside to a Local nodePort",
                &client,
                transport,
                local(node2),
                &Expect::Reach(&[far], at(&client)),
            );
            m.rows.row(
                "2.3.3 outside to a Local nodePort elsewhere",
                &client,
                transport,
                local(node1),
                &Expect::Silence,
            );
            m.rows.row("2.3.7 pod to an unallocated address", own, transport, unallocated, &Expect::Silence);
            for (from, what) in [(own, "pod"), (node1, "host"), (&client, "outside")] {
                // An unconnected socket hears of refusals by its own hook alone.
                if transport == Transport::UdpUnconnected && !(m.hooks && what == "host") {
                    continue;
                }
                m.rows.row(
                    &format!("2.3.1 {what} to a VIP without endpoints"),
                    from,
                    transport,
                    none_vip,
                    &Expect::Refused,
                );
                m.rows.row(
                    &format!("2.3.1 {what} to a LoadBalancer without endpoints"),
                    from,
                    transport,
                    lb(11),
                    &Expect::Refused,
                );
                let wrong = SocketAddr::new(far_vip.ip(), 81);
                m.rows.row(&format!("2.3.6 {what} to a VIP's other port"), from, transport, wrong, &Expect::Refused);
            }
            if transport == Transport::UdpUnconnected {
                continue;
            }
            let empty = SocketAddr::new(at(node1), 30083);
            m.rows.row("2.3.1 outside to a nodePort without endpoints", &client, transport, empty, &Expect::Refused);
        }
    }
    matrix.finish();
}

fn routed(setup: Setup) {
    run(&Case { network: Network::Routed, bridge_netfilter: true, setup });
}

fn bridge(bridge_netfilter: bool, setup: Setup) {
    run(&Case { network: Network::Bridge, bridge_netfilter, setup });
}

fn vxlan(setup: Setup) {
    run(&Case { network: Network::Vxlan, bridge_netfilter: true, setup });
}

#[test]
fn tcx_with_socket_hooks() {
    needs_root!();
    routed(Setup::tcx(true));
}

#[test]
fn tcx_without_socket_hooks() {
    needs_root!();
    routed(Setup::tcx(false));
}

#[test]
fn xdp_with_socket_hooks() {
    needs_root!();
    routed(Setup::xdp(true));
}

#[test]
fn xdp_without_socket_hooks() {
    needs_root!();
    routed(Setup::xdp(false));
}

#[test]
fn bridge_with_netfilter_tcx_with_socket_hooks() {
    needs_root!();
    bridge(true, Setup::tcx(true));
}

#[test]
#[ignore = "the full product"]
fn bridge_without_netfilter_tcx_with_socket_hooks() {
    needs_root!();
    bridge(false, Setup::tcx(true));
}

#[test]
#[ignore = "the full product"]
fn bridge_with_netfilter_tcx_without_socket_hooks() {
    needs_root!();
    bridge(true, Setup::tcx(false));
}

#[test]
fn bridge_without_netfilter_tcx_without_socket_hooks() {
    needs_root!();
    bridge(false, Setup::tcx(false));
}

#[test]
#[ignore = "the full product"]
fn bridge_with_netfilter_xdp_with_socket_hooks() {
    needs_root!();
    bridge(true, Setup::xdp(true));
}

#[test]
#[ignore = "the full product"]
fn bridge_without_netfilter_xdp_with_socket_hooks() {
    needs_root!();
    bridge(false, Setup::xdp(true));
}

#[test]
#[ignore = "the full product"]
fn bridge_with_netfilter_xdp_without_socket_hooks() {
    needs_root!();
    bridge(true, Setup::xdp(false));
}

#[test]
fn bridge_without_netfilter_xdp_without_socket_hooks() {
    needs_root!();
    bridge(false, Setup::xdp(false));
}

#[test]
#[ignore = "the full product"]
fn vxlan_tcx_with_socket_hooks() {
    needs_root!();
    vxlan(Setup::tcx(true));
}

#[test]
fn vxlan_tcx_without_socket_hooks() {
    needs_root!();
    vxlan(Setup::tcx(false));
}

#[test]
fn vxlan_xdp_with_socket_hooks() {
    needs_root!();
    vxlan(Setup::xdp(true));
}

#[test]
#[ignore = "the full product"]
fn vxlan_xdp_without_socket_hooks() {
    needs_root!();
    vxlan(Setup::xdp(false));
}
