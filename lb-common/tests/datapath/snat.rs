//! Source ports and room in the tables: what is allocated, and what is undone.

use std::collections::BTreeSet;

use lb_common::{
    conntrack::EntryKind,
    frontend::ClientRule,
    protocol::Protocol,
    settings::{Setting, snat_ports},
    tuple::L4Addr,
    verdict::{Action, Counter},
};

use crate::{
    flows::answer_to_host,
    ip::{Ip, net},
    node::{
        BACKEND, From, KEEP, MASQUERADE, Node, Place, Rules, SERVICE, SNAT_FIRST, SNAT_LAST, host, node_addr,
        other_vip, outside, remote_backend, vip,
    },
    segment::{ACK, SYN, SYN_ACK, Segment, first, tcp, udp},
};

both! {
    a_port_in_the_range_is_kept,
    a_port_outside_the_range_is_replaced,
    two_clients_with_one_port_get_two,
    two_backends_may_share_a_port,
    every_answer_finds_its_own_client,
    an_exhausted_range_leaves_nothing_behind,
    an_exhausted_range_leaves_a_hosts_other_flow_alone,
    a_range_that_is_none_is_refused,
    a_full_table_leaves_no_half_flow,
    one_client_port_to_two_frontends_of_one_backend,
    flows_that_are_equal_and_find_no_port_are_refused,
    flows_that_are_equal_end_as_others_do,
    a_finished_flow_makes_room_for_another_frontends,
    what_is_left_of_a_flow_takes_nobodys_port_along,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

fn masquerading<A: Ip>(protocol: Protocol) -> Node<A> {
    Node::with_backend(protocol, Rules::all(MASQUERADE), remote_backend(), Place::Remote)
}

fn with_ports<A: Ip>(protocol: Protocol, first: u16, last: u16) -> Node<A> {
    let mut node = masquerading(protocol);
    node.memory.settings.insert(Setting::SnatPorts, snat_ports(first, last));
    node
}

/// The source port that the backend sees.
#[track_caller]
fn port_of<A: Ip>(node: &Node<A>, protocol: Protocol, client: L4Addr<A>) -> u16 {
    let (got, _) = node.send(From::Device, &first(protocol, client, vip()));
    assert_eq!(got.source.addr, node_addr::<A>());
    got.source.port.number()
}

fn a_port_in_the_range_is_kept<A: Ip>() {
    for protocol in PROTOCOLS {
        for port in [SNAT_FIRST, SNAT_FIRST + 1, 40_000, SNAT_LAST] {
            assert_eq!(port_of(&masquerading::<A>(protocol), protocol, A::at(net::WORLD, 9, port)), port);
        }
    }
}

fn a_port_outside_the_range_is_replaced<A: Ip>() {
    for protocol in PROTOCOLS {
        for port in [1, 1_024, SNAT_FIRST - 1, SNAT_LAST + 1, 65_535] {
            let got = port_of(&masquerading::<A>(protocol), protocol, A::at(net::WORLD, 9, port));
            assert!((SNAT_FIRST..=SNAT_LAST).contains(&got), "{port} became {got}");
        }
    }
    // The greatest range, which has 65,535 ports: zero is none.
    assert_eq!(port_of(&with_ports::<A>(Protocol::TCP, 1, 65_535), Protocol::TCP, A::at(net::WORLD, 9, 1)), 1);
    // One port.
    let node = with_ports::<A>(Protocol::TCP, 65_535, 65_535);
    assert_eq!(port_of(&node, Protocol::TCP, A::at(net::WORLD, 9, 1)), 65_535);
}

fn two_clients_with_one_port_get_two<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = masquerading::<A>(protocol);
        let ports: BTreeSet<u16> =
            (1..=50).map(|client| port_of(&node, protocol, A::at(net::WORLD, client, 40_000))).collect();
        assert_eq!(ports.len(), 50);
        assert!(ports.contains(&40_000));
        assert!(ports.iter().all(|port| (SNAT_FIRST..=SNAT_LAST).contains(port)));
        assert_eq!(node.connections(SERVICE, BACKEND), 50);
    }
}

fn two_backends_may_share_a_port<A: Ip>() {
    let mut node = masquerading::<A>(Protocol::TCP);
    node.frontend(2, Protocol::TCP, other_vip(), Rules::all(MASQUERADE));
    node.backend(2, 2, A::at(net::REMOTE, 8, 8_080), Place::Remote);
    node.ring(2, lb_common::frontend::Scope::Cluster, &[2], lb_common::ring::WhenEmpty::Reject);
    for frontend in [vip(), other_vip()] {
        let (got, _) = node.send(From::Device, &tcp(outside(), frontend, SYN));
        assert_eq!(got.source.port, outside::<A>().port);
    }
}

fn every_answer_finds_its_own_client<A: Ip>() {
    let node = masquerading::<A>(Protocol::UDP);
    let seen: Vec<_> = (1..=20)
        .map(|client| {
            let client = A::at(net::WORLD, client, 40_000);
            (client, node.send(From::Device, &udp(client, vip())).0)
        })
        .collect();
    for (client, got) in seen {
        let (back, _) = node.send(From::Device, &got.answer(ACK));
        assert_eq!((back.source, back.destination), (vip(), client));
    }
}

#[track_caller]
fn refused<A: Ip>(node: &Node<A>, from: From, sent: &Segment<A>, reason: Counter) {
    let before = node.entries();
    let connections = node.connections(SERVICE, BACKEND);
    let (action, counter, _) = node.refused(from, sent);
    assert_eq!((action, counter), (Action::Reply, reason));
    assert_eq!(node.entries(), before);
    assert_eq!(node.connections(SERVICE, BACKEND), connections);
}

/// Fills the one-port range for the only backend.
fn exhausted<A: Ip>(protocol: Protocol) -> Node<A> {
    let node = with_ports::<A>(protocol, 30_000, 30_000);
    port_of(&node, protocol, A::at(net::WORLD, 1, 1_234));
    node
}

fn an_exhausted_range_leaves_nothing_behind<A: Ip>() {
    for protocol in PROTOCOLS {
        let node = exhausted::<A>(protocol);
        refused(&node, From::Device, &first(protocol, outside(), vip()), Counter::SnatExhausted);
        // The flow that has the port goes on.
        let (got, reasons) = node.send(From::Device, &first(protocol, A::at(net::WORLD, 1, 1_234), vip()));
        assert_eq!(reasons, [Counter::ToBackend, Counter::SourceNat]);
        let (back, _) = node.send(From::Device, &got.answer(SYN_ACK));
        assert_eq!(back.destination, A::at(net::WORLD, 1, 1_234));
        // A host's.
        refused(&node, From::Host, &first(protocol, A::at(net::NODES, 200, 40_200), vip()), Counter::SnatExhausted);
    }
}

/// The host has a flow without masquerading to the same backend: what is undone must not be its entry.
fn an_exhausted_range_leaves_a_hosts_other_flow_alone<A: Ip>() {
    let mut node = exhausted::<A>(Protocol::TCP);
    node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(KEEP));
    let client = A::at(net::NODES, 200, 40_200);
    let (got, _) = node.send(From::Host, &tcp(client, other_vip(), SYN));
    assert_eq!(got.source, client);
    refused(&node, From::Host, &tcp(client, vip(), SYN), Counter::SnatExhausted);
}

fn a_range_that_is_none_is_refused<A: Ip>() {
    for range in [0, snat_ports(0, 100), snat_ports(200, 100), snat_ports(1, 0)] {
        let mut node = masquerading::<A>(Protocol::TCP);
        node.memory.settings.insert(Setting::SnatPorts, range);
        refused(&node, From::Device, &tcp(outside(), vip(), SYN), Counter::SnatExhausted);
    }
}

fn a_full_table_leaves_no_half_flow<A: Ip>() {
    for (rule, from, client, entries) in [
        (KEEP, From::Device, outside::<A>(), 2),
        (MASQUERADE, From::Device, outside(), 4),
        (KEEP, From::Host, host(), 2),
        (MASQUERADE, From::Host, A::at(net::NODES, 200, 40_200), 3),
    ] {
        for capacity in 0..entries {
            let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend(), Place::Remote);
            A::tables_mut(&mut node.memory).conntrack_capacity = capacity;
            refused(&node, from, &tcp(client, vip(), SYN), Counter::ConntrackFull);
        }
        let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend(), Place::Remote);
        A::tables_mut(&mut node.memory).conntrack_capacity = entries;
        node.send(from, &tcp(client, vip(), SYN));
        assert_eq!(node.entries().len(), entries);
    }
}

/// Every kind of client, with and without a rewritten source. The last masquerades: its address is not the node's first.
fn every_client<A: Ip>() -> [(From, L4Addr<A>, ClientRule); 4] {
    [
        (From::Device, outside(), KEEP),
        (From::Device, outside(), MASQUERADE),
        (From::Host, host(), KEEP),
        (From::Host, A::at(net::NODES, 200, 40_200), MASQUERADE),
    ]
}

/// Between the NAT points the two flows would be one: the second gets another source port (design.md section 2.1).
fn one_client_port_to_two_frontends_of_one_backend<A: Ip>() {
    for protocol in PROTOCOLS {
        for (from, client, rule) in every_client::<A>() {
            let mut node = Node::with_backend(protocol, Rules::all(rule), remote_backend(), Place::Remote);
            node.frontend(SERVICE, protocol, other_vip(), Rules::all(rule));
            let (one, _) = node.send(from, &first(protocol, client, vip()));
            let (other, reasons) = node.send(from, &first(protocol, client, other_vip()));
            assert_eq!((reasons[0], node.counted(Counter::PortChanged)), (Counter::NewFlow, 1));
            assert_eq!((one.destination, other.destination), (remote_backend(), remote_backend()));
            assert_eq!(one.source.addr, other.source.addr);
            assert_ne!(one.source.port, other.source.port);
            // Each answer finds its own way, as often as it comes, and neither flow is made a second time.
            for _ in 0..2 {
                for (seen, frontend) in [(&one, vip()), (&other, other_vip())] {
                    let back = if from == From::Host {
                        answer_to_host(&node, &seen.answer(SYN_ACK))
                    } else {
                        node.send(From::Device, &seen.answer(SYN_ACK)).0
                    };
                    assert_eq!((back.source, back.destination), (frontend, client), "{from:?} {rule:?}");
                    let again = first(protocol, client, frontend);
                    let again = if protocol == Protocol::TCP { tcp(client, frontend, ACK) } else { again };
                    let (sent, reasons) = node.send(from, &again);
                    assert_eq!((sent.source, reasons[0]), (seen.source, Counter::ToBackend));
                }
            }
            assert_eq!(node.connections(SERVICE, BACKEND), 2);
        }
    }
}

fn flows_that_are_equal_and_find_no_port_are_refused<A: Ip>() {
    for (from, client, rule) in every_client::<A>() {
        let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend(), Place::Remote);
        node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(rule));
        node.send(from, &tcp(client, vip(), SYN));
        node.memory.settings.insert(Setting::SnatPorts, 0);
        let reason =
            if rule == MASQUERADE && from == From::Host { Counter::SnatExhausted } else { Counter::TupleTaken };
        refused(&node, from, &tcp(client, other_vip(), SYN), reason);
    }
}

fn flows_that_are_equal_end_as_others_do<A: Ip>() {
    for (from, client, rule) in every_client::<A>() {
        let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend(), Place::Remote);
        node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(rule));
        node.send(from, &tcp(client, vip(), SYN));
        let before = node.entries();
        node.send(from, &tcp(client, other_vip(), SYN));
        node.send(from, &tcp(client, other_vip(), lb_common::wire::l4::TcpFlags::RST));
        node.pass_seconds(11);
        // A SYN finds the flow over, removes all its entries and makes it anew.
        node.send(from, &tcp(client, other_vip(), SYN));
        assert_eq!(node.entries().len(), before.len() * 2);
        assert_eq!(node.counted(Counter::FlowReplaced), 1);
    }
}

fn a_finished_flow_makes_room_for_another_frontends<A: Ip>() {
    for (rule, from, client) in [
        (KEEP, From::Device, outside::<A>()),
        (MASQUERADE, From::Device, outside()),
        (KEEP, From::Host, host()),
        (MASQUERADE, From::Host, A::at(net::NODES, 200, 40_200)),
    ] {
        let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend::<A>(), Place::Remote);
        node.frontend(SERVICE, Protocol::TCP, other_vip(), Rules::all(rule));
        node.send(from, &tcp(client, vip(), SYN));
        let entries = node.entries().len();
        node.send(from, &tcp(client, vip(), lb_common::wire::l4::TcpFlags::RST));
        let (_, reasons) = node.send(from, &tcp(client, other_vip(), SYN));
        assert_eq!(reasons[0], Counter::NewFlow);
        assert_eq!(node.entries().len(), entries);
        assert_eq!(node.counted(Counter::FlowReplaced), 1);
        assert_eq!(node.entry(EntryKind::ORIGINAL).frontend, other_vip());
    }
}

/// The answer entry is written before the port is found, and names the client's own, which is another client's here.
fn what_is_left_of_a_flow_takes_nobodys_port_along<A: Ip>() {
    for (rule, protocol) in [MASQUERADE, KEEP].into_iter().flat_map(|rule| PROTOCOLS.map(|protocol| (rule, protocol))) {
        let mut node = masquerading::<A>(protocol);
        node.frontend(SERVICE, protocol, other_vip(), Rules::all(rule));
        let clients: [L4Addr<A>; 2] = [1, 2].map(|host| A::at(net::WORLD, host, 40_000));
        let [(held, _), (lost, _)] = clients.map(|client| node.send(From::Device, &first(protocol, client, vip())));
        assert_eq!(held.source.port, clients[0].port);
        assert_ne!(lost.source.port, clients[1].port);
        A::tables_mut(&mut node.memory)
            .conntrack
            .get_mut()
            .retain(|_, entry| entry.kind != EntryKind::ORIGINAL || entry.client != clients[1]);
        node.pass_seconds(2);

        let (new, reasons) = node.send(From::Device, &first(protocol, clients[1], other_vip()));
        assert_eq!((reasons[0], node.counted(Counter::FlowReplaced)), (Counter::NewFlow, 1));
        assert_eq!(new.source == clients[1], rule == KEEP, "{:?}", new.source);
        for (seen, frontend, client) in [(&held, vip(), clients[0]), (&new, other_vip(), clients[1])] {
            let (back, _) = node.send(From::Device, &seen.answer(SYN_ACK));
            assert_eq!((back.source, back.destination), (frontend, client));
        }
    }
}
