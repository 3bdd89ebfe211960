//! The flow hash and the choice it makes.

use lb_common::{
    frontend::Scope,
    hash::{cookie_hash, flow_hash, scale},
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    tuple::{FlowTuple, L4Addr, Side},
};
use proptest::prelude::*;

use crate::{
    ip::{Ip, net},
    node::{From, KEEP, Node, Place, Rules, SERVICE, vip},
    segment::{SYN, tcp},
};

both! { backends_share_evenly, the_choice_is_a_function_of_the_tuple }

fn tuple<A: Ip>(source: L4Addr<A>, destination: L4Addr<A>, protocol: Protocol) -> FlowTuple<A> {
    FlowTuple {
        source: source.addr,
        destination: destination.addr,
        source_port: source.port,
        destination_port: destination.port,
        protocol,
        side: Side::INGRESS,
        reserved: [0; 2],
    }
}

/// Computed by a second implementation, in Python. A change of these values moves every new connection to another backend while nodes of both versions are in use.
#[test]
#[cfg(target_endian = "little")]
fn golden_values() {
    let v4 = |host, port, protocol| {
        tuple::<[u8; 4]>(A4::at(net::WORLD, host, port), A4::at(net::SERVICES, 10, 80), protocol)
    };
    let v6 = |host, port, protocol| {
        tuple::<[u8; 16]>(A6::at(net::WORLD, host, port), A6::at(net::SERVICES, 10, 80), protocol)
    };
    let seed = 0x0123_4567_89ab_cdef;
    let hashes = [
        flow_hash(&v4(1, 40_000, Protocol::TCP), 0),
        flow_hash(&v4(1, 40_000, Protocol::TCP), seed),
        flow_hash(&v4(2, 40_000, Protocol::TCP), seed),
        flow_hash(&v4(1, 40_001, Protocol::TCP), seed),
        flow_hash(&v4(1, 40_000, Protocol::UDP), seed),
        flow_hash(&v6(1, 40_000, Protocol::TCP), 0),
        flow_hash(&v6(1, 40_000, Protocol::TCP), seed),
        flow_hash(&v6(1, 40_000, Protocol::UDP), seed),
    ];
    assert_eq!(hashes, GOLDEN);
    let cookies = [cookie_hash(0, 0), cookie_hash(1, 0), cookie_hash(1, seed), cookie_hash(1 << 40, seed)];
    assert_eq!(cookies, GOLDEN_COOKIES);
}

type A4 = [u8; 4];
type A6 = [u8; 16];

const GOLDEN: [u32; 8] = [
    3_767_899_429,
    1_873_055_378,
    1_119_924_619,
    2_109_675_035,
    2_029_870_058,
    1_164_296_141,
    116_755_252,
    1_930_942_931,
];
const GOLDEN_COOKIES: [u32; 4] = [0, 543_097_909, 4_151_428_551, 3_137_284_372];

#[test]
fn scale_stays_in_bounds() {
    for length in [1, 2, 3, 10, 65_535, u32::MAX] {
        assert_eq!(scale(0, length), 0);
        assert_eq!(scale(u32::MAX, length), length - 1);
    }
    assert_eq!(scale(u32::MAX, 0), 0);
    assert_eq!((scale(0x7fff_ffff, 2), scale(0x8000_0000, 2)), (0, 1));
}

#[test]
fn ring_words_hold_what_is_put_in() {
    for (offset, length, when_empty, tag) in
        [(0, 0, WhenEmpty::Reject, 0), (u32::MAX, u16::MAX, WhenEmpty::Drop, 0x7fff), (7, 3, WhenEmpty::Drop, 1)]
    {
        let word = RingWord::new(offset, length, when_empty, tag);
        assert_eq!((word.offset(), word.length()), (offset, u32::from(length)));
        assert_eq!((word.when_empty(), word.tag()), (when_empty, tag));
    }
}

/// Counts of ten slots lie within `percent` of even.
#[track_caller]
fn even(hashes: impl Iterator<Item = u32>, percent: u32, what: &str) {
    let mut counts = [0_u32; 10];
    for hash in hashes {
        counts[usize::try_from(scale(hash, 10)).expect("below ten")] += 1;
    }
    let mean = counts.iter().sum::<u32>() / 10;
    for count in counts {
        assert!(count.abs_diff(mean) * 100 <= mean * percent, "{what}: {counts:?}");
    }
}

/// What real clients vary: their port, or their address, or both.
fn backends_share_evenly<A: Ip>() {
    let vip = A::at(net::SERVICES, 10, 80);
    for seed in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
        let hash = |source: L4Addr<A>| flow_hash(&tuple(source, vip, Protocol::TCP), seed);
        even((20_000..60_000).map(|port| hash(A::at(net::WORLD, 9, port))), 5, "ports of one client");
        // As one client counts: every second port.
        even((10_000..30_000).map(|port| hash(A::at(net::WORLD, 9, 2 * port))), 6, "even ports of one client");
        let hosts = (0..=u8::MAX).flat_map(|network| (0..=u8::MAX).map(move |host| A::at(network, host, 40_000)));
        even(hosts.map(hash), 5, "clients with one port");
    }
    even((0..50_000).map(|cookie| cookie_hash(cookie, 42)), 5, "cookies");
}

fn the_choice_is_a_function_of_the_tuple<A: Ip>() {
    let mut node = Node::<A>::new();
    node.frontend(SERVICE, Protocol::TCP, vip(), Rules::all(KEEP));
    let ids: Vec<u32> = (1..=10).collect();
    for id in &ids {
        let host = u8::try_from(*id).expect("ten");
        node.backend(*id, SERVICE, A::at(net::REMOTE, host, 8_080), Place::Remote);
    }
    node.ring(SERVICE, Scope::Cluster, &ids, WhenEmpty::Reject);
    let mut used = std::collections::BTreeSet::new();
    for port in 30_000..30_200 {
        let sent = tcp(A::at(net::WORLD, 9, port), vip(), SYN);
        let chosen = node.send(From::Device, &sent).0.destination;
        used.insert(chosen);
        // Whatever else there is by then.
        let fresh = Node::copy_of(&node);
        A::tables(&fresh.memory).conntrack.borrow_mut().clear();
        assert_eq!(fresh.send(From::Device, &sent).0.destination, chosen);
    }
    assert_eq!(used.len(), 10);
}

proptest! {
    #[test]
    fn scale_is_below_its_length(hash: u32, length in 1_u32..) {
        prop_assert!(scale(hash, length) < length);
    }

    #[test]
    fn every_part_of_the_tuple_counts(source: [u8; 4], port: [u8; 2], bit in 0_usize..48) {
        let vip = A4::at(net::SERVICES, 10, 80);
        let hash = |addr, port| flow_hash(&tuple(L4Addr { addr, port: Port(port) }, vip, Protocol::TCP), 7);
        let mut bytes = [source[0], source[1], source[2], source[3], port[0], port[1]];
        bytes[bit / 8] ^= 1 << (bit % 8);
        let [a, b, c, d, e, f] = bytes;
        prop_assert_ne!(hash(source, port), hash([a, b, c, d], [e, f]));
    }
}
