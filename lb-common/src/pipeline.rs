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
    create::{self, Outcome, Resumed},
    egress,
    family::{Addr, Depth, End, Family, Full, Plain, V4, V6},
    flow::Flow,
    fragment::Part,
    half_open, icmp, nat,
    packet::Packet,
    protocol::{Port, Protocol},
    read::{Version, is_rare, park, read, unread, version},
    reply, sctp,
    settings::Setting,
    state::{self, Timeouts},
    tables::{Tables, World},
    tuple::Side,
    verdict::{Action, Counter, Verdict},
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

/// NAT points 1 and 3. `device`: index of the interface the packet came by; 0 (only at [`Hook::Host`]): it was made on this
/// host.
#[inline(always)]
pub fn ingress<P: Packet, W: AllTables>(packet: &mut P, world: &W, hook: Hook, device: u32) -> Verdict {
    let verdict = match version(packet) {
        Ok((Version::V4, l3)) => inward::<V4, P, W>(packet, world, hook, device, l3),
        Ok((Version::V6, l3)) => inward::<V6, P, W>(packet, world, hook, device, l3),
        Err(reason) => Verdict::pass(reason),
    };
    // What nobody translated would come back by the same route for ever.
    if hook == Hook::Host && verdict.action == Action::Pass {
        return Verdict::drop(Counter::HostUntranslated);
    }
    verdict
}

/// NAT points 2 and 4.
#[inline(always)]
pub fn egress<P: Packet, W: AllTables>(packet: &mut P, world: &W) -> Verdict {
    match version(packet) {
        Ok((Version::V4, l3)) => egress::outward::<V4, P, W>(packet, world, l3),
        Ok((Version::V6, l3)) => egress::outward::<V6, P, W>(packet, world, l3),
        Err(reason) => Verdict::pass(reason),
    }
}

/// The fast path, the slow one, and again the fast one with what the slow one has put into the tables: together they would
/// not fit a BPF stack. What leaves the fast path is parked in memory for the others.
#[inline(always)]
fn inward<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    hook: Hook,
    device: u32,
    l3: usize,
) -> Verdict {
    let mut verdict = if l3 == Eth::LENGTH {
        known::<F, P, W, Plain>(packet, world, hook, None)
    } else {
        Verdict::pass(Counter::Vlan)
    };
    if is_rare(verdict) {
        packet.pull();
        verdict = match park::<F, P, W, Full>(packet, world, l3, Side::INGRESS) {
            None => known::<F, P, W, Full>(packet, world, hook, None),
            Some(Counter::Icmp) => return icmp::translate::<F, P, W>(packet, world, Some(hook)),
            Some(reason) => return unread(reason),
        };
    } else if verdict.action == Action::Undecided {
        // It was parsed a moment ago; if it cannot be any more, something changes it behind our back.
        if let Some(reason) = park::<F, P, W, Plain>(packet, world, l3, Side::INGRESS) {
            return Verdict::drop(reason);
        }
    } else {
        return verdict;
    }
    if verdict.action == Action::Undecided {
        let resumed = if verdict.counter == DOUBT { resume::<F, P, W>(packet, world) } else { Resumed::Over };
        verdict = match resumed {
            Resumed::Over => unknown::<F, P, W>(packet, world, hook, device),
            Resumed::GoesOn | Resumed::Proved => Verdict::undecided(Counter::ToBackend),
        };
        if resumed == Resumed::Proved {
            half_open::leave(world);
        }
        if verdict.action == Action::Undecided {
            if verdict.counter == Counter::NewFlow {
                half_open::enter(world);
            }
            verdict = known::<F, P, W, Full>(packet, world, hook, Some(verdict.counter));
        }
    }
    settle::<F, P, W>(packet, world, verdict)
}

/// A parked packet that leaves: what covers all of it follows what was changed.
#[inline(always)]
pub(crate) fn settle<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W, verdict: Verdict) -> Verdict {
    if matches!(verdict.action, Action::Pass | Action::Forward | Action::ToHost)
        && sctp::follow::<F::Addr, P, W>(packet, world).is_none()
    {
        return Verdict::drop(Counter::Malformed);
    }
    verdict
}

/// What becomes of the flow in doubt of the parked packet.
#[inline(never)]
fn resume<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W) -> Resumed {
    let mut flow = Flow::empty();
    match read::<F, P, W, Full>(packet, world, &mut flow, Side::INGRESS) {
        Ok(()) => create::resume(world, &flow),
        Err(_) => Resumed::Over,
    }
}

/// Reason of the fast path for leaving a packet to the slow one: it has a flow, but one that may be over.
const DOUBT: Counter = Counter::FlowReplaced;
/// The same: it has none.
const NO_FLOW: Counter = Counter::NotAService;

/// A packet of a flow in its normal course; any other stays undecided and untouched. `decided`: the slow path has just
/// put the flow there, for this reason.
#[inline(never)]
fn known<F: Family, P: Packet, W: Tables<F::Addr>, D: Depth>(
    packet: &mut P,
    world: &W,
    hook: Hook,
    decided: Option<Counter>,
) -> Verdict {
    let mut flow = Flow::empty();
    if let Err(reason) = read::<F, P, W, D>(packet, world, &mut flow, Side::INGRESS) {
        return Verdict::pass(reason);
    }
    let verdict = world.conntrack(&flow.key, |entry| {
        let met = visit(world, entry, &flow, hook, decided.is_some());
        let (new, reason) = match met.way {
            Way::Doubt => return Verdict::undecided(DOUBT),
            Way::ToHost if hook == Hook::Xdp => return Verdict::pass(Counter::Deferred),
            Way::ToHost => return to_host::<F, P, W>(packet, world, &flow, entry),
            Way::ToBackend => (&entry.backend, decided.unwrap_or(Counter::ToBackend)),
            Way::ToClient => (&entry.client, Counter::ToClient),
        };
        let mut done = Some(());
        if entry.alias == Port::NONE || entry.kind == EntryKind::ORIGINAL {
            done = nat::rewrite::<F, P, D>(packet, &flow, End::Destination, new);
        }
        if entry.alias != Port::NONE {
            done = rewrite_alias::<F, P>(packet, &flow, entry);
        }
        match done {
            None => Verdict::drop(Counter::Malformed),
            Some(()) if hook == Hook::Host => Verdict::forward(reason, met.device),
            Some(()) => Verdict::pass(reason),
        }
    });
    verdict.unwrap_or(match decided {
        // Another CPU removed it meanwhile.
        Some(_) => Verdict::drop(Counter::Inconsistent),
        None => Verdict::undecided(NO_FLOW),
    })
}

/// A parked packet of no known flow. Undecided: its flow is in the tables now.
#[inline(never)]
fn unknown<F: Family, P: Packet, W: Tables<F::Addr>>(packet: &mut P, world: &W, hook: Hook, device: u32) -> Verdict {
    let mut flow = Flow::empty();
    if let Err(reason) = read::<F, P, W, Full>(packet, world, &mut flow, Side::INGRESS) {
        return Verdict::drop(reason);
    }
    if flow.part() == Part::LATER {
        // Its first fragment decided: what it did not bring in is let in no more here.
        return if world.is_vip(&flow.key.0.destination) {
            Verdict::drop(Counter::FragmentRefused)
        } else {
            Verdict::pass(Counter::NotAService)
        };
    }
    match create::enter(world, &flow, device) {
        Outcome::Pass(reason) => Verdict::pass(reason),
        Outcome::Drop(reason) => Verdict::drop(reason),
        Outcome::Refuse(_) if hook == Hook::Xdp => Verdict::pass(Counter::Deferred),
        Outcome::Refuse(reason) => reply::refuse::<F, P>(packet, &flow, reason),
        Outcome::Flow(reason) => Verdict::undecided(reason),
    }
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
    /// Expired, half-open, beginning or ending, or its backend is gone: look closer.
    Doubt,
}

/// The common case: a known flow, refreshed in place. `decided`: there is no doubt.
#[inline(always)]
fn visit<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, flow: &Flow<A>, hook: Hook, decided: bool) -> Met {
    let now = world.now();
    let mut device = 0;
    let way = if entry.kind == EntryKind::ORIGINAL {
        device = entry.device.get();
        let backend = alive(world, entry);
        // Connections go on to a backend that left the service (semantics.md 2.8.1), UDP must not.
        let gone = backend.is_none() && entry.protocol == Protocol::UDP;
        let proved = matches!(entry.phase, Phase::OPEN | Phase::CLOSING) || entry.protocol == Protocol::UDP;
        if !decided && (gone || flow.flags.changes() || !proved || expired(world, entry, now)) {
            return Met { way: Way::Doubt, device };
        }
        if entry.host != 0
            && let Some(hop) = backend.and_then(|backend| world.next_hop(backend.next_hop))
        {
            device = hop.ifindex.get();
        }
        Way::ToBackend
    } else if entry.host == 0 {
        // Its REPLY entry counts.
        return Met { way: Way::ToClient, device };
    } else if hook == Hook::Xdp {
        // tcx will count it.
        return Met { way: Way::ToHost, device };
    } else if !decided && flow.flags.changes() {
        return Met { way: Way::Doubt, device };
    } else {
        Way::ToHost
    };
    state::touch(entry, flow, now);
    Met { way, device }
}

/// The backend of an entry, if its slot still has the same owner (design.md section 4).
#[inline(always)]
pub(crate) fn alive<'w, A: Addr, W: Tables<A>>(world: &'w W, entry: &Conntrack<A>) -> Option<&'w Backend<A>> {
    world
        .backend(entry.backend_id)
        .filter(|backend| backend.generation == entry.generation && backend.service == entry.service)
}

/// Whether to look closer: what is configured is asked then alone, and what lives shorter is collected in time.
#[inline(always)]
fn expired<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>, now: u32) -> bool {
    let ticks = world.setting(Setting::TicksPerSecond) as u32;
    state::is_expired(Timeouts::DEFAULT.seconds(entry.protocol, entry.phase), entry.stamp.get(), now, ticks)
}

/// Whether neither direction of a flow was seen within its timeout.
#[inline(always)]
pub(crate) fn is_dead<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>, now: u32) -> bool {
    let ticks = world.setting(Setting::TicksPerSecond) as u32;
    let phase = effective_phase(world, original);
    let timeout = Timeouts(world.setting(Setting::Timeouts)).seconds(original.protocol, phase);
    if !state::is_expired(timeout, original.stamp.get(), now, ticks) {
        return false;
    }
    world
        .conntrack(&original.answer_key(), |answer| state::is_expired(timeout, answer.stamp.get(), now, ticks))
        .unwrap_or(true)
}

/// How far a flow is, as the client's and the backend's packets told.
#[inline(always)]
pub(crate) fn effective_phase<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>) -> Phase {
    world
        .conntrack(&original.answer_key(), |answer| answer.phase)
        .map_or(original.phase, |answer| state::flow_phase(original.protocol, original.phase, answer))
}

/// The client's end of a flow whose client has another port between the NAT points. Rare enough to be called.
#[inline(never)]
pub(crate) fn rewrite_alias<F: Family, P: Packet>(
    packet: &mut P,
    flow: &Flow<F::Addr>,
    entry: &Conntrack<F::Addr>,
) -> Option<()> {
    let inner = entry.inner_client();
    let (end, new) = match entry.kind {
        EntryKind::ORIGINAL => (End::Source, &inner),
        EntryKind::REPLY => (End::Destination, &entry.client),
        _ => (End::Destination, &inner),
    };
    nat::rewrite::<F, P, Full>(packet, flow, end, new)
}

/// Gives a frame the MAC of `ballast0`, by which it goes up to this host.
#[inline(always)]
pub(crate) fn address_host<P: Packet, W: World>(packet: &mut P, world: &W) -> Option<()> {
    let [a, b, c, d, e, f, ..] = world.setting(Setting::HostMac).to_le_bytes();
    packet.get_mut::<Eth>(0).map(|eth| eth.destination = [a, b, c, d, e, f])
}

/// An answer for a process of this host: it must look as if it came from the frontend by way of `ballast0`, where the
/// route to the frontend points (strict `rp_filter`).
#[inline(never)]
fn to_host<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    flow: &Flow<F::Addr>,
    entry: &Conntrack<F::Addr>,
) -> Verdict {
    let done = address_host(packet, world);
    let done = done.and_then(|()| nat::rewrite::<F, P, Full>(packet, flow, End::Source, &entry.frontend));
    let done = match done {
        Some(()) if entry.has_source() || entry.alias != Port::NONE => {
            nat::rewrite::<F, P, Full>(packet, flow, End::Destination, &entry.client)
        }
        other => other,
    };
    match done {
        Some(()) => Verdict::to_host(Counter::HostReply),
        None => Verdict::drop(Counter::Malformed),
    }
}
