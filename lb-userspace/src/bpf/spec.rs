//! What every map must look like: a pin that differs is refused, never reused.

use lb_common::{
    affinity::{AFFINITY_SLOTS, Client},
    backend::{Backend, BackendId, NextHop},
    conntrack::Conntrack,
    fragment::{Fragment, FragmentKey},
    frontend::{Frontend, FrontendKey, FrontendWord, PrefixFlags, PrefixKey, SourceKey},
    half_open::{HALF_OPEN_SLOTS, HalfOpen},
    ring::RingWord,
    settings::Setting,
    socket::SOCKET_SLOTS,
    tuple::FlowTuple,
    udp_socket::{CONNECTED, Peer, UdpSocket},
    verdict::Counter,
};

use crate::image::Table;

/// Version of the tables' layout and meaning: part of the pins' path. A layout that changes without changing a size
/// must raise it.
pub const SCHEMA: u32 = 2;

/// The type of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Hash,
    LruHash,
    Array,
    PerCpuArray,
    Trie,
    SocketStorage,
}

impl Kind {
    /// `enum bpf_map_type`.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array => 2,
            Self::PerCpuArray => 6,
            Self::LruHash => 9,
            Self::Trie => 11,
            Self::SocketStorage => 24,
        }
    }

    /// `map_flags`: tries and socket storage must not be preallocated.
    pub(super) const fn flags(self) -> u32 {
        if matches!(self, Self::Trie | Self::SocketStorage) { 1 } else { 0 }
    }
}

/// How large a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Fixed(u32),
    /// [`super::MapSizes::services`] times this.
    Services(u32),
    Frontends(u32),
    Backends(u32),
    Rings,
    Conntrack,
}

/// A map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) size: Size,
}

const fn spec<K, V>(name: &'static str, kind: Kind, size: Size) -> Spec {
    Spec { name, kind, key: size_of::<K>(), value: size_of::<V>(), size }
}

type A4 = [u8; 4];
type A6 = [u8; 16];

/// Every pinned map.
pub(super) const MAPS: [Spec; 36] = [
    spec::<FrontendKey<A4>, FrontendWord>("LB4_FRONTENDS", Kind::Hash, Size::Frontends(1)),
    spec::<FrontendKey<A6>, FrontendWord>("LB6_FRONTENDS", Kind::Hash, Size::Frontends(1)),
    spec::<u32, Frontend<A4>>("LB4_RECORDS", Kind::Array, Size::Frontends(2)),
    spec::<u32, Frontend<A6>>("LB6_RECORDS", Kind::Array, Size::Frontends(2)),
    spec::<A4, u64>("LB4_VIPS", Kind::Hash, Size::Frontends(1)),
    spec::<A6, u64>("LB6_VIPS", Kind::Hash, Size::Frontends(1)),
    spec::<PrefixKey<A4>, PrefixFlags>("LB4_PREFIXES", Kind::Trie, Size::Fixed(1024)),
    spec::<PrefixKey<A6>, PrefixFlags>("LB6_PREFIXES", Kind::Trie, Size::Fixed(1024)),
    spec::<SourceKey<A4>, u32>("LB4_SOURCES", Kind::Trie, Size::Frontends(2)),
    spec::<SourceKey<A6>, u32>("LB6_SOURCES", Kind::Trie, Size::Frontends(2)),
    spec::<u32, Backend<A4>>("LB4_BACKENDS", Kind::Array, Size::Backends(1)),
    spec::<u32, Backend<A6>>("LB6_BACKENDS", Kind::Array, Size::Backends(1)),
    spec::<u32, NextHop<A4>>("LB4_NEXT_HOPS", Kind::Array, Size::Fixed(4096)),
    spec::<u32, NextHop<A6>>("LB6_NEXT_HOPS", Kind::Array, Size::Fixed(4096)),
    spec::<FlowTuple<A4>, Conntrack<A4>>("LB4_CONNTRACK", Kind::Hash, Size::Conntrack),
    spec::<FlowTuple<A6>, Conntrack<A6>>("LB6_CONNTRACK", Kind::Hash, Size::Conntrack),
    spec::<u32, HalfOpen<A4>>("LB4_HALF_OPEN", Kind::Array, Size::Fixed(HALF_OPEN_SLOTS)),
    spec::<u32, HalfOpen<A6>>("LB6_HALF_OPEN", Kind::Array, Size::Fixed(HALF_OPEN_SLOTS)),
    spec::<u32, Client<A4>>("LB4_AFFINITY", Kind::Array, Size::Fixed(AFFINITY_SLOTS)),
    spec::<u32, Client<A6>>("LB6_AFFINITY", Kind::Array, Size::Fixed(AFFINITY_SLOTS)),
    spec::<u32, u64>("LB_SVC_AFFINITY", Kind::Array, Size::Services(1)),
    spec::<FragmentKey<A4>, Fragment>("LB4_FRAGMENTS", Kind::LruHash, Size::Fixed(8192)),
    spec::<FragmentKey<A6>, Fragment>("LB6_FRAGMENTS", Kind::LruHash, Size::Fixed(8192)),
    spec::<u32, RingWord>("LB_SERVICES", Kind::Array, Size::Services(2)),
    spec::<u32, BackendId>("LB_RINGS", Kind::Array, Size::Rings),
    spec::<u32, u64>("LB_SETTINGS", Kind::Array, Size::Fixed(Setting::COUNT)),
    spec::<u32, u64>("LB_COUNTERS", Kind::PerCpuArray, Size::Fixed(Counter::CAPACITY)),
    spec::<u32, u64>("LB_SOCKETS", Kind::Array, Size::Fixed(SOCKET_SLOTS)),
    // As many as there are sockets.
    spec::<i32, UdpSocket<A4>>("LB4_UDP_SOCKETS", Kind::SocketStorage, Size::Fixed(0)),
    spec::<i32, UdpSocket<A6>>("LB6_UDP_SOCKETS", Kind::SocketStorage, Size::Fixed(0)),
    spec::<u64, Peer<A4>>("LB4_CONNECTED", Kind::Hash, Size::Fixed(CONNECTED)),
    spec::<u64, Peer<A6>>("LB6_CONNECTED", Kind::Hash, Size::Fixed(CONNECTED)),
    spec::<u32, u64>("LB_SVC_CONNS", Kind::Array, Size::Services(1)),
    spec::<u32, u64>("LB4_BKD_CONNS", Kind::Array, Size::Backends(1)),
    spec::<u32, u64>("LB6_BKD_CONNS", Kind::Array, Size::Backends(1)),
    spec::<u32, u64>("LB_SVC_TRAFFIC", Kind::Array, Size::Services(2)),
];

const _: () = {
    let mut index = 0;
    while index < Table::ALL.len() {
        #[expect(clippy::indexing_slicing, reason = "compile time, bounded by the loop")]
        let name = Table::ALL[index].map_name();
        assert!(is_listed(name), "a table of the image is not a map");
        index += 1;
    }
};

const fn is_listed(name: &str) -> bool {
    let mut index = 0;
    while index < MAPS.len() {
        #[expect(clippy::indexing_slicing, reason = "compile time, bounded by the loop")]
        if same(MAPS[index].name.as_bytes(), name.as_bytes()) {
            return true;
        }
        index += 1;
    }
    false
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut index = 0;
    while index < one.len() {
        #[expect(clippy::indexing_slicing, reason = "compile time, bounded by the loop")]
        if one[index] != other[index] {
            return false;
        }
        index += 1;
    }
    true
}
