//! Source ranges of load balancer addresses, semantics.md 2.7: packets, and sockets of this node's processes.

use lb_common::{
    frontend::FrontendFlags,
    protocol::Protocol,
    settings::{Setting, takeover},
    socket::Socket,
    tuple::L4Addr,
    udp_socket,
    verdict::{Action, Counter, SocketAction, SocketVerdict},
};

use crate::{
    ip::{Ip, net},
    node::{
        BACKEND, From, KEEP, NETNS, Node, Place, Rules, SERVICE, host, local_backend, other_vip, outside, pod,
        remote_backend, vip,
    },
    segment::{ACK, FIN_ACK, SYN, SYN_ACK, first, sctp, tcp, udp},
    socket_udp::{Own, own},
};

both! {
    rule_2_7_1_who_is_in_no_range_is_dropped,
    rule_2_7_1_open_connections_go_on,
    rule_2_7_1_other_frontends_are_open,
    rule_2_7_1_a_host_process_is_known_by_its_address,
    rule_2_7_1_a_datagram_of_a_known_peer_is_no_new_connection,
    rule_2_7_2_pods_must_be_in_a_range,
    rule_2_7_3_an_own_address_is_its_own_source,
    ranges_are_of_one_service,
    strangers_learn_nothing,
    a_takeover_passes_first,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
const POD_NETNS: u64 = 815;

/// A service whose frontends take the connections of one network.
fn node<A: Ip>(protocol: Protocol, network: u8) -> Node<A> {
    let mut node = Node::with_backend(protocol, Rules::all(KEEP), remote_backend(), Place::Remote);
    node.flags(SERVICE, FrontendFlags::SOURCE_RANGES.with(FrontendFlags::NO_POD_SOCKET));
    node.allow(SERVICE, network);
    let words = host::<A>().addr.to_words();
    node.memory.settings.extend(A::HOST_SOURCE.into_iter().zip(words));
    node
}

#[track_caller]
fn is_dropped<A: Ip>(node: &Node<A>, from: From, client: L4Addr<A>, protocol: Protocol) {
    let sent = first(protocol, client, vip());
    let (action, counter, frame) = node.refused(from, &sent);
    assert_eq!((action, counter), (Action::Drop, Counter::SourceRange), "{sent:?}");
    assert_eq!(frame, sent.frame());
    assert_eq!((node.entries().len(), node.connections(SERVICE, BACKEND)), (0, 0));
}

fn rule_2_7_1_who_is_in_no_range_is_dropped<A: Ip>() {
    for protocol in PROTOCOLS {
        let open = node::<A>(protocol, net::WORLD);
        let (sent, _) = open.send(From::Device, &first(protocol, outside(), vip()));
        assert_eq!(sent.destination, remote_backend());

        let closed = node::<A>(protocol, net::REMOTE);
        for (from, client) in [(From::Device, outside()), (From::Device, pod()), (From::Host, host())] {
            is_dropped(&closed, from, client, protocol);
        }
        let without = Node::<A>::with_backend(protocol, Rules::all(KEEP), remote_backend(), Place::Remote);
        let mut without = without;
        without.flags(SERVICE, FrontendFlags::SOURCE_RANGES);
        is_dropped(&without, From::Device, outside(), protocol);
    }
}

fn rule_2_7_2_pods_must_be_in_a_range<A: Ip>() {
    for protocol in PROTOCOLS {
        is_dropped(&node::<A>(protocol, net::WORLD), From::Device, pod(), protocol);
        let (sent, _) = node::<A>(protocol, net::PODS).send(From::Device, &first(protocol, pod(), vip()));
        assert_eq!(sent.destination, remote_backend());
    }
    // No hook knows a pod's address before it connects.
    let node = node::<A>(Protocol::TCP, net::PODS);
    let socket =
        Socket { cookie: 1, netns: POD_NETNS, protocol: Protocol::TCP, connected: false, bound: A::UNSPECIFIED };
    assert_eq!(connect(&node, socket, vip()), SocketVerdict::leave(Counter::SocketLeft));
}

fn rule_2_7_1_open_connections_go_on<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol, net::WORLD);
        let (sent, _) = node.send(From::Device, &first(protocol, outside(), vip()));
        A::tables_mut(&mut node.memory).sources.clear();
        node.send(From::Device, &sent.answer(SYN_ACK));
        let next = match protocol {
            Protocol::TCP => tcp(outside(), vip(), ACK),
            Protocol::UDP => udp(outside(), vip()),
            _ => sctp(outside(), vip()),
        };
        let (sent, _) = node.send(From::Device, &next);
        assert_eq!(sent.destination, remote_backend());
        is_dropped_as_new(&node, protocol);
    }
}

/// Another client of the same network, now that no range is left.
fn is_dropped_as_new<A: Ip>(node: &Node<A>, protocol: Protocol) {
    let sent = first(protocol, A::at(net::WORLD, 8, 40_008), vip());
    assert_eq!(node.refused(From::Device, &sent).1, Counter::SourceRange);
}

fn rule_2_7_1_other_frontends_are_open<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol, net::REMOTE);
        // A nodePort of the same service.
        node.frontend(SERVICE, protocol, other_vip(), Rules::all(KEEP));
        let (sent, _) = node.send(From::Device, &first(protocol, outside(), other_vip()));
        assert_eq!(sent.destination, remote_backend());
    }
}

fn ranges_are_of_one_service<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol, net::REMOTE);
        node.frontend(2, protocol, other_vip(), Rules::all(KEEP));
        node.backend(2, 2, local_backend(), Place::Pod);
        node.ring(2, lb_common::frontend::Scope::Cluster, &[2], lb_common::ring::WhenEmpty::Reject);
        node.flags(2, FrontendFlags::SOURCE_RANGES);
        node.allow(2, net::WORLD);
        is_dropped(&node, From::Device, outside(), protocol);
        let (sent, _) = node.send(From::Device, &first(protocol, outside(), other_vip()));
        assert_eq!(sent.destination, local_backend());
    }
}

/// Neither a refusal nor a reset tells them that there is a service.
fn strangers_learn_nothing<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, net::REMOTE);
    node.ring(SERVICE, lb_common::frontend::Scope::Cluster, &[], lb_common::ring::WhenEmpty::Reject);
    for flags in [SYN, ACK, FIN_ACK] {
        let (action, counter, _) = node.refused(From::Device, &tcp(outside(), vip(), flags));
        assert_eq!((action, counter), (Action::Drop, Counter::SourceRange));
    }
}

/// kube-proxy's rules filter what they open; what is open already is theirs.
fn a_takeover_passes_first<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, net::REMOTE);
    node.memory.settings.insert(Setting::Takeover, takeover(node.memory.now, 1000));
    let (action, counter, _) = node.refused(From::Device, &tcp(outside(), vip(), ACK));
    assert_eq!((action, counter), (Action::Pass, Counter::TakenOver));
    is_dropped(&node, From::Device, outside(), Protocol::TCP);
}

fn connect<A: Ip>(node: &Node<A>, socket: Socket<A>, to: L4Addr<A>) -> SocketVerdict<A> {
    lb_common::socket::connect(A::world(&node.memory), socket, to)
}

fn rule_2_7_1_a_host_process_is_known_by_its_address<A: Ip>() {
    let unbound = A::UNSPECIFIED;
    let elsewhere = A::host(net::WORLD, 4);
    for (network, bound, allowed) in [
        (net::NODES, unbound, true),
        (net::WORLD, unbound, false),
        (net::NODES, elsewhere, false),
        (net::WORLD, elsewhere, true),
    ] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let node = node::<A>(protocol, network);
            let mut own = Own::new(1, NETNS);
            own.socket = Socket { protocol, bound, ..own.socket };
            let verdict = if protocol == Protocol::TCP {
                connect(&node, own.socket, vip())
            } else {
                assert_eq!(own.send(&node, vip()).action == SocketAction::Rewrite, allowed);
                udp_socket::connect(A::world(&node.memory), &Own::new(2, NETNS).storage, own.socket, vip())
            };
            // The packet path drops what it sends.
            let expected = if allowed {
                SocketVerdict::rewrite(Counter::SocketConnect, remote_backend())
            } else {
                SocketVerdict::leave(Counter::SocketLeft)
            };
            assert_eq!(verdict, expected, "{network} {bound:?}");
        }
    }
    // Without an address of its own (no `ballast0`) nobody knows: left alone as well.
    let mut node = node::<A>(Protocol::TCP, net::NODES);
    node.memory.settings.extend(A::HOST_SOURCE.map(|setting| (setting, 0)));
    assert_eq!(connect(&node, own().socket_of(Protocol::TCP), vip()), SocketVerdict::leave(Counter::SocketLeft));
}

/// The kernel answers a connection to an address of its own from that address; nothing but the hook sees it.
fn rule_2_7_3_an_own_address_is_its_own_source<A: Ip>() {
    for (network, allowed) in [(net::SERVICES, true), (net::NODES, false)] {
        let mut node = node::<A>(Protocol::TCP, network);
        node.flags(SERVICE, FrontendFlags::OWN_ADDRESS);
        let expected = if allowed {
            SocketVerdict::rewrite(Counter::SocketConnect, remote_backend())
        } else {
            SocketVerdict::refuse(Counter::SocketSourceRange)
        };
        assert_eq!(connect(&node, own().socket_of(Protocol::TCP), vip()), expected);
    }
    assert_eq!(Counter::SocketSourceRange.errno(), 13);
}

fn rule_2_7_1_a_datagram_of_a_known_peer_is_no_new_connection<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP, net::NODES);
    let own = own::<A>();
    assert_eq!(own.send(&node, vip()).action, SocketAction::Rewrite);
    A::tables_mut(&mut node.memory).sources.clear();
    assert_eq!(own.send(&node, vip()), SocketVerdict::rewrite(Counter::SocketSend, remote_backend()));
    assert_eq!(Own::new(2, NETNS).send(&node, vip()), SocketVerdict::leave(Counter::SocketLeft));
}
