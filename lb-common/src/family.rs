//! The two address families behind one interface.

use core::{fmt::Debug, hash::Hash};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A value that may cross the map boundary: no padding, every bit pattern legal.
pub trait Abi: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static> Abi for T {}

/// An IP address as its bytes stand on the wire.
pub trait Addr: Abi + Unaligned + Eq + Ord + Hash + Debug + AsRef<[u8]> {
    /// `0.0.0.0` or `::`.
    const UNSPECIFIED: Self;

    /// The address as 32-bit words in memory order, folded into one, for hashing.
    fn fold(&self) -> u32;
}

impl Addr for [u8; 4] {
    const UNSPECIFIED: Self = [0; 4];

    #[inline(always)]
    fn fold(&self) -> u32 {
        u32::from_ne_bytes(*self)
    }
}

impl Addr for [u8; 16] {
    const UNSPECIFIED: Self = [0; 16];

    #[inline(always)]
    fn fold(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        u32::from_ne_bytes([a, b, c, d])
            ^ u32::from_ne_bytes([e, f, g, h]).rotate_left(7)
            ^ u32::from_ne_bytes([i, j, k, l]).rotate_left(14)
            ^ u32::from_ne_bytes([m, n, o, p]).rotate_left(21)
    }
}

/// IPv4, as a type parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6, as a type parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;
