//! SCTP (RFC 9260): ports, and the CRC32c that covers them.
//!
//! A CRC is linear: two messages of one length have checksums whose difference is the CRC of the difference of the
//! messages. Here that is one word of ports and then zeros, so that nothing of the payload has to be read: the word is
//! moved through as many zero bytes as the packet has, which is a multiplication by a power of x. Addresses are not
//! covered, those in INIT chunks of multi-homed hosts are left alone.

use crate::{
    family::Addr,
    flow::Flow,
    packet::Packet,
    protocol::{Port, Protocol},
    tables::Tables,
    wire::l4::{Sctp, TcpFlags},
};

/// CRC32c's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Offset of the initiate tag of an INIT or INIT-ACK that is a packet's first chunk (RFC 9260 section 3.3.2).
pub(crate) const INITIATE_TAG: usize = size_of::<Sctp>() + 4;

/// Powers of two of bytes that a packet's length is made of.
const STEPS: usize = 16;

/// `SHIFTS[k][n][v]`: what becomes of `v` in nibble `n` of a register that takes `2^k` zero bytes.
static SHIFTS: [[[u32; 16]; 8]; STEPS] = shifts();

/// The product of two polynomials modulo CRC32c's, all with their bits reversed.
const fn multiply(one: u32, other: u32) -> u32 {
    let (mut product, mut other, mut bit) = (0, other, 1_u32 << 31);
    while bit != 0 {
        if one & bit != 0 {
            product ^= other;
        }
        other = if other & 1 == 0 { other >> 1 } else { (other >> 1) ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

#[expect(clippy::indexing_slicing, reason = "compile time, bounded by the loops")]
const fn shifts() -> [[[u32; 16]; 8]; STEPS] {
    let mut table = [[[0; 16]; 8]; STEPS];
    // x^8: one byte.
    let mut power = 1 << 23;
    let mut step = 0;
    while step < STEPS {
        let mut nibble = 0;
        while nibble < 8 {
            let mut value = 0;
            while value < 16 {
                table[step][nibble][value] = multiply((value as u32) << (4 * nibble), power);
                value += 1;
            }
            nibble += 1;
        }
        power = multiply(power, power);
        step += 1;
    }
    table
}

/// Moves a register through `bytes` zero bytes.
#[inline(always)]
fn shift(mut register: u32, bytes: u32) -> u32 {
    let mut bits = bytes;
    for step in &SHIFTS {
        let mut moved = 0;
        let mut rest = register;
        for nibble in step {
            moved ^= nibble.get((rest & 0xf) as usize).copied().unwrap_or(0);
            rest >>= 4;
        }
        // Without a branch: a verifier would follow both ways of each.
        let taken = (bits & 1).wrapping_neg();
        register = moved & taken | register & !taken;
        bits >>= 1;
    }
    register
}

/// Lets the checksum of the parked packet follow what was done to its ports, if it is SCTP. `None`: it is not there.
#[inline(never)]
pub(crate) fn follow<A: Addr, P: Packet, W: Tables<A>>(packet: &mut P, world: &W) -> Option<()> {
    let mut flow = Flow::<A>::empty();
    world.scratch(|scratch| flow = scratch.flow.get())?;
    if flow.protocol() != Protocol::SCTP {
        return Some(());
    }
    let header: &mut Sctp = packet.get_mut(flow.l4())?;
    let word = |source: Port, destination: Port| {
        let ([a, b], [c, d]) = (source.0, destination.0);
        u32::from_le_bytes([a, b, c, d])
    };
    let before = word(flow.source().port, flow.destination().port);
    let after = word(header.ports.source, header.ports.destination);
    // A checksum of zero is a local sender's that a device fills in later: there is nothing to follow.
    if before != after && header.crc != [0; 4] {
        let difference = shift(before ^ after, flow.l4_length() as u32);
        header.crc = (u32::from_le_bytes(header.crc) ^ difference).to_le_bytes();
    }
    Some(())
}

/// What the first chunk of a packet says about the association, in TCP's words.
#[inline(always)]
pub(crate) const fn flags(chunk: u8) -> TcpFlags {
    match chunk {
        1 => TcpFlags::SYN,
        2 => TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0),
        6 => TcpFlags::RST,
        7 | 8 | 14 => TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0),
        _ => TcpFlags::ACK,
    }
}
