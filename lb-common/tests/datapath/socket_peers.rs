//! One UDP socket that speaks to several frontends, and to backends by their own addresses.

use lb_common::{
    backend::ServiceId,
    frontend::{FrontendFlags, Scope},
    protocol::Protocol,
    ring::WhenEmpty,
    tuple::L4Addr,
    udp_socket::PEERS,
    verdict::{Counter, SocketAction, SocketVerdict},
};

use crate::{
    ip::{Ip, net},
    node::{KEEP, NETNS, Node, Place, Rules, other_vip, vip},
    socket_udp::{Own, backend, own, sent, two_services},
};

both! {
    one_socket_speaks_to_many_without_confusion,
    two_frontends_never_share_a_backend_in_one_socket,
    connecting_ends_what_was_told_of_the_backend,
    where_nothing_else_is_left_the_packet_path_gets_the_whole_socket,
    a_node_port_that_cannot_be_told_apart_is_refused,
    a_backend_spoken_to_by_its_own_address_answers_as_itself,
    more_frontends_than_fit_are_left_to_the_packet_path,
    places_of_gone_backends_are_used_again,
}

fn one_socket_speaks_to_many_without_confusion<A: Ip>() {
    let node = two_services::<A>(&[backend(1), backend(2), backend(3)]);
    let elsewhere = A::at(net::WORLD, 1, 53);
    for cookie in 0..200 {
        let own = Own::new(cookie, NETNS);
        let (one, two) = (own.send(&node, vip()), own.send(&node, other_vip()));
        assert_eq!((one.counter, two.counter), (Counter::SocketSend, Counter::SocketSend));
        assert_eq!(own.send(&node, elsewhere), SocketVerdict::leave(Counter::SocketOther));
        assert_eq!((own.sees(one.backend), own.sees(two.backend)), (vip(), other_vip()));
        assert_eq!(own.sees(elsewhere), elsewhere);
        // It stays with both.
        assert_eq!((own.send(&node, vip()), own.send(&node, other_vip())), (one, two));
        // What another socket was told is not this one's.
        assert_eq!(Own::new(cookie + 1_000, NETNS).sees(one.backend), one.backend);
    }
}

fn two_frontends_never_share_a_backend_in_one_socket<A: Ip>() {
    let node = two_services::<A>(&[backend(1), backend(2)]);
    for cookie in 0..100 {
        let mut own = Own::new(cookie, NETNS);
        let one = own.connect(&node, vip());
        let two = own.send(&node, other_vip());
        assert_ne!(one.backend, two.backend);
        assert_eq!((own.sees(one.backend), own.sees(two.backend)), (vip(), other_vip()));
    }
}

fn connecting_ends_what_was_told_of_the_backend<A: Ip>() {
    let (node, mut own) = (two_services::<A>(&[backend(1)]), own());
    assert_eq!(own.send(&node, other_vip()), sent(backend(1)));
    assert_eq!(own.connect(&node, vip()), SocketVerdict::rewrite(Counter::SocketConnect, backend(1)));
    assert_eq!((own.name(), own.sees(backend(1))), (Some(vip()), vip()));
    // To itself by its frontend, or by another one: it hears that backend alone, as the frontend it is connected to.
    assert_eq!(own.send(&node, vip()), sent(backend(1)));
    assert_eq!(own.send(&node, other_vip()), SocketVerdict::refuse(Counter::SocketAmbiguous));
    assert_eq!(own.sees(backend(1)), vip());
    // The kernel runs the hook also for what a connected IPv6 socket writes over IPv4.
    assert_eq!(own.send(&node, backend(1)), SocketVerdict::leave(Counter::SocketOther));
    assert_eq!((own.name(), own.sees(backend(1))), (Some(vip()), vip()));
    // Not even for what is remembered beside the connection.
    own.socket.connected = false;
    assert_eq!(own.sees(backend(1)), vip());
    // A record of before is no way round that.
    let node = two_services::<A>(&[backend(1), backend(2)]);
    for cookie in 0..100 {
        let mut own = Own::new(cookie, NETNS);
        let before = own.send(&node, vip()).backend;
        let connected = own.connect(&node, other_vip()).backend;
        let after = own.send(&node, vip());
        assert!(after.action == SocketAction::Rewrite && after.backend != connected, "{before:?}, {after:?}");
    }
}

fn where_nothing_else_is_left_the_packet_path_gets_the_whole_socket<A: Ip>() {
    let (mut node, mut own) = (two_services::<A>(&[backend(1)]), own());
    assert_eq!(own.send(&node, vip()), sent(backend(1)));
    assert_eq!(own.send(&node, other_vip()), SocketVerdict::leave(Counter::SocketAmbiguous));
    // A flow of the packet path takes all answers of its backend, so that the hook must send nothing any more.
    let left = SocketVerdict::leave(Counter::SocketLeft);
    let (three, vip_three) = (A::at(net::SERVICES, 30, 53), [backend(3)]);
    node.frontend(3, Protocol::UDP, three, Rules::all(KEEP));
    node.backend(31, 3, vip_three[0], Place::Remote);
    node.ring(3, Scope::Cluster, &[31], WhenEmpty::Reject);
    for to in [vip(), other_vip(), three] {
        assert_eq!((own.send(&node, to), own.connect(&node, to)), (left, left));
    }
    assert_eq!(own.name(), None);
    // An answer to what was sent before.
    own.socket.connected = false;
    assert_eq!(own.sees(backend(1)), vip());
    // What no packet path serves is refused.
    node.frontend(3, Protocol::UDP, A::loopback(30_080), Rules::all(KEEP));
    for record in A::tables_mut(&mut node.memory).records.values_mut() {
        record.flags = FrontendFlags::OWN_ADDRESS;
    }
    assert_eq!(own.send(&node, A::loopback(30_080)), SocketVerdict::refuse(Counter::SocketAmbiguous));
    // Another socket is another socket.
    assert_eq!(Own::new(2, NETNS).send(&node, other_vip()), sent(backend(1)));
}

fn a_node_port_that_cannot_be_told_apart_is_refused<A: Ip>() {
    // Whichever of the two is the node's own.
    for address in [vip::<A>(), other_vip()] {
        let (mut node, own) = (two_services::<A>(&[backend(1)]), own());
        for record in A::tables_mut(&mut node.memory).records.values_mut().filter(|it| it.address == address) {
            record.flags = FrontendFlags::OWN_ADDRESS;
        }
        assert_eq!(own.send(&node, vip()), sent(backend(1)));
        assert_eq!(own.send(&node, other_vip()), SocketVerdict::refuse(Counter::SocketAmbiguous));
        // It was not given up for that.
        assert_eq!((own.send(&node, vip()), own.sees(backend(1))), (sent(backend(1)), vip()));
    }
}

fn a_backend_spoken_to_by_its_own_address_answers_as_itself<A: Ip>() {
    let (node, own) = (two_services::<A>(&[backend(1), backend(2)]), own());
    let first = own.send(&node, vip()).backend;
    assert_eq!(own.sees(first), vip());
    assert_eq!(own.send(&node, first), SocketVerdict::leave(Counter::SocketOther));
    assert_eq!(own.sees(first), first);
    // From then on the Service's datagrams go to another one.
    let second = own.send(&node, vip()).backend;
    assert_ne!(first, second);
    assert_eq!((own.sees(first), own.sees(second)), (first, vip()));
}

/// A service with a backend of its own for each of `count` frontends.
fn many<A: Ip>(count: u8) -> (Node<A>, Vec<L4Addr<A>>) {
    let mut node = Node::new();
    let frontends = (1..=count).map(|host| A::at(net::SERVICES, host, 53));
    for (id, frontend) in (1..).zip(frontends.clone()) {
        node.frontend(id, Protocol::UDP, frontend, Rules::all(KEEP));
        node.backend(id, id, backend(u8::try_from(id).expect("few")), Place::Remote);
        node.ring(id, Scope::Cluster, &[id], WhenEmpty::Reject);
    }
    (node, frontends.collect())
}

fn more_frontends_than_fit_are_left_to_the_packet_path<A: Ip>() {
    let count = u8::try_from(PEERS).expect("few") + 1;
    let (mut node, frontends) = many::<A>(count);
    let (last, fitting) = frontends.split_last().expect("some");
    let own = own();
    for (host, frontend) in (1..).zip(fitting) {
        assert_eq!(own.send(&node, *frontend), sent(backend(host)));
    }
    // None of the others is forgotten by a call that is refused.
    for record in A::tables_mut(&mut node.memory).records.values_mut().filter(|it| it.address == *last) {
        record.flags = FrontendFlags::OWN_ADDRESS;
    }
    assert_eq!(own.send(&node, *last), SocketVerdict::refuse(Counter::SocketFull));
    assert_eq!(node.connections(u32::from(count), u32::from(count)), 0);
    for (host, frontend) in (1..).zip(fitting) {
        assert_eq!((own.send(&node, *frontend), own.sees(backend(host))), (sent(backend(host)), *frontend));
    }
    assert_eq!(own.sees(backend(count)), backend(count));
    for record in A::tables_mut(&mut node.memory).records.values_mut() {
        record.flags = FrontendFlags::NONE;
    }
    assert_eq!(own.send(&node, *last), SocketVerdict::leave(Counter::SocketFull));
    assert_eq!(own.send(&node, fitting[0]), SocketVerdict::leave(Counter::SocketLeft));
}

fn places_of_gone_backends_are_used_again<A: Ip>() {
    let count = u8::try_from(PEERS).expect("few") + 1;
    let (mut node, frontends) = many::<A>(count);
    let own = own();
    for (host, frontend) in (1..).zip(&frontends[..PEERS]) {
        assert_eq!(own.send(&node, *frontend), sent(backend(host)));
    }
    // The slot's next owner is not the backend that was chosen.
    node.backend(3, 3, backend(33), Place::Remote);
    assert_eq!(own.send(&node, frontends[PEERS]), sent(backend(count)));
    assert_eq!((own.sees(backend(count)), own.sees(backend(3))), (frontends[PEERS], backend(3)));
    assert_eq!(own.sees(backend(2)), frontends[1]);
    // A slot without an owner keeps its generation: its backend is gone all the same.
    let slot = A::tables_mut(&mut node.memory).backends.get_mut(&4).expect("a slot");
    slot.service = ServiceId::new(0);
    assert_eq!(own.send(&node, frontends[2]), sent(backend(33)));
}
