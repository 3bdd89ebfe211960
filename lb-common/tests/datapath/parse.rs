//! Anything may come in on a wire: it is parsed, or passed up untouched and counted.

use lb_common::{
    pipeline::Hook,
    protocol::Protocol,
    testing::{Buffer, l4_checksum_is_right},
    tuple::L4Addr,
    verdict::{Action, Counter},
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    ip::{Ip, net},
    node::{From, MASQUERADE, Node, Place, Rules, other_vip, outside, pod, remote_backend, vip},
    segment::{SYN, l4_offset, network, sctp, sum, tcp, udp},
};

both! {
    any_bytes_are_parsed_or_untouched,
    mutated_frames_are_parsed_or_untouched,
    other_link_types_are_passed,
    truncated_frames_are_malformed,
    lengths_beyond_the_frame_are_malformed,
    tcp_headers_must_fit,
    udp_lengths_must_fit,
    icmp_is_passed,
    other_protocols_are_passed,
    sctp_must_be_whole,
}

/// What leaves a frame as it came.
const UNTOUCHED: [Counter; 13] = [
    Counter::OtherLink,
    Counter::Vlan,
    Counter::Malformed,
    Counter::ExtensionHeader,
    Counter::Fragment,
    Counter::Icmp,
    Counter::OtherProtocol,
    Counter::NotAService,
    Counter::Deferred,
    Counter::Sctp,
    Counter::Unallocated,
    Counter::StrayReset,
    Counter::HostUntranslated,
];

/// A node with a TCP and a UDP service and a flow of each, so that frames meet something.
fn busy_node<A: Ip>() -> Node<A> {
    let mut node = Node::with_backend(Protocol::TCP, Rules::all(MASQUERADE), remote_backend(), Place::Remote);
    node.frontend(1, Protocol::UDP, vip(), Rules::all(MASQUERADE));
    node.frontend(1, Protocol::SCTP, vip(), Rules::all(MASQUERADE));
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    node.send(From::Device, &udp(outside(), vip()));
    node
}

/// Sends a frame through every hook of a fresh copy of the node and checks what must hold of any frame.
fn check<A: Ip>(node: &Node<A>, frame: &Buffer) -> Result<(), TestCaseError> {
    let hooks = [(Hook::Xdp, false), (Hook::Tc, false), (Hook::Host, false), (Hook::Host, true)];
    let verdicts = hooks.map(|(hook, local)| {
        let mut after = frame.clone();
        let verdict = Node::<A>::copy_of(node).ingress(&mut after, hook, local);
        (Some(hook), verdict, after)
    });
    let mut after = frame.clone();
    let verdict = Node::copy_of(node).egress(&mut after);
    for (hook, verdict, after) in verdicts.into_iter().chain([(None, verdict, after)]) {
        prop_assert_ne!(verdict.action, Action::Undecided);
        if UNTOUCHED.contains(&verdict.counter) {
            prop_assert_eq!(&after, frame, "{:?} at {:?}", verdict, hook);
            prop_assert!(matches!(verdict.action, Action::Pass | Action::Drop));
        }
        match (hook, verdict.action) {
            (Some(Hook::Xdp), action) => prop_assert!(matches!(action, Action::Pass | Action::Drop), "{:?}", action),
            // What nobody translated must not come round again.
            (Some(Hook::Host), action) => prop_assert_ne!(action, Action::Pass),
            (Some(Hook::Tc) | None, _) => {}
        }
        if verdict.action == Action::Reply {
            prop_assert_eq!(l4_checksum_is_right(&after.0), Some(true));
            continue;
        }
        // A translation keeps a checksum as right, or as wrong, as it was.
        prop_assert_eq!(after.0.len(), frame.0.len());
        prop_assert_eq!(l4_checksum_is_right(&after.0), l4_checksum_is_right(&frame.0), "{:?}", verdict);
        if frame.0.get(12..15) == Some(&[8, 0, 0x45]) && frame.0.len() >= 34 {
            prop_assert_eq!(sum(&[&after.0[14..34]]), sum(&[&frame.0[14..34]]));
        }
    }
    Ok(())
}

fn run<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    // Without a file of its own for failures: the seed is printed.
    let config = ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    if let Err(failure) = proptest::test_runner::TestRunner::new(config).run(&strategy, test) {
        panic!("{failure}");
    }
}

fn any_bytes_are_parsed_or_untouched<A: Ip>() {
    let node = busy_node::<A>();
    run(vec(any::<u8>(), 0..160), |bytes| check(&node, &Buffer(bytes)));
    // The same behind a MAC header that leads somewhere.
    let ethertype = if A::is_v6() { [0x86, 0xdd, 0x60] } else { [8, 0, 0x45] };
    run(vec(any::<u8>(), 15..160), |mut bytes| {
        bytes[12..15].copy_from_slice(&ethertype);
        check(&node, &Buffer(bytes))
    });
}

#[derive(Clone, Copy, Debug)]
enum Mutation {
    /// Cut at this share of 256.
    Truncate(u8),
    /// Bytes behind the packet.
    Extend(u8),
    /// A byte of the headers, at this offset from the Ethernet type on.
    Byte(u8, u8),
    /// The length field of the network header.
    NetworkLength(u16),
    /// Version and header length.
    Version(u8),
    /// TCP's data offset, UDP's length.
    TransportLength(u8),
    /// The L4 checksum, right or wrong.
    Checksum([u8; 2]),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<u8>().prop_map(Mutation::Truncate),
        any::<u8>().prop_map(Mutation::Extend),
        (0_u8..64, any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        prop_oneof![0_u16..100, any::<u16>()].prop_map(Mutation::NetworkLength),
        any::<u8>().prop_map(Mutation::Version),
        any::<u8>().prop_map(Mutation::TransportLength),
        prop_oneof![Just([0, 0]), Just([0xff, 0xff]), any::<[u8; 2]>()].prop_map(Mutation::Checksum),
    ]
}

fn apply<A: Ip>(frame: &mut Vec<u8>, mutation: Mutation) {
    let tcp = frame.get(if A::is_v6() { 20 } else { 23 }) == Some(&6);
    let mut set = |offset: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    match mutation {
        Mutation::Truncate(share) => frame.truncate(frame.len() * usize::from(share) / 256),
        Mutation::Extend(bytes) => frame.extend(vec![bytes; usize::from(bytes)]),
        Mutation::Byte(at, byte) => set(12 + usize::from(at), &[byte]),
        Mutation::NetworkLength(length) => set(if A::is_v6() { 18 } else { 16 }, &length.to_be_bytes()),
        Mutation::Version(byte) => set(14, &[byte]),
        Mutation::TransportLength(byte) if tcp => set(l4_offset::<A>() + 12, &[byte]),
        Mutation::TransportLength(byte) => set(l4_offset::<A>() + 4, &[0, byte]),
        Mutation::Checksum(bytes) => set(l4_offset::<A>() + if tcp { 16 } else { 6 }, &bytes),
    }
}

fn mutated_frames_are_parsed_or_untouched<A: Ip>() {
    let node = busy_node::<A>();
    let ends = [
        vip::<A>(),
        outside(),
        pod(),
        remote_backend(),
        other_vip(),
        L4Addr { port: outside::<A>().port, addr: A::host(net::NODES, 1) },
        A::at(net::SERVICES, 10, 81),
        A::at(net::SERVICES, 250, 80),
    ];
    let end = || select(ends.to_vec());
    let strategy = (end(), end(), 0_u8..4, any::<u8>(), vec(any::<u8>(), 0..40), vec(mutation(), 0..4));
    run(strategy, |(source, destination, kind, flags, payload, mutations)| {
        let segment = match kind {
            0 | 1 => tcp(source, destination, lb_common::wire::l4::TcpFlags(flags)),
            2 => udp(source, destination),
            _ => sctp(source, destination),
        };
        let mut frame = segment.with_payload(&payload).frame();
        for mutation in mutations {
            apply::<A>(&mut frame.0, mutation);
        }
        check(&node, &frame)
    });
}

/// Asserts that both directions pass a frame, untouched, for this reason.
#[track_caller]
fn passed<A: Ip>(frame: &Buffer, reason: Counter) {
    let node = busy_node::<A>();
    for hook in [Hook::Xdp, Hook::Tc, Hook::Host] {
        let mut after = frame.clone();
        let verdict = node.ingress(&mut after, hook, false);
        let expected =
            if hook == Hook::Host { (Action::Drop, Counter::HostUntranslated) } else { (Action::Pass, reason) };
        assert_eq!((verdict.action, verdict.counter), expected, "{hook:?}");
        assert_eq!(after, *frame);
    }
    let mut after = frame.clone();
    let verdict = node.egress(&mut after);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, reason), "egress");
    assert_eq!(after, *frame);
}

/// A SYN to the service, as bytes.
fn syn<A: Ip>() -> Vec<u8> {
    tcp(outside::<A>(), vip(), SYN).frame().0
}

fn other_link_types_are_passed<A: Ip>() {
    for ethertype in [[0x08, 0x06], [0x88, 0x47], [0, 46]] {
        let mut frame = syn::<A>();
        frame[12..14].copy_from_slice(&ethertype);
        passed::<A>(&Buffer(frame), Counter::OtherLink);
    }
}

fn truncated_frames_are_malformed<A: Ip>() {
    for frame in [tcp(outside::<A>(), vip(), SYN).frame(), udp(outside::<A>(), vip()).frame()] {
        for length in 0..frame.0.len() {
            passed::<A>(&Buffer(frame.0[..length].to_vec()), Counter::Malformed);
        }
    }
}

fn lengths_beyond_the_frame_are_malformed<A: Ip>() {
    let whole = syn::<A>();
    let (field, right) = if A::is_v6() { (18, 20_u16) } else { (16, 40) };
    for length in [right + 1, right - 1, 0, 0xffff] {
        let mut frame = whole.clone();
        frame[field..field + 2].copy_from_slice(&length.to_be_bytes());
        passed::<A>(&Buffer(frame), Counter::Malformed);
    }
    // The version of the other family.
    for version in [0x05, 0x55, if A::is_v6() { 0x45 } else { 0x65 }] {
        let mut frame = whole.clone();
        frame[14] = version;
        passed::<A>(&Buffer(frame), Counter::Malformed);
    }
}

fn tcp_headers_must_fit<A: Ip>() {
    for offset in [0x00, 0x40, 0x60, 0xf0] {
        let mut frame = syn::<A>();
        frame[l4_offset::<A>() + 12] = offset;
        passed::<A>(&Buffer(frame), Counter::Malformed);
    }
}

fn udp_lengths_must_fit<A: Ip>() {
    let whole = udp(outside::<A>(), vip()).frame().0;
    for length in [0_u16, 7, 16, 0xffff] {
        let mut frame = whole.clone();
        frame[l4_offset::<A>() + 4..l4_offset::<A>() + 6].copy_from_slice(&length.to_be_bytes());
        passed::<A>(&Buffer(frame), Counter::Malformed);
    }
    // A shorter datagram than the packet is legal.
    let mut frame = whole;
    frame[l4_offset::<A>() + 4..l4_offset::<A>() + 6].copy_from_slice(&[0, 8]);
    let verdict = busy_node::<A>().ingress(&mut Buffer(frame), Hook::Tc, false);
    assert_eq!(verdict.counter, Counter::ToBackend);
}

fn icmp_is_passed<A: Ip>() {
    let protocol = if A::is_v6() { 58 } else { 1 };
    let frame = network(&outside::<A>().addr, &vip::<A>().addr, protocol, &[8, 0, 0, 0, 0, 1, 0, 1]);
    passed::<A>(&Buffer(frame), Counter::Icmp);
}

fn other_protocols_are_passed<A: Ip>() {
    // The other family's ICMP is none here.
    let foreign_icmp = if A::is_v6() { 1 } else { 58 };
    for protocol in [foreign_icmp, 2, 4, 41, 47, 50, 59, 255] {
        let frame = network(&outside::<A>().addr, &vip::<A>().addr, protocol, &[0; 20]);
        passed::<A>(&Buffer(frame), Counter::OtherProtocol);
    }
}

fn sctp_must_be_whole<A: Ip>() {
    let frame = network(&outside::<A>().addr, &vip::<A>().addr, 132, &[0; 11]);
    passed::<A>(&Buffer(frame), Counter::Malformed);
}

#[test]
fn v4_header_lengths_must_fit() {
    // Less than a header; more than the packet.
    for version in [0x40, 0x44, 0x4b, 0x4f] {
        let mut frame = syn::<[u8; 4]>();
        frame[14] = version;
        passed::<[u8; 4]>(&Buffer(frame), Counter::Malformed);
    }
}
