//! Session affinity, semantics.md 2.5: packets of every kind of client, and sockets of this node's processes.

use std::collections::BTreeSet;

use lb_common::{
    affinity::{AFFINITY_SLOTS, Client},
    backend::Sets,
    frontend::{FrontendFlags, Scope},
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    settings::Setting,
    socket::Socket,
    tuple::L4Addr,
    verdict::{Counter, SocketAction, SocketVerdict},
};

use crate::{
    ip::{Ip, net},
    node::{From, HZ, KEEP, LOCAL, MASQUERADE, NETNS, Node, Place, Rules, SERVICE, host, other_vip, outside, pod, vip},
    segment::first,
    socket_udp::Own,
};

both! {
    rule_2_5_1_the_address_alone_counts,
    rule_2_5_1_service_ports_are_independent,
    rule_2_5_1_two_ports_of_a_client_may_share_a_set,
    rule_2_5_1_frontends_and_sets_share_the_memory,
    rule_2_5_2_every_new_connection_restarts_the_timer,
    rule_2_5_2_open_flows_follow_conntrack,
    rule_2_5_3_a_backend_that_left_its_set_is_forgotten,
    rule_2_5_3_a_terminating_backend_loses_to_a_ready_one,
    rule_2_5_3_a_slot_with_another_owner_does_not_count,
    rule_2_5_4_without_affinity_nobody_is_remembered,
    rule_2_5_4_after_the_timeout_a_client_may_move,
    rule_2_5_4_the_timeout_outlives_a_wrapped_clock,
    rule_2_5_5_host_sockets_are_known_by_their_address,
    rule_2_5_5_udp_sockets_of_the_host_are_left_to_the_packet_path,
    rule_2_5_5_pods_are_left_to_the_packet_path,
    a_full_set_forgets_its_oldest_client_and_counts_it,
    who_is_over_makes_room_uncounted,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
const SECONDS: u32 = 100;
/// Backends of the service.
const BACKENDS: std::ops::RangeInclusive<u8> = 1..=8;

fn backend<A: Ip>(number: u8) -> L4Addr<A> {
    A::at(net::REMOTE, number, 8_080)
}

/// A service with affinity and eight backends, in both sets.
fn node<A: Ip>(protocol: Protocol) -> Node<A> {
    let mut node = Node::new();
    node.frontend(SERVICE, protocol, vip(), Rules::all(KEEP));
    fill(&mut node, SERVICE, 0);
    node.affinity(SERVICE, u64::from(SECONDS));
    node.memory.settings.extend(A::HOST_SOURCE.into_iter().zip(host::<A>().addr.to_words()));
    node
}

fn fill<A: Ip>(node: &mut Node<A>, service: u32, first: u32) {
    let ids: Vec<u32> = BACKENDS.map(|number| first + u32::from(number)).collect();
    for (number, id) in BACKENDS.zip(&ids) {
        node.backend(*id, service, backend(number), Place::Remote);
    }
    for scope in [Scope::Cluster, Scope::Local] {
        node.ring(service, scope, &ids, WhenEmpty::Reject);
    }
}

/// Whom a new flow of a client gets; each has a port of its own.
#[track_caller]
fn ask<A: Ip>(node: &Node<A>, protocol: Protocol, client: L4Addr<A>, port: u16, to: L4Addr<A>) -> L4Addr<A> {
    let from = if client.addr == host::<A>().addr { From::Host } else { From::Device };
    let client = L4Addr { port: Port::new(port), ..client };
    node.send(from, &first(protocol, client, to)).0.destination
}

/// Whom twenty new flows get.
fn asked<A: Ip>(node: &Node<A>, protocol: Protocol, client: L4Addr<A>, first: u16) -> BTreeSet<L4Addr<A>> {
    (first..first + 20).map(|port| ask(node, protocol, client, port, vip())).collect()
}

fn rule_2_5_1_the_address_alone_counts<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = node::<A>(protocol);
        let mut all = BTreeSet::new();
        for client in (1..40).map(|number| A::at(net::WORLD, number, 0)).chain([pod(), host()]) {
            let got = asked(&node, protocol, client, 30_000);
            assert_eq!(got.len(), 1, "{client:?} moves");
            all.extend(got);
        }
        assert_eq!(all.len(), 8, "different clients must spread");
    }
}

fn rule_2_5_1_service_ports_are_independent<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    node.frontend(2, Protocol::TCP, other_vip(), Rules::all(KEEP));
    fill(&mut node, 2, 100);
    node.affinity(2, u64::from(SECONDS));
    let differs = (1..40).filter(|number| {
        let client = A::at(net::WORLD, *number, 0);
        let (one, two) =
            (ask(&node, Protocol::TCP, client, 5000, vip()), ask(&node, Protocol::TCP, client, 5001, other_vip()));
        assert_eq!(ask(&node, Protocol::TCP, client, 5002, vip()), one);
        assert_eq!(ask(&node, Protocol::TCP, client, 5003, other_vip()), two);
        one != two
    });
    assert!(differs.count() > 10, "one port's choice is the other's");
}

fn rule_2_5_1_frontends_and_sets_share_the_memory<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol);
        // A nodePort with policy Local: another address, another set.
        node.frontend(SERVICE, protocol, other_vip(), Rules { pod: KEEP, host: MASQUERADE, outside: LOCAL });
        for number in 1..20 {
            let client = A::at(net::WORLD, number, 0);
            let got = ask(&node, protocol, client, 5000, vip());
            for port in 5001..5010 {
                assert_eq!(ask(&node, protocol, client, port, other_vip()), got);
            }
        }
    }
}

fn rule_2_5_2_every_new_connection_restarts_the_timer<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol);
        let got = ask(&node, protocol, outside(), 5000, vip());
        for port in 5001..5020 {
            node.pass_seconds(SECONDS - 1);
            assert_eq!(ask(&node, protocol, outside(), port, vip()), got);
        }
    }
}

fn rule_2_5_2_open_flows_follow_conntrack<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    let client = outside::<A>();
    let got = ask(&node, Protocol::UDP, client, 5000, vip());
    let number = u32::from(got.addr.as_ref()[got.addr.as_ref().len() - 1]);
    // Out of its sets, but still there: its flow stays, a new one moves.
    node.sets(number, Sets::NONE);
    let others: Vec<u32> = BACKENDS.map(u32::from).filter(|id| *id != number).collect();
    node.ring(SERVICE, Scope::Cluster, &others, WhenEmpty::Reject);
    let moved = ask(&node, Protocol::UDP, client, 5001, vip());
    assert_ne!(moved, got);
    assert_eq!(ask(&node, Protocol::UDP, client, 5000, vip()), got);
    // What an open flow carries is no new connection.
    assert_eq!(ask(&node, Protocol::UDP, client, 5002, vip()), moved);
}

fn number<A: Ip>(address: L4Addr<A>) -> u32 {
    address.addr.as_ref().last().map_or(0, |last| u32::from(*last))
}

fn rule_2_5_3_a_backend_that_left_its_set_is_forgotten<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol);
        let got = ask(&node, protocol, outside(), 5000, vip());
        node.sets(number(got), Sets::LOCAL);
        let others: Vec<u32> = BACKENDS.map(u32::from).filter(|id| *id != number(got)).collect();
        node.ring(SERVICE, Scope::Cluster, &others, WhenEmpty::Reject);
        let again = asked(&node, protocol, outside(), 6000);
        assert_eq!(again.len(), 1, "the new choice sticks");
        assert!(!again.contains(&got));
        // It comes back, and the choice stays.
        node.sets(number(got), Sets::CLUSTER.with(Sets::LOCAL));
        node.ring(SERVICE, Scope::Cluster, &BACKENDS.map(u32::from).collect::<Vec<_>>(), WhenEmpty::Reject);
        assert_eq!(asked(&node, protocol, outside(), 7000), again);
    }
}

/// While no endpoint is ready the set is the terminating ones; one ready endpoint makes it the ready ones.
fn rule_2_5_3_a_terminating_backend_loses_to_a_ready_one<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    for id in BACKENDS.map(u32::from).filter(|id| *id != 1) {
        node.sets(id, Sets::NONE);
    }
    node.ring(SERVICE, Scope::Cluster, &[1], WhenEmpty::Reject);
    assert_eq!(ask(&node, Protocol::TCP, outside(), 5000, vip()), backend(1));
    node.sets(1, Sets::NONE);
    node.sets(2, Sets::CLUSTER);
    node.ring(SERVICE, Scope::Cluster, &[2], WhenEmpty::Reject);
    assert_eq!(ask(&node, Protocol::TCP, outside(), 5001, vip()), backend(2));
}

fn rule_2_5_3_a_slot_with_another_owner_does_not_count<A: Ip>() {
    for protocol in PROTOCOLS {
        // Of the same service, so that only the generation tells.
        let mut node = node::<A>(protocol);
        let old = ask(&node, protocol, outside(), 5000, vip());
        node.backend(number(old), SERVICE, A::at(net::REMOTE, 99, 8_080), Place::Remote);
        let others: Vec<u32> = BACKENDS.map(u32::from).filter(|id| *id != number(old)).collect();
        node.ring(SERVICE, Scope::Cluster, &others, WhenEmpty::Reject);
        assert_ne!(ask(&node, protocol, outside(), 5001, vip()), A::at(net::REMOTE, 99, 8_080));
        // Of another service, and the generation by chance the same.
        let mut node = self::node::<A>(protocol);
        let old = ask(&node, protocol, outside(), 5000, vip());
        A::tables_mut(&mut node.memory).backends.get_mut(&number(old)).expect("a backend").service =
            lb_common::backend::ServiceId::new(9);
        let others: Vec<u32> = BACKENDS.map(u32::from).filter(|id| *id != number(old)).collect();
        node.ring(SERVICE, Scope::Cluster, &others, WhenEmpty::Reject);
        assert_ne!(ask(&node, protocol, outside(), 5001, vip()), old);
    }
}

fn rule_2_5_4_without_affinity_nobody_is_remembered<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol);
        node.affinity(SERVICE, 0);
        assert!(asked(&node, protocol, outside(), 5000).len() > 3);
        assert!(A::tables(&node.memory).clients.borrow().is_empty());
        // On: new connections. Off again: what was remembered does not count.
        node.affinity(SERVICE, u64::from(SECONDS));
        assert_eq!(asked(&node, protocol, outside(), 6000).len(), 1);
        node.affinity(SERVICE, 0);
        assert!(asked(&node, protocol, outside(), 7000).len() > 3);
    }
}

/// Hashing the address would send every client to where it was (Kubernetes' own suite tests that it can move).
fn rule_2_5_4_after_the_timeout_a_client_may_move<A: Ip>() {
    for protocol in PROTOCOLS {
        let mut node = node::<A>(protocol);
        let mut got = BTreeSet::new();
        for port in 5000..5040 {
            got.insert(ask(&node, protocol, outside(), port, vip()));
            node.pass_seconds(SECONDS);
        }
        assert!(got.len() > 3, "{got:?}");
    }
}

fn rule_2_5_4_the_timeout_outlives_a_wrapped_clock<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    node.memory.now = u32::MAX - HZ;
    let got = ask(&node, Protocol::TCP, outside(), 5000, vip());
    node.pass_seconds(SECONDS - 1);
    assert!(node.memory.now < u32::MAX / 2, "the clock has not come round");
    assert_eq!(ask(&node, Protocol::TCP, outside(), 5001, vip()), got);
    let mut moved = BTreeSet::new();
    for port in 6000..6040 {
        node.pass_seconds(SECONDS);
        moved.insert(ask(&node, Protocol::TCP, outside(), port, vip()));
    }
    assert!(moved.len() > 3);
    // Another CPU's clock may be ahead.
    let client = Client { stamp: 10.into(), ..Client::<A>::NONE };
    assert!(client.is_live(9, 5) && client.is_live(14, 5) && !client.is_live(15, 5) && !client.is_live(10, 0));
}

fn socket<A: Ip>(cookie: u64, bound: A) -> Socket<A> {
    Socket { cookie, netns: NETNS, protocol: Protocol::TCP, connected: false, bound }
}

fn connect<A: Ip>(node: &Node<A>, socket: Socket<A>) -> SocketVerdict<A> {
    lb_common::socket::connect(A::world(&node.memory), socket, vip())
}

fn rule_2_5_5_host_sockets_are_known_by_their_address<A: Ip>() {
    let node = node::<A>(Protocol::TCP);
    // The packet path and the hook see one client.
    let got = ask(&node, Protocol::TCP, host(), 5000, vip());
    for cookie in 1..20 {
        assert_eq!(connect(&node, socket(cookie, A::UNSPECIFIED)).backend, got);
    }
    // Bound to another address: another client.
    let bound: BTreeSet<_> =
        (1..30).map(|number| connect(&node, socket(100, A::host(net::WORLD, number))).backend).collect();
    assert_eq!(bound.len(), 1, "one cookie, one hash");
    let spread: BTreeSet<_> = (1..30)
        .map(|number| connect(&node, socket(u64::from(number) * 7 + 200, A::host(net::WORLD, number + 40))).backend)
        .collect();
    assert!(spread.len() > 3);
    // A hook's choice is the packet path's as well.
    let node = self::node::<A>(Protocol::TCP);
    let got = connect(&node, socket(5, A::UNSPECIFIED)).backend;
    assert_eq!(ask(&node, Protocol::TCP, host(), 5000, vip()), got);
}

fn rule_2_5_5_udp_sockets_of_the_host_are_left_to_the_packet_path<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    let left = SocketVerdict::leave(Counter::SocketLeft);
    assert_eq!(Own::new(1, NETNS).send(&node, vip()), left);
    assert_eq!(Own::new(2, NETNS).connect(&node, vip()), left);
    // For good: a flow of the packet path takes all answers of its backend.
    node.frontend(2, Protocol::UDP, other_vip(), Rules::all(KEEP));
    fill(&mut node, 2, 100);
    let own = Own::new(3, NETNS);
    assert_eq!((own.send(&node, vip()), own.send(&node, other_vip())), (left, left));
    // An address of this node has no packet path.
    node.flags(SERVICE, FrontendFlags::OWN_ADDRESS);
    assert_eq!(Own::new(4, NETNS).send(&node, vip()).action, SocketAction::Rewrite);
}

fn rule_2_5_5_pods_are_left_to_the_packet_path<A: Ip>() {
    let node = node::<A>(Protocol::TCP);
    let pods = Socket { netns: 815, ..socket(1, A::UNSPECIFIED) };
    assert_eq!(connect(&node, pods).action, SocketAction::Leave);
    assert!(A::tables(&node.memory).records.values().all(|it| it.flags.contains(FrontendFlags::NO_POD_SOCKET)));
}

/// The set of the table that a client of a service port is remembered in.
fn set<A: Ip>(node: &Node<A>, client: &A, service: u32) -> u32 {
    let seed = node.memory.settings[&Setting::HashSeed];
    lb_common::hash::scale(lb_common::hash::client_hash(client, service, seed), AFFINITY_SLOTS / 8)
}

fn rule_2_5_1_two_ports_of_a_client_may_share_a_set<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    let client = A::at(net::WORLD, 1, 0);
    let ours = set(&node, &client.addr, SERVICE);
    let other =
        (SERVICE + 1..u32::MAX).find(|service| set(&node, &client.addr, *service) == ours).expect("some number");
    node.frontend(other, Protocol::TCP, other_vip(), Rules::all(KEEP));
    fill(&mut node, other, 100);
    node.affinity(other, u64::from(SECONDS));
    let both = |port| [vip(), other_vip()].map(|to| ask(&node, Protocol::TCP, client, port, to));
    let got = both(5000);
    for port in 5001..5040 {
        assert_eq!(both(port), got);
    }
}

/// Clients of one set of the table, by trying.
fn of_one_set<A: Ip>(node: &Node<A>, wanted: usize) -> Vec<A> {
    let clients = (0..=u8::MAX).flat_map(|high| (0..=u8::MAX).map(move |low| (high, low))).map(|(high, low)| {
        let mut addr = A::host(net::WORLD, low);
        let bytes: Vec<u8> = addr.as_ref().to_vec();
        let mut bytes = bytes;
        let third = bytes.len() - 2;
        bytes[third] = high;
        addr = A::read_from_bytes(&bytes).expect("as many bytes");
        addr
    });
    let mut sets = std::collections::BTreeMap::<u32, Vec<A>>::new();
    for client in clients {
        let members = sets.entry(set(node, &client, SERVICE)).or_default();
        members.push(client);
        if members.len() == wanted {
            return members.clone();
        }
    }
    panic!("no set with {wanted} clients");
}

fn a_full_set_forgets_its_oldest_client_and_counts_it<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    let clients = of_one_set(&node, 9);
    let at = |addr: A| L4Addr { addr, port: Port::NONE };
    let mut got = Vec::new();
    for client in &clients[..8] {
        got.push(ask(&node, Protocol::TCP, at(*client), 5000, vip()));
        node.pass_seconds(1);
    }
    assert_eq!(node.counted(Counter::AffinityEvicted), 0);
    // The first one asks again, so that the second is the oldest.
    assert_eq!(ask(&node, Protocol::TCP, at(clients[0]), 5001, vip()), got[0]);
    ask(&node, Protocol::TCP, at(clients[8]), 5000, vip());
    assert_eq!(node.counted(Counter::AffinityEvicted), 1);
    let remembered: Vec<A> = A::tables(&node.memory).clients.borrow().values().map(|it| it.addr).collect();
    assert!(!remembered.contains(&clients[1]) && remembered.len() == 8, "{remembered:?}");
}

fn who_is_over_makes_room_uncounted<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    let clients = of_one_set(&node, 9);
    for client in &clients[..8] {
        ask(&node, Protocol::TCP, L4Addr { addr: *client, port: Port::NONE }, 5000, vip());
    }
    node.pass_seconds(SECONDS);
    ask(&node, Protocol::TCP, L4Addr { addr: clients[8], port: Port::NONE }, 5000, vip());
    assert_eq!(node.counted(Counter::AffinityEvicted), 0);
}
