//! The socket hooks: connections that choose their backend at `connect`.

use lb_common::{
    frontend::{FrontendFlags, Scope},
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    socket::{SOCKET_SLOTS, Socket},
    tuple::L4Addr,
    verdict::{Action, Counter, SocketAction, SocketVerdict},
};

use crate::{
    ip::{Ip, net},
    node::{
        BACKEND, From, KEEP, LOCAL, MASQUERADE, NETNS, Node, Place, Rules, SERVICE, local_backend, other_vip, outside,
        remote_backend, vip,
    },
    segment::first,
};

both! {
    connect_goes_to_a_backend,
    connect_without_an_endpoint_is_refused,
    connect_leaves_drops_to_the_packet_path,
    connect_to_another_port_is_refused,
    connect_elsewhere_is_left_alone,
    the_rule_is_that_of_the_client,
    pods_may_be_left_to_the_packet_path,
    peer_name_is_the_frontend,
    a_peer_name_is_never_that_of_another_socket,
    a_socket_that_connects_elsewhere_is_forgotten,
    holes_in_the_tables_leave_a_socket_alone,
    connections_spread_over_the_ring,
    rule_2_9_3_loopback_frontends_are_for_the_host_alone,
    a_socket_bound_to_loopback_reaches_this_node_only,
}

const POD_NETNS: u64 = 815;

fn socket<A: Ip>(cookie: u64, netns: u64) -> Socket<A> {
    Socket { cookie, netns, protocol: Protocol::TCP, connected: false, bound: A::UNSPECIFIED }
}

fn node<A: Ip>(rules: Rules) -> Node<A> {
    Node::with_backend(Protocol::TCP, rules, remote_backend(), Place::Remote)
}

fn connect<A: Ip>(node: &Node<A>, socket: Socket<A>, destination: L4Addr<A>) -> SocketVerdict<A> {
    lb_common::socket::connect(A::world(&node.memory), socket, destination)
}

fn peer_name<A: Ip>(node: &Node<A>, cookie: u64) -> Option<L4Addr<A>> {
    lb_common::socket::peer_name(A::world(&node.memory), cookie)
}

fn connect_goes_to_a_backend<A: Ip>() {
    for netns in [NETNS, POD_NETNS] {
        // Nothing masquerades at a socket.
        for rule in [KEEP, MASQUERADE] {
            let node = node::<A>(Rules::all(rule));
            let expected = SocketVerdict::rewrite(Counter::SocketConnect, remote_backend());
            assert_eq!(connect(&node, socket(1, netns), vip()), expected);
            assert_eq!(node.connections(SERVICE, BACKEND), 1);
            assert_eq!(node.entries(), []);
        }
    }
}

fn connect_without_an_endpoint_is_refused<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    for netns in [NETNS, POD_NETNS] {
        assert_eq!(connect(&node, socket(1, netns), vip()), SocketVerdict::refuse(Counter::SocketNoEndpoint));
    }
    assert_eq!(peer_name(&node, 1), None);
}

/// So that `connect` times out, as with kube-proxy.
fn connect_leaves_drops_to_the_packet_path<A: Ip>() {
    let mut node = node::<A>(Rules::all(LOCAL));
    node.ring(SERVICE, Scope::Local, &[], WhenEmpty::Drop);
    for netns in [NETNS, POD_NETNS] {
        assert_eq!(connect(&node, socket(1, netns), vip()), SocketVerdict::leave(Counter::SocketLeft));
        // semantics.md 2.3.7
        let unallocated = A::at(net::SERVICES, 99, 80);
        assert_eq!(connect(&node, socket(1, netns), unallocated), SocketVerdict::leave(Counter::SocketLeft));
    }
}

fn connect_to_another_port_is_refused<A: Ip>() {
    let node = node::<A>(Rules::all(KEEP));
    let other_port = L4Addr { port: Port::new(81), ..vip::<A>() };
    assert_eq!(connect(&node, socket(1, NETNS), other_port), SocketVerdict::refuse(Counter::SocketNoSuchPort));
    let udp = Socket { protocol: Protocol::UDP, ..socket(1, NETNS) };
    assert_eq!(connect(&node, udp, vip()), SocketVerdict::refuse(Counter::SocketNoSuchPort));
}

fn connect_elsewhere_is_left_alone<A: Ip>() {
    let node = node::<A>(Rules::all(KEEP));
    for destination in [A::at(net::WORLD, 1, 80), remote_backend(), other_vip(), L4Addr::NONE] {
        assert_eq!(connect(&node, socket(1, NETNS), destination), SocketVerdict::leave(Counter::SocketOther));
    }
}

fn the_rule_is_that_of_the_client<A: Ip>() {
    let mut node = node::<A>(Rules { pod: LOCAL, host: KEEP, outside: LOCAL });
    node.backend(2, SERVICE, local_backend(), Place::Pod);
    node.ring(SERVICE, Scope::Local, &[2], WhenEmpty::Drop);
    let rewrite = |backend| SocketVerdict::rewrite(Counter::SocketConnect, backend);
    assert_eq!(connect(&node, socket(1, NETNS), vip()), rewrite(remote_backend()));
    assert_eq!(connect(&node, socket(1, POD_NETNS), vip()), rewrite(local_backend()));
    // Until the node's namespace is known, nobody is a host process.
    node.memory.settings.remove(&lb_common::settings::Setting::NetnsCookie);
    assert_eq!(connect(&node, socket(1, NETNS), vip()), rewrite(local_backend()));
}

fn pods_may_be_left_to_the_packet_path<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    for record in A::tables_mut(&mut node.memory).records.values_mut() {
        record.flags = FrontendFlags::NO_POD_SOCKET;
    }
    assert_eq!(connect(&node, socket(1, POD_NETNS), vip()), SocketVerdict::leave(Counter::SocketLeft));
    let expected = SocketVerdict::rewrite(Counter::SocketConnect, remote_backend());
    assert_eq!(connect(&node, socket(1, NETNS), vip()), expected);
    assert_eq!(node.connections(SERVICE, BACKEND), 1);
}

#[track_caller]
fn connected<A: Ip>(node: &Node<A>, cookie: u64, destination: L4Addr<A>) {
    let verdict = connect(node, socket(cookie, NETNS), destination);
    assert_eq!(verdict.action, SocketAction::Rewrite, "{verdict:?}");
}

fn peer_name_is_the_frontend<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(KEEP));
    // The greatest cookie that fits the slot's forty bits, too.
    for (cookie, frontend) in [(1, vip()), (2, other_vip()), ((1 << 40) - 1, vip())] {
        connected(&node, cookie, frontend);
        assert_eq!(peer_name(&node, cookie), Some(frontend));
    }
    assert_eq!(peer_name(&node, 1), Some(vip()));
    assert_eq!(peer_name(&node, 3), None);
    assert_eq!(peer_name(&node, 0), None);
}

/// A cookie that shares its slot with `cookie`.
fn slot_mate(cookie: u64) -> u64 {
    let slot = |cookie| lb_common::hash::scale(lb_common::hash::cookie_hash(cookie, 0), SOCKET_SLOTS);
    let wanted = slot(cookie);
    (cookie + 1..10_000_000).find(|other| slot(*other) == wanted).expect("a slot has many cookies")
}

fn a_peer_name_is_never_that_of_another_socket<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(KEEP));
    let mate = slot_mate(1);
    connected(&node, 1, vip());
    assert_eq!(peer_name(&node, mate), None);
    connected(&node, mate, other_vip());
    assert_eq!(node.memory.sockets.borrow().len(), 1, "the slot was taken over");
    assert_eq!(peer_name(&node, mate), Some(other_vip()));
    // The first shows its backend's address now, which is documented; not the other's frontend.
    assert_eq!(peer_name(&node, 1), None);
}

fn a_socket_that_connects_elsewhere_is_forgotten<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    let elsewhere = A::at(net::WORLD, 1, 80);
    connected(&node, 1, vip());
    assert_eq!(connect(&node, socket(1, NETNS), elsewhere), SocketVerdict::leave(Counter::SocketOther));
    assert_eq!(peer_name(&node, 1), None);
    // Refused is elsewhere as well.
    connected(&node, 1, vip());
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    assert_eq!(connect(&node, socket(1, NETNS), vip()), SocketVerdict::refuse(Counter::SocketNoEndpoint));
    assert_eq!(peer_name(&node, 1), None);
    // Another socket's slot is not touched.
    node.ring(SERVICE, Scope::Cluster, &[BACKEND], WhenEmpty::Reject);
    connected(&node, 1, vip());
    let other = connect(&node, socket(slot_mate(1), NETNS), elsewhere);
    assert_eq!(other, SocketVerdict::leave(Counter::SocketOther));
    assert_eq!(peer_name(&node, 1), Some(vip()));
}

fn holes_in_the_tables_leave_a_socket_alone<A: Ip>() {
    let mut without_backend = node::<A>(Rules::all(KEEP));
    A::tables_mut(&mut without_backend.memory).backends.clear();
    let mut without_record = node::<A>(Rules::all(KEEP));
    A::tables_mut(&mut without_record.memory).records.clear();
    for node in [without_backend, without_record] {
        assert_eq!(connect(&node, socket(1, NETNS), vip()), SocketVerdict::leave(Counter::Inconsistent));
        assert_eq!(peer_name(&node, 1), None);
    }
}

fn connections_spread_over_the_ring<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    node.backend(2, SERVICE, local_backend(), Place::Pod);
    node.ring(SERVICE, Scope::Cluster, &[1, 2], WhenEmpty::Reject);
    for cookie in 0..1_000 {
        connected(&node, cookie, vip());
    }
    let (one, two) = (node.connections(SERVICE, 1), node.connections(SERVICE, 2));
    assert_eq!(one + two, 1_000);
    assert!(one.abs_diff(two) < 150, "{one} and {two}");
}

fn rule_2_9_3_loopback_frontends_are_for_the_host_alone<A: Ip>() {
    let mut node = node::<A>(Rules::all(KEEP));
    node.frontend(SERVICE, Protocol::TCP, A::loopback(30_080), Rules::all(KEEP));
    // As a node's own addresses, they are not owned: other ports belong to its processes.
    A::tables_mut(&mut node.memory).vips.pop();
    let rewrite = SocketVerdict::rewrite(Counter::SocketConnect, remote_backend());
    assert_eq!(connect(&node, socket(1, NETNS), A::loopback(30_080)), rewrite);
    assert_eq!(peer_name(&node, 1), Some(A::loopback(30_080)));
    let left = SocketVerdict::leave(Counter::SocketOther);
    assert_eq!(connect(&node, socket(1, NETNS), A::loopback(30_081)), left);
    // A pod's loopback addresses are its own.
    assert_eq!(connect(&node, socket(2, POD_NETNS), A::loopback(30_080)), left);
    // No packet finds them, wherever it comes from (CVE-2020-8558).
    for from in [From::Device, From::Host] {
        for source in [outside(), A::loopback(40_000)] {
            let segment = first(Protocol::TCP, source, A::loopback(30_080));
            let (action, counter, frame) = node.refused(from, &segment);
            assert_ne!(action, Action::Forward, "{counter:?}");
            assert_eq!(frame, segment.frame(), "{counter:?} changed the packet");
        }
    }
    assert_eq!(node.entries(), []);
}

fn a_socket_bound_to_loopback_reaches_this_node_only<A: Ip>() {
    let bound = Socket { bound: A::loopback(0).addr, ..socket(1, NETNS) };
    for (place, expected) in [
        (Place::Remote, SocketVerdict::refuse(Counter::SocketBoundLoopback)),
        (Place::Pod, SocketVerdict::refuse(Counter::SocketBoundLoopback)),
        (Place::Nowhere, SocketVerdict::refuse(Counter::SocketBoundLoopback)),
        (Place::Node, SocketVerdict::rewrite(Counter::SocketConnect, remote_backend())),
    ] {
        let node = Node::<A>::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend(), place);
        assert_eq!(connect(&node, bound, vip()), expected);
    }
    // EADDRNOTAVAIL tells it apart from a refused connection.
    assert_eq!((Counter::SocketBoundLoopback.errno(), Counter::SocketNoEndpoint.errno()), (99, 111));
}
