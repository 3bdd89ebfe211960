//! Answers that refuse: a client's stack must accept them.

use lb_common::{
    checksum::Sum,
    packet::{L4Change, Packet, Wire},
    pipeline::Hook,
    protocol::Protocol,
    testing::{Buffer, l4_checksum_is_right},
    verdict::{Action, Counter},
    wire::l4::TcpFlags,
};

use crate::{
    ip::Ip,
    node::{From, KEEP, Node, Rules, SERVICE, outside, pod, vip},
    segment::{
        ACK, FIN_ACK, RECEIVER, SENDER, SYN, SYN_ACK, Segment, Transport, l4_checksum, l4_offset, network,
        read_network, sctp, sum, tcp, udp,
    },
};

both! {
    a_syn_is_reset_by_rfc_9293,
    an_ack_is_reset_by_rfc_9293,
    a_reset_is_never_answered,
    tcp_options_and_payload_do_not_come_back,
    udp_is_answered_by_port_unreachable,
    a_reset_is_right_where_a_device_completes_its_checksum,
    port_unreachable_is_right_where_a_device_completes_a_checksum,
    sctp_is_answered_by_port_unreachable,
    padding_is_no_payload,
    xdp_never_answers,
    a_refusal_is_not_a_service_itself,
}

/// A node whose service has no endpoint.
fn node<A: Ip>() -> Node<A> {
    let mut node = Node::new();
    for protocol in [Protocol::TCP, Protocol::UDP] {
        node.frontend(SERVICE, protocol, vip(), Rules::all(KEEP));
    }
    node
}

#[track_caller]
fn refusal<A: Ip>(frame: &Buffer) -> Buffer {
    let mut answer = frame.clone();
    let verdict = node::<A>().ingress(&mut answer, Hook::Tc, false);
    assert_eq!(verdict.action, Action::Reply, "{verdict:?}");
    // Back where it came from.
    assert_eq!((&answer.0[..6], &answer.0[6..12]), (&SENDER[..], &RECEIVER[..]));
    let hop_limit = answer.0[if A::is_v6() { 21 } else { 22 }];
    assert_eq!(hop_limit, 64);
    answer
}

fn segment<A: Ip>(flags: TcpFlags, sequence: u32, acknowledgment: u32, payload: &[u8]) -> Segment<A> {
    let transport = Transport::Tcp { flags, sequence, acknowledgment };
    Segment { source: pod(), destination: vip(), transport, payload: payload.to_vec() }
}

#[track_caller]
fn resets_with<A: Ip>(sent: &Segment<A>, flags: TcpFlags, sequence: u32, acknowledgment: u32) {
    let frame = refusal::<A>(&sent.frame());
    let transport = Transport::Tcp { flags, sequence, acknowledgment };
    assert_eq!(
        Segment::<A>::read(&frame),
        Segment { source: vip(), destination: pod(), transport, payload: Vec::new() }
    );
    assert_eq!(frame.0.len(), l4_offset::<A>() + 20);
}

/// "If the ACK bit is off, sequence number zero is used, `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`" (section 3.10.7.1).
fn a_syn_is_reset_by_rfc_9293<A: Ip>() {
    resets_with::<A>(&segment(SYN, 1_000, 0, b""), TcpFlags::RST_ACK, 0, 1_001);
    // Fast open: the payload counts.
    resets_with::<A>(&segment(SYN, 1_000, 0, b"hello"), TcpFlags::RST_ACK, 0, 1_006);
    resets_with::<A>(&segment(TcpFlags(3), 1_000, 7, b"hello"), TcpFlags::RST_ACK, 0, 1_007);
    resets_with::<A>(&segment(TcpFlags::FIN, 1_000, 7, b""), TcpFlags::RST_ACK, 0, 1_001);
    resets_with::<A>(&segment(TcpFlags::NONE, 1_000, 7, b"odd"), TcpFlags::RST_ACK, 0, 1_003);
    // Sequence numbers wrap.
    resets_with::<A>(&segment(SYN, u32::MAX, 0, b"x"), TcpFlags::RST_ACK, 0, 1);
}

/// "If the ACK bit is on, `<SEQ=SEG.ACK><CTL=RST>`" (section 3.10.7.1).
fn an_ack_is_reset_by_rfc_9293<A: Ip>() {
    for flags in [ACK, FIN_ACK, SYN_ACK, TcpFlags(0x18)] {
        resets_with::<A>(&segment(flags, 1_000, 0xfedc_ba98, b"data"), TcpFlags::RST, 0xfedc_ba98, 0);
    }
}

fn a_reset_is_never_answered<A: Ip>() {
    for flags in [TcpFlags::RST, TcpFlags::RST_ACK, TcpFlags(0x06), TcpFlags(0x3f)] {
        for port in [80, 81] {
            let mut sent = segment::<A>(flags, 1, 2, b"");
            sent.destination.port = lb_common::protocol::Port::new(port);
            let (action, reason, frame) = node().refused(From::Device, &sent);
            assert_eq!((action, reason), (Action::Drop, Counter::StrayReset));
            assert_eq!(frame, sent.frame());
        }
    }
}

fn tcp_options_and_payload_do_not_come_back<A: Ip>() {
    let mut message = tcp::<A>(pod(), vip(), SYN).frame().0.split_off(l4_offset::<A>());
    // MSS, SACK permitted, window scale: twelve bytes.
    message[12] = 0x80;
    message.extend([2, 4, 5, 0xb4, 4, 2, 3, 3, 7, 1, 1, 0]);
    message.extend(b"0123456789");
    message[16..18].copy_from_slice(&[0, 0]);
    let checksum = l4_checksum(&pod::<A>().addr, &vip::<A>().addr, 6, &message);
    message[16..18].copy_from_slice(&checksum.to_be_bytes());
    let frame = network(&pod::<A>().addr, &vip::<A>().addr, 6, &message);
    let answer = refusal::<A>(&Buffer(frame));
    let expected = Transport::Tcp { flags: TcpFlags::RST_ACK, sequence: 0, acknowledgment: 0x1234_5678 + 1 + 10 };
    assert_eq!(Segment::<A>::read(&answer).transport, expected);
    let tcp = l4_offset::<A>();
    // Window and urgent pointer.
    assert_eq!((&answer.0[tcp + 14..tcp + 16], &answer.0[tcp + 18..]), (&[0, 0][..], &[0, 0][..]));
}

/// Checks an ICMP or ICMPv6 port unreachable and returns the packet that it quotes.
#[track_caller]
fn quoted<A: Ip>(answer: &Buffer) -> &[u8] {
    let (source, destination, protocol, message) = read_network::<A>(answer);
    assert_eq!((source, destination), (vip::<A>().addr, pod::<A>().addr));
    assert_eq!(l4_checksum_is_right(&answer.0), Some(true));
    if A::is_v6() {
        assert_eq!((protocol, &message[..2]), (58, &[1, 4][..]));
        assert_eq!(l4_checksum(&source, &destination, 58, message), 0);
    } else {
        assert_eq!((protocol, &message[..2]), (1, &[3, 3][..]));
        assert_eq!(sum(&[message]), 0xffff);
    }
    assert_eq!(message[4..8], [0; 4]);
    &message[8..]
}

fn udp_is_answered_by_port_unreachable<A: Ip>() {
    for payload in [&b""[..], b"x", b"a longer payload that is not quoted in full"] {
        let sent = udp::<A>(pod(), vip()).with_payload(payload).frame();
        let answer = refusal::<A>(&sent);
        // RFC 792: the internet header plus the first 64 bits of the original datagram's data.
        assert_eq!(*quoted::<A>(&answer), sent.0[14..l4_offset::<A>() + 8]);
    }
}

/// A frame whose L4 checksum is left to the device that sends it, as tc sees it.
struct Partial(Buffer);

impl Packet for Partial {
    fn get<T: Wire>(&self, offset: usize) -> Option<&T> {
        self.0.get(offset)
    }

    fn get_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        self.0.get_mut(offset)
    }

    fn pull(&mut self) {}

    fn holds(&self, bytes: usize) -> bool {
        self.0.holds(bytes)
    }

    fn replace_l4(&mut self, _change: L4Change) -> Option<()> {
        panic!("a refusal is built, not rewritten")
    }

    fn addresses_changed(&mut self, _difference: Sum) {
        panic!("a refusal is built, not rewritten")
    }

    fn is_partial(&mut self, _field: usize) -> bool {
        true
    }

    fn resize(&mut self, length: usize) -> Option<()> {
        self.0.resize(length)
    }
}

/// What leaves such a device: it sums from the transport header on and writes where the original packet, not the answer,
/// has its checksum (`skb_checksum_help`).
fn refused_partial<A: Ip>(sent: &Segment<A>, field: usize) -> Buffer {
    let mut frame = Partial(sent.frame());
    let verdict = lb_common::pipeline::ingress(&mut frame, &node::<A>().memory, Hook::Tc, crate::node::DEVICE);
    assert_eq!(verdict.action, Action::Reply, "{verdict:?}");
    let Partial(mut answer) = frame;
    let start = l4_offset::<A>();
    let written = match !sum(&[&answer.0[start..]]) {
        0 => 0xffff,
        other => other,
    };
    answer.0[start + field..start + field + 2].copy_from_slice(&written.to_be_bytes());
    answer
}

fn a_reset_is_right_where_a_device_completes_its_checksum<A: Ip>() {
    for sent in [segment::<A>(SYN, 1, 0, b""), segment(ACK, 1, 2, b"data")] {
        let answer = Segment::<A>::read(&refused_partial(&sent, 16));
        assert_eq!((answer.source, answer.destination), (vip(), pod()));
    }
}

/// The device writes into a part of the ICMP message that nobody reads; it must add up nevertheless.
fn port_unreachable_is_right_where_a_device_completes_a_checksum<A: Ip>() {
    for payload in [&b""[..], b"x", b"a longer payload that is not quoted in full"] {
        let sent = udp::<A>(pod(), vip()).with_payload(payload);
        let answer = refused_partial(&sent, 6);
        let (source, destination, protocol, message) = read_network::<A>(&answer);
        assert_eq!((source, destination), (vip::<A>().addr, pod::<A>().addr));
        assert_eq!(protocol, if A::is_v6() { 58 } else { 1 });
        assert_eq!(l4_checksum_is_right(&answer.0), Some(true));
        assert_eq!(message[8..], sent.frame().0[14..l4_offset::<A>() + 8]);
        // The unused field: nothing, or the other zero of one's complement.
        assert!([[0, 0, 0, 0], [0, 0, 0xff, 0xff]].contains(&[message[4], message[5], message[6], message[7]]));
    }
}

fn sctp_is_answered_by_port_unreachable<A: Ip>() {
    let sent = sctp::<A>(pod(), vip()).frame();
    assert_eq!(*quoted::<A>(&refusal::<A>(&sent)), sent.0[14..l4_offset::<A>() + 8]);
}

/// Of short Ethernet frames.
fn padding_is_no_payload<A: Ip>() {
    let mut frame = segment::<A>(SYN, 10, 0, b"").frame();
    frame.0.extend([0; 6]);
    let expected = Transport::Tcp { flags: TcpFlags::RST_ACK, sequence: 0, acknowledgment: 11 };
    assert_eq!(Segment::<A>::read(&refusal::<A>(&frame)).transport, expected);
    let mut frame = udp::<A>(pod(), vip()).with_payload(b"").frame();
    frame.0.extend([0xee; 18]);
    assert_eq!(*quoted::<A>(&refusal::<A>(&frame)), frame.0[14..l4_offset::<A>() + 8]);
}

fn xdp_never_answers<A: Ip>() {
    let node = node::<A>();
    let other_port = lb_common::protocol::Port::new(81);
    for sent in [
        tcp(outside::<A>(), vip(), SYN),
        tcp(outside(), vip(), ACK),
        udp(outside(), vip()),
        tcp(outside(), lb_common::tuple::L4Addr { port: other_port, ..vip() }, SYN),
        sctp(outside(), vip()),
        tcp(outside(), vip(), TcpFlags::RST),
    ] {
        let mut frame = sent.frame();
        let verdict = node.ingress(&mut frame, Hook::Xdp, false);
        assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::Deferred));
        assert_eq!(frame, sent.frame());
    }
}

/// What refuses is no flow: its answer, should one come, is refused again, and an RST ends it.
fn a_refusal_is_not_a_service_itself<A: Ip>() {
    let node = node::<A>();
    let (_, _, mut answer) = node.refused(From::Device, &tcp(pod(), vip(), SYN));
    let before = answer.clone();
    // Out of the device by which it came: its egress sees it.
    let verdict = node.egress(&mut answer);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::NotAService));
    assert_eq!(answer, before);
    assert_eq!(node.entries(), []);
}
