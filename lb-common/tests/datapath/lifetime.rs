//! The life of a flow: phases, timeouts, and what ends it.

use lb_common::{
    conntrack::{EntryKind, Phase},
    frontend::Scope,
    protocol::Protocol,
    ring::WhenEmpty,
    settings::Setting,
    state::{Timeouts, is_expired},
    tuple::L4Addr,
    verdict::{Action, Counter},
    wire::l4::TcpFlags,
};

use crate::{
    ip::{Ip, net},
    node::{BACKEND, From, HZ, KEEP, MASQUERADE, Node, Place, Rules, SERVICE, host, outside, remote_backend, vip},
    segment::{ACK, FIN_ACK, SYN, SYN_ACK, Segment, Transport, first, tcp, udp},
};

both! {
    phases_follow_the_packets,
    an_answer_keeps_a_flow_alive,
    a_silent_flow_ends,
    configured_timeouts_are_heeded,
    a_connection_closed_by_one_side_waits_for_the_other,
    timeouts_survive_the_wrap_of_the_clock,
    a_syn_on_a_closing_flow_makes_a_new_choice,
    a_repeated_syn_stays_with_its_backend,
    rule_2_8_1_tcp_goes_on_to_a_backend_that_left,
    rule_2_8_1_udp_leaves_a_backend_that_is_gone,
    rule_2_8_1_udp_stays_with_a_backend_that_left_the_ring_only,
    a_slot_with_a_new_owner_is_another_backend,
    a_slot_of_another_service_is_another_backend,
    a_replaced_flow_hands_its_numbers_over,
    udp_to_a_service_without_endpoints_is_refused_again,
    a_hosts_flow_ends_as_any_other,
}

#[test]
fn timeouts_are_those_of_the_table() {
    let tcp = |phase| Timeouts::DEFAULT.seconds(Protocol::TCP, phase);
    assert_eq!([Phase::OPENING, Phase::OPEN, Phase::CLOSING, Phase::CLOSED].map(tcp), [60, 86_400, 120, 10]);
    assert_eq!(tcp(Phase::HALF_CLOSED), 3_600);
    // RFC 5382: not less than 2 hours 4 minutes.
    assert!(tcp(Phase::OPEN) >= 7_440);
    let udp = |phase| Timeouts::DEFAULT.seconds(Protocol::UDP, phase);
    assert_eq!([Phase::OPENING, Phase::OPEN].map(udp), [30, 180]);
}

#[test]
fn configured_timeouts_stand_in_one_word() {
    let phases = [
        (Protocol::TCP, Phase::OPEN),
        (Protocol::TCP, Phase::HALF_CLOSED),
        (Protocol::UDP, Phase::OPENING),
        (Protocol::UDP, Phase::OPEN),
    ];
    let of = |timeouts: Timeouts| phases.map(|(protocol, phase)| timeouts.seconds(protocol, phase));
    for seconds in [[7_200, 60, 10, 20], [1, 2, 3, 4], [0; 4], [1_048_575, 1_048_575, 4_095, 4_095], [0, 9, 0, 9]] {
        let [open, half_closed, udp, stream] = seconds;
        let expected: Vec<u32> = seconds
            .into_iter()
            .zip([86_400, 3_600, 30, 180])
            .map(|(configured, default)| if configured == 0 { default } else { configured })
            .collect();
        assert_eq!(of(Timeouts::new(open, half_closed, udp, stream)).to_vec(), expected);
    }
    assert_eq!(of(Timeouts::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX)), [1_048_575, 1_048_575, 4_095, 4_095]);
    // The phases of a handshake and of an end are not configured.
    let all = Timeouts::new(5, 5, 5, 5);
    for phase in [Phase::OPENING, Phase::ANSWERED, Phase::CLOSING, Phase::CLOSED] {
        assert_eq!(all.seconds(Protocol::TCP, phase), Timeouts::DEFAULT.seconds(Protocol::TCP, phase));
    }
    assert_eq!(all.seconds(Protocol::SCTP, Phase::OPEN), 5);
}

#[test]
fn expiry_counts_the_distance_of_jiffies() {
    for hz in [100, 250, 1_000] {
        for stamp in [0, 1, 5_000, u32::MAX, u32::MAX - 30 * hz, 0x7fff_ffff] {
            let expired = |ticks: u32| is_expired(30, stamp, stamp.wrapping_add(ticks), hz);
            assert!(!expired(0));
            assert!(!expired(30 * hz), "{stamp} at {hz}");
            assert!(expired(30 * hz + 1), "{stamp} at {hz}");
        }
        // The longest timeout fits the clock.
        assert!(!is_expired(86_400, 0, 86_400 * hz, hz));
        assert!(is_expired(86_400, 0, 86_400 * hz + 1, hz));
    }
}

fn node<A: Ip>(protocol: Protocol) -> Node<A> {
    Node::with_backend(protocol, Rules::all(KEEP), remote_backend(), Place::Remote)
}

/// A second backend: which of the two a new choice would fall on is told by the ring.
fn other_backend<A: Ip>() -> L4Addr<A> {
    A::at(net::REMOTE, 8, 8_080)
}

/// Opens a connection, answered.
fn open<A: Ip>(node: &Node<A>, protocol: Protocol) {
    let (got, _) = node.send(From::Device, &first(protocol, outside(), vip()));
    node.send(From::Device, &got.answer(SYN_ACK));
    if protocol == Protocol::TCP {
        node.send(From::Device, &tcp(outside(), vip(), ACK));
    }
}

/// A segment of the backend to the client that answers [`tcp`]'s.
fn from_backend<A: Ip>(flags: TcpFlags) -> Segment<A> {
    tcp(outside(), remote_backend(), ACK).answer(flags)
}

/// Makes every new choice fall on backend 2.
fn turn_to_other<A: Ip>(node: &mut Node<A>) {
    node.backend(2, SERVICE, other_backend(), Place::Remote);
    node.ring(SERVICE, Scope::Cluster, &[2], WhenEmpty::Reject);
}

#[track_caller]
fn goes_to<A: Ip>(node: &Node<A>, segment: &Segment<A>, backend: L4Addr<A>, reason: Counter) {
    let (got, reasons) = node.send(From::Device, segment);
    assert_eq!((got.destination, reasons[0]), (backend, reason));
}

fn phases_follow_the_packets<A: Ip>() {
    let node = node::<A>(Protocol::TCP);
    let phases = || (node.entry(EntryKind::ORIGINAL).phase, node.entry(EntryKind::REPLY).phase);
    let client = |flags| node.send(From::Device, &tcp(outside(), vip(), flags));
    let server = |flags| node.send(From::Device, &from_backend(flags));
    client(SYN);
    assert_eq!(phases(), (Phase::OPENING, Phase::OPENING));
    server(SYN_ACK);
    assert_eq!(phases(), (Phase::OPENING, Phase::ANSWERED));
    client(ACK);
    assert_eq!(phases(), (Phase::OPEN, Phase::OPEN));
    server(FIN_ACK);
    assert_eq!(phases(), (Phase::OPEN, Phase::CLOSING));
    client(FIN_ACK);
    assert_eq!(phases(), (Phase::CLOSING, Phase::CLOSING));
    server(ACK);
    assert_eq!(phases(), (Phase::CLOSING, Phase::CLOSING));
    // The server waits for the number behind this one.
    client(TcpFlags::RST);
    assert_eq!(phases(), (Phase::CLOSING, Phase::CLOSING));
    let Transport::Tcp { acknowledgment, .. } = from_backend::<A>(ACK).transport else { panic!("TCP") };
    let transport = Transport::Tcp { flags: TcpFlags::RST, sequence: acknowledgment, acknowledgment: 0 };
    node.send(From::Device, &Segment { transport, ..tcp(outside(), vip(), ACK) });
    assert_eq!(phases(), (Phase::CLOSED, Phase::CLOSING));
}

/// kube-proxy's conntrack timeouts, longer and shorter than the defaults.
fn configured_timeouts_are_heeded<A: Ip>() {
    for (protocol, timeouts, lives) in
        [(Protocol::TCP, Timeouts::new(90_000, 0, 0, 0), 90_000), (Protocol::UDP, Timeouts::new(0, 0, 0, 600), 600)]
    {
        for late in [false, true] {
            let mut node = node::<A>(protocol);
            node.memory.settings.insert(Setting::Timeouts, timeouts.0);
            node.send(From::Device, &first(protocol, outside(), vip()));
            open(&node, protocol);
            turn_to_other(&mut node);
            node.pass_seconds(lives + u32::from(late));
            let sent = if protocol == Protocol::TCP { tcp(outside(), vip(), SYN) } else { udp(outside(), vip()) };
            let backend = if late { other_backend() } else { remote_backend() };
            let reason = if late { Counter::NewFlow } else { Counter::ToBackend };
            goes_to(&node, &sent, backend, reason);
        }
    }
}

/// A download: the client may be silent for long (UDP), and the reverse.
fn an_answer_keeps_a_flow_alive<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    open(&node, Protocol::UDP);
    turn_to_other(&mut node);
    for _ in 0..5 {
        node.pass_seconds(150);
        node.send(From::Device, &udp(remote_backend(), outside()));
    }
    goes_to(&node, &udp(outside(), vip()), remote_backend(), Counter::ToBackend);
    for _ in 0..5 {
        node.pass_seconds(150);
        goes_to(&node, &udp(outside(), vip()), remote_backend(), Counter::ToBackend);
    }
}

fn a_silent_flow_ends<A: Ip>() {
    for (protocol, opened, seconds) in [
        (Protocol::UDP, false, 30),
        (Protocol::UDP, true, 180),
        (Protocol::TCP, false, 60),
        (Protocol::TCP, true, 86_400),
    ] {
        for late in [false, true] {
            let mut node = node::<A>(protocol);
            node.send(From::Device, &first(protocol, outside(), vip()));
            if opened {
                open(&node, protocol);
            }
            turn_to_other(&mut node);
            node.pass_seconds(seconds + u32::from(late));
            let (expected, reason) =
                if late { (other_backend(), Counter::NewFlow) } else { (remote_backend(), Counter::ToBackend) };
            goes_to(&node, &first(protocol, outside(), vip()), expected, reason);
            assert_eq!(node.entries().len(), 2);
            assert_eq!(node.counted(Counter::FlowReplaced), u64::from(late));
        }
    }
    // In the middle of a connection that ended there is nothing to choose.
    let mut node = node::<A>(Protocol::TCP);
    open(&node, Protocol::TCP);
    node.pass_seconds(86_401);
    let (action, reason, _) = node.refused(From::Device, &tcp(outside(), vip(), ACK));
    assert_eq!((action, reason), (Action::Reply, Counter::NoState));
    assert_eq!(node.entries(), []);
}

/// As kube-proxy's `tcpCloseWaitTimeout`: who sent all of a question may wait for long for its answer.
fn a_connection_closed_by_one_side_waits_for_the_other<A: Ip>() {
    for by_client in [true, false] {
        for (seconds, both) in [(3_600, false), (3_601, false), (120, true), (121, true)] {
            let mut node = node::<A>(Protocol::TCP);
            open(&node, Protocol::TCP);
            if by_client || both {
                node.send(From::Device, &tcp(outside(), vip(), FIN_ACK));
            }
            if !by_client || both {
                node.send(From::Device, &from_backend(FIN_ACK));
            }
            node.pass_seconds(seconds);
            // What the client's own packets do not tell is collected by user space.
            let over = seconds % 10 == 1 && (by_client || both);
            let client = tcp(outside(), vip(), ACK);
            if over {
                assert_eq!(node.refused(From::Device, &client).1, Counter::NoState, "{seconds}");
            } else {
                goes_to(&node, &client, remote_backend(), Counter::ToBackend);
                node.send(From::Device, &from_backend(ACK));
            }
        }
    }
}

fn timeouts_survive_the_wrap_of_the_clock<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let mut node = node::<A>(protocol);
        // Jiffies begin five minutes before their wrap.
        node.memory.now = 0_u32.wrapping_sub(10 * HZ);
        open(&node, protocol);
        turn_to_other(&mut node);
        node.pass_seconds(20);
        assert!(node.memory.now < 11 * HZ);
        let sent = if protocol == Protocol::TCP { tcp(outside(), vip(), ACK) } else { udp(outside(), vip()) };
        goes_to(&node, &sent, remote_backend(), Counter::ToBackend);
        assert_eq!(node.entry(EntryKind::ORIGINAL).stamp.get(), node.memory.now);
        node.pass_seconds(86_401);
        goes_to(&node, &first(protocol, outside(), vip()), other_backend(), Counter::NewFlow);
    }
}

fn a_syn_on_a_closing_flow_makes_a_new_choice<A: Ip>() {
    for (from_client, flags) in [(true, FIN_ACK), (false, FIN_ACK), (true, TcpFlags::RST), (false, TcpFlags::RST_ACK)] {
        let mut node = node::<A>(Protocol::TCP);
        open(&node, Protocol::TCP);
        turn_to_other(&mut node);
        let last = if from_client { tcp(outside(), vip(), flags) } else { from_backend(flags) };
        node.send(From::Device, &last);
        // What is still on its way goes where it belongs.
        goes_to(&node, &tcp(outside(), vip(), ACK), remote_backend(), Counter::ToBackend);
        goes_to(&node, &tcp(outside(), vip(), SYN), other_backend(), Counter::NewFlow);
        assert_eq!(node.entries().len(), 2);
        assert_eq!(node.entry(EntryKind::ORIGINAL).phase, Phase::OPENING);
        assert_eq!(node.connections(SERVICE, 2), 1);
    }
}

fn a_repeated_syn_stays_with_its_backend<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    turn_to_other(&mut node);
    goes_to(&node, &tcp(outside(), vip(), SYN), remote_backend(), Counter::ToBackend);
    open(&node, Protocol::TCP);
    goes_to(&node, &tcp(outside(), vip(), SYN), remote_backend(), Counter::ToBackend);
    assert_eq!((node.connections(SERVICE, BACKEND), node.connections(SERVICE, 2)), (1, 0));
}

/// Empties the slot of the first backend, as user space does once nothing refers to it.
fn remove_backend<A: Ip>(node: &mut Node<A>) {
    turn_to_other(node);
    A::tables_mut(&mut node.memory).backends.remove(&BACKEND);
}

fn rule_2_8_1_tcp_goes_on_to_a_backend_that_left<A: Ip>() {
    let mut node = node::<A>(Protocol::TCP);
    open(&node, Protocol::TCP);
    remove_backend(&mut node);
    let sent = tcp(outside(), vip(), ACK);
    goes_to(&node, &sent, remote_backend(), Counter::ToBackend);
    let (back, _) = node.send(From::Device, &from_backend(ACK));
    assert_eq!(back.source, vip());
    // Nor does it matter that the client was silent, as long as the backend was not.
    node.pass_seconds(80_000);
    node.send(From::Device, &from_backend(ACK));
    node.pass_seconds(10_000);
    goes_to(&node, &sent, remote_backend(), Counter::ToBackend);
    // A new connection does not.
    goes_to(&node, &tcp(outside(), vip(), SYN), other_backend(), Counter::NewFlow);
}

fn rule_2_8_1_udp_leaves_a_backend_that_is_gone<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    open(&node, Protocol::UDP);
    remove_backend(&mut node);
    goes_to(&node, &udp(outside(), vip()), other_backend(), Counter::NewFlow);
    assert_eq!(node.counted(Counter::FlowReplaced), 1);
    let (back, _) = node.send(From::Device, &udp(other_backend(), outside()));
    assert_eq!(back.source, vip());
    assert_eq!(node.entries().len(), 2);
}

/// Policy, topology and terminating: established flows survive those changes.
fn rule_2_8_1_udp_stays_with_a_backend_that_left_the_ring_only<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    open(&node, Protocol::UDP);
    turn_to_other(&mut node);
    goes_to(&node, &udp(outside(), vip()), remote_backend(), Counter::ToBackend);
}

fn a_slot_with_a_new_owner_is_another_backend<A: Ip>() {
    for protocol in [Protocol::UDP, Protocol::TCP] {
        let mut node = node::<A>(protocol);
        open(&node, protocol);
        // The same slot, the next generation.
        node.backend(BACKEND, SERVICE, other_backend(), Place::Remote);
        assert_eq!(node.entry(EntryKind::ORIGINAL).generation.get(), 1);
        goes_to(&node, &first(protocol, outside(), vip()), other_backend(), Counter::NewFlow);
        assert_eq!(node.entry(EntryKind::ORIGINAL).generation.get(), 2);
        assert_eq!(node.entry(EntryKind::REPLY).backend, other_backend());
    }
}

fn a_slot_of_another_service_is_another_backend<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    open(&node, Protocol::UDP);
    turn_to_other(&mut node);
    let backends = &mut A::tables_mut(&mut node.memory).backends;
    backends.get_mut(&BACKEND).expect("slot 1 is filled").service = lb_common::backend::ServiceId::new(9);
    goes_to(&node, &udp(outside(), vip()), other_backend(), Counter::NewFlow);
}

fn a_replaced_flow_hands_its_numbers_over<A: Ip>() {
    for rule in [KEEP, MASQUERADE] {
        let mut node = Node::with_backend(Protocol::UDP, Rules::all(rule), remote_backend::<A>(), Place::Remote);
        let sent = udp(outside(), vip());
        let (got, _) = node.send(From::Device, &sent);
        node.send(From::Device, &sent);
        let answer = got.answer(ACK);
        node.send(From::Device, &answer);
        let bytes = 2 * (sent.frame().0.len() - 14) + answer.frame().0.len() - 14;
        remove_backend(&mut node);
        node.send(From::Device, &sent);
        let traffic = node.memory.traffic.borrow().get(&SERVICE).copied();
        assert_eq!(traffic, Some((3, u64::try_from(bytes).expect("few bytes"))));
        // The new flow begins at one.
        assert_eq!(node.entry(EntryKind::ORIGINAL).packets.get(), 1);
    }
}

/// kubernetes/kubernetes#139628: scaled to zero, the sender must hear of it, and find the next endpoint at once.
fn udp_to_a_service_without_endpoints_is_refused_again<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    open(&node, Protocol::UDP);
    remove_backend(&mut node);
    node.ring(SERVICE, Scope::Cluster, &[], WhenEmpty::Reject);
    for _ in 0..2 {
        let (action, reason, _) = node.refused(From::Device, &udp(outside(), vip()));
        assert_eq!((action, reason), (Action::Reply, Counter::NoEndpoint));
        assert_eq!(node.entries(), []);
    }
    turn_to_other(&mut node);
    goes_to(&node, &udp(outside(), vip()), other_backend(), Counter::NewFlow);
}

fn a_hosts_flow_ends_as_any_other<A: Ip>() {
    let mut node = node::<A>(Protocol::UDP);
    node.send(From::Host, &udp(host(), vip()));
    remove_backend(&mut node);
    let (got, reasons) = node.send(From::Host, &udp(host(), vip()));
    assert_eq!((got.destination, reasons[0]), (other_backend(), Counter::NewFlow));
    node.pass_seconds(31);
    let (_, reasons) = node.send(From::Host, &udp(host(), vip()));
    assert_eq!(reasons[0], Counter::NewFlow);
    assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::RETURN]);
}
