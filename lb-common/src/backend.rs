//! Services, backends and next hops: array records named by stable ids.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U32};

use crate::{frontend::Scope, tuple::L4Addr};

/// Index of a service port of one family; its two ring words stand at `2 * id` and `2 * id + 1` of `LB_SERVICES`.
/// Zero is never used.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct ServiceId(pub U32);

/// Index into `LB4_BACKENDS` or `LB6_BACKENDS`. Zero is never used.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct BackendId(pub U32);

/// Index into `LB4_NEXT_HOPS` or `LB6_NEXT_HOPS`. Zero: no route known.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct NextHopId(pub U32);

macro_rules! ids {
    ($($id:ident),*) => {$(
        impl $id {
            /// From a host number.
            #[inline(always)]
            pub const fn new(number: u32) -> Self {
                Self(U32::new(number))
            }

            /// As a host number.
            #[inline(always)]
            pub const fn get(self) -> u32 {
                self.0.get()
            }
        }
    )*};
}
ids!(ServiceId, BackendId, NextHopId);

/// Backend sets of a service, a bit each.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Sets(pub u8);

impl Sets {
    /// In none: flows that have it keep it.
    pub const NONE: Self = Self(0);
    /// The Cluster set.
    pub const CLUSTER: Self = Self(1);
    /// The Local set.
    pub const LOCAL: Self = Self(2);

    /// The set of a scope.
    #[inline(always)]
    pub const fn of(scope: Scope) -> Self {
        match scope {
            Scope::Cluster => Self::CLUSTER,
            Scope::Local => Self::LOCAL,
        }
    }

    /// All of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A backend: one endpoint of one service port. An empty slot has generation 0. 24 bytes
/// for IPv4, 36 for IPv6. Numbers are in host byte order without alignment, as in every generic map type: that is what
/// lets zerocopy prove there is no padding.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Backend<A> {
    /// Where it listens.
    pub address: L4Addr<A>,
    /// Which of the service's sets it is in. Changed in place: the rings say who is chosen, this says whether a remembered
    /// choice still counts.
    pub sets: Sets,
    /// Zero.
    pub reserved: u8,
    /// The service port it belongs to.
    pub service: ServiceId,
    /// Grows by one each time the slot gets a new owner; never reset. A flow that remembers another generation belongs
    /// to a backend that is gone.
    pub generation: U32,
    /// The way to it.
    pub next_hop: NextHopId,
    /// Zero; the generation of the next hop joins here with the fused path.
    pub next_hop_generation: U32,
}

/// How packets leave for an address. 16 bytes for IPv4, 28 for IPv6.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NextHop<A> {
    /// The device; 0 in an empty slot.
    pub ifindex: U32,
    /// Grows when the slot gets a new owner.
    pub generation: U32,
    /// Bits of [`NextHop::LOCAL`].
    pub flags: U32,
    /// The source address the route prefers: what masquerading writes. Unspecified when there is none.
    pub prefsrc: A,
}

impl<A> NextHop<A> {
    /// The address belongs to this node: packets go up, there is no egress and so no masquerading.
    pub const LOCAL: u32 = 1;
}

const _: () = assert!(size_of::<Backend<[u8; 4]>>() == 24 && size_of::<Backend<[u8; 16]>>() == 36);
const _: () = assert!(size_of::<NextHop<[u8; 4]>>() == 16 && size_of::<NextHop<[u8; 16]>>() == 28);
