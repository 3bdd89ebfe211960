//! Reading a packet: at its plain place for the fast path, in full for the others, parked in between.

use crate::{
    family::{Depth, Family, RARE},
    flow::Flow,
    fragment::{self, Part},
    packet::Packet,
    tables::Tables,
    tuple::Side,
    verdict::{Action, Counter, Verdict},
    wire::eth::{Eth, Tag},
};

/// Which family a packet is of.
pub(crate) enum Version {
    V4,
    V6,
}

/// Which family a frame is of, and where its network header begins; the error is the reason to pass it up.
#[inline(always)]
pub(crate) fn version<P: Packet>(packet: &P) -> Result<(Version, usize), Counter> {
    match packet.get::<Eth>(0).map(|eth| eth.ethertype) {
        Some(Eth::IPV4) => Ok((Version::V4, Eth::LENGTH)),
        Some(Eth::IPV6) => Ok((Version::V6, Eth::LENGTH)),
        Some(Eth::VLAN | Eth::QINQ) => tagged(packet),
        Some(_) => Err(Counter::OtherLink),
        None => Err(Counter::Malformed),
    }
}

/// The same behind one or two tags (IEEE 802.1Q). A device that strips tags has put the first aside already.
#[inline(always)]
fn tagged<P: Packet>(packet: &P) -> Result<(Version, usize), Counter> {
    let mut at = Eth::LENGTH;
    let mut tag = 0_u32;
    while tag < 2 {
        let ethertype = packet.get::<Tag>(at).ok_or(Counter::Malformed)?.ethertype;
        at = at.wrapping_add(size_of::<Tag>());
        match ethertype {
            Eth::IPV4 => return Ok((Version::V4, at)),
            Eth::IPV6 => return Ok((Version::V6, at)),
            Eth::VLAN | Eth::QINQ => {}
            _ => return Err(Counter::OtherLink),
        }
        tag = tag.wrapping_add(1);
    }
    Err(Counter::Vlan)
}

/// Whether the fast path left a packet to those that read more of it.
#[inline(always)]
pub(crate) fn is_rare(verdict: Verdict) -> bool {
    matches!(verdict.counter, RARE | Counter::Vlan | Counter::Icmp) && verdict.action == Action::Pass
}

/// Parses a packet into scratch memory, or says why it is to be passed up.
#[inline(never)]
pub(crate) fn park<F: Family, P: Packet, W: Tables<F::Addr>, D: Depth>(
    packet: &mut P,
    world: &W,
    l3: usize,
    side: Side,
) -> Option<Counter> {
    let mut flow = Flow::empty();
    let mut parsed = flow.parse::<F, P, D>(packet, l3, side);
    if D::FULL && flow.part() != Part::WHOLE && matches!(parsed, Ok(()) | Err(Counter::Fragment)) {
        let (position, length) = (flow.position(), flow.l4_length());
        parsed = fragment::follow(world, &mut flow.key.0, position, length);
    }
    if parsed.is_ok() || parsed == Err(Counter::Icmp) {
        world.scratch(|scratch| scratch.flow.set(&flow));
    }
    parsed.err()
}

/// A packet as its depth has it: read from the frame, or parked before.
#[inline(always)]
pub(crate) fn read<F: Family, P: Packet, W: Tables<F::Addr>, D: Depth>(
    packet: &P,
    world: &W,
    flow: &mut Flow<F::Addr>,
    side: Side,
) -> Result<(), Counter> {
    if D::FULL {
        world.scratch(|scratch| *flow = scratch.flow.get()).ok_or(Counter::Inconsistent)
    } else {
        flow.parse::<F, P, D>(packet, Eth::LENGTH, side)
    }
}

/// What becomes of a packet that cannot be read to its ports.
#[inline(always)]
pub(crate) fn unread(reason: Counter) -> Verdict {
    if reason == Counter::FragmentOverlap { Verdict::drop(reason) } else { Verdict::pass(reason) }
}
