//! Rings: which backends a service has, in one flat array for all services (`LB_RINGS`, array of backend ids).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a new connection meets where a ring has no backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WhenEmpty {
    /// Refused at once (semantics.md 2.3.1).
    Reject,
    /// Dropped in silence (semantics.md 2.3.2, 2.3.3).
    Drop,
}

/// A service's backend set of one scope (`LB_SERVICES`, array of words, index `2 * service + scope`, Cluster first).
///
/// Bits 0..32: offset into `LB_RINGS`; 32..48: number of slots; 48: drop instead of reject when there are none;
/// 49..64: a tag that changes with each publication.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RingWord(pub u64);

impl RingWord {
    /// A ring of `length` slots from `offset` on.
    pub const fn new(offset: u32, length: u16, when_empty: WhenEmpty, tag: u16) -> Self {
        Self(
            offset as u64
                | (length as u64) << 32
                | (matches!(when_empty, WhenEmpty::Drop) as u64) << 48
                | (tag as u64 & 0x7fff) << 49,
        )
    }

    /// First slot in `LB_RINGS`.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Number of slots.
    #[inline(always)]
    pub const fn length(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    /// What an empty ring means.
    #[inline(always)]
    pub const fn when_empty(self) -> WhenEmpty {
        if self.0 >> 48 & 1 == 0 { WhenEmpty::Reject } else { WhenEmpty::Drop }
    }

    /// The publication tag.
    pub const fn tag(self) -> u16 {
        (self.0 >> 49) as u16
    }
}
