//! The flow hash: which slot of a ring a new connection takes.

use crate::{family::Addr, tuple::FlowTuple};

/// Hashes a tuple with the node's seed. Changing this function moves every new connection: its values are pinned by a
/// golden test.
#[inline(always)]
pub fn flow_hash<A: Addr>(key: &FlowTuple<A>, seed: u64) -> u32 {
    let [a, b] = key.source_port.0;
    let [c, d] = key.destination_port.0;
    let ports = u32::from_ne_bytes([a, b, c, d]);
    let seed_low = seed as u32;
    let seed_high = (seed >> 32) as u32;
    let mut hash = (key.source.fold() ^ seed_low).wrapping_mul(0x9E37_79B1);
    hash ^= (key.destination.fold() ^ seed_high).rotate_left(13).wrapping_mul(0x85EB_CA77);
    hash ^= ports.wrapping_mul(0xC2B2_AE3D) ^ u32::from(key.protocol.0);
    mix(hash)
}

/// Hashes a socket cookie: the index of its slot, and the choice of a backend where no source address is known yet.
#[inline(always)]
pub const fn cookie_hash(cookie: u64, seed: u64) -> u32 {
    let word = cookie ^ seed;
    mix((word as u32).wrapping_mul(0x9E37_79B1) ^ ((word >> 32) as u32).wrapping_mul(0x85EB_CA77))
}

/// Hashes a client of a service port: the set of the affinity table it is remembered in.
#[inline(always)]
pub fn client_hash<A: Addr>(client: &A, service: u32, seed: u64) -> u32 {
    let hash = (client.fold() ^ seed as u32).wrapping_mul(0x9E37_79B1);
    mix(hash ^ (service ^ (seed >> 32) as u32).rotate_left(13).wrapping_mul(0x85EB_CA77))
}

/// Scales a hash to `0..length` without a division.
#[inline(always)]
pub const fn scale(hash: u32, length: u32) -> u32 {
    ((hash as u64).wrapping_mul(length as u64) >> 32) as u32
}

#[inline(always)]
const fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0x2C1B_3C6D);
    hash ^= hash >> 12;
    hash = hash.wrapping_mul(0x297A_2D39);
    hash ^ hash >> 15
}
