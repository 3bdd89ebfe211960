//! Frontends: the addresses clients use, and what a frontend means for each kind of client.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U32};

use crate::{backend::ServiceId, family::Addr, protocol::Protocol, tuple::L4Addr};

/// Key of the frontend table (`LB4_FRONTENDS`, `LB6_FRONTENDS`; hash). 8 bytes for IPv4, 20 for IPv6.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FrontendKey<A> {
    /// The virtual address and port. A nodePort has one key for each node address it is served on.
    pub address: L4Addr<A>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Who meets it.
    pub met_by: MetBy,
}

impl<A> FrontendKey<A> {
    /// The key that a packet looks up.
    #[inline(always)]
    pub const fn new(protocol: Protocol, address: L4Addr<A>) -> Self {
        Self { address, protocol, met_by: MetBy::ANYONE }
    }
}

impl<A: Addr> FrontendKey<A> {
    /// The key that is programmed for an address, and that a socket of this host looks up: the same as a packet's, except
    /// for loopback addresses, which no packet may ever find (CVE-2020-8558).
    #[inline(always)]
    pub fn of_host(protocol: Protocol, address: L4Addr<A>) -> Self {
        let met_by = if address.addr.is_loopback() { MetBy::HOST_SOCKETS } else { MetBy::ANYONE };
        Self { address, protocol, met_by }
    }
}

/// Who meets a frontend: part of its key, so that the packet path cannot find what is not for it.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct MetBy(pub u8);

impl MetBy {
    /// Packets, and sockets of everyone.
    pub const ANYONE: Self = Self(0);
    /// Sockets of this host's processes alone: loopback nodePorts (semantics.md 2.9.3).
    pub const HOST_SOCKETS: Self = Self(1);
}

/// Value of the frontend table: one word, so that it is published by one store. Low 32 bits: index of the
/// [`Frontend`] record. High 32 bits: a tag that changes with every publication, for people who read dumps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FrontendWord(pub u64);

impl FrontendWord {
    /// Points at record `id`.
    pub const fn new(id: FrontendId, tag: u32) -> Self {
        Self(id.0 as u64 | (tag as u64) << 32)
    }

    /// The record it points at.
    #[inline(always)]
    pub const fn id(self) -> FrontendId {
        FrontendId(self.0 as u32)
    }
}

/// Index into `LB4_RECORDS` or `LB6_RECORDS`. Zero is never used; at most 24 bits, for the socket slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FrontendId(pub u32);

/// Which of a service's two backend sets to use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// Backends of the whole cluster (semantics.md 2.2.3).
    Cluster,
    /// Backends on this node (semantics.md 2.2.4).
    Local,
}

/// What a frontend does for one kind of client: user space decides it from the traffic policies, the kernel obeys.
/// Bit 0: scope Local instead of Cluster. Bit 1: masquerade.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct ClientRule(pub u8);

impl ClientRule {
    /// A rule in words.
    pub const fn new(scope: Scope, masquerade: bool) -> Self {
        Self(matches!(scope, Scope::Local) as u8 | (masquerade as u8) << 1)
    }

    /// The backend set.
    #[inline(always)]
    pub const fn scope(self) -> Scope {
        if self.0 & 1 == 0 { Scope::Cluster } else { Scope::Local }
    }

    /// Whether the source becomes the node's address.
    #[inline(always)]
    pub const fn masquerade(self) -> bool {
        self.0 & 2 != 0
    }
}

/// Who opens a connection, as far as the rules care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A pod, per the local-traffic detector (semantics.md 2.3.8).
    Pod,
    /// A process of this node.
    Host,
    /// Anyone else.
    Outside,
}

/// A frontend record (`LB4_RECORDS`, `LB6_RECORDS`; array by [`FrontendId`]). Written before it is published and not
/// changed while a [`FrontendWord`] points at it. 16 bytes for IPv4, 28 for IPv6.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Frontend<A> {
    /// The service whose rings serve it.
    pub service: ServiceId,
    /// Rule for pods.
    pub pod: ClientRule,
    /// Rule for processes of this node.
    pub host: ClientRule,
    /// Rule for everyone else.
    pub outside: ClientRule,
    /// Bits of [`FrontendFlags`].
    pub flags: FrontendFlags,
    /// The address clients use: what `getpeername` shows.
    pub address: L4Addr<A>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Zero.
    pub reserved: u8,
}

impl<A> Frontend<A> {
    /// The rule for a kind of client.
    #[inline(always)]
    pub const fn rule(&self, client: Client) -> ClientRule {
        match client {
            Client::Pod => self.pod,
            Client::Host => self.host,
            Client::Outside => self.outside,
        }
    }
}

/// Flags of a frontend.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct FrontendFlags(pub u8);

impl FrontendFlags {
    /// No flags.
    pub const NONE: Self = Self(0);
    /// The socket hooks leave pods' connections to the packet path (design.md section 2.2).
    pub const NO_POD_SOCKET: Self = Self(1);
    /// An address of this node: what its own processes send there stays on `lo`, where no packet path serves it.
    pub const OWN_ADDRESS: Self = Self(2);
    /// Clients must be in one of the service's source ranges (semantics.md 2.7).
    pub const SOURCE_RANGES: Self = Self(4);

    /// The service remembers its clients (semantics.md 2.5): its word in `LB_SVC_AFFINITY` says for how long.
    pub const AFFINITY: Self = Self(8);

    /// All bits of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Value of the VIP table (`LB4_VIPS`, `LB6_VIPS`; hash by address): the address is ours, so a port without a frontend
/// is rejected (semantics.md 2.3.6).
pub const VIP_OWNED: u64 = 1;

/// Key of `LB4_PREFIXES` and `LB6_PREFIXES` (LPM trie): prefix length in host order, then the address.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PrefixKey<A> {
    /// Bits of the prefix, host byte order.
    pub length: U32,
    /// The address; bits behind the prefix are zero in a stored key.
    pub addr: A,
}

/// Key of `LB4_SOURCES` and `LB6_SOURCES` (LPM trie): a range of addresses that may use the frontends of a service which
/// have [`FrontendFlags::SOURCE_RANGES`]. Prefix length in host order, then what is compared bit by bit from its front.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SourceKey<A> {
    /// [`SourceRange::SERVICE_BITS`] and the bits of the range's prefix, host byte order.
    pub length: U32,
    /// The range.
    pub range: SourceRange<A>,
}

/// A service and the first address of a range.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SourceRange<A> {
    /// The service, all its bits.
    pub service: ServiceId,
    /// The address; bits behind the prefix are zero in a stored key.
    pub addr: A,
}

impl<A> SourceRange<A> {
    /// Bits in front of the address.
    pub const SERVICE_BITS: u32 = 32;
}

/// Value of the source range tables: there is nothing to say about a range but that it is there.
pub const SOURCE_ALLOWED: u32 = 1;

/// Value of the prefix tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PrefixFlags(pub u32);

impl PrefixFlags {
    /// Nothing known about the address.
    pub const NONE: Self = Self(0);
    /// In a Service CIDR: dropped when no VIP (semantics.md 2.3.7).
    pub const SERVICE: Self = Self(1);
    /// Of this node's pods: nobody sends from there by an uplink (reliability.md section 7).
    pub const LOCAL_PODS: Self = Self(2);
    /// The detector calls who sends from there a pod (semantics.md 2.3.8).
    pub const DETECTED: Self = Self(4);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

const _: () = assert!(size_of::<FrontendKey<[u8; 4]>>() == 8 && size_of::<FrontendKey<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<Frontend<[u8; 4]>>() == 16 && size_of::<Frontend<[u8; 16]>>() == 28);
