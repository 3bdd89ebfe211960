//! ICMP errors about packets of flows: whoever gets one finds the packet that it sent.

use lb_common::{
    frontend::ClientRule,
    pipeline::Hook,
    protocol::{Port, Protocol},
    testing::{Buffer, l4_checksum_is_right},
    tuple::L4Addr,
    verdict::{Action, Counter},
};

use crate::{
    flows::answer_to_host,
    fragments::cut,
    ip::{Ip, net},
    node::{
        From, KEEP, MASQUERADE, Node, Place, Rules, SERVICE, host, node_addr, other_vip, outside, pod, remote_backend,
        vip,
    },
    segment::{SYN, SYN_ACK, Segment, Transport, first, l4_checksum, l4_offset, network, sum, tcp, udp},
};

both! {
    the_client_finds_its_packet_in_an_error_from_behind_the_node,
    the_backend_finds_its_packet_in_an_error_from_before_the_node,
    a_host_process_finds_its_packet,
    an_error_of_a_host_process_reaches_the_backend,
    an_error_about_a_first_fragment_is_translated,
    errors_change_no_flow,
    forged_errors_are_untouched,
    messages_that_are_no_errors_are_untouched,
    short_quotes_are_untouched,
}

/// A router between the node and the backend, and one between client and node.
fn router<A: Ip>(beyond: bool) -> A {
    A::at(if beyond { net::REMOTE } else { net::WORLD }, 254, 0).addr
}

/// Fragmentation needed, packet too big: with an MTU in the second half of the rest.
fn too_big<A: Ip>() -> (u8, u8) {
    if A::is_v6() { (2, 0) } else { (3, 4) }
}

/// An error about `frame`, of which `bytes` bytes behind its network header are quoted.
fn error<A: Ip>(from: &A, frame: &Buffer, bytes: usize, (kind, code): (u8, u8)) -> Buffer {
    let quoted = frame.0.get(14..l4_offset::<A>() + bytes).unwrap_or_else(|| &frame.0[14..]);
    let to = if A::is_v6() { &quoted[8..24] } else { &quoted[12..16] };
    let to = A::read_from_bytes(to).expect("an address");
    let mut message = [&[kind, code, 0, 0, 0, 0, 0x05, 0x14], quoted].concat();
    let protocol = if A::is_v6() { 58 } else { 1 };
    let checksum = if A::is_v6() { l4_checksum(from, &to, protocol, &message) } else { !sum(&[&message]) };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    Buffer(network(from, &to, protocol, &message))
}

/// Source and destination of a frame, and what it quotes.
fn read<A: Ip>(frame: &Buffer) -> (A, A, Vec<u8>) {
    let at = if A::is_v6() { 22 } else { 26 };
    let width = size_of::<A>();
    let addr = |at: usize| A::read_from_bytes(&frame.0[at..at + width]).expect("an address");
    assert_eq!(l4_checksum_is_right(&frame.0), Some(true));
    if !A::is_v6() {
        assert_eq!(sum(&[&frame.0[14..34]]), 0xffff);
    }
    (addr(at), addr(at + width), frame.0[l4_offset::<A>() + 8..].to_vec())
}

/// What is quoted of a frame.
fn quote<A: Ip>(frame: &Buffer, bytes: usize) -> Vec<u8> {
    frame.0.get(14..l4_offset::<A>() + bytes).unwrap_or_else(|| &frame.0[14..]).to_vec()
}

/// Quoted bytes behind the network header: the fewest there may be, with TCP's checksum, everything.
const BYTES: [usize; 3] = [8, 20, 1000];

/// Two flows of one client port, so that the second has another port between the NAT points.
fn two_flows<A: Ip>(protocol: Protocol, rule: ClientRule) -> Node<A> {
    let mut node = Node::with_backend(protocol, Rules::all(rule), remote_backend(), Place::Remote);
    node.frontend(SERVICE, protocol, other_vip(), Rules::all(rule));
    node
}

/// Runs both hooks of a node; the packet must leave it.
#[track_caller]
fn forward<A: Ip>(node: &Node<A>, frame: &mut Buffer, hook: Hook) {
    assert_eq!(node.ingress(frame, hook, false).action, Action::Pass);
    assert_eq!(node.egress(frame).action, Action::Pass);
}

fn the_client_finds_its_packet_in_an_error_from_behind_the_node<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (client, rule) in [(outside::<A>(), KEEP), (outside(), MASQUERADE), (pod(), KEEP)] {
            for hook in [Hook::Xdp, Hook::Tc] {
                let node = two_flows::<A>(protocol, rule);
                for frontend in [vip(), other_vip()] {
                    let sent = first(protocol, client, frontend).frame();
                    let mut seen = sent.clone();
                    forward(&node, &mut seen, hook);
                    for bytes in BYTES {
                        let mut message = error::<A>(&router(true), &seen, bytes, too_big::<A>());
                        forward(&node, &mut message, hook);
                        let (source, destination, quoted) = read::<A>(&message);
                        assert_eq!((source, destination), (frontend.addr, client.addr), "{rule:?}");
                        assert_eq!(quoted, quote::<A>(&sent, bytes), "{rule:?}");
                    }
                }
                assert_eq!(node.counted(Counter::PortChanged), 1);
            }
        }
    }
}

fn the_backend_finds_its_packet_in_an_error_from_before_the_node<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (client, rule) in [(outside::<A>(), KEEP), (outside(), MASQUERADE)] {
            let node = two_flows::<A>(protocol, rule);
            for frontend in [vip(), other_vip()] {
                let (seen, _) = node.send(From::Device, &first(protocol, client, frontend));
                let sent = seen.answer(SYN_ACK).frame();
                let mut got = sent.clone();
                forward(&node, &mut got, Hook::Tc);
                for bytes in BYTES {
                    for (from, code) in
                        [(router::<A>(false), too_big::<A>()), (client.addr, (if A::is_v6() { 1 } else { 3 }, 3))]
                    {
                        let mut message = error::<A>(&from, &got, bytes, code);
                        forward(&node, &mut message, Hook::Tc);
                        let (source, destination, quoted) = read::<A>(&message);
                        // With its source rewritten the client is known by the node's address.
                        let expected = if rule == MASQUERADE { node_addr() } else { from };
                        assert_eq!((source, destination), (expected, remote_backend::<A>().addr));
                        assert_eq!(quoted, quote::<A>(&sent, bytes));
                    }
                }
            }
        }
    }
}

/// A host's client and whether its source is rewritten.
fn hosts<A: Ip>() -> [(L4Addr<A>, ClientRule); 2] {
    [(host(), KEEP), (A::at(net::NODES, 200, 40_200), MASQUERADE)]
}

fn a_host_process_finds_its_packet<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (client, rule) in hosts::<A>() {
            let node = two_flows::<A>(protocol, rule);
            for frontend in [vip(), other_vip()] {
                let sent = first(protocol, client, frontend).frame();
                let mut seen = sent.clone();
                assert_eq!(node.ingress(&mut seen, Hook::Host, true).action, Action::Forward);
                assert_eq!(node.egress(&mut seen).action, Action::Pass);
                for bytes in BYTES {
                    let mut message = error::<A>(&router(true), &seen, bytes, too_big::<A>());
                    let whole = message.clone();
                    let verdict = node.ingress(&mut message, Hook::Xdp, false);
                    assert_eq!((verdict.counter, &message), (Counter::Deferred, &whole));
                    let verdict = node.ingress(&mut message, Hook::Tc, false);
                    assert_eq!((verdict.action, verdict.counter), (Action::ToHost, Counter::IcmpError));
                    let (source, destination, quoted) = read::<A>(&message);
                    assert_eq!((source, destination), (frontend.addr, client.addr), "{rule:?}");
                    assert_eq!(quoted, quote::<A>(&sent, bytes), "{rule:?}");
                }
            }
        }
    }
}

fn an_error_of_a_host_process_reaches_the_backend<A: Ip>() {
    for (client, rule) in hosts::<A>() {
        let node = two_flows::<A>(Protocol::UDP, rule);
        for frontend in [vip(), other_vip()] {
            let (seen, _) = node.send(From::Host, &first(Protocol::UDP, client, frontend));
            let answer = seen.answer(SYN_ACK);
            let got = answer_to_host(&node, &answer).frame();
            let mut message = error::<A>(&client.addr, &got, 8, (if A::is_v6() { 1 } else { 3 }, 3));
            let verdict = node.ingress(&mut message, Hook::Host, true);
            assert_eq!((verdict.action, verdict.counter), (Action::Forward, Counter::IcmpError));
            assert_eq!(node.egress(&mut message).action, Action::Pass);
            let (source, destination, quoted) = read::<A>(&message);
            assert_eq!((source, destination), (seen.source.addr, remote_backend::<A>().addr));
            assert_eq!(quoted, quote::<A>(&answer.frame(), 8));
        }
    }
}

fn errors_change_no_flow<A: Ip>() {
    let mut node = two_flows::<A>(Protocol::TCP, MASQUERADE);
    let sent = tcp(outside::<A>(), vip(), SYN).frame();
    let mut seen = sent.clone();
    forward(&node, &mut seen, Hook::Tc);
    node.pass_seconds(5);
    let before = node.entries();
    for bytes in BYTES {
        forward(&node, &mut error::<A>(&router(true), &seen, bytes, too_big::<A>()), Hook::Tc);
    }
    assert_eq!(node.entries(), before);
}

/// Sends a message through all hooks: none touches it.
#[track_caller]
fn untouched<A: Ip>(node: &Node<A>, message: &Buffer) {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut after = message.clone();
        let verdict = node.ingress(&mut after, hook, false);
        assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::Icmp));
        assert_eq!(after, *message);
    }
    let mut after = message.clone();
    let verdict = node.egress(&mut after);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::Icmp));
    assert_eq!(after, *message);
    let mut after = message.clone();
    assert_eq!(node.ingress(&mut after, Hook::Host, false).counter, Counter::HostUntranslated);
}

/// A node with a flow, and a packet of it as the backend sees it.
fn flow<A: Ip>() -> (Node<A>, Segment<A>) {
    let node = two_flows::<A>(Protocol::TCP, MASQUERADE);
    let (seen, _) = node.send(From::Device, &tcp(outside(), vip(), SYN));
    (node, seen)
}

fn forged_errors_are_untouched<A: Ip>() {
    let (node, seen) = flow::<A>();
    let mut wrong = [seen.clone(), seen.clone(), seen.clone(), seen.clone()];
    wrong[0].source.port = Port::new(seen.source.port.number() ^ 1);
    wrong[1].destination.port = Port::new(seen.destination.port.number() ^ 1);
    wrong[2].destination.addr = router(true);
    wrong[3].transport = Transport::Udp;
    for segment in wrong {
        untouched(&node, &error::<A>(&router(true), &segment.frame(), 20, too_big::<A>()));
    }
    // About somebody else's packet than it goes to.
    let mut message = error::<A>(&router(true), &seen.frame(), 20, too_big::<A>());
    let at = if A::is_v6() { 22 } else { 26 } + size_of::<A>();
    message.0[at..at + size_of::<A>()].copy_from_slice(router::<A>(false).as_ref());
    untouched(&node, &message);
}

/// Both ends' fragments: the quoted packet has a fragment header (IPv6) or an offset of zero and more to come (IPv4).
fn an_error_about_a_first_fragment_is_translated<A: Ip>() {
    for bytes in [8, 64] {
        let node = two_flows::<A>(Protocol::UDP, MASQUERADE);
        for frontend in [vip(), other_vip()] {
            let packet = udp::<A>(outside(), frontend).with_payload(&[7; 120]).frame();
            let sent = cut::<A>(&packet, &[64], 9).remove(0);
            let mut seen = sent.clone();
            forward(&node, &mut seen, Hook::Tc);
            let header = if A::is_v6() { 8 } else { 0 };
            let mut message = error::<A>(&router(true), &seen, header + bytes, too_big::<A>());
            forward(&node, &mut message, Hook::Tc);
            let (source, destination, quoted) = read::<A>(&message);
            assert_eq!((source, destination), (frontend.addr, outside::<A>().addr));
            assert_eq!(quoted, quote::<A>(&sent, header + bytes));
        }
        assert_eq!(node.counted(Counter::PortChanged), 1);
    }
}

fn messages_that_are_no_errors_are_untouched<A: Ip>() {
    let (node, seen) = flow::<A>();
    let kinds: &[u8] = if A::is_v6() { &[0, 5, 100, 128, 129, 133, 135, 136] } else { &[0, 5, 8, 9, 13, 17] };
    for kind in kinds {
        untouched(&node, &error::<A>(&router(true), &seen.frame(), 20, (*kind, 0)));
    }
}

fn short_quotes_are_untouched<A: Ip>() {
    let (node, seen) = flow::<A>();
    for bytes in 0..8 {
        untouched(&node, &error::<A>(&router(true), &seen.frame(), bytes, too_big::<A>()));
    }
    // The quoted packet is of another version, or a later fragment.
    let mut message = error::<A>(&router(true), &seen.frame(), 20, too_big::<A>());
    message.0[l4_offset::<A>() + 8] ^= 0x20;
    untouched(&node, &message);
    if !A::is_v6() {
        let mut message = error::<A>(&router(true), &seen.frame(), 20, too_big::<A>());
        message.0[l4_offset::<A>() + 8 + 7] = 1;
        untouched(&node, &message);
    }
}
