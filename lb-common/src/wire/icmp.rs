//! ICMP and ICMPv6 errors: the messages we build.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Checksum;

/// ICMP for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// ICMPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Type and code of "port unreachable" (RFC 792).
pub const PORT_UNREACHABLE_V4: (u8, u8) = (3, 3);
/// Type and code of "port unreachable" (RFC 4443).
pub const PORT_UNREACHABLE_V6: (u8, u8) = (1, 4);

/// The beginning of every message, and all of an error but what it quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Message {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: Checksum,
    /// By type; for "fragmentation needed" and "packet too big" the MTU.
    pub rest: [u8; 4],
}

/// An error and the packet it is about: its header `H` and the first eight bytes behind (RFC 792).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Unreachable<H> {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: Checksum,
    /// Zero when it is sent. A device that completes a UDP packet's partial checksum writes into the last two of these
    /// bytes: see `reply`.
    pub unused: [u8; 4],
    /// The header of the packet in question.
    pub header: H,
    /// The first eight bytes behind it.
    pub start: [u8; 8],
}
