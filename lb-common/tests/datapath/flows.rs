//! Whole conversations: what the backend gets, what the client gets back, and what is remembered.

use lb_common::{
    conntrack::{EntryKind, Phase},
    pipeline::Hook,
    protocol::Protocol,
    tuple::L4Addr,
    verdict::{Action, Counter},
};

use crate::{
    ip::{Ip, net},
    node::{
        BACKEND, From, HOST_MAC, KEEP, MASQUERADE, Node, POD_DEVICE, Place, Rules, SERVICE, SNAT_FIRST, SNAT_LAST,
        UPLINK, host, local_backend, node_addr, other_vip, outside, pod, remote_backend, vip,
    },
    segment::{ACK, SENDER, SYN, SYN_ACK, Segment, first, tcp, udp},
};

both! {
    reply_restores_frontend,
    reply_restores_frontend_without_masquerade,
    reply_restores_frontend_for_a_host,
    reply_restores_frontend_for_a_host_with_another_source,
    hairpin_2_4_4_a_pod_reaches_itself,
    a_conversation_is_one_flow,
    both_directions_are_counted,
    a_packet_that_slipped_past_its_device,
    a_backend_on_this_node_is_reached_and_answers,
    udp_without_checksum_stays_so,
    frames_behind_the_ip_packet_are_left_alone,
    xdp_translates_as_tc_does,
    xdp_leaves_a_hosts_answer_to_tc,
    direct_traffic_is_not_touched,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// The addresses of a packet: the rest of it must be as it was sent.
#[track_caller]
fn only_ends_differ<A: Ip>(got: &Segment<A>, sent: &Segment<A>, source: L4Addr<A>, destination: L4Addr<A>) {
    assert_eq!(*got, Segment { source, destination, ..sent.clone() });
}

fn reply_restores_frontend<A: Ip>() {
    for (protocol, place, backend) in [
        (Protocol::TCP, Place::Remote, remote_backend::<A>()),
        (Protocol::UDP, Place::Remote, remote_backend()),
        (Protocol::TCP, Place::Pod, local_backend()),
        (Protocol::UDP, Place::Pod, local_backend()),
    ] {
        for client in [outside::<A>(), pod()] {
            let node = Node::<A>::with_backend(protocol, Rules::all(MASQUERADE), backend, place);
            let sent = first(protocol, client, vip());
            let (got, reasons) = node.send(From::Device, &sent);
            assert_eq!(reasons, [Counter::NewFlow, Counter::SourceNat]);
            // The client's port is in the range, and free.
            let source = L4Addr { addr: node_addr::<A>(), port: client.port };
            only_ends_differ(&got, &sent, source, backend);
            let kinds = [EntryKind::ORIGINAL, EntryKind::SOURCE, EntryKind::RETURN, EntryKind::REPLY];
            assert_eq!(node.kinds(), kinds);

            let answer = got.answer(SYN_ACK);
            let (got, reasons) = node.send(From::Device, &answer);
            assert_eq!(reasons, [Counter::ToClient, Counter::FromFrontend]);
            only_ends_differ(&got, &answer, vip(), client);
            assert_eq!(node.connections(SERVICE, BACKEND), 1);
        }
    }
}

fn reply_restores_frontend_without_masquerade<A: Ip>() {
    for protocol in PROTOCOLS {
        for client in [outside::<A>(), pod()] {
            let node = Node::with_backend(protocol, Rules::all(KEEP), remote_backend(), Place::Remote);
            let sent = first(protocol, client, vip());
            let (got, reasons) = node.send(From::Device, &sent);
            assert_eq!(reasons, [Counter::NewFlow, Counter::NotAService]);
            only_ends_differ(&got, &sent, client, remote_backend());
            assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::REPLY]);

            let answer = got.answer(SYN_ACK);
            let (got, reasons) = node.send(From::Device, &answer);
            assert_eq!(reasons, [Counter::NotAService, Counter::FromFrontend]);
            only_ends_differ(&got, &answer, vip(), client);
            assert_eq!(node.connections(SERVICE, BACKEND), 1);
        }
    }
}

/// What a host's process gets back goes round by `ballast0`, at once: there is no egress towards it.
#[track_caller]
pub(crate) fn answer_to_host<A: Ip>(node: &Node<A>, answer: &Segment<A>) -> Segment<A> {
    let mut frame = answer.frame();
    let verdict = node.ingress(&mut frame, Hook::Tc, false);
    assert_eq!((verdict.action, verdict.counter), (Action::ToHost, Counter::HostReply));
    assert_eq!(frame.0[..6], HOST_MAC);
    assert_eq!(frame.0[6..12], SENDER);
    Segment::read(&frame)
}

fn reply_restores_frontend_for_a_host<A: Ip>() {
    for protocol in PROTOCOLS {
        for rule in [KEEP, MASQUERADE] {
            let node = Node::with_backend(protocol, Rules::all(rule), remote_backend::<A>(), Place::Remote);
            let sent = first(protocol, host(), vip());
            let (got, reasons) = node.send(From::Host, &sent);
            // A host that uses the route's own source has nothing to masquerade.
            assert_eq!(reasons, [Counter::NewFlow, Counter::NotAService]);
            only_ends_differ(&got, &sent, host(), remote_backend());
            assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::RETURN]);

            let answer = got.answer(SYN_ACK);
            only_ends_differ(&answer_to_host(&node, &answer), &answer, vip(), host());
            let answered = if protocol == Protocol::UDP { Phase::OPEN } else { Phase::ANSWERED };
            assert_eq!(node.entry(EntryKind::RETURN).phase, answered);
            assert_eq!(node.entry(EntryKind::RETURN).packets.get(), 1);
        }
    }
}

fn reply_restores_frontend_for_a_host_with_another_source<A: Ip>() {
    for protocol in PROTOCOLS {
        let client = A::at(net::NODES, 200, 40_200);
        let node = Node::with_backend(protocol, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
        let sent = first(protocol, client, vip());
        let (got, reasons) = node.send(From::Host, &sent);
        assert_eq!(reasons, [Counter::NewFlow, Counter::SourceNat]);
        let source = L4Addr { addr: node_addr::<A>(), port: client.port };
        only_ends_differ(&got, &sent, source, remote_backend());
        assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::SOURCE, EntryKind::RETURN]);

        let answer = got.answer(SYN_ACK);
        only_ends_differ(&answer_to_host(&node, &answer), &answer, vip(), client);
    }
}

fn hairpin_2_4_4_a_pod_reaches_itself<A: Ip>() {
    for protocol in PROTOCOLS {
        let backend = L4Addr { addr: pod::<A>().addr, ..local_backend() };
        let node = Node::with_backend(protocol, Rules::all(KEEP), backend, Place::Pod);
        let sent = first(protocol, pod(), vip());
        let (got, reasons) = node.send(From::Device, &sent);
        assert_eq!(reasons, [Counter::NewFlow, Counter::SourceNat]);
        only_ends_differ(&got, &sent, L4Addr { addr: node_addr::<A>(), port: pod::<A>().port }, backend);

        let answer = got.answer(SYN_ACK);
        let (got, reasons) = node.send(From::Device, &answer);
        assert_eq!(reasons, [Counter::ToClient, Counter::FromFrontend]);
        only_ends_differ(&got, &answer, vip(), pod());
    }
}

fn a_conversation_is_one_flow<A: Ip>() {
    let node = Node::with_backend(Protocol::TCP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    let (seen, _) = node.send(From::Device, &tcp(outside(), vip(), SYN));
    let entries = node.entries().len();
    for flags in [SYN, ACK, ACK] {
        let (got, reasons) = node.send(From::Device, &tcp(outside(), vip(), flags));
        assert_eq!(reasons, [Counter::ToBackend, Counter::SourceNat]);
        assert_eq!((got.source, got.destination), (seen.source, seen.destination));
        let (got, _) = node.send(From::Device, &got.answer(ACK));
        assert_eq!((got.source, got.destination), (vip(), outside()));
    }
    assert_eq!(node.entries().len(), entries);
    assert_eq!(node.connections(SERVICE, BACKEND), 1);
}

fn both_directions_are_counted<A: Ip>() {
    let node = Node::with_backend(Protocol::UDP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    let question = udp(outside(), vip()).with_payload(b"a question");
    let header = if A::is_v6() { 40 } else { 20 } + 8;
    let (got, _) = node.send(From::Device, &question);
    node.send(From::Device, &question);
    let answer = got.answer(ACK).with_payload(b"the answer, which is longer");
    for _ in 0..3 {
        node.send(From::Device, &answer);
    }
    let original = node.entry(EntryKind::ORIGINAL);
    assert_eq!((original.packets.get(), original.bytes.get()), (2, 2 * (header + 10)));
    let reply = node.entry(EntryKind::REPLY);
    assert_eq!((reply.packets.get(), reply.bytes.get()), (3, 3 * (header + 27)));
    // The others would count the same packets twice.
    assert_eq!(node.entry(EntryKind::SOURCE).packets.get() + node.entry(EntryKind::RETURN).packets.get(), 0);
}

/// Received, not made here, and routed to `ballast0` because its device had no hook yet (design.md section 2.3).
fn a_packet_that_slipped_past_its_device<A: Ip>() {
    for (place, backend, device) in
        [(Place::Remote, remote_backend::<A>(), UPLINK), (Place::Pod, local_backend(), POD_DEVICE)]
    {
        let node = Node::with_backend(Protocol::TCP, Rules::all(KEEP), backend, place);
        for expected in [Counter::NewFlow, Counter::ToBackend] {
            let mut frame = tcp(pod::<A>(), vip(), SYN).frame();
            let verdict = node.ingress(&mut frame, Hook::Host, false);
            assert_eq!((verdict.action, verdict.counter, verdict.device), (Action::Forward, expected, device));
            assert_eq!(Segment::read(&frame).destination, backend);
        }
        assert_eq!(node.entry(EntryKind::ORIGINAL).host, 0);
        assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::REPLY]);
    }
}

/// A host-network endpoint: no egress on the way in, and its answer has no ingress.
fn a_backend_on_this_node_is_reached_and_answers<A: Ip>() {
    let backend = L4Addr { addr: node_addr::<A>(), ..local_backend() };
    let node = Node::with_backend(Protocol::TCP, Rules::all(MASQUERADE), backend, Place::Node);
    let sent = tcp(outside(), vip(), SYN);
    let (action, reason, frame) = node.refused(From::Device, &sent);
    assert_eq!((action, reason), (Action::Pass, Counter::NewFlow));
    let got = Segment::read(&frame);
    only_ends_differ(&got, &sent, outside(), backend);
    // Without an egress there is nothing to masquerade at.
    assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::REPLY]);
    let mut answer = got.answer(SYN_ACK).frame();
    assert_eq!(node.egress(&mut answer), lb_common::verdict::Verdict::pass(Counter::FromFrontend));
    assert_eq!(Segment::<A>::read(&answer).source, vip());
}

fn udp_without_checksum_stays_so<A: Ip>() {
    let node = Node::with_backend(Protocol::UDP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    let mut frame = udp(outside::<A>(), vip()).frame();
    let field = crate::segment::l4_offset::<A>() + 6;
    frame.0[field..field + 2].copy_from_slice(&[0, 0]);
    assert_eq!(node.ingress(&mut frame, Hook::Tc, false).counter, Counter::NewFlow);
    assert_eq!(node.egress(&mut frame).counter, Counter::SourceNat);
    assert_eq!(frame.0[field..field + 2], [0, 0]);
}

/// Short Ethernet frames are padded.
fn frames_behind_the_ip_packet_are_left_alone<A: Ip>() {
    let node = Node::with_backend(Protocol::UDP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    let mut frame = udp(outside::<A>(), vip()).frame();
    let length = frame.0.len();
    frame.0.extend([0xee; 9]);
    assert_eq!(node.ingress(&mut frame, Hook::Tc, false).counter, Counter::NewFlow);
    assert_eq!(node.egress(&mut frame).counter, Counter::SourceNat);
    assert_eq!(frame.0.split_off(length), [0xee; 9]);
    assert_eq!(Segment::read(&frame).destination, remote_backend::<A>());
    let entry = node.entry(EntryKind::ORIGINAL);
    assert_eq!(entry.bytes.get(), u64::try_from(length - 14).expect("a small frame"));
}

fn xdp_translates_as_tc_does<A: Ip>() {
    for protocol in PROTOCOLS {
        let run = |hook: Hook| {
            let node = Node::with_backend(protocol, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
            let mut there = first(protocol, outside::<A>(), vip()).frame();
            let verdict = node.ingress(&mut there, hook, false);
            let mut at_backend = there.clone();
            assert_eq!(node.egress(&mut at_backend).counter, Counter::SourceNat);
            let mut back = Segment::<A>::read(&at_backend).answer(SYN_ACK).frame();
            let answered = node.ingress(&mut back, hook, false);
            (there, verdict, back, answered, node.entries())
        };
        assert_eq!(run(Hook::Xdp), run(Hook::Tc));
    }
}

fn xdp_leaves_a_hosts_answer_to_tc<A: Ip>() {
    let node = Node::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend::<A>(), Place::Remote);
    let (got, _) = node.send(From::Host, &tcp(host(), vip(), SYN));
    let before = node.entry(EntryKind::RETURN);
    let mut frame = got.answer(SYN_ACK).frame();
    let untouched = frame.clone();
    let verdict = node.ingress(&mut frame, Hook::Xdp, false);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::Deferred));
    assert_eq!(frame, untouched);
    // tc will see it, and touch its entry: twice would count it twice.
    assert_eq!(node.entry(EntryKind::RETURN), before);
    assert_eq!(answer_to_host(&node, &got.answer(SYN_ACK)).source, vip());
}

fn direct_traffic_is_not_touched<A: Ip>() {
    let node = Node::with_backend(Protocol::TCP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    for sent in [
        tcp(pod(), remote_backend(), SYN),
        tcp(remote_backend(), pod(), SYN_ACK),
        udp(outside(), remote_backend()),
        // To the node's address, from the backend, at a port that is not translated.
        tcp(remote_backend(), A::at(net::NODES, 1, SNAT_LAST), SYN_ACK),
        tcp(remote_backend(), A::at(net::NODES, 1, SNAT_FIRST - 1), SYN),
        tcp(pod(), L4Addr { port: lb_common::protocol::Port::new(1), ..other_vip() }, SYN),
    ] {
        let (got, reasons) = node.send(From::Device, &sent);
        assert_eq!(got, sent);
        assert_eq!(reasons, [Counter::NotAService; 2]);
    }
}
