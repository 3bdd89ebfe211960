//! Conntrack entries: what a flow remembers.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    native_endian::{U32, U64},
};

use crate::{
    backend::{BackendId, ServiceId},
    family::Addr,
    protocol::{Port, Protocol},
    tuple::{FlowKey, L4Addr, Side},
};

/// Which of a flow's entries this is; all carry the same addresses.
///
/// ```text
///                      ingress                  egress
/// towards the backend  ORIGINAL                 SOURCE (where the source is rewritten)
/// towards the client   RETURN (rewritten, host) REPLY (unless the client is this host)
/// ```
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct EntryKind(pub u8);

impl EntryKind {
    /// Found by client -> frontend at ingress (NAT point 1). The master: it names the flow and holds its backend.
    pub const ORIGINAL: Self = Self(1);
    /// Found by client -> backend at egress (NAT point 2).
    pub const SOURCE: Self = Self(2);
    /// Found by backend -> rewritten source, or host, at ingress (NAT point 3).
    pub const RETURN: Self = Self(3);
    /// Found by backend -> client at egress (NAT point 4).
    pub const REPLY: Self = Self(4);
}

/// How far a connection is, as the packets that met this entry tell. TCP and SCTP move by [`crate::state::advance`].
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Phase(pub u8);

impl Phase {
    /// Half-open: first packet seen. UDP's ORIGINAL entry stays here; the other one tells.
    pub const OPENING: Self = Self(0);
    /// Half-open: the SYN-ACK went by. Of the entry that meets the backend's packets only.
    pub const ANSWERED: Self = Self(1);
    /// Answered (UDP), and acknowledged by one who saw the answer (TCP, SCTP).
    pub const OPEN: Self = Self(2);
    /// TCP: a FIN went by.
    pub const CLOSING: Self = Self(3);
    /// TCP: an RST went by.
    pub const CLOSED: Self = Self(4);
    /// Of a whole TCP connection, in no entry: a FIN of one side went by, and the other side may still have much to say.
    pub const HALF_CLOSED: Self = Self(5);
}

/// Value of `LB4_CONNTRACK` and `LB6_CONNTRACK` (hash by [`crate::tuple::FlowTuple`]). 72 bytes for IPv4, 120 for IPv6.
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
    /// Packets that met this entry (ORIGINAL: from the client; REPLY, or a host's RETURN: to the client).
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
    /// TCP, host order: what this direction acknowledged last; while [`Phase::ANSWERED`] what a client must acknowledge.
    /// SCTP: the tag that the client's packets carry.
    pub mark: U32,
    /// The client's port between the NAT points, if it is another there than the client's own: another flow has that one
    /// towards this backend already (design.md section 2.1). Else [`Port::NONE`].
    pub alias: Port,
    /// Zero.
    pub reserved: [u8; 2],
}

impl<A: Addr> Conntrack<A> {
    /// Whether the source is rewritten.
    #[inline(always)]
    pub fn has_source(&self) -> bool {
        self.source.port != Port::NONE
    }

    /// The client as the packets between the NAT points have it.
    #[inline(always)]
    pub fn inner_client(&self) -> L4Addr<A> {
        let port = if self.alias == Port::NONE { self.client.port } else { self.alias };
        L4Addr { addr: self.client.addr, port }
    }

    /// Key of the [`EntryKind::ORIGINAL`] entry.
    #[inline(always)]
    pub fn original_key(&self) -> FlowKey<A> {
        FlowKey::new(Side::INGRESS, self.protocol, self.client, self.frontend)
    }

    /// Key of the [`EntryKind::SOURCE`] entry, for a flow that [has a source](Self::has_source).
    #[inline(always)]
    pub fn source_key(&self) -> FlowKey<A> {
        self.egress(self.inner_client(), self.backend)
    }

    /// Key of the [`EntryKind::RETURN`] entry, for a flow whose source is rewritten or whose client is this host.
    #[inline(always)]
    pub fn return_key(&self) -> FlowKey<A> {
        let source = if self.has_source() { self.source } else { self.inner_client() };
        FlowKey::new(Side::INGRESS, self.protocol, self.backend, source)
    }

    /// Key of the entry that meets the backend's packets last and counts them: [`EntryKind::REPLY`], or for a host's
    /// flow [`EntryKind::RETURN`].
    #[inline(always)]
    pub fn answer_key(&self) -> FlowKey<A> {
        if self.host == 0 { self.egress(self.backend, self.inner_client()) } else { self.return_key() }
    }

    #[inline(always)]
    fn egress(&self, source: L4Addr<A>, destination: L4Addr<A>) -> FlowKey<A> {
        FlowKey::new(Side::EGRESS, self.protocol, source, destination)
    }
}

const _: () = assert!(size_of::<Conntrack<[u8; 4]>>() == 72 && size_of::<Conntrack<[u8; 16]>>() == 120);
