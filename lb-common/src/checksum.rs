//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words in memory order: one's complement addition does not care about byte order, so no
//! swap is ever needed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The two bytes as they stand in a header: never swapped, never compared with a host number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Checksum(pub [u8; 2]);

/// A running sum, not yet folded. Also the difference between two contents: `new + !old`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(pub u32);

impl Sum {
    /// Adds bytes; an odd last byte counts as if a zero followed (RFC 1071).
    #[inline(always)]
    #[must_use]
    pub fn add(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let mut pairs = bytes.chunks_exact(2);
        for pair in &mut pairs {
            if let [high, low] = *pair {
                sum = sum.wrapping_add(u32::from(u16::from_ne_bytes([high, low])));
            }
        }
        if let [last] = *pairs.remainder() {
            sum = sum.wrapping_add(u32::from(u16::from_ne_bytes([last, 0])));
        }
        Self(sum)
    }

    /// Takes bytes out again: adds their complement. `bytes` must be even in number.
    #[inline(always)]
    #[must_use]
    pub fn remove(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        for pair in bytes.chunks_exact(2) {
            if let [high, low] = *pair {
                sum = sum.wrapping_add(u32::from(!u16::from_ne_bytes([high, low])));
            }
        }
        Self(sum)
    }

    /// Both sums.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The sum in 16 bits, carries added.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff).wrapping_add(self.0 >> 16);
        (sum & 0xffff).wrapping_add(sum >> 16) as u16
    }

    /// The checksum field that makes a message with this sum valid.
    #[inline(always)]
    pub const fn checksum(self) -> Checksum {
        Checksum((!self.fold()).to_ne_bytes())
    }

    /// The folded sum itself: what a partial checksum field carries (the pseudo header's sum, not complemented).
    #[inline(always)]
    pub const fn partial(self) -> Checksum {
        Checksum(self.fold().to_ne_bytes())
    }
}

impl Checksum {
    /// RFC 768: "none" in a UDP header over IPv4.
    pub const ZERO: Self = Self([0; 2]);
    /// What UDP sends where zero was computed.
    pub const ALL_ONES: Self = Self([0xff; 2]);

    /// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, difference: Sum) -> Self {
        let sum = (!u16::from_ne_bytes(self.0)) as u32;
        Sum(sum.wrapping_add(Sum(difference.0).fold() as u32)).checksum()
    }
}
