//! NAT points 2 and 4: packets that leave by a device.

use crate::{
    conntrack::EntryKind,
    create,
    family::{Depth, End, Family, Full, Plain, RARE},
    flow::Flow,
    icmp, nat,
    packet::Packet,
    pipeline,
    protocol::Port,
    read::{is_rare, park, read, unread},
    state,
    tables::Tables,
    tuple::Side,
    verdict::{Counter, Verdict},
    wire::eth::Eth,
};

#[inline(always)]
pub(crate) fn outward<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W, l3: usize) -> Verdict {
    let verdict = if l3 == Eth::LENGTH { leave::<F, P, W, Plain>(packet, world) } else { Verdict::pass(Counter::Vlan) };
    if !is_rare(verdict) {
        return verdict;
    }
    packet.pull();
    match park::<F, P, W, Full>(packet, world, l3, Side::EGRESS) {
        None => {
            answered::<F, P, W>(packet, world);
            let verdict = leave::<F, P, W, Full>(packet, world);
            pipeline::settle::<F, P, W>(packet, world, verdict)
        }
        Some(Counter::Icmp) => icmp::translate::<F, P, W>(packet, world, None),
        Some(reason) => unread(reason),
    }
}

/// The backend's direction of a connection that begins or ends with the parked packet.
#[inline(never)]
fn answered<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W) -> Option<()> {
    let mut flow = Flow::empty();
    read::<F, P, W, Full>(packet, world, &mut flow, Side::EGRESS).ok()?;
    if flow.flags.changes() {
        create::advance_answer(world, &flow);
    }
    Some(())
}

#[inline(never)]
fn leave<F: Family, P: Packet, W: Tables<F::Addr>, D: Depth>(packet: &mut P, world: &W) -> Verdict {
    let mut flow = Flow::empty();
    if let Err(reason) = read::<F, P, W, D>(packet, world, &mut flow, Side::EGRESS) {
        return Verdict::pass(reason);
    }
    if !D::FULL && flow.flags.changes() {
        return Verdict::pass(RARE);
    }
    let seen = world.conntrack(&flow.key, |entry| {
        let (source, reason) = if entry.kind == EntryKind::SOURCE {
            (&entry.source, Counter::SourceNat)
        } else {
            state::touch(entry, &flow, world.now());
            (&entry.frontend, Counter::FromFrontend)
        };
        let mut done = nat::rewrite::<F, P, D>(packet, &flow, End::Source, source);
        if entry.alias != Port::NONE && entry.kind == EntryKind::REPLY {
            done = pipeline::rewrite_alias::<F, P>(packet, &flow, entry);
        }
        match done {
            Some(()) => Verdict::pass(reason),
            None => Verdict::drop(Counter::Malformed),
        }
    });
    seen.unwrap_or(Verdict::pass(Counter::NotAService))
}
