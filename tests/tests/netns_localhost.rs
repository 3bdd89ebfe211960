//! nodePorts on loopback addresses (semantics.md 2.9.3): for this node's processes by the socket hooks, for nobody else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::{
    Cluster, Echo, Expect, NODE_PORT, Place, Rows, Setup,
    client::{Call, Transport},
    needs_root,
    talk::Talk,
    wait_until,
};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];

fn node_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, NODE_PORT)
}

/// A cluster whose agents were given `nodePortAddresses`.
fn cluster(addresses: &str, hooks: bool) -> Cluster {
    configured(&format!("nodePortAddresses: {addresses}\n"), hooks)
}

fn configured(fields: &str, hooks: bool) -> Cluster {
    let more = format!("---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}");
    Cluster::start(&Setup { more, ..Setup::tcx(hooks) }).expect("a cluster")
}

/// Whether a process of node 1 reaches the nodePort at an address.
fn reaches(cluster: &Cluster, to: SocketAddr) -> bool {
    let node = cluster.world.node(0).place();
    let reached = TRANSPORTS.map(|transport| {
        let answer = Call::new(transport, to).timeout(Duration::from_millis(500)).run_one(node).expect("a run");
        assert!(answer.error.is_some() || answer.peer == Some(to), "{transport:?} to {to}: {answer:?}");
        answer.error.is_none()
    });
    assert!(reached.iter().all(|it| *it == reached[0]), "{to}: {reached:?}");
    reached[0]
}

#[test]
fn rule_2_9_3_a_host_process_reaches_loopback_node_ports() {
    needs_root!();
    let cluster = cluster("[localhost]", true);
    let node = cluster.world.node(0);
    let backends: Vec<&Place> = cluster.world.pods().map(lb_tests::Pod::place).collect();
    let mut rows = Rows::default();
    for ip in LOOPBACK {
        for transport in TRANSPORTS {
            // The kernel chooses the source for the way to the backend, wherever that is.
            for _ in 0..4 {
                let call = Call::new(transport, node_port(ip)).run_one(node.place()).expect("a run");
                let (backend, source) = call.reached().unwrap_or_else(|error| panic!("{ip}: {error}"));
                assert_eq!(source, cluster.world.source_towards(node, backend, ip));
                assert!(backends.iter().any(|place| place.name() == backend));
                assert_eq!(call.peer, Some(node_port(ip)));
            }
        }
        // The node's other ports are its own processes'.
        rows.row("another port", node.place(), Transport::Tcp, SocketAddr::new(ip, 30_081), &Expect::Refused);
    }
    rows.finish(&cluster.agents);
    let status = cluster.agents[0].status().expect("a status");
    assert!(!status.problems.iter().any(|problem| problem.object == "nodePortAddresses"), "{:?}", status.problems);
}

#[test]
fn node_port_addresses_say_where() {
    needs_root!();
    for (addresses, hooks, own, loopback) in [
        ("[localhost]", true, [false, false], [true, true]),
        ("[primary]", true, [true, true], [false, false]),
        ("[primary, localhost]", true, [true, true], [true, true]),
        // As kube-proxy's iptables mode, which serves every local address.
        ("null", true, [true, true], [true, true]),
        ("[127.0.0.0/8, 'fd00::/8']", true, [false, true], [true, false]),
        ("[localhost]", false, [false, false], [false, false]),
    ] {
        let cluster = cluster(addresses, hooks);
        let node = cluster.world.node(0).place();
        assert_eq!(node.ips().map(|ip| reaches(&cluster, node_port(ip))), own, "{addresses}, hooks {hooks}");
        assert_eq!(LOOPBACK.map(|ip| reaches(&cluster, node_port(ip))), loopback, "{addresses}, hooks {hooks}");
        let problems = cluster.agents[0].status().expect("a status").problems;
        let named = problems.iter().any(|problem| problem.object == "socket hooks" && problem.fix.contains("loopback"));
        assert_eq!(named, !hooks, "{problems:?}");
    }
}

#[test]
fn localhost_node_ports_switched_off_leave_the_other_addresses() {
    needs_root!();
    let cluster = configured("iptables: {localhostNodePorts: false}\n", true);
    let node = cluster.world.node(0).place();
    assert_eq!(node.ips().map(|ip| reaches(&cluster, node_port(ip))), [true, true]);
    assert_eq!(LOOPBACK.map(|ip| reaches(&cluster, node_port(ip))), [false, false]);
}

/// The node's own address in the eyes of kube-proxy, which serves nodePorts where `primary` asks for that.
#[test]
fn a_bind_address_is_the_primary_one() {
    needs_root!();
    let cluster = configured("nodePortAddresses: [primary]\nbindAddress: 198.51.100.9\n", true);
    let node = cluster.world.node(0);
    let [v4, v6] = node.ips();
    let told = || {
        let problems = cluster.agents[0].status().map_err(|error| format!("{error:#}"))?.problems;
        let cause = "primary: bindAddress 198.51.100.9 is no usable address of this machine";
        Ok::<_, String>(problems.iter().any(|problem| problem.cause == cause))
    };
    assert_eq!(told(), Ok(true));
    node.namespace().ip("addr add 198.51.100.9/32 dev lo").expect("an address");
    wait_until("the address to be served", Duration::from_secs(10), || {
        if told()? { Err("still told".to_owned()) } else { Ok(()) }
    })
    .expect("served");
    assert!(reaches(&cluster, node_port([198, 51, 100, 9].into())));
    assert!(!reaches(&cluster, node_port(v4)), "the InternalIP of this family is not the primary one any more");
    assert!(reaches(&cluster, node_port(v6)), "that of the other family is");
}

#[test]
fn a_pods_loopback_is_its_own() {
    needs_root!();
    let cluster = cluster("[localhost]", true);
    let pod = cluster.world.node(0).pod(0).place();
    let mut rows = Rows::default();
    for transport in [Transport::Tcp, Transport::Udp] {
        for ip in LOOPBACK {
            rows.row("nobody listens in the pod", pod, transport, node_port(ip), &Expect::Refused);
        }
    }
    let _own = Echo::start_on(pod, &[NODE_PORT], &[NODE_PORT], &LOOPBACK).expect("a server");
    for transport in TRANSPORTS {
        for ip in LOOPBACK {
            rows.row("the pod's own server", pod, transport, node_port(ip), &Expect::Reach(&[pod], ip));
        }
    }
    rows.finish(&cluster.agents);
}

#[test]
fn a_socket_bound_to_loopback_is_refused_in_words() {
    needs_root!();
    let cluster = cluster("[localhost]", true);
    let mut talk = Talk::start(cluster.world.node(0).place()).expect("a peer");
    let vips = cluster.vips(8).expect("cluster IPs");
    for (ip, vip) in LOOPBACK.into_iter().zip(vips) {
        let own = Some(SocketAddr::new(ip, 0));
        let family = if ip.is_ipv4() { "4" } else { "6" };
        for to in [node_port(ip), vip] {
            for kind in ["tcp", "udp"] {
                talk.new_socket(&format!("{kind}{family}"), own).expect("a socket");
                let met = talk.connect(to).expect("a step");
                assert_eq!(met.error.as_deref(), Some("EADDRNOTAVAIL"), "{kind} to {to}");
            }
            let met = talk.send(to).expect("a step");
            assert_eq!(met.error.as_deref(), Some("EADDRNOTAVAIL"), "unconnected to {to}");
        }
    }
    let counters = cluster.agents[0].status().expect("a status").counters;
    assert_eq!(counters["SocketBoundLoopback"], 12);
}

/// CVE-2020-8558: a neighbour sends to the node's loopback address.
#[test]
fn packets_from_outside_never_reach_loopback_node_ports() {
    needs_root!();
    let cluster = cluster("[localhost]", true);
    let world = &cluster.world;
    let node = world.node(0);
    // In its own namespace the router gives up its loopback addresses, so that it may send there.
    let via = node.ips();
    let batch = format!(
        "address del 127.0.0.1/8 dev lo\naddress del ::1/128 dev lo\nroute add 127.0.0.1/32 via {} dev {2}\n\
         route add ::1/128 via {} dev {2}\n",
        via[0],
        via[1],
        node.router_interface()
    );
    world.router().ip(&batch).expect("routes to somebody else's loopback");
    let before = cluster.agents[0].status().expect("a status").counters;
    let heard = |to: SocketAddr| {
        world.router().run(|| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
            socket.send_to(b"hello", to).unwrap_or_else(|error| panic!("{to}: {error}"));
            socket.recv_from(&mut [0; 64]).is_ok()
        })
    };
    for ip in LOOPBACK {
        assert!(!heard(node_port(ip)).expect("a run"), "{ip} answered");
    }
    let after = cluster.agents[0].status().expect("a status").counters;
    let more = |counter: &str| after.get(counter).unwrap_or(&0) - before.get(counter).unwrap_or(&0);
    // They came, and no frontend was found for them: the kernel drops them as it always does.
    assert!(more("NotAService") >= 2, "{before:?} {after:?}");
    assert_eq!(more("NewFlow"), 0, "{before:?} {after:?}");
    // The way back into the world.
    for to in node.ips() {
        assert!(!reaches(&cluster, SocketAddr::new(to, NODE_PORT)), "served on localhost alone");
    }
}
