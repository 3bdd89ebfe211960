//! The pipeline of a packet: the four NAT points of design.md section 2.1.
//!
//! ```text
//! ingress: parse -> known flow?  original -> destination becomes the backend      (point 1)
//!                                return   -> destination becomes the client again (point 3), or up to the host
//!                   new flow     -> frontend -> rule -> ring -> backend -> entries -> point 1
//!                   not ours     -> pass
//! egress:  parse -> known flow?  towards the backend -> source becomes the node's  (point 2)
//!                                towards the client  -> source becomes the frontend (point 4)
//! ```

use crate::{
    backend::Backend,
    conntrack::{Conntrack, EntryKind, Phase},
    create,
    family::{Addr, End, Family, V4, V6},
    flow::Flow,
    nat,
    packet::Packet,
    protocol::Protocol,
    reply,
    settings::Setting,
    state,
    tables::Tables,
    tuple::{L4Addr, Side},
    verdict::{Counter, Verdict},
    wire::eth::Eth,
};

/// Where an ingress runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP: cannot answer towards every device nor reach the host; leaves that to tcx behind it.
    Xdp,
    /// tcx ingress of a device.
    Tc,
    /// tcx egress of `ballast0`: packets of this host's processes, and what slipped past a device's hook.
    Host,
}

/// Tables of both families.
pub trait AllTables: Tables<[u8; 4]> + Tables<[u8; 16]> {}
impl<W: Tables<[u8; 4]> + Tables<[u8; 16]>> AllTables for W {}

/// NAT points 1 and 3. `local`: the packet was made on this host, not received (only asked at [`Hook::Host`]).
#[inline(always)]
pub fn ingress<P: Packet, W: AllTables>(packet: &mut P, world: &W, hook: Hook, local: bool) -> Verdict {
    let verdict = match packet.get::<Eth>(0).map(|eth| eth.ethertype) {
        None => Verdict::Pass(Counter::Malformed),
        Some(Eth::IPV4) => inward::<V4, P, W>(packet, world, hook, local),
        Some(Eth::IPV6) => inward::<V6, P, W>(packet, world, hook, local),
        Some(Eth::VLAN | Eth::QINQ) => Verdict::Pass(Counter::Vlan),
        Some(_) => Verdict::Pass(Counter::OtherLink),
    };
    // What nobody translated would come back by the same route for ever.
    match (hook, verdict) {
        (Hook::Host, Verdict::Pass(_)) => Verdict::Drop(Counter::HostUntranslated),
        _ => verdict,
    }
}

/// NAT points 2 and 4.
#[inline(always)]
pub fn egress<P: Packet, W: AllTables>(packet: &mut P, world: &W) -> Verdict {
    match packet.get::<Eth>(0).map(|eth| eth.ethertype) {
        None => Verdict::Pass(Counter::Malformed),
        Some(Eth::IPV4) => outward::<V4, P, W>(packet, world),
        Some(Eth::IPV6) => outward::<V6, P, W>(packet, world),
        Some(Eth::VLAN | Eth::QINQ) => Verdict::Pass(Counter::Vlan),
        Some(_) => Verdict::Pass(Counter::OtherLink),
    }
}

#[inline(never)]
fn inward<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W, hook: Hook, local: bool) -> Verdict {
    let flow = match Flow::parse::<F, P>(packet, Side::INGRESS) {
        Ok(flow) => flow,
        Err(reason) => return Verdict::Pass(reason),
    };
    let met = world.conntrack(&flow.key, |entry| {
        let met = visit(world, entry, &flow);
        match met.way {
            Way::Doubt => None,
            _ => Some(send::<F, P, W>(packet, world, &flow, hook, entry, met)),
        }
    });
    let reason = match met {
        Some(Some(verdict)) => return verdict,
        Some(None) if reconsider(world, &flow) => Counter::ToBackend,
        Some(None) | None => match create::new_flow(world, &flow, hook == Hook::Host && local) {
            create::Outcome::Pass(reason) => return Verdict::Pass(reason),
            create::Outcome::Drop(reason) => return Verdict::Drop(reason),
            create::Outcome::Refuse(_) if hook == Hook::Xdp => return Verdict::Pass(Counter::Deferred),
            create::Outcome::Refuse(reason) => return reply::refuse::<F, P>(packet, &flow, reason),
            create::Outcome::Made => Counter::NewFlow,
        },
    };
    let sent = world.conntrack(&flow.key, |entry| {
        to_backend::<F, P>(packet, &flow, hook, reason, &entry.backend, entry.device.get())
    });
    // Only if another CPU removed it meanwhile.
    sent.unwrap_or(Verdict::Drop(Counter::Inconsistent))
}

/// What a known flow asks for.
#[derive(Clone, Copy)]
struct Met {
    way: Way,
    /// Towards the backend, for a host's flow; else zero.
    device: u32,
}

#[derive(Clone, Copy)]
enum Way {
    /// Point 1.
    ToBackend,
    /// Point 3.
    ToClient,
    /// Points 3 and 4 at once, for a process of this host.
    ToHost,
    /// Expired, begun anew, or its backend is gone: look closer.
    Doubt,
}

/// The common case: a known flow, refreshed in place.
#[inline(always)]
fn visit<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, flow: &Flow<A>) -> Met {
    let now = world.now();
    let mut device = 0;
    let way = if entry.kind == EntryKind::ORIGINAL {
        if flow.flags.opens() || expired(world, entry, now) {
            return Met { way: Way::Doubt, device };
        }
        match alive(world, entry) {
            Some(backend) if entry.host != 0 => {
                device = world.next_hop(backend.next_hop).map_or_else(|| entry.device.get(), |hop| hop.ifindex.get());
            }
            Some(_) => {}
            // TCP goes on to a backend that left the service (semantics.md 2.8.1), UDP must not.
            None if entry.protocol == Protocol::TCP => device = entry.device.get(),
            None => return Met { way: Way::Doubt, device },
        }
        Way::ToBackend
    } else if entry.host == 0 {
        // Its REPLY entry counts.
        return Met { way: Way::ToClient, device };
    } else {
        Way::ToHost
    };
    state::touch(entry, flow.flags, flow.bytes(), now);
    Met { way, device }
}

/// Rewrites a known flow's packet.
#[inline(always)]
fn send<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    flow: &Flow<F::Addr>,
    hook: Hook,
    entry: &Conntrack<F::Addr>,
    met: Met,
) -> Verdict {
    match met.way {
        Way::ToBackend => to_backend::<F, P>(packet, flow, hook, Counter::ToBackend, &entry.backend, met.device),
        Way::ToClient => match nat::rewrite::<F, P>(packet, flow, End::Destination, &entry.client) {
            Some(()) => Verdict::Pass(Counter::ToClient),
            None => Verdict::Drop(Counter::Malformed),
        },
        Way::ToHost | Way::Doubt if hook == Hook::Xdp => Verdict::Pass(Counter::Deferred),
        Way::ToHost | Way::Doubt => to_host::<F, P, W>(packet, world, flow, entry),
    }
}

/// The backend of an entry, if its slot still has the same owner (design.md section 4).
#[inline(always)]
pub(crate) fn alive<'w, A: Addr, W: Tables<A>>(world: &'w W, entry: &Conntrack<A>) -> Option<&'w Backend<A>> {
    world
        .backend(entry.backend_id)
        .filter(|backend| backend.generation == entry.generation && backend.service == entry.service)
}

#[inline(always)]
fn expired<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>, now: u32) -> bool {
    let ticks = world.setting(Setting::TicksPerSecond) as u32;
    state::is_expired(entry.protocol, entry.phase, entry.stamp.get(), now, ticks)
}

/// A flow in doubt: both its directions are asked. It is kept (`true`), or removed so that the packet makes a new choice.
#[inline(never)]
fn reconsider<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) -> bool {
    let kept = world.scratch(|scratch| {
        let entry = &mut scratch.other;
        if world.conntrack(&flow.key, |found| *entry = *found).is_none() {
            return false;
        }
        let gone = alive(world, entry).is_none();
        let closing = effective_phase(world, entry).0 >= Phase::CLOSING.0;
        let renew = is_dead(world, entry, world.now())
            || gone && (entry.protocol != Protocol::TCP || flow.flags.opens())
            || flow.flags.opens() && closing;
        if renew {
            create::remove_flow(world, entry);
            world.count(Counter::FlowReplaced);
        }
        !renew
    });
    kept == Some(true)
        && world.conntrack(&flow.key, |entry| state::touch(entry, flow.flags, flow.bytes(), world.now())).is_some()
}

/// Whether neither direction of a flow was seen within its timeout.
#[inline(always)]
pub(crate) fn is_dead<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>, now: u32) -> bool {
    let ticks = world.setting(Setting::TicksPerSecond) as u32;
    let phase = effective_phase(world, original);
    let protocol = original.protocol;
    if !state::is_expired(protocol, phase, original.stamp.get(), now, ticks) {
        return false;
    }
    world
        .conntrack(&original.answer_key(), |answer| state::is_expired(protocol, phase, answer.stamp.get(), now, ticks))
        .unwrap_or(true)
}

/// The later of what the client's and the backend's packets told.
#[inline(always)]
pub(crate) fn effective_phase<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>) -> Phase {
    world
        .conntrack(&original.answer_key(), |answer| answer.phase)
        .map_or(original.phase, |other| original.phase.max(other))
}

/// NAT point 1.
#[inline(always)]
fn to_backend<F: Family, P: Packet>(
    packet: &mut P,
    flow: &Flow<F::Addr>,
    hook: Hook,
    reason: Counter,
    backend: &L4Addr<F::Addr>,
    device: u32,
) -> Verdict {
    match nat::rewrite::<F, P>(packet, flow, End::Destination, backend) {
        None => Verdict::Drop(Counter::Malformed),
        Some(()) if hook == Hook::Host => Verdict::Forward(reason, device),
        Some(()) => Verdict::Pass(reason),
    }
}

/// An answer for a process of this host: it must look as if it came from the frontend by way of `ballast0`, where the
/// route to the frontend points (strict rp_filter).
#[inline(never)]
fn to_host<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    flow: &Flow<F::Addr>,
    entry: &Conntrack<F::Addr>,
) -> Verdict {
    let [a, b, c, d, e, f, ..] = world.setting(Setting::HostMac).to_le_bytes();
    let done = packet.get_mut::<Eth>(0).map(|eth| eth.destination = [a, b, c, d, e, f]);
    let done = done.and_then(|()| nat::rewrite::<F, P>(packet, flow, End::Source, &entry.frontend));
    let done = match done {
        Some(()) if entry.has_source() => nat::rewrite::<F, P>(packet, flow, End::Destination, &entry.client),
        other => other,
    };
    match done {
        Some(()) => Verdict::ToHost(Counter::HostReply),
        None => Verdict::Drop(Counter::Malformed),
    }
}

#[inline(never)]
fn outward<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W) -> Verdict {
    let flow = match Flow::parse::<F, P>(packet, Side::EGRESS) {
        Ok(flow) => flow,
        Err(reason) => return Verdict::Pass(reason),
    };
    let seen = world.conntrack(&flow.key, |entry| {
        let (source, reason) = if entry.kind == EntryKind::SOURCE {
            (&entry.source, Counter::SourceNat)
        } else {
            state::touch(entry, flow.flags, flow.bytes(), world.now());
            (&entry.frontend, Counter::FromFrontend)
        };
        match nat::rewrite::<F, P>(packet, &flow, End::Source, source) {
            Some(()) => Verdict::Pass(reason),
            None => Verdict::Drop(Counter::Malformed),
        }
    });
    seen.unwrap_or(Verdict::Pass(Counter::NotAService))
}
