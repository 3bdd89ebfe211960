//! IPv6 (RFC 8200).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An IPv6 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_flow: [u8; 4],
    /// Bytes after this header.
    pub payload_length: [u8; 2],
    /// Next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub source: [u8; 16],
    /// Destination.
    pub destination: [u8; 16],
}

/// The beginning of every extension header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Extension {
    /// Next header.
    pub next_header: u8,
    /// Its length: in units of eight bytes without the first; of four without the first two for an authentication
    /// header; nothing for a fragment header.
    pub length: u8,
    /// Fragment header: offset in units of eight bytes and, in the last bit, whether more follow. Routing header: type
    /// and segments left.
    pub rest: [u8; 2],
    /// Fragment header: identification.
    pub id: [u8; 4],
}

impl Ipv6 {
    /// Bytes of the header.
    pub const LENGTH: usize = size_of::<Self>();
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing header.
    pub const ROUTING: u8 = 43;
    /// Fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}
