//! Fragments: the first one has the ports and decides, the others follow it.
//!
//! Nothing is held: a fragment that comes before the first of its packet passes up untouched, and is counted. What
//! overlaps the first fragment is dropped: it would put other ports where ours were read (RFC 1858, RFC 5722).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    native_endian::{U16, U32},
};

use crate::{
    family::Addr,
    protocol::Protocol,
    settings::Setting,
    tables::Tables,
    tuple::{FlowKey, FlowTuple, Side},
    verdict::Counter,
    wire::l4::Ports,
};

/// Seconds after which the identification may be another packet's (RFC 8200 section 4.5; Linux waits 30 for IPv4).
const LIFETIME: u32 = 60;

/// Which part of a packet a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Part(pub u8);

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self(0);
    /// Its first fragment, which has the ports.
    pub const FIRST: Self = Self(1);
    /// A later fragment.
    pub const LATER: Self = Self(2);
}

/// What a network header says about fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Which part.
    pub part: Part,
    /// Bytes of the packet's payload before this fragment.
    pub offset: u16,
    /// Identification; IPv4's is in the last two bytes.
    pub id: [u8; 4],
}

impl Position {
    /// No fragment.
    pub const WHOLE: Self = Self { part: Part::WHOLE, offset: 0, id: [0; 4] };

    /// From the fields of a header: offset in bytes, and whether more fragments follow.
    #[inline(always)]
    pub const fn new(offset: u16, more: bool, id: [u8; 4]) -> Self {
        let part = match (offset, more) {
            (0, false) => Part::WHOLE,
            (0, true) => Part::FIRST,
            _ => Part::LATER,
        };
        Self { part, offset, id }
    }
}

/// Key of `LB4_FRAGMENTS` and `LB6_FRAGMENTS`: what all fragments of a packet have in common where they are seen.
/// 16 bytes for IPv4, 40 for IPv6.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Source.
    pub source: A,
    /// Destination.
    pub destination: A,
    /// Identification.
    pub id: [u8; 4],
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which hook sees it.
    pub side: Side,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Value of `LB4_FRAGMENTS` and `LB6_FRAGMENTS` (LRU hash).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Fragment {
    /// The ports in the first fragment.
    pub ports: Ports,
    /// Bytes of payload in the first fragment.
    pub end: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Jiffies (low 32 bits) when it was seen.
    pub stamp: U32,
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 16 && size_of::<FragmentKey<[u8; 16]>>() == 40);

/// Room for the above while it is made, and the key where the compiler may store whole words.
#[repr(align(8))]
struct Key<A>(FragmentKey<A>);

/// Remembers a first fragment, or gives a later one the ports of its first. The error is what becomes of it else.
#[inline(always)]
pub(crate) fn follow<A: Addr, W: Tables<A>>(
    world: &W,
    tuple: &mut FlowTuple<A>,
    position: Position,
    length: usize,
) -> Result<(), Counter> {
    let key = Key(FragmentKey {
        source: tuple.source,
        destination: tuple.destination,
        id: position.id,
        protocol: tuple.protocol,
        side: tuple.side,
        reserved: [0; 2],
    });
    if position.part == Part::FIRST {
        let ports = Ports { source: tuple.source_port, destination: tuple.destination_port };
        let stamp = U32::new(world.now());
        world.set_fragment(&key.0, &Fragment { ports, end: U16::new(length as u16), reserved: [0; 2], stamp });
        return Ok(());
    }
    let Some(first) = world.fragment(&key.0) else { return Err(Counter::Fragment) };
    let age = world.now().wrapping_sub(first.stamp.get());
    if age > LIFETIME.wrapping_mul(world.setting(Setting::TicksPerSecond) as u32) {
        return Err(Counter::Fragment);
    }
    tuple.source_port = first.ports.source;
    tuple.destination_port = first.ports.destination;
    if position.offset >= first.end.get() {
        return Ok(());
    }
    // Not ours to judge where it is nobody's we know.
    let ours = world.is_vip(&tuple.destination) || world.conntrack(&FlowKey(*tuple), |_| ()).is_some();
    Err(if ours { Counter::FragmentOverlap } else { Counter::Fragment })
}
