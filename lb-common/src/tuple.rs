//! Addresses with ports, and the keys of flows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    family::Addr,
    protocol::{Port, Protocol},
};

/// An address and a port, both as on the wire. 6 bytes for IPv4, 18 for IPv6, no alignment.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct L4Addr<A> {
    /// The IP address.
    pub addr: A,
    /// The port; [`Port::NONE`] where a map value has no such address.
    pub port: Port,
}

impl<A: Addr> L4Addr<A> {
    /// "No address": in a map value only.
    pub const NONE: Self = Self { addr: A::UNSPECIFIED, port: Port::NONE };
}

/// On which side of the stack a tuple is seen (design.md section 2.1): before it at ingress, where packets still or
/// again carry the addresses of the outside, or behind it at egress, where they carry client and backend.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Side(pub u8);

impl Side {
    /// NAT points 1 and 3.
    pub const INGRESS: Self = Self(1);
    /// NAT points 2 and 4.
    pub const EGRESS: Self = Self(2);
}

/// The key of a flow in conntrack: the packet's own source and destination, its protocol, and where it is seen.
/// 16 bytes for IPv4, 40 for IPv6, no alignment.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FlowTuple<A> {
    /// Source of the packet.
    pub source: A,
    /// Destination of the packet.
    pub destination: A,
    /// Its source port.
    pub source_port: Port,
    /// Its destination port.
    pub destination_port: Port,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which hook sees it.
    pub side: Side,
    /// Zero.
    pub reserved: [u8; 2],
}

/// A [`FlowTuple`] in memory of our own, where the compiler may store whole words: a map's type has no alignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(8))]
pub struct FlowKey<A>(pub FlowTuple<A>);

impl<A: Addr> FlowKey<A> {
    /// A tuple as the packet carries it.
    #[inline(always)]
    pub fn new(side: Side, protocol: Protocol, source: L4Addr<A>, destination: L4Addr<A>) -> Self {
        Self(FlowTuple {
            source: source.addr,
            destination: destination.addr,
            source_port: source.port,
            destination_port: destination.port,
            protocol,
            side,
            reserved: [0; 2],
        })
    }
}

const _: () = assert!(size_of::<FlowTuple<[u8; 4]>>() == 16 && size_of::<FlowTuple<[u8; 16]>>() == 40);
