//! What becomes of a new connection: the verdicts of semantics.md 2.3 and the masquerading of 2.4, by their numbers.

use lb_common::{
    conntrack::EntryKind,
    frontend::{PrefixFlags, Scope},
    protocol::Protocol,
    ring::WhenEmpty,
    settings::Setting,
    tuple::L4Addr,
    verdict::{Action, Counter},
};

use crate::{
    ip::{Ip, net},
    node::{
        BACKEND, From, KEEP, LOCAL, MASQUERADE, Node, Place, Rules, SERVICE, host, local_backend, node_addr, other_vip,
        outside, pod, remote_backend, vip,
    },
    segment::{ACK, FIN_ACK, SYN, SYN_ACK, Segment, first, sctp, tcp, udp},
};

both! {
    rule_2_3_1_no_endpoint_is_refused,
    rule_2_3_2_internal_local_without_a_local_endpoint_is_dropped,
    rule_2_3_3_external_local_drops_clients_outside,
    rule_2_3_4_external_local_short_circuits_pods,
    rule_2_3_8_a_pod_of_another_node_is_whom_the_detector_calls_one,
    rule_2_3_5_external_local_short_circuits_the_host,
    rule_2_3_6_another_port_of_a_vip_is_refused,
    rule_2_3_6_another_protocol_of_a_vip_is_refused,
    rule_2_3_7_an_unallocated_service_address_is_dropped,
    rule_2_4_1_cluster_ip_masquerades_whom_the_detector_does_not_know,
    rule_2_4_2_external_cluster_masquerades_always,
    rule_2_4_3_external_local_masquerades_nobody,
    rule_2_4_4_hairpin_needs_no_rule,
    local_scope_uses_local_backends,
    tcp_without_state_is_refused,
    martians_are_dropped,
    no_route_is_refused,
    no_source_address_is_refused,
    a_hosts_own_backend_is_refused,
    holes_in_the_tables_drop,
    a_refused_packet_leaves_nothing_behind,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// A client's first packet is not served, for this reason, and leaves no state.
#[track_caller]
fn turned_away<A: Ip>(node: &Node<A>, from: From, segment: &Segment<A>, action: Action, reason: Counter) {
    let (got, counter, frame) = node.refused(from, segment);
    assert_eq!((got, counter), (action, reason), "{segment:?}");
    if action == Action::Drop {
        assert_eq!(frame, segment.frame());
    }
    assert_eq!(node.entries(), []);
    assert_eq!(node.connections(SERVICE, BACKEND), 0);
}

/// Every kind of client.
fn clients<A: Ip>() -> [(From, L4Addr<A>); 3] {
    [(From::Device, pod()), (From::Device, outside()), (From::Host, host())]
}

fn rule_2_3_1_no_endpoint_is_refused<A: Ip>() {
    for protocol in PROTOCOLS {
        for address in [vip::<A>(), other_vip()] {
            let mut node = Node::new();
            node.frontend(SERVICE, protocol, address, Rules::all(KEEP));
            // A service that no ring was ever written for, and one whose ring became empty.
            for published in [false, true] {
                if published {
                    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
                }
                for (from, client) in clients() {
                    let sent = first(protocol, client, address);
                    turned_away(&node, from, &sent, Action::Reply, Counter::NoEndpoint);
                }
            }
        }
    }
}

fn local_without_local<A: Ip>(protocol: Protocol, rules: Rules) -> Node<A> {
    let mut node = Node::with_backend(protocol, rules, remote_backend(), Place::Remote);
    node.ring(SERVICE, Scope::Local, &[], WhenEmpty::Drop);
    node
}

fn rule_2_3_2_internal_local_without_a_local_endpoint_is_dropped<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = local_without_local::<A>(protocol, Rules::all(LOCAL));
        for (from, client) in clients() {
            turned_away(&node, from, &first(protocol, client, vip()), Action::Drop, Counter::NoLocalEndpoint);
        }
    }
}

/// The rules of an external frontend with policy Local.
const EXTERNAL_LOCAL: Rules = Rules { pod: KEEP, host: MASQUERADE, outside: LOCAL };

fn rule_2_3_3_external_local_drops_clients_outside<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = local_without_local::<A>(protocol, EXTERNAL_LOCAL);
        let sent = first(protocol, outside(), vip());
        turned_away(&node, From::Device, &sent, Action::Drop, Counter::NoLocalEndpoint);
    }
}

fn rule_2_3_4_external_local_short_circuits_pods<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = local_without_local::<A>(protocol, EXTERNAL_LOCAL);
        let (got, _) = node.send(From::Device, &first(protocol, pod(), vip()));
        assert_eq!((got.source, got.destination), (pod(), remote_backend()));
    }
}

/// With ranges of the cluster a pod of another node is one, by whatever device it comes.
fn rule_2_3_8_a_pod_of_another_node_is_whom_the_detector_calls_one<A: Ip>() {
    for protocol in PROTOCOLS {
        for detected in [false, true] {
            let mut node = local_without_local::<A>(protocol, EXTERNAL_LOCAL);
            if detected {
                let prefixes = &mut A::tables_mut(&mut node.memory).prefixes;
                prefixes.push((A::NET_BITS, A::host(net::WORLD, 0), PrefixFlags::DETECTED));
            }
            for setting in Setting::UPLINKS {
                node.memory.settings.insert(setting, u64::MAX);
            }
            if detected {
                let (got, _) = node.send(From::Device, &first(protocol, outside(), vip()));
                assert_eq!((got.source, got.destination), (outside(), remote_backend()));
            } else {
                let (action, counter, _) = node.refused(From::Device, &first(protocol, outside(), vip()));
                assert_eq!((action, counter), (Action::Drop, Counter::NoLocalEndpoint));
            }
        }
    }
}

/// A process of this node with an address that is not the route's own.
fn other_host<A: Ip>() -> L4Addr<A> {
    A::at(net::NODES, 200, 40_200)
}

fn rule_2_3_5_external_local_short_circuits_the_host<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = local_without_local::<A>(protocol, EXTERNAL_LOCAL);
        for client in [host(), other_host()] {
            let (got, _) = node.send(From::Host, &first(protocol, client, vip()));
            assert_eq!((got.source.addr, got.destination), (node_addr::<A>(), remote_backend()));
        }
    }
}

fn rule_2_3_6_another_port_of_a_vip_is_refused<A: Ip>() {
    for protocol in PROTOCOLS {
        for address in [vip::<A>(), other_vip()] {
            let mut node = Node::new();
            node.frontend(SERVICE, protocol, address, Rules::all(KEEP));
            let port = lb_common::protocol::Port::new(81);
            for (from, client) in clients() {
                let sent = first(protocol, client, L4Addr { port, ..address });
                turned_away(&node, from, &sent, Action::Reply, Counter::NoSuchPort);
            }
        }
    }
}

fn rule_2_3_6_another_protocol_of_a_vip_is_refused<A: Ip>() {
    let node = Node::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
    turned_away(&node, From::Device, &udp(pod(), vip()), Action::Reply, Counter::NoSuchPort);
    turned_away(&node, From::Device, &sctp(pod(), vip()), Action::Reply, Counter::NoSuchPort);
}

fn rule_2_3_7_an_unallocated_service_address_is_dropped<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = Node::with_backend(protocol, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
        for (from, client) in clients() {
            let sent = first(protocol, client, A::at(net::SERVICES, 11, 80));
            turned_away(&node, from, &sent, Action::Drop, Counter::Unallocated);
        }
    }
}

/// The source that a backend sees of a client.
#[track_caller]
fn source_of<A: Ip>(rules: Rules, from: From, client: L4Addr<A>, place: Place) -> A {
    let backend = if matches!(place, Place::Pod) { local_backend() } else { remote_backend() };
    let node = Node::with_backend(Protocol::TCP, rules, backend, place);
    let (got, reasons) = node.send(from, &tcp(client, vip(), SYN));
    assert_eq!(got.destination, backend);
    let rewritten = got.source != client;
    assert_eq!(reasons[1], if rewritten { Counter::SourceNat } else { Counter::NotAService });
    assert_eq!(node.kinds().contains(&EntryKind::SOURCE), rewritten);
    got.source.addr
}

fn rule_2_4_1_cluster_ip_masquerades_whom_the_detector_does_not_know<A: Ip>() {
    let rules = Rules { pod: KEEP, host: MASQUERADE, outside: MASQUERADE };
    for place in [Place::Pod, Place::Remote] {
        assert_eq!(source_of(rules, From::Device, pod::<A>(), place), pod::<A>().addr);
        assert_eq!(source_of(rules, From::Device, outside::<A>(), place), node_addr::<A>());
        assert_eq!(source_of(rules, From::Host, other_host::<A>(), place), node_addr::<A>());
    }
    // masqueradeAll, and no detector.
    assert_eq!(source_of(Rules::all(MASQUERADE), From::Device, pod::<A>(), Place::Remote), node_addr::<A>());
    assert_eq!(source_of(Rules::all(KEEP), From::Device, outside::<A>(), Place::Remote), outside::<A>().addr);
}

fn rule_2_4_2_external_cluster_masquerades_always<A: Ip>() {
    for place in [Place::Pod, Place::Remote] {
        for (from, client) in [(From::Device, pod::<A>()), (From::Device, outside()), (From::Host, other_host())] {
            assert_eq!(source_of(Rules::all(MASQUERADE), from, client, place), node_addr::<A>());
        }
    }
}

fn rule_2_4_3_external_local_masquerades_nobody<A: Ip>() {
    assert_eq!(source_of(EXTERNAL_LOCAL, From::Device, pod::<A>(), Place::Pod), pod::<A>().addr);
    assert_eq!(source_of(EXTERNAL_LOCAL, From::Device, outside::<A>(), Place::Pod), outside::<A>().addr);
    // But the host.
    assert_eq!(source_of(EXTERNAL_LOCAL, From::Host, other_host::<A>(), Place::Pod), node_addr::<A>());
}

/// Whatever the frontend and its policy.
fn rule_2_4_4_hairpin_needs_no_rule<A: Ip>() {
    for rule in [KEEP, MASQUERADE, LOCAL] {
        let backend = L4Addr { addr: pod::<A>().addr, ..local_backend() };
        let node = Node::with_backend(Protocol::UDP, Rules::all(rule), backend, Place::Pod);
        let (got, reasons) = node.send(From::Device, &udp(pod(), vip()));
        assert_eq!((got.source.addr, got.destination), (node_addr::<A>(), backend));
        assert_eq!(reasons, [Counter::NewFlow, Counter::SourceNat]);
    }
}

fn local_scope_uses_local_backends<A: Ip>() {
    let rules = Rules { pod: KEEP, host: KEEP, outside: LOCAL };
    let mut node = Node::with_backend(Protocol::TCP, rules, remote_backend::<A>(), Place::Remote);
    node.backend(2, SERVICE, local_backend(), Place::Pod);
    node.ring(SERVICE, Scope::Local, &[2], WhenEmpty::Drop);
    assert_eq!(node.send(From::Device, &tcp(outside(), vip(), SYN)).0.destination, local_backend());
    assert_eq!(node.send(From::Device, &tcp(pod(), vip(), SYN)).0.destination, remote_backend());
    assert_eq!((node.connections(SERVICE, 1), node.connections(SERVICE, 2)), (1, 1));
}

fn tcp_without_state_is_refused<A: Ip>() {
    let node = Node::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
    for flags in [ACK, SYN_ACK, FIN_ACK, lb_common::wire::l4::TcpFlags::NONE] {
        for (from, client) in clients() {
            turned_away(&node, from, &tcp(client, vip(), flags), Action::Reply, Counter::NoState);
        }
    }
}

/// reliability.md section 7: whoever answered one would answer somebody else.
fn martians_are_dropped<A: Ip>() {
    let wrong: Vec<Vec<u8>> = if A::is_v6() {
        let with = |first: u8, last: u8| [vec![first], vec![0; 14], vec![last]].concat();
        vec![with(0, 0), with(0, 1), with(0xff, 1), with(0xff, 0)]
    } else {
        vec![vec![0; 4], vec![0, 1, 2, 3], vec![127, 0, 0, 1], vec![127, 9, 9, 9], vec![224, 0, 0, 1], vec![255; 4]]
    };
    let mut node = Node::with_backend(Protocol::TCP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    node.frontend(SERVICE, Protocol::UDP, vip(), Rules::all(KEEP));
    A::tables_mut(&mut node.memory).vips.push(other_vip::<A>().addr);
    for bytes in wrong {
        let client = L4Addr { addr: A::read_from_bytes(&bytes).expect("an address"), ..outside::<A>() };
        for to in [vip(), other_vip()] {
            for sent in [tcp(client, to, SYN), tcp(client, to, ACK), udp(client, to)] {
                for from in [From::Device, From::Host] {
                    turned_away(&node, from, &sent, Action::Drop, Counter::Martian);
                }
            }
        }
        assert!(node.entries().is_empty());
    }
    // Neighbours of those.
    let right: Vec<Vec<u8>> = if A::is_v6() {
        let with = |first: u8, middle: u8, last: u8| [vec![first], vec![middle; 14], vec![last]].concat();
        vec![with(0, 0, 2), with(0xfe, 0, 1), with(0, 1, 1), with(0x20, 0, 0)]
    } else {
        vec![vec![1, 0, 0, 1], vec![126, 0, 0, 1], vec![128, 0, 0, 1], vec![223, 0, 0, 1]]
    };
    for bytes in right {
        let client = L4Addr { addr: A::read_from_bytes(&bytes).expect("an address"), ..outside::<A>() };
        assert_eq!(node.send(From::Device, &tcp(client, vip(), SYN)).1[0], Counter::NewFlow);
    }
}

fn no_route_is_refused<A: Ip>() {
    // A next hop without a device, one that does not exist, and the reserved one.
    for place in [Some(Place::Nowhere), None] {
        let mut node =
            Node::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend::<A>(), place.unwrap_or(Place::Remote));
        if place.is_none() {
            A::tables_mut(&mut node.memory).next_hops.clear();
        }
        turned_away(&node, From::Device, &tcp(pod(), vip(), SYN), Action::Reply, Counter::NoRoute);
    }
}

fn no_source_address_is_refused<A: Ip>() {
    let rules = Rules { pod: KEEP, host: KEEP, outside: MASQUERADE };
    let mut node = Node::with_backend(Protocol::TCP, rules, remote_backend::<A>(), Place::Remote);
    for hop in A::tables_mut(&mut node.memory).next_hops.values_mut() {
        hop.prefsrc = A::UNSPECIFIED;
    }
    turned_away(&node, From::Device, &tcp(outside(), vip(), SYN), Action::Reply, Counter::NoRoute);
    // Who is not masqueraded needs none.
    assert_eq!(node.send(From::Device, &tcp(pod(), vip(), SYN)).0.source, pod());
}

/// From `ballast0` no packet may go up with a source of this node: a martian (design.md X5).
fn a_hosts_own_backend_is_refused<A: Ip>() {
    let backend = L4Addr { addr: node_addr::<A>(), ..local_backend() };
    let node = Node::with_backend(Protocol::TCP, Rules::all(KEEP), backend, Place::Node);
    turned_away(&node, From::Host, &tcp(host(), vip(), SYN), Action::Reply, Counter::NoRoute);
}

fn holes_in_the_tables_drop<A: Ip>() {
    type Break<A> = fn(&mut Node<A>);
    let breaks: [Break<A>; 4] = [
        |node| A::tables_mut(&mut node.memory).records.clear(),
        |node| A::tables_mut(&mut node.memory).backends.clear(),
        |node| node.memory.rings.clear(),
        // The slot was given to another service.
        |node| node.backend(BACKEND, SERVICE + 1, remote_backend(), Place::Remote),
    ];
    for spoil in breaks {
        let mut node = Node::with_backend(Protocol::UDP, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
        spoil(&mut node);
        turned_away(&node, From::Device, &udp(pod(), vip()), Action::Drop, Counter::Inconsistent);
    }
}

fn a_refused_packet_leaves_nothing_behind<A: Ip>() {
    let mut node = Node::with_backend(Protocol::UDP, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    turned_away(&node, From::Device, &udp(pod(), vip()), Action::Reply, Counter::NoEndpoint);
    // So an endpoint is used as soon as it is there (semantics.md 2.8.2).
    node.ring(SERVICE, Scope::Cluster, &[BACKEND], WhenEmpty::Reject);
    assert_eq!(node.send(From::Device, &udp(pod(), vip())).0.destination, remote_backend());
}
