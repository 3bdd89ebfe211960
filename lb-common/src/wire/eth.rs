//! Ethernet II.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Eth {
    /// Destination.
    pub destination: [u8; 6],
    /// Source.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: [u8; 2],
}

/// What stands between a tag's ethertype and what it tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tag {
    /// Priority and VLAN.
    pub control: [u8; 2],
    /// What follows.
    pub ethertype: [u8; 2],
}

impl Eth {
    /// Bytes of the header: where the network header begins.
    pub const LENGTH: usize = size_of::<Self>();
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// IEEE 802.1Q.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// IEEE 802.1ad.
    pub const QINQ: [u8; 2] = [0x88, 0xa8];
}
