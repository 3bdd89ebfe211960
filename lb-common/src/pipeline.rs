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
    tuple::{FlowTuple, L4Addr, Side},
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

/// What a known flow asks for.
enum Hit<A> {
    /// Point 1; the device is for a host's flow.
    ToBackend { backend: L4Addr<A>, device: u32 },
    /// Point 3.
    ToClient { client: L4Addr<A> },
    /// Points 3 and 4 at once, for a process of this host.
    ToHost { client: L4Addr<A>, frontend: L4Addr<A> },
    /// Expired, begun anew, or its backend is gone: look closer.
    Doubt,
}

#[inline(always)]
fn inward<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W, hook: Hook, local: bool) -> Verdict {
    let flow = match Flow::parse::<F, P>(packet) {
        Ok(flow) => flow,
        Err(reason) => return Verdict::Pass(reason),
    };
    let key = flow.key(Side::INGRESS);
    let hit = match world.conntrack(&key, |entry| visit(world, entry, &flow)) {
        Some(Hit::Doubt) => reconsider(world, &key, &flow),
        other => other,
    };
    match hit {
        Some(Hit::ToBackend { backend, device }) => {
            to_backend::<F, P>(packet, &flow, hook, Counter::ToBackend, backend, device)
        }
        Some(Hit::ToClient { client }) => match nat::rewrite::<F, P>(packet, &flow, End::Destination, client) {
            Some(()) => Verdict::Pass(Counter::ToClient),
            None => Verdict::Drop(Counter::Malformed),
        },
        Some(Hit::ToHost { client, frontend }) => {
            if hook == Hook::Xdp {
                Verdict::Pass(Counter::Deferred)
            } else {
                to_host::<F, P, W>(packet, world, &flow, client, frontend)
            }
        }
        Some(Hit::Doubt) | None => begin::<F, P, W>(packet, world, &flow, hook, local),
    }
}

/// The common case: a known flow, refreshed in place.
#[inline(always)]
fn visit<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, flow: &Flow<A>) -> Hit<A> {
    let now = world.now();
    if entry.kind == EntryKind::ORIGINAL {
        let device = match alive(world, entry) {
            Some(backend) if entry.host != 0 => {
                world.next_hop(backend.next_hop).map_or_else(|| entry.device.get(), |hop| hop.ifindex.get())
            }
            Some(_) => 0,
            // TCP goes on to a backend that left the service (semantics.md 2.8.1), UDP must not.
            None if entry.protocol == Protocol::TCP => entry.device.get(),
            None => return Hit::Doubt,
        };
        if flow.flags.opens() || expired(world, entry, now) {
            return Hit::Doubt;
        }
        state::touch(entry, flow.flags, flow.bytes(), now);
        return Hit::ToBackend { backend: entry.backend, device };
    }
    state::touch(entry, flow.flags, flow.bytes(), now);
    if entry.host == 0 {
        Hit::ToClient { client: entry.client }
    } else {
        Hit::ToHost { client: entry.client, frontend: entry.frontend }
    }
}

/// The backend of an entry, if its slot still has the same owner (design.md section 4).
#[inline(always)]
pub(crate) fn alive<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>) -> Option<Backend<A>> {
    world
        .backend(entry.backend_id)
        .filter(|backend| backend.generation == entry.generation && backend.service == entry.service)
}

#[inline(always)]
fn expired<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>, now: u32) -> bool {
    let ticks = world.setting(Setting::TicksPerSecond) as u32;
    state::is_expired(entry.protocol, entry.phase, entry.stamp.get(), now, ticks)
}

/// A flow in doubt: both its directions are asked. It is kept, or removed so that the packet makes a new choice.
#[inline(never)]
fn reconsider<A: Addr, W: Tables<A>>(world: &W, key: &FlowTuple<A>, flow: &Flow<A>) -> Option<Hit<A>> {
    let now = world.now();
    let mut entry = world.conntrack(key, |entry| *entry)?;
    let gone = alive(world, &entry).is_none();
    let dead = is_dead(world, &entry, now);
    let closing = effective_phase(world, &entry).0 >= Phase::CLOSING.0;
    let renew =
        dead || gone && (entry.protocol != Protocol::TCP || flow.flags.opens()) || flow.flags.opens() && closing;
    if renew {
        create::remove_flow(world, &mut entry);
        world.count(Counter::FlowReplaced);
        return None;
    }
    world.conntrack(key, |entry| {
        state::touch(entry, flow.flags, flow.bytes(), now);
        Hit::ToBackend { backend: entry.backend, device: entry.device.get() }
    })
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
        .conntrack(&original.middle_key(), |middle| state::is_expired(protocol, phase, middle.stamp.get(), now, ticks))
        .unwrap_or(true)
}

/// The later of what the client's and the backend's packets told.
#[inline(always)]
pub(crate) fn effective_phase<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>) -> Phase {
    world
        .conntrack(&original.middle_key(), |middle| middle.phase)
        .map_or(original.phase, |other| original.phase.max(other))
}

/// NAT point 1.
#[inline(always)]
fn to_backend<F: Family, P: Packet>(
    packet: &mut P,
    flow: &Flow<F::Addr>,
    hook: Hook,
    reason: Counter,
    backend: L4Addr<F::Addr>,
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
    client: L4Addr<F::Addr>,
    frontend: L4Addr<F::Addr>,
) -> Verdict {
    let [a, b, c, d, e, f, ..] = world.setting(Setting::HostMac).to_le_bytes();
    let done = packet.get_mut::<Eth>(0).map(|eth| eth.destination = [a, b, c, d, e, f]);
    let done = done.and_then(|()| nat::rewrite::<F, P>(packet, flow, End::Source, frontend));
    let done = match done {
        Some(()) if client != flow.destination => nat::rewrite::<F, P>(packet, flow, End::Destination, client),
        other => other,
    };
    match done {
        Some(()) => Verdict::ToHost(Counter::HostReply),
        None => Verdict::Drop(Counter::Malformed),
    }
}

/// A packet of no known flow.
#[inline(always)]
fn begin<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    flow: &Flow<F::Addr>,
    hook: Hook,
    local: bool,
) -> Verdict {
    match create::new_flow(world, flow, hook == Hook::Host && local) {
        create::Outcome::Pass(reason) => Verdict::Pass(reason),
        create::Outcome::Drop(reason) => Verdict::Drop(reason),
        create::Outcome::Refuse(_) if hook == Hook::Xdp => Verdict::Pass(Counter::Deferred),
        create::Outcome::Refuse(reason) => reply::refuse::<F, P>(packet, flow, reason),
        create::Outcome::Made { backend, device } => {
            to_backend::<F, P>(packet, flow, hook, Counter::NewFlow, backend, device)
        }
    }
}

#[inline(always)]
fn outward<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W) -> Verdict {
    let flow = match Flow::parse::<F, P>(packet) {
        Ok(flow) => flow,
        Err(reason) => return Verdict::Pass(reason),
    };
    let seen = world.conntrack(&flow.key(Side::EGRESS).canonical(), |entry| {
        if flow.source == entry.client && flow.destination == entry.backend {
            return if entry.has_source() { Some((entry.source, Counter::SourceNat)) } else { None };
        }
        state::touch(entry, flow.flags, flow.bytes(), world.now());
        Some((entry.frontend, Counter::FromFrontend))
    });
    match seen {
        None => Verdict::Pass(Counter::NotAService),
        Some(None) => Verdict::Pass(Counter::Untranslated),
        Some(Some((source, reason))) => match nat::rewrite::<F, P>(packet, &flow, End::Source, source) {
            Some(()) => Verdict::Pass(reason),
            None => Verdict::Drop(Counter::Malformed),
        },
    }
}
