//! The socket hooks of UDP: a socket keeps its backends, and its application sees the addresses it sent to.

use lb_common::{
    backend::ServiceId,
    frontend::{FrontendFlags, Scope},
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    socket::Socket,
    testing::SocketStorage,
    tuple::L4Addr,
    udp_socket,
    verdict::{Counter, SocketAction, SocketVerdict},
};

use crate::{
    ip::{Ip, net},
    node::{BACKEND, KEEP, LOCAL, NETNS, Node, Place, Rules, SERVICE, local_backend, other_vip, remote_backend, vip},
};

both! {
    a_datagram_goes_to_a_backend_and_its_answer_shows_the_frontend,
    a_socket_keeps_its_backend_while_that_lives,
    a_backend_that_moved_to_another_service_is_not_kept,
    a_connected_socket_has_a_name_and_answers_of_the_frontend,
    a_disconnected_socket_is_nobodys,
    rule_2_3_1_without_an_endpoint_a_datagram_is_refused,
    rule_2_3_6_another_port_is_refused,
    drops_are_left_to_the_packet_path,
    pods_are_left_to_the_packet_path,
    the_rule_is_that_of_the_host,
    rule_2_9_3_loopback_frontends_serve_udp,
    without_memory_the_packet_path_serves,
    connected_sockets_are_listed_for_user_space,
    a_socket_bound_to_loopback_reaches_this_node_only,
    holes_in_the_tables_leave_a_socket_alone,
}

const POD_NETNS: u64 = 815;

/// A socket with what is remembered of it.
pub(crate) struct Own<A> {
    pub(crate) socket: Socket<A>,
    pub(crate) storage: SocketStorage<A>,
}

impl<A: Ip> Own<A> {
    pub(crate) fn new(cookie: u64, netns: u64) -> Self {
        let socket = Socket { cookie, netns, protocol: Protocol::UDP, connected: false, bound: A::UNSPECIFIED };
        Self { socket, storage: SocketStorage { record: None.into(), no_memory: false } }
    }

    /// The same socket, of another protocol.
    pub(crate) fn socket_of(&self, protocol: Protocol) -> Socket<A> {
        Socket { protocol, ..self.socket }
    }

    pub(crate) fn send(&self, node: &Node<A>, to: L4Addr<A>) -> SocketVerdict<A> {
        udp_socket::send(A::world(&node.memory), &self.storage, self.socket, to)
    }

    /// Connects, as the kernel does: the hook first.
    pub(crate) fn connect(&mut self, node: &Node<A>, to: L4Addr<A>) -> SocketVerdict<A> {
        let verdict = udp_socket::connect(A::world(&node.memory), &self.storage, self.socket, to);
        self.socket.connected = verdict.action != SocketAction::Refuse;
        verdict
    }

    /// Whom the application thinks a datagram from `from` comes from.
    pub(crate) fn sees(&self, from: L4Addr<A>) -> L4Addr<A> {
        udp_socket::received(&self.storage, self.socket, from).unwrap_or(from)
    }

    pub(crate) fn name(&self) -> Option<L4Addr<A>> {
        udp_socket::peer_name(&self.storage)
    }
}

pub(crate) fn own<A: Ip>() -> Own<A> {
    Own::new(1, NETNS)
}

fn node<A: Ip>() -> Node<A> {
    Node::with_backend(Protocol::UDP, Rules::all(KEEP), remote_backend(), Place::Remote)
}

/// Services 1 and 2 at [`vip`] and [`other_vip`], both in front of the same addresses.
pub(crate) fn two_services<A: Ip>(backends: &[L4Addr<A>]) -> Node<A> {
    let mut node = Node::new();
    for (service, address) in [(1, vip()), (2, other_vip())] {
        node.frontend(service, Protocol::UDP, address, Rules::all(KEEP));
        let ids: Vec<u32> = (1..).map(|index| 10 * service + index).take(backends.len()).collect();
        for (id, backend) in ids.iter().zip(backends) {
            node.backend(*id, service, *backend, Place::Remote);
        }
        node.ring(service, Scope::Cluster, &ids, WhenEmpty::Reject);
    }
    node
}

pub(crate) fn sent<A: Ip>(backend: L4Addr<A>) -> SocketVerdict<A> {
    SocketVerdict::rewrite(Counter::SocketSend, backend)
}

pub(crate) fn backend<A: Ip>(host: u8) -> L4Addr<A> {
    A::at(net::REMOTE, host, 8_080)
}

fn a_datagram_goes_to_a_backend_and_its_answer_shows_the_frontend<A: Ip>() {
    let (node, own) = (node::<A>(), own());
    for _ in 0..3 {
        assert_eq!(own.send(&node, vip()), sent(remote_backend()));
    }
    assert_eq!(own.sees(remote_backend()), vip());
    // Another port of the backend, and another machine, are others.
    for other in [A::at(net::REMOTE, 7, 8_081), A::at(net::REMOTE, 8, 8_080), A::at(net::WORLD, 1, 53)] {
        assert_eq!(own.sees(other), other);
    }
    assert_eq!(node.connections(SERVICE, BACKEND), 1, "a choice is counted, not each datagram");
    assert_eq!(node.entries(), []);
    assert_eq!(own.name(), None);
}

fn a_socket_keeps_its_backend_while_that_lives<A: Ip>() {
    let (mut node, own) = (node::<A>(), own());
    assert_eq!(own.send(&node, vip()), sent(remote_backend()));
    // Out of the set, as one that terminates, but not gone (semantics.md 2.8.1).
    node.backend(2, SERVICE, local_backend(), Place::Pod);
    node.ring(SERVICE, Scope::Cluster, &[2], WhenEmpty::Reject);
    assert_eq!(own.send(&node, vip()), sent(remote_backend()));
    assert_eq!(Own::new(2, NETNS).send(&node, vip()), sent(local_backend()));
    // Its slot is another's now.
    node.backend(BACKEND, SERVICE, backend(99), Place::Remote);
    assert_eq!(own.send(&node, vip()), sent(local_backend()));
    assert_eq!(own.sees(local_backend()), vip());
    assert_eq!(own.sees(remote_backend()), remote_backend());
    // A slot without an owner keeps its generation.
    let slot = A::tables_mut(&mut node.memory).backends.get_mut(&2).expect("a slot");
    slot.service = ServiceId::new(0);
    node.ring(SERVICE, Scope::Cluster, &[BACKEND], WhenEmpty::Reject);
    assert_eq!(own.send(&node, vip()), sent(backend(99)));
}

fn a_backend_that_moved_to_another_service_is_not_kept<A: Ip>() {
    let mut node = two_services::<A>(&[backend(1), backend(2), backend(3)]);
    let own = own();
    let before = own.send(&node, vip());
    // The address is the other Service's now, whose backend listens elsewhere.
    let record = A::tables_mut(&mut node.memory).records.values_mut().find(|record| record.address == vip());
    record.expect("a record").service = ServiceId::new(2);
    for id in 21..24 {
        node.backend(id, 2, A::at(net::REMOTE, 40, 9_000), Place::Remote);
    }
    assert_eq!(before.action, SocketAction::Rewrite);
    assert_eq!(own.send(&node, vip()), sent(A::at(net::REMOTE, 40, 9_000)));
}

fn a_connected_socket_has_a_name_and_answers_of_the_frontend<A: Ip>() {
    let (node, mut own) = (node::<A>(), own());
    let expected = SocketVerdict::rewrite(Counter::SocketConnect, remote_backend());
    assert_eq!(own.connect(&node, vip()), expected);
    assert_eq!((own.name(), own.sees(remote_backend())), (Some(vip()), vip()));
    assert_eq!(node.connections(SERVICE, BACKEND), 1);
    // Elsewhere: the name is not kept.
    let elsewhere = A::at(net::WORLD, 1, 53);
    assert_eq!(own.connect(&node, elsewhere), SocketVerdict::leave(Counter::SocketOther));
    assert_eq!((own.name(), own.sees(remote_backend())), (None, remote_backend()));
}

/// `connect` with `AF_UNSPEC` runs no hook.
fn a_disconnected_socket_is_nobodys<A: Ip>() {
    let (node, mut own) = (node::<A>(), own());
    assert_eq!(own.connect(&node, vip()).action, SocketAction::Rewrite);
    own.socket.connected = false;
    assert_eq!(own.sees(remote_backend()), remote_backend());
    assert_eq!(own.send(&node, remote_backend()), SocketVerdict::leave(Counter::SocketOther));
}

fn rule_2_3_1_without_an_endpoint_a_datagram_is_refused<A: Ip>() {
    let (mut node, mut own) = (node::<A>(), own());
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    let refused = SocketVerdict::refuse(Counter::SocketNoEndpoint);
    assert_eq!((own.send(&node, vip()), own.connect(&node, vip())), (refused, refused));
    assert_eq!(own.name(), None);
    // Also a socket that had one.
    node.ring(SERVICE, Scope::Cluster, &[BACKEND], WhenEmpty::Reject);
    assert_eq!(own.send(&node, vip()), sent(remote_backend()));
    A::tables_mut(&mut node.memory).backends.clear();
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    assert_eq!(own.send(&node, vip()), refused);
}

fn rule_2_3_6_another_port_is_refused<A: Ip>() {
    let (node, mut own) = (node::<A>(), own());
    let other_port = L4Addr { port: Port::new(81), ..vip::<A>() };
    let refused = SocketVerdict::refuse(Counter::SocketNoSuchPort);
    assert_eq!((own.send(&node, other_port), own.connect(&node, other_port)), (refused, refused));
}

fn drops_are_left_to_the_packet_path<A: Ip>() {
    let (mut node, mut own) = (node::<A>(), own());
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Drop);
    let left = SocketVerdict::leave(Counter::SocketLeft);
    // semantics.md 2.3.7
    for to in [vip(), A::at(net::SERVICES, 99, 80)] {
        assert_eq!((own.send(&node, to), own.connect(&node, to)), (left, left));
    }
}

fn pods_are_left_to_the_packet_path<A: Ip>() {
    let node = node::<A>();
    let mut own = Own::new(1, POD_NETNS);
    let left = SocketVerdict::leave(Counter::SocketLeft);
    for to in [vip(), A::at(net::SERVICES, 10, 81), A::at(net::WORLD, 1, 53), A::loopback(53)] {
        assert_eq!((own.send(&node, to), own.connect(&node, to)), (left, left));
    }
    assert_eq!(*own.storage.record.borrow(), None);
    assert_eq!(node.connections(SERVICE, BACKEND), 0);
}

fn the_rule_is_that_of_the_host<A: Ip>() {
    let rules = Rules { pod: KEEP, host: LOCAL, outside: KEEP };
    let mut node = Node::<A>::with_backend(Protocol::UDP, rules, remote_backend(), Place::Remote);
    node.backend(2, SERVICE, local_backend(), Place::Pod);
    node.ring(SERVICE, Scope::Local, &[2], WhenEmpty::Drop);
    assert_eq!(own().send(&node, vip()), sent(local_backend()));
    assert_eq!(own().connect(&node, vip()), SocketVerdict::rewrite(Counter::SocketConnect, local_backend()));
}

fn rule_2_9_3_loopback_frontends_serve_udp<A: Ip>() {
    let (mut node, mut own) = (node::<A>(), own());
    node.frontend(SERVICE, Protocol::UDP, A::loopback(30_080), Rules::all(KEEP));
    A::tables_mut(&mut node.memory).vips.pop();
    assert_eq!(own.send(&node, A::loopback(30_080)), sent(remote_backend()));
    assert_eq!(own.sees(remote_backend()), A::loopback(30_080));
    assert_eq!(own.send(&node, A::loopback(53)), SocketVerdict::leave(Counter::SocketOther));
    assert_eq!(own.connect(&node, A::loopback(30_080)).action, SocketAction::Rewrite);
    assert_eq!(own.name(), Some(A::loopback(30_080)));
}

fn without_memory_the_packet_path_serves<A: Ip>() {
    let (mut node, mut own) = (node::<A>(), own());
    own.storage.no_memory = true;
    let left = SocketVerdict::leave(Counter::SocketFull);
    assert_eq!((own.send(&node, vip()), own.connect(&node, vip())), (left, left));
    for record in A::tables_mut(&mut node.memory).records.values_mut() {
        record.flags = FrontendFlags::OWN_ADDRESS;
    }
    let refused = SocketVerdict::refuse(Counter::SocketFull);
    assert_eq!((own.send(&node, vip()), own.connect(&node, vip())), (refused, refused));
    assert_eq!(node.connections(SERVICE, BACKEND), 0);
}

fn connected_sockets_are_listed_for_user_space<A: Ip>() {
    let (mut node, mut own) = (node::<A>(), own());
    let listed = |node: &Node<A>| A::tables(&node.memory).connected.borrow().clone();
    assert_eq!(own.connect(&node, vip()).action, SocketAction::Rewrite);
    let peer = listed(&node)[&1];
    assert_eq!((peer.frontend, peer.backend, peer.id.get()), (vip(), remote_backend(), BACKEND));
    // Elsewhere it is nobody's to end.
    assert_eq!(own.connect(&node, A::at(net::WORLD, 1, 53)), SocketVerdict::leave(Counter::SocketOther));
    assert!(listed(&node).is_empty());
    // Who could not be ended is not taken.
    A::tables_mut(&mut node.memory).connected_capacity = 0;
    assert_eq!(own.connect(&node, vip()), SocketVerdict::leave(Counter::SocketFull));
    assert_eq!((own.name(), node.connections(SERVICE, BACKEND)), (None, 1));
}

fn a_socket_bound_to_loopback_reaches_this_node_only<A: Ip>() {
    let refused = SocketVerdict::refuse(Counter::SocketBoundLoopback);
    for (place, expected) in [(Place::Remote, refused), (Place::Node, sent(remote_backend()))] {
        let node = Node::<A>::with_backend(Protocol::UDP, Rules::all(KEEP), remote_backend(), place);
        let mut own = own();
        own.socket.bound = A::loopback(0).addr;
        assert_eq!(own.send(&node, vip()), expected);
        assert_eq!(own.connect(&node, vip()).action, expected.action);
    }
}

fn holes_in_the_tables_leave_a_socket_alone<A: Ip>() {
    let mut without_backend = node::<A>();
    A::tables_mut(&mut without_backend.memory).backends.clear();
    let mut without_record = node::<A>();
    A::tables_mut(&mut without_record.memory).records.clear();
    for node in [without_backend, without_record] {
        let mut own = own();
        let left = SocketVerdict::leave(Counter::Inconsistent);
        assert_eq!((own.send(&node, vip()), own.connect(&node, vip())), (left, left));
        assert_eq!(own.name(), None);
    }
}
