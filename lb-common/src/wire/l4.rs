//! Transport headers: TCP (RFC 9293), UDP (RFC 768), and the ports all three protocols begin with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{checksum::Checksum, protocol::Port};

/// The first four bytes of TCP, UDP and SCTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ports {
    /// Source port.
    pub source: Port,
    /// Destination port.
    pub destination: Port,
}

/// A TCP header without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: [u8; 4],
    /// Acknowledgment number.
    pub acknowledgment: [u8; 4],
    /// Header length in words, in the high four bits.
    pub data_offset: u8,
    /// Flags.
    pub flags: TcpFlags,
    /// Window.
    pub window: [u8; 2],
    /// Checksum.
    pub checksum: Checksum,
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

impl Tcp {
    /// Bytes of a header without options.
    pub const LENGTH: usize = size_of::<Self>();
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    /// Bytes of the whole header, as it says; not checked.
    #[inline(always)]
    pub const fn header_length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}

/// The flags of a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No flag: also what a flow of another protocol carries.
    pub const NONE: Self = Self(0);
    /// FIN
    pub const FIN: Self = Self(1);
    /// SYN
    pub const SYN: Self = Self(2);
    /// RST
    pub const RST: Self = Self(4);
    /// ACK
    pub const ACK: Self = Self(16);
    /// RST and ACK.
    pub const RST_ACK: Self = Self(20);

    /// Whether a connection may begin or end with it: SYN, FIN or RST.
    #[inline(always)]
    pub const fn changes(self) -> bool {
        self.has(Self(Self::SYN.0 | Self::FIN.0 | Self::RST.0))
    }

    /// ACK, and neither SYN, FIN nor RST: a segment in the middle of a connection.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.has(Self::ACK) && !self.changes()
    }

    /// Whether any bit of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// A SYN that opens a connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0) == Self::SYN.0
    }
}

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Ports.
    pub ports: Ports,
    /// Bytes of header and payload.
    pub length: [u8; 2],
    /// Checksum; zero over IPv4: none.
    pub checksum: Checksum,
}

impl Udp {
    /// Bytes of the header.
    pub const LENGTH: usize = size_of::<Self>();
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 6;
}

/// The common header of SCTP (RFC 9260). Behind it comes at least one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sctp {
    /// Ports.
    pub ports: Ports,
    /// Verification tag.
    pub tag: [u8; 4],
    /// CRC32c.
    pub crc: [u8; 4],
}
