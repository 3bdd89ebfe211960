//! Conntrack entries: what a flow remembers.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    native_endian::{U32, U64},
};

use crate::{
    backend::{BackendId, ServiceId},
    family::Addr,
    protocol::{Port, Protocol},
    tuple::{FlowTuple, L4Addr, Side},
};

/// Which of a flow's entries this is. A flow has an original entry, a middle entry, and, where the source is rewritten
/// or the client is this host, a return entry; all carry the same addresses.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct EntryKind(pub u8);

impl EntryKind {
    /// Found by client -> frontend at ingress (NAT point 1). The master: it names the flow and holds its backend.
    pub const ORIGINAL: Self = Self(1);
    /// Found by client <-> backend at egress, either direction (NAT points 2 and 4).
    pub const MIDDLE: Self = Self(2);
    /// Found by backend -> rewritten source at ingress (NAT point 3).
    pub const RETURN: Self = Self(3);
}

/// How far a connection is, as the packets that met this entry tell.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Phase(pub u8);

impl Phase {
    /// First packet seen.
    pub const OPENING: Self = Self(0);
    /// Answered (TCP: an ACK without SYN from the client, or the server's SYN-ACK; UDP: a reply).
    pub const OPEN: Self = Self(1);
    /// TCP: a FIN went by.
    pub const CLOSING: Self = Self(2);
    /// TCP: an RST went by.
    pub const CLOSED: Self = Self(3);
}

/// Value of `LB4_CONNTRACK` and `LB6_CONNTRACK` (hash by [`FlowTuple`]). 64 bytes for IPv4, 112 for IPv6.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Conntrack<A> {
    /// Who opened the flow.
    pub client: L4Addr<A>,
    /// The address the client uses.
    pub frontend: L4Addr<A>,
    /// Where the flow goes.
    pub backend: L4Addr<A>,
    /// The source the backend sees, if it is not the client; else [`L4Addr::NONE`].
    pub source: L4Addr<A>,
    /// The service port.
    pub service: ServiceId,
    /// The backend's slot.
    pub backend_id: BackendId,
    /// The slot's generation when the flow was made.
    pub generation: U32,
    /// Jiffies (low 32 bits) of the last packet that met this entry.
    pub stamp: U32,
    /// Packets that met this entry (ORIGINAL: from the client; MIDDLE: to the client).
    pub packets: U64,
    /// Their bytes, from the network header on.
    pub bytes: U64,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which entry of the flow.
    pub kind: EntryKind,
    /// TCP phase.
    pub phase: Phase,
    /// Non-zero: the client is a process of this host that came by `ballast0`.
    pub host: u8,
    /// Interface index towards the backend when the flow was made: for a host's flow whose backend is gone.
    pub device: U32,
}

impl<A: Addr> Conntrack<A> {
    /// Whether the source is rewritten.
    #[inline(always)]
    pub fn has_source(&self) -> bool {
        self.source.port != Port::NONE
    }

    /// Key of the [`EntryKind::ORIGINAL`] entry.
    #[inline(always)]
    pub fn original_key(&self) -> FlowTuple<A> {
        FlowTuple::new(Side::INGRESS, self.protocol, self.client, self.frontend)
    }

    /// Key of the [`EntryKind::MIDDLE`] entry.
    #[inline(always)]
    pub fn middle_key(&self) -> FlowTuple<A> {
        FlowTuple::new(Side::EGRESS, self.protocol, self.client, self.backend).canonical()
    }

    /// Key of the [`EntryKind::RETURN`] entry, where the flow has one.
    #[inline(always)]
    pub fn return_key(&self) -> Option<FlowTuple<A>> {
        let source = if self.has_source() {
            self.source
        } else if self.host != 0 {
            self.client
        } else {
            return None;
        };
        Some(FlowTuple::new(Side::INGRESS, self.protocol, self.backend, source))
    }
}

const _: () = assert!(size_of::<Conntrack<[u8; 4]>>() == 64 && size_of::<Conntrack<[u8; 16]>>() == 112);
