//! SCTP: its checksum covers ports and payload, and follows without the payload being read.

use lb_common::{
    conntrack::{EntryKind, Phase},
    pipeline::Hook,
    protocol::Protocol,
    testing::{Buffer, crc32c},
    verdict::{Action, Counter},
};

use crate::{
    flows::answer_to_host,
    ip::Ip,
    node::{
        BACKEND, From, KEEP, MASQUERADE, Node, Place, Rules, SERVICE, host, other_vip, outside, pod, remote_backend,
        vip,
    },
    segment::{SYN_ACK, Segment, l4_offset, sctp},
};

both! {
    associations_are_translated_both_ways,
    every_length_has_its_checksum,
    two_associations_that_would_be_one_are_two,
    a_checksum_that_a_device_fills_in_is_left_alone,
    a_wrong_checksum_stays_wrong,
    only_an_init_opens,
    chunks_end_an_association,
    who_does_not_know_the_tag_neither_opens_nor_ends_an_association,
    an_association_outlives_its_backends_place_in_the_service,
    fragments_are_passed,
}

fn node<A: Ip>(rule: lb_common::frontend::ClientRule) -> Node<A> {
    Node::with_backend(Protocol::SCTP, Rules::all(rule), remote_backend(), Place::Remote)
}

/// A packet whose first chunk is of this type.
fn chunk<A: Ip>(kind: u8) -> Segment<A> {
    sctp::<A>(outside(), vip()).with_payload(&of_kind(kind))
}

/// A chunk that is long enough for an INIT-ACK and wants the tag that all packets here carry.
fn of_kind(kind: u8) -> [u8; 20] {
    let mut chunk = [0; 20];
    chunk[..4].copy_from_slice(&[kind, 0, 0, 20]);
    chunk[4..8].copy_from_slice(&[0xab, 0xcd, 0xef, 0x01]);
    chunk
}

/// What the backend sends to [`chunk`]'s sender.
fn answer<A: Ip>(kind: u8) -> Segment<A> {
    sctp::<A>(remote_backend(), outside()).with_payload(&of_kind(kind))
}

#[test]
fn the_tests_own_checksum_is_right() {
    // RFC 3720 appendix B.4: 32 bytes of zeroes, of ones, and counting up.
    assert_eq!(crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(crc32c(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
    let up: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&up), [0x4e, 0x79, 0xdd, 0x46]);
}

fn associations_are_translated_both_ways<A: Ip>() {
    for (from, client) in [(From::Device, outside::<A>()), (From::Device, pod()), (From::Host, host())] {
        for rule in [KEEP, MASQUERADE] {
            let node = node::<A>(rule);
            for _ in 0..2 {
                let (seen, _) = node.send(from, &sctp(client, vip()));
                assert_eq!(seen.destination, remote_backend());
                let answer = seen.answer(SYN_ACK);
                let back = if from == From::Host {
                    answer_to_host(&node, &answer)
                } else {
                    node.send(From::Device, &answer).0
                };
                assert_eq!((back.source, back.destination), (vip(), client));
            }
            assert_eq!(node.connections(SERVICE, BACKEND), 1);
        }
    }
}

fn every_length_has_its_checksum<A: Ip>() {
    let node = node::<A>(MASQUERADE);
    for length in (1..300).chain([511, 512, 1023, 1024, 1450, 4096, 20_000, 65_000]) {
        let mut payload: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).expect("a byte")).collect();
        payload[0] = 1;
        // `send` reads it back and checks.
        let (seen, _) = node.send(From::Device, &sctp(outside(), vip()).with_payload(&payload));
        assert_eq!((seen.destination, seen.payload), (remote_backend::<A>(), payload));
    }
}

fn two_associations_that_would_be_one_are_two<A: Ip>() {
    let mut node = node::<A>(KEEP);
    node.frontend(SERVICE, Protocol::SCTP, other_vip(), Rules::all(KEEP));
    for frontend in [vip(), other_vip()] {
        let (seen, _) = node.send(From::Device, &sctp(outside(), frontend));
        let (back, _) = node.send(From::Device, &seen.answer(SYN_ACK));
        assert_eq!((back.source, back.destination), (frontend, outside::<A>()));
    }
    assert_eq!(node.counted(Counter::PortChanged), 1);
}

/// A packet with this in its checksum, before and behind ingress.
fn with_crc<A: Ip>(crc: [u8; 4]) -> (Buffer, Buffer) {
    let node = node::<A>(KEEP);
    let mut sent = sctp::<A>(outside(), vip()).frame();
    let at = l4_offset::<A>() + 8;
    sent.0[at..at + 4].copy_from_slice(&crc);
    let mut after = sent.clone();
    assert_eq!(node.ingress(&mut after, Hook::Tc, false).counter, Counter::NewFlow);
    (sent, after)
}

fn a_checksum_that_a_device_fills_in_is_left_alone<A: Ip>() {
    let (_, after) = with_crc::<A>([0; 4]);
    let at = l4_offset::<A>() + 8;
    assert_eq!(after.0[at..at + 4], [0; 4]);
}

fn a_wrong_checksum_stays_wrong<A: Ip>() {
    let (_, after) = with_crc::<A>([1, 2, 3, 4]);
    let message = &after.0[l4_offset::<A>()..];
    let right = crc32c(&[&message[..8], &[0; 4], &message[12..]].concat());
    assert_ne!(message[8..12], right);
    // By as much as before.
    let sent = sctp::<A>(outside(), vip()).frame();
    let before = &sent.0[l4_offset::<A>() + 8..l4_offset::<A>() + 12];
    for ((now, right), (wrong, was)) in message[8..12].iter().zip(right).zip([1, 2, 3, 4_u8].iter().zip(before)) {
        assert_eq!(now ^ right, wrong ^ was);
    }
}

fn only_an_init_opens<A: Ip>() {
    for kind in [0, 2, 3, 4, 6, 7, 10, 14] {
        let node = node::<A>(KEEP);
        let (action, counter, _) = node.refused(From::Device, &chunk::<A>(kind));
        assert!(matches!((action, counter), (Action::Reply, Counter::NoState)), "{kind}: {action:?} {counter:?}");
        assert!(node.entries().is_empty());
    }
}

fn chunks_end_an_association<A: Ip>() {
    for (kind, phase) in [(0, Phase::OPEN), (6, Phase::CLOSED), (7, Phase::CLOSING), (14, Phase::CLOSING)] {
        for from_client in [true, false] {
            let node = node::<A>(KEEP);
            for packet in [chunk(1), answer(2), chunk(10), answer(11)] {
                node.send(From::Device, &packet);
            }
            node.send(From::Device, &if from_client { chunk(kind) } else { answer(kind) });
            let entry = if from_client { EntryKind::ORIGINAL } else { EntryKind::REPLY };
            assert_eq!(node.entry(entry).phase, phase, "{kind}");
        }
    }
}

/// RFC 9260 section 8.5: every packet carries the tag that its receiver chose in the handshake.
fn who_does_not_know_the_tag_neither_opens_nor_ends_an_association<A: Ip>() {
    let forged = |kind| {
        let mut frame = chunk::<A>(kind).frame();
        let message = l4_offset::<A>();
        frame.0[message + 4] ^= 1;
        frame.0[message + 8..message + 12].fill(0);
        let crc = crc32c(&frame.0[message..]);
        frame.0[message + 8..message + 12].copy_from_slice(&crc);
        frame
    };
    let node = node::<A>(KEEP);
    node.send(From::Device, &chunk(1));
    node.send(From::Device, &answer(2));
    assert_eq!(node.ingress(&mut forged(10), Hook::Tc, false).action, Action::Pass);
    assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPENING);
    node.send(From::Device, &chunk(10));
    for kind in [6, 7, 14] {
        assert_eq!(node.ingress(&mut forged(kind), Hook::Tc, false).action, Action::Pass);
        assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPEN);
    }
}

fn an_association_outlives_its_backends_place_in_the_service<A: Ip>() {
    let mut node = node::<A>(KEEP);
    node.send(From::Device, &chunk(1));
    node.send(From::Device, &chunk(0));
    A::tables_mut(&mut node.memory).backends.clear();
    let (seen, reasons) = node.send(From::Device, &chunk(0));
    assert_eq!((seen.destination, reasons[0]), (remote_backend::<A>(), Counter::ToBackend));
}

fn fragments_are_passed<A: Ip>() {
    let node = node::<A>(KEEP);
    let sent = sctp::<A>(outside(), vip()).with_payload(&[1; 64]).frame();
    for mut part in crate::fragments::cut::<A>(&sent, &[32], 9) {
        let whole = part.clone();
        let verdict = node.ingress(&mut part, Hook::Tc, false);
        assert_eq!((verdict.action, verdict.counter), (Action::Pass, Counter::Sctp));
        assert_eq!(part, whole);
    }
}
