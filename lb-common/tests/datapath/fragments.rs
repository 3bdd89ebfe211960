//! Fragments: the first decides, the others follow, and put together they are the packet that a whole one would be.

use lb_common::{
    conntrack::EntryKind,
    frontend::ClientRule,
    pipeline::Hook,
    protocol::Protocol,
    testing::Buffer,
    verdict::{Action, Counter},
};

use crate::{
    ip::Ip,
    node::{From, KEEP, MASQUERADE, Node, Place, Rules, host, other_vip, outside, pod, remote_backend, vip},
    segment::{SYN, SYN_ACK, Segment, l4_offset, sum, tcp, udp},
};

both! {
    fragments_together_are_the_whole_packet,
    fragments_may_follow_in_any_order_but_the_first,
    a_fragment_before_the_first_is_passed_and_counted,
    what_overlaps_the_first_is_dropped,
    the_fragments_of_a_refused_packet_are_dropped,
    the_fragments_of_a_packet_for_nobody_are_passed,
    an_identification_is_another_packets_after_a_while,
    each_packet_has_fragments_of_its_own,
    a_first_fragment_without_all_ports_is_malformed,
    later_fragments_tell_nothing_of_a_connection,
}

/// Cuts a frame's payload at these offsets, multiples of eight.
pub(crate) fn cut<A: Ip>(frame: &Buffer, cuts: &[usize], id: u16) -> Vec<Buffer> {
    let (headers, payload) = frame.0.split_at(l4_offset::<A>());
    let mut bounds = vec![0];
    bounds.extend(cuts);
    bounds.push(payload.len());
    let parts = bounds.windows(2).map(|pair| {
        let (part, more) = (&payload[pair[0]..pair[1]], pair[1] < payload.len());
        let length = u16::try_from(part.len()).expect("a small packet");
        let offset = u16::try_from(pair[0]).expect("a small packet");
        let mut headers = headers.to_vec();
        if A::is_v6() {
            let next = std::mem::replace(&mut headers[20], 44);
            headers[18..20].copy_from_slice(&(length + 8).to_be_bytes());
            headers.extend([next, 0]);
            headers.extend((offset | u16::from(more)).to_be_bytes());
            headers.extend([0, 7]);
            headers.extend(id.to_be_bytes());
        } else {
            headers[16..18].copy_from_slice(&(length + 20).to_be_bytes());
            headers[18..20].copy_from_slice(&id.to_be_bytes());
            headers[20..22].copy_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
            headers[24..26].fill(0);
            let checksum = !sum(&[&headers[14..34]]);
            headers[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        headers.extend(part);
        Buffer(headers)
    });
    parts.collect()
}

/// Puts fragments together again; all headers must agree.
#[track_caller]
fn join<A: Ip>(parts: &[Buffer]) -> Buffer {
    let payload_at = l4_offset::<A>() + if A::is_v6() { 8 } else { 0 };
    let mut whole = parts[0].0[..l4_offset::<A>()].to_vec();
    let (addresses, width) = if A::is_v6() { (22, 32) } else { (26, 8) };
    for part in parts {
        assert_eq!(part.0[addresses..addresses + width], whole[addresses..addresses + width]);
        if !A::is_v6() {
            assert_eq!(sum(&[&part.0[14..34]]), 0xffff);
        }
    }
    let payload: Vec<u8> = parts.iter().flat_map(|part| part.0[payload_at..].to_vec()).collect();
    let length = u16::try_from(payload.len()).expect("a small packet");
    if A::is_v6() {
        whole[20] = parts[0].0[54];
        whole[18..20].copy_from_slice(&length.to_be_bytes());
    } else {
        whole[16..18].copy_from_slice(&(length + 20).to_be_bytes());
        whole[18..22].copy_from_slice(&[0xbe, 0xef, 0x40, 0]);
        whole[24..26].fill(0);
        let checksum = !sum(&[&whole[14..34]]);
        whole[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    whole.extend(payload);
    Buffer(whole)
}

fn long<A: Ip>() -> Segment<A> {
    let payload: Vec<u8> = (0..200).collect();
    udp::<A>(outside(), vip()).with_payload(&payload)
}

fn node<A: Ip>(rule: ClientRule) -> Node<A> {
    let mut node = Node::with_backend(Protocol::UDP, Rules::all(rule), remote_backend(), Place::Remote);
    node.frontend(1, Protocol::TCP, vip(), Rules::all(rule));
    node
}

const CUTS: [usize; 2] = [64, 128];

/// Runs both hooks; the counters of their verdicts.
#[track_caller]
fn through<A: Ip>(node: &Node<A>, frame: &mut Buffer, hook: Hook) -> [Counter; 2] {
    let inward = node.ingress(frame, hook, hook == Hook::Host);
    let expected = if hook == Hook::Host { Action::Forward } else { Action::Pass };
    assert_eq!(inward.action, expected, "{inward:?}");
    let outward = node.egress(frame);
    assert_eq!(outward.action, Action::Pass, "{outward:?}");
    [inward.counter, outward.counter]
}

fn fragments_together_are_the_whole_packet<A: Ip>() {
    for (client, hook) in [(outside::<A>(), Hook::Tc), (pod(), Hook::Xdp), (host(), Hook::Host)] {
        for rule in [KEEP, MASQUERADE] {
            let (one, other) = (node::<A>(rule), node::<A>(rule));
            let sent = Segment { source: client, ..long() };
            let mut whole = sent.frame();
            through::<A>(&one, &mut whole, hook);
            let mut parts = cut::<A>(&sent.frame(), &CUTS, 1);
            for part in &mut parts {
                through(&other, part, hook);
            }
            assert_eq!(join::<A>(&parts), whole, "{rule:?}");
            assert_eq!(other.kinds(), one.kinds());
            assert_eq!(other.entry(EntryKind::ORIGINAL).packets.get(), 3);
            // And the answer.
            let answer = Segment::<A>::read(&whole).answer(SYN_ACK).with_payload(&[7; 200]);
            let mut parts = cut::<A>(&answer.frame(), &CUTS, 2);
            for part in &mut parts {
                if hook == Hook::Host {
                    assert_eq!(other.ingress(part, Hook::Tc, false).action, Action::ToHost);
                } else {
                    through(&other, part, Hook::Tc);
                }
            }
            let back = Segment::<A>::read(&join::<A>(&parts));
            assert_eq!((back.source, back.destination), (vip(), client));
            assert_eq!(back.payload, answer.payload);
        }
    }
}

fn fragments_may_follow_in_any_order_but_the_first<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    let mut parts = cut::<A>(&long::<A>().frame(), &CUTS, 1);
    for index in [0, 2, 1] {
        assert_eq!(through::<A>(&node, &mut parts[index], Hook::Tc)[1], Counter::SourceNat);
    }
    Segment::<A>::read(&join::<A>(&parts));
}

fn a_fragment_before_the_first_is_passed_and_counted<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    let mut parts = cut::<A>(&long::<A>().frame(), &CUTS, 1);
    for index in [1, 2] {
        let sent = parts[index].clone();
        assert_eq!(through::<A>(&node, &mut parts[index], Hook::Tc), [Counter::Fragment; 2]);
        assert_eq!(parts[index], sent);
    }
    assert!(node.entries().is_empty());
}

fn what_overlaps_the_first_is_dropped<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    let parts = cut::<A>(&long::<A>().frame(), &CUTS, 1);
    through::<A>(&node, &mut parts[0].clone(), Hook::Tc);
    // Cut anew, within the first.
    for at in [8, 56] {
        let overlapping = &cut::<A>(&long::<A>().frame(), &[at], 1)[1];
        let verdict = node.ingress(&mut overlapping.clone(), Hook::Tc, false);
        assert_eq!((verdict.action, verdict.counter), (Action::Drop, Counter::FragmentOverlap));
    }
    // The same at egress.
    let (seen, _) = node.send(From::Device, &long());
    let answer = Segment { destination: outside(), ..seen.answer(SYN_ACK).with_payload(&[7; 200]) };
    assert_eq!(node.egress(&mut cut::<A>(&answer.frame(), &CUTS, 3)[0]).counter, Counter::FromFrontend);
    let verdict = node.egress(&mut cut::<A>(&answer.frame(), &[8], 3)[1]);
    assert_eq!((verdict.action, verdict.counter), (Action::Drop, Counter::FragmentOverlap));
    let family = if A::is_v6() { "IPv6" } else { "IPv4" };
    println!("SCOREBOARD R22 fragments that overlap the first one: dropped and counted, in memory ({family})");
}

fn the_fragments_of_a_refused_packet_are_dropped<A: Ip>() {
    let mut node = node::<A>(MASQUERADE);
    A::tables_mut(&mut node.memory).vips.push(other_vip::<A>().addr);
    let sent = Segment { destination: other_vip(), ..long::<A>() };
    let parts = cut::<A>(&sent.frame(), &CUTS, 1);
    let verdict = node.ingress(&mut parts[0].clone(), Hook::Tc, false);
    // IPv6: behind an extension header there is no room for an answer.
    let expected = if A::is_v6() { Action::Drop } else { Action::Reply };
    assert_eq!(verdict.action, expected);
    for part in &parts[1..] {
        let verdict = node.ingress(&mut part.clone(), Hook::Tc, false);
        assert_eq!((verdict.action, verdict.counter), (Action::Drop, Counter::FragmentRefused));
    }
}

fn the_fragments_of_a_packet_for_nobody_are_passed<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    let sent = Segment { destination: remote_backend(), ..long::<A>() };
    for mut part in cut::<A>(&sent.frame(), &CUTS, 1) {
        let whole = part.clone();
        assert_eq!(through::<A>(&node, &mut part, Hook::Tc), [Counter::NotAService; 2]);
        assert_eq!(part, whole);
    }
    // Whether they overlap or not.
    let mut overlapping = cut::<A>(&sent.frame(), &[8], 1)[1].clone();
    assert_eq!(through::<A>(&node, &mut overlapping, Hook::Tc), [Counter::Fragment; 2]);
}

fn an_identification_is_another_packets_after_a_while<A: Ip>() {
    let mut node = node::<A>(MASQUERADE);
    // A flow that was answered lives longer.
    let (seen, _) = node.send(From::Device, &long());
    node.send(From::Device, &seen.answer(SYN_ACK));
    let parts = cut::<A>(&long::<A>().frame(), &CUTS, 1);
    through::<A>(&node, &mut parts[0].clone(), Hook::Tc);
    node.pass_seconds(60);
    assert_eq!(through::<A>(&node, &mut parts[1].clone(), Hook::Tc)[0], Counter::ToBackend);
    node.pass_seconds(1);
    assert_eq!(through::<A>(&node, &mut parts[2].clone(), Hook::Tc)[0], Counter::Fragment);
}

fn each_packet_has_fragments_of_its_own<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    let one = cut::<A>(&long::<A>().frame(), &CUTS, 1);
    through::<A>(&node, &mut one[0].clone(), Hook::Tc);
    let same_id = |segment: Segment<A>, id| cut::<A>(&segment.frame(), &CUTS, id)[1].clone();
    for mut other in [
        same_id(long(), 2),
        same_id(Segment { source: pod(), ..long() }, 1),
        same_id(Segment { destination: other_vip(), ..long() }, 1),
        same_id(tcp::<A>(outside(), vip(), SYN_ACK).with_payload(&[0; 200]), 1),
    ] {
        assert_eq!(through::<A>(&node, &mut other, Hook::Tc)[0], Counter::Fragment);
    }
}

fn a_first_fragment_without_all_ports_is_malformed<A: Ip>() {
    let node: Node<A> = node::<A>(MASQUERADE);
    // TCP's header must be whole: flags in the second fragment would be read by nobody.
    let sent = tcp::<A>(outside(), vip(), SYN).with_payload(&[0; 64]);
    for at in [8, 16] {
        let mut first = cut::<A>(&sent.frame(), &[at], 1)[0].clone();
        assert_eq!(through::<A>(&node, &mut first, Hook::Tc), [Counter::Malformed; 2]);
    }
    assert!(node.entries().is_empty());
}

fn later_fragments_tell_nothing_of_a_connection<A: Ip>() {
    let node: Node<A> = node::<A>(KEEP);
    let syn = tcp::<A>(outside(), vip(), SYN);
    node.send(From::Device, &syn);
    let before = node.entry(EntryKind::ORIGINAL).phase;
    let again = syn.with_payload(&[0; 64]);
    for mut part in cut::<A>(&again.frame(), &[40], 1) {
        through(&node, &mut part, Hook::Tc);
    }
    assert_eq!(node.entry(EntryKind::ORIGINAL).phase, before);
}
