//! Half-open flows, takeover and forged sources: what strangers cannot do.

use lb_common::{
    conntrack::{EntryKind, Phase},
    frontend::Scope,
    half_open::{HALF_OPEN_SLOTS, slots},
    pipeline::Hook,
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    settings::{Setting, takeover, takeover_left},
    tuple::L4Addr,
    verdict::{Action, Counter},
    wire::l4::TcpFlags,
};

use crate::{
    ip::{Ip, net},
    node::{From, HZ, KEEP, MASQUERADE, Node, Place, Rules, SERVICE, UPLINK, outside, pod, remote_backend, vip},
    segment::{ACK, FIN_ACK, SYN, SYN_ACK, Segment, Transport, first, tcp, udp},
};

both! {
    a_flood_leaves_open_flows_and_room,
    a_flow_that_made_room_is_made_again_with_its_backend,
    the_oldest_of_a_set_makes_room,
    a_proved_flow_frees_its_slot,
    a_flow_that_is_made_again_keeps_its_slot,
    a_guessed_acknowledgment_opens_nothing,
    an_unproved_segment_reaches_its_backend,
    udp_is_safe_once_its_client_came_back_after_an_answer,
    without_slots_nothing_is_limited,
    a_handshake_that_nobody_finished_ends_in_a_minute,
    a_connection_that_was_refused_ends_at_once,
    an_rst_that_does_not_fit_ends_nothing,
    a_fin_that_does_not_fit_ends_nothing,
    an_rst_in_the_handshake_does_not_hinder_it,
    takeover_passes_what_has_no_state,
    takeover_ends,
    a_pods_address_from_an_uplink_is_nobody,
}

const RST: TcpFlags = TcpFlags::RST;

fn node<A: Ip>(protocol: Protocol, slots: u32) -> Node<A> {
    let mut node = Node::with_backend(protocol, Rules::all(KEEP), remote_backend(), Place::Remote);
    node.memory.settings.insert(Setting::HalfOpenSlots, u64::from(slots));
    node
}

/// The `number`th stranger.
fn stranger<A: Ip>(number: u32) -> L4Addr<A> {
    let port = u16::try_from(1_024 + number % 60_000).expect("below 61,024");
    L4Addr { addr: A::host(net::WORLD, u8::try_from(20 + number / 60_000).expect("few")), port: Port::new(port) }
}

fn answered<A: Ip>(node: &Node<A>, client: L4Addr<A>) {
    node.send(From::Device, &tcp(client, remote_backend(), SYN).answer(SYN_ACK));
}

fn shake_hands<A: Ip>(node: &Node<A>, client: L4Addr<A>) {
    node.send(From::Device, &tcp(client, vip(), SYN));
    answered(node, client);
    node.send(From::Device, &tcp(client, vip(), ACK));
}

/// A segment with these numbers instead of [`tcp`]'s.
fn numbered<A: Ip>(segment: Segment<A>, sequence: u32, acknowledgment: u32) -> Segment<A> {
    let Transport::Tcp { flags, .. } = segment.transport else { panic!("TCP") };
    Segment { transport: Transport::Tcp { flags, sequence, acknowledgment }, ..segment }
}

#[test]
fn half_open_flows_take_no_more_than_half_of_conntrack() {
    assert_eq!(slots(262_144), HALF_OPEN_SLOTS);
    assert_eq!(slots(u32::MAX), HALF_OPEN_SLOTS);
    for entries in [64, 1_000, 65_536] {
        assert!(4 * slots(entries) <= entries / 2, "{entries}");
    }
    assert_eq!(slots(0), 4);
}

fn a_flood_leaves_open_flows_and_room<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 64);
    A::tables_mut(&mut node.memory).conntrack_capacity = 1_000;
    let friends: Vec<_> = (0..100).map(stranger).collect();
    for friend in &friends {
        shake_hands(&node, *friend);
    }
    for number in 1_000..5_000 {
        let enemy = stranger(number);
        node.send(From::Device, &tcp(enemy, vip(), SYN));
        if number % 2 == 0 {
            // It has to guess: the backend's answer goes to whom it pretends to be.
            answered(&node, enemy);
            node.send(From::Device, &numbered(tcp(enemy, vip(), ACK), 1, number));
        }
        assert!(node.entries().len() <= 2 * (100 + 64), "after {number}");
    }
    assert_eq!(node.counted(Counter::ConntrackFull), 0);
    assert!(node.counted(Counter::HalfOpenEvicted) >= 4_000 - 64);
    for friend in friends {
        let (seen, reasons) = node.send(From::Device, &tcp(friend, vip(), ACK));
        assert_eq!((seen.destination, reasons[0]), (remote_backend(), Counter::ToBackend));
    }
    // And whoever comes now gets in.
    for number in 10_000..10_100 {
        shake_hands(&node, stranger(number));
    }
}

fn a_flow_that_made_room_is_made_again_with_its_backend<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    for id in 2..=8 {
        node.backend(id, SERVICE, A::at(net::REMOTE, 100 + u8::try_from(id).expect("few"), 8_080), Place::Remote);
    }
    node.ring(SERVICE, Scope::Cluster, &[1, 2, 3, 4, 5, 6, 7, 8], WhenEmpty::Reject);
    let chosen = |client| node.send(From::Device, &tcp(client, vip(), SYN)).0.destination;
    let before: Vec<_> = (0..40).map(|number| chosen(stranger(number))).collect();
    assert_eq!(node.counted(Counter::HalfOpenEvicted), 36);
    let after: Vec<_> = (0..40).map(|number| chosen(stranger(number))).collect();
    assert_eq!(before, after);
}

fn the_oldest_of_a_set_makes_room<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    // The clock wraps between them.
    node.memory.now = 0_u32.wrapping_sub(2 * HZ);
    for number in 0..5 {
        node.send(From::Device, &tcp(stranger(number), vip(), SYN));
        node.pass_seconds(1);
    }
    let mut left: Vec<_> = node.entries().iter().map(|entry| entry.client).collect();
    left.dedup();
    left.sort();
    left.dedup();
    assert_eq!(left, (1..5).map(stranger).collect::<Vec<_>>());
}

fn a_proved_flow_frees_its_slot<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    for number in 0..3 {
        node.send(From::Device, &tcp(stranger(number), vip(), SYN));
        node.pass_seconds(1);
    }
    for number in 3..50 {
        shake_hands(&node, stranger(number));
        node.pass_seconds(1);
    }
    assert_eq!(node.counted(Counter::HalfOpenEvicted), 0);
    assert_eq!(node.entries().len(), 100);
    // And no other one.
    for (number, evicted) in [(50, 0), (51, 1)] {
        node.send(From::Device, &tcp(stranger(number), vip(), SYN));
        assert_eq!(node.counted(Counter::HalfOpenEvicted), evicted);
    }
}

fn a_flow_that_is_made_again_keeps_its_slot<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    for number in 0..4 {
        // Its handshake is over by time, and begins anew.
        node.send(From::Device, &tcp(stranger(9), vip(), SYN));
        node.pass_seconds(61);
        assert_eq!(node.counted(Counter::FlowReplaced), number);
    }
    for number in 0..3 {
        node.send(From::Device, &tcp(stranger(number), vip(), SYN));
    }
    assert_eq!(node.counted(Counter::HalfOpenEvicted), 0);
}

fn a_guessed_acknowledgment_opens_nothing<A: Ip>() {
    let node = node::<A>(Protocol::TCP, 4);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    for guess in [0, 1, u32::MAX] {
        // Before the answer, and after it.
        node.send(From::Device, &numbered(tcp(outside(), vip(), ACK), 1, guess));
        answered(&node, outside());
        node.send(From::Device, &numbered(tcp(outside(), vip(), FIN_ACK), 1, guess));
        assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPENING);
    }
    node.send(From::Device, &tcp(outside(), vip(), ACK));
    assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPEN);
}

/// It is the backend that knows better: TCP Fast Open, a repeated SYN-ACK.
fn an_unproved_segment_reaches_its_backend<A: Ip>() {
    for rule in [KEEP, MASQUERADE] {
        let mut node = Node::with_backend(Protocol::TCP, Rules::all(rule), remote_backend::<A>(), Place::Remote);
        node.memory.settings.insert(Setting::HalfOpenSlots, 4);
        node.send(From::Device, &tcp(outside(), vip(), SYN));
        for _ in 0..3 {
            let sent = numbered(tcp(outside(), vip(), ACK).with_payload(b"early"), 5, 6);
            let (seen, reasons) = node.send(From::Device, &sent);
            assert_eq!((seen.destination, reasons[0]), (remote_backend(), Counter::ToBackend));
        }
        assert_eq!(node.entry(EntryKind::ORIGINAL).packets.get(), 4);
    }
}

fn udp_is_safe_once_its_client_came_back_after_an_answer<A: Ip>() {
    for (packets, answers, safe) in [(1, 0, false), (3, 0, false), (1, 1, false), (2, 1, true)] {
        let mut node = node::<A>(Protocol::UDP, 4);
        for _ in 0..packets {
            node.send(From::Device, &udp(outside(), vip()));
        }
        for _ in 0..answers {
            node.send(From::Device, &udp(remote_backend(), outside()));
        }
        node.pass_seconds(1);
        for number in 0..4 {
            node.send(From::Device, &udp(stranger(number), vip()));
        }
        assert_eq!(node.counted(Counter::HalfOpenEvicted), u64::from(!safe), "{packets} packets, {answers} answers");
    }
}

fn without_slots_nothing_is_limited<A: Ip>() {
    let node = node::<A>(Protocol::TCP, 0);
    for number in 0..50 {
        node.send(From::Device, &tcp(stranger(number), vip(), SYN));
    }
    assert_eq!((node.entries().len(), node.counted(Counter::HalfOpenEvicted)), (100, 0));
}

fn a_handshake_that_nobody_finished_ends_in_a_minute<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    answered(&node, outside());
    node.pass_seconds(61);
    let (_, reasons) = node.send(From::Device, &tcp(outside(), vip(), SYN));
    assert_eq!(reasons[0], Counter::NewFlow);
    assert_eq!(node.counted(Counter::FlowReplaced), 1);
}

fn a_connection_that_was_refused_ends_at_once<A: Ip>() {
    let node = node::<A>(Protocol::TCP, 4);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    node.send(From::Device, &tcp(outside(), remote_backend(), SYN).answer(TcpFlags::RST_ACK));
    let (_, reasons) = node.send(From::Device, &tcp(outside(), vip(), SYN));
    assert_eq!(reasons[0], Counter::NewFlow);
}

/// reliability.md section 7: whoever guesses addresses and ports must not shorten a connection's life.
fn ends_nothing<A: Ip>(flags: TcpFlags) {
    let mut node = node::<A>(Protocol::TCP, 4);
    shake_hands(&node, outside());
    let answer = tcp(outside(), remote_backend(), ACK).answer(ACK);
    node.send(From::Device, &answer);
    let Transport::Tcp { sequence, acknowledgment, .. } = answer.transport else { panic!("TCP") };
    for distance in [0x0020_0000, 0x8000_0000, 0xfff0_0000_u32] {
        let to_backend = tcp(outside(), vip(), flags);
        // A segment of the same guess before it changes nothing.
        for kind in [ACK, flags] {
            let sent = Segment {
                transport: Transport::Tcp { flags: kind, sequence: 0, acknowledgment: 0 },
                ..to_backend.clone()
            };
            node.send(From::Device, &numbered(sent, acknowledgment.wrapping_add(distance), distance));
        }
        node.send(From::Device, &tcp(outside(), vip(), ACK));
        let to_client =
            Segment { transport: Transport::Tcp { flags, sequence: 0, acknowledgment: 0 }, ..answer.clone() };
        node.send(From::Device, &numbered(to_client, sequence.wrapping_add(distance), 0));
    }
    node.pass_seconds(80_000);
    let (_, reasons) = node.send(From::Device, &tcp(outside(), vip(), ACK));
    assert_eq!((reasons[0], node.entry(EntryKind::ORIGINAL).phase), (Counter::ToBackend, Phase::OPEN));
    assert_eq!(node.entry(EntryKind::REPLY).phase, Phase::OPEN);
    // The right number does.
    node.send(From::Device, &numbered(tcp(outside(), vip(), flags), acknowledgment, 0));
    assert!(node.entry(EntryKind::ORIGINAL).phase >= Phase::CLOSING);
}

fn an_rst_that_does_not_fit_ends_nothing<A: Ip>() {
    ends_nothing::<A>(RST);
}

fn a_fin_that_does_not_fit_ends_nothing<A: Ip>() {
    ends_nothing::<A>(FIN_ACK);
}

fn an_rst_in_the_handshake_does_not_hinder_it<A: Ip>() {
    let node = node::<A>(Protocol::TCP, 4);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    answered(&node, outside());
    node.send(From::Device, &tcp(outside(), vip(), RST));
    assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::CLOSED);
    node.send(From::Device, &tcp(outside(), vip(), ACK));
    assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPEN);
}

/// design.md section 4: kube-proxy's connections are translated by `nf_conntrack`, untouched by us.
fn takeover_passes_what_has_no_state<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    node.memory.settings.insert(Setting::Takeover, takeover(node.memory.now, 600 * HZ));
    for flags in [ACK, FIN_ACK, RST] {
        let sent = tcp(outside(), vip(), flags);
        let (action, reason, frame) = node.refused(From::Device, &sent);
        assert_eq!((action, reason), (Action::Pass, Counter::TakenOver));
        assert_eq!(Segment::read(&frame), sent);
        assert_eq!(node.entries(), []);
    }
    // A new connection is ours.
    let (seen, reasons) = node.send(From::Device, &first(Protocol::TCP, outside(), vip()));
    assert_eq!((seen.destination, reasons[0]), (remote_backend(), Counter::NewFlow));
}

fn takeover_ends<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP, 4);
    node.memory.now = 0_u32.wrapping_sub(300 * HZ);
    node.memory.settings.insert(Setting::Takeover, takeover(node.memory.now, 600 * HZ));
    let reason = |node: &Node<A>| node.refused(From::Device, &tcp(outside(), vip(), ACK)).1;
    node.pass_seconds(599);
    assert_eq!(reason(&node), Counter::TakenOver);
    node.pass_seconds(1);
    assert_eq!(reason(&node), Counter::NoState);
    assert_eq!(takeover_left(takeover(5, 10), 8), 7);
    assert_eq!(takeover_left(0, 8), 0);
}

fn a_pods_address_from_an_uplink_is_nobody<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
        for setting in Setting::UPLINKS {
            for shift in [0, 32] {
                for hook in [Hook::Xdp, Hook::Tc, Hook::Host] {
                    let mut node = node::<A>(protocol, 4);
                    node.memory.settings.insert(setting, u64::from(UPLINK) << shift);
                    let verdict = |client, device| {
                        let mut frame = first(protocol, client, vip::<A>()).frame();
                        let verdict = lb_common::pipeline::ingress(&mut frame, &node.memory, hook, device);
                        (verdict.action, verdict.counter)
                    };
                    assert_eq!(verdict(pod(), UPLINK), (Action::Drop, Counter::SpoofedSource));
                    assert_eq!(node.entries(), []);
                    assert_eq!(verdict(outside(), UPLINK).1, Counter::NewFlow);
                    assert_eq!(verdict(pod(), UPLINK + 1).1, Counter::NewFlow);
                }
            }
        }
    }
}
