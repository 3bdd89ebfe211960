//! The first packet of a flow: find the frontend, apply the client's rule, choose a backend; [`crate::insert`] writes it.

use zerocopy::native_endian::{U32, U64};

use crate::{
    affinity,
    backend::NextHop,
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    flow::Flow,
    frontend::{Client, FrontendFlags, FrontendKey, PrefixFlags, Scope},
    hash::flow_hash,
    insert::{insert, is_same, remove_flow},
    pipeline,
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    select::{self, Choice},
    settings::{Setting, takeover_left},
    state,
    tables::{Scratch, Tables},
    tuple::L4Addr,
    verdict::Counter,
};

/// "No device": the packet was made on this host.
pub(crate) const HOST: u32 = 0;

/// What becomes of a packet that belongs to no flow, or to one that may be over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not ours.
    Pass(Counter),
    /// Dropped in silence.
    Drop(Counter),
    /// Refused at once.
    Refuse(Counter),
    /// Its flow is in the tables.
    Flow(Counter),
}

/// What becomes of a flow in doubt.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Resumed {
    /// It was over and is removed.
    Over,
    /// It goes on.
    GoesOn,
    /// It goes on, and was half-open until this packet.
    Proved,
}

/// Looks into a flow that a packet has met and that may be over, begin or end with it.
#[inline(always)]
pub(crate) fn resume<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) -> Resumed {
    let resumed = world.scratch(|Scratch { other, .. }| {
        if world.conntrack(&flow.key, |found| *other = *found).is_none() {
            return Resumed::Over;
        }
        if other.kind == EntryKind::ORIGINAL && !goes_on(world, flow, other) {
            remove_flow(world, other);
            return Resumed::Over;
        }
        if state::advance(world, flow, other) { Resumed::Proved } else { Resumed::GoesOn }
    });
    resumed.unwrap_or(Resumed::Over)
}

/// Lets the backend's direction of a flow begin or end by its packet at egress.
#[inline(always)]
pub(crate) fn advance_answer<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) {
    world.scratch(|Scratch { other, .. }| {
        let found = world.conntrack(&flow.key, |found| *other = *found);
        if found.is_some() && other.kind == EntryKind::REPLY {
            state::advance(world, flow, other);
        }
    });
}

/// Makes the flow of a packet that belongs to none. `device`: the interface it came by; [`HOST`]: by none, its client is a
/// process of this node.
///
/// The steps are called one after the other, not one by the other, for the sake of the BPF stack.
#[inline(always)]
pub(crate) fn enter<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, device: u32) -> Outcome {
    let outcome = world.scratch(|Scratch { entry, other, .. }| {
        match choose(world, flow, device, entry) {
            Outcome::Flow(_) => {}
            outcome => return outcome,
        }
        let hash = flow_hash(&flow.key.0, world.setting(Setting::HashSeed));
        match insert(world, entry, other, hash) {
            Ok(()) => {
                remember(world, entry);
                Outcome::Flow(Counter::NewFlow)
            }
            Err(Counter::TupleTaken) if is_same(entry, other) => Outcome::Flow(Counter::ToBackend),
            Err(reason) => Outcome::Refuse(reason),
        }
    });
    outcome.unwrap_or(Outcome::Drop(Counter::Inconsistent))
}

/// Whether a flow in doubt goes on: both its directions are asked. Otherwise its packet makes a new choice.
#[inline(never)]
fn goes_on<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, entry: &Conntrack<A>) -> bool {
    let gone = pipeline::alive(world, entry).is_none();
    let closing = pipeline::effective_phase(world, entry).0 >= Phase::CLOSING.0;
    let over = pipeline::is_dead(world, entry, world.now())
        || gone && (entry.protocol == Protocol::UDP || flow.flags.opens())
        || flow.flags.opens() && closing;
    !over
}

/// Decides about a packet of no known flow: the frontend, the client's rule, a backend. Fills `entry` for a new flow.
#[inline(never)]
fn choose<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, device: u32, entry: &mut Conntrack<A>) -> Outcome {
    let Some(word) = world.frontend(&FrontendKey::new(flow.protocol(), flow.destination())) else {
        return no_frontend(world, flow);
    };
    if flow.key.0.source.is_martian() {
        return Outcome::Drop(Counter::Martian);
    }
    let host = device == HOST;
    let source = if host { PrefixFlags::NONE } else { world.prefix(&flow.key.0.source) };
    let from_pod = source.contains(PrefixFlags::DETECTED);
    // Before anything is granted for the sake of the source (reliability.md section 7).
    if source.contains(PrefixFlags::LOCAL_PODS) && is_uplink(world, device) {
        return Outcome::Drop(Counter::SpoofedSource);
    }
    // TCP begins with a SYN, SCTP with an INIT; anything else without state is somebody's past (design.md section 4).
    let stateless = flow.protocol() != Protocol::UDP && !flow.flags.opens();
    if stateless
        && flow.protocol() == Protocol::TCP
        && takeover_left(world.setting(Setting::Takeover), world.now()) != 0
    {
        return Outcome::Pass(Counter::TakenOver);
    }
    let Some(frontend) = world.record(word.id()) else {
        return Outcome::Drop(Counter::Inconsistent);
    };
    // Whoever may not ask gets no answer, not even a refusal.
    if frontend.flags.contains(FrontendFlags::SOURCE_RANGES) && !world.is_allowed(frontend.service, &flow.key.0.source)
    {
        return Outcome::Drop(Counter::SourceRange);
    }
    if stateless {
        return Outcome::Refuse(Counter::NoState);
    }
    let client = if host {
        Client::Host
    } else if from_pod {
        Client::Pod
    } else {
        Client::Outside
    };
    let rule = frontend.rule(client);
    let hash = flow_hash(&flow.key.0, world.setting(Setting::HashSeed));
    let remembered = recall(world, frontend.service.get(), rule.scope(), &flow.key.0.source);
    let (id, backend) = match select::remembered_or(world, remembered, frontend.service, rule.scope(), hash) {
        Choice::Backend(id, backend) => (id, backend),
        Choice::Empty(WhenEmpty::Reject) => return Outcome::Refuse(Counter::NoEndpoint),
        Choice::Empty(WhenEmpty::Drop) => return Outcome::Drop(Counter::NoLocalEndpoint),
        Choice::Inconsistent => return Outcome::Drop(Counter::Inconsistent),
    };
    let Some(hop) = world.next_hop(backend.next_hop).filter(|hop| hop.ifindex.get() != 0) else {
        return Outcome::Refuse(Counter::NoRoute);
    };
    // A host's own backend is reached by the socket hook alone: from `ballast0` there is no way up that is no martian.
    if host && hop.flags.get() & NextHop::<A>::LOCAL != 0 {
        return Outcome::Refuse(Counter::NoRoute);
    }
    *entry = Conntrack {
        client: flow.source(),
        frontend: flow.destination(),
        backend: backend.address,
        source: L4Addr::NONE,
        service: frontend.service,
        backend_id: id,
        generation: backend.generation,
        stamp: U32::new(world.now()),
        packets: U64::ZERO,
        bytes: U64::ZERO,
        protocol: flow.protocol(),
        kind: EntryKind::ORIGINAL,
        phase: Phase::OPENING,
        host: u8::from(host),
        device: hop.ifindex,
        alias: Port::NONE,
        mark: U32::ZERO,
        reserved: [0; 2],
    };
    if needs_source(entry, hop, rule.masquerade()) {
        if hop.prefsrc == A::UNSPECIFIED {
            return Outcome::Refuse(Counter::NoRoute);
        }
        entry.source = L4Addr { addr: hop.prefsrc, port: entry.client.port };
    }
    Outcome::Flow(Counter::NewFlow)
}

/// Number of the backend that a client is remembered with; 0: none.
#[inline(never)]
fn recall<A: Addr, W: Tables<A>>(world: &W, service: u32, scope: Scope, client: &A) -> u32 {
    affinity::recall(world, service, scope, client)
}

/// Remembers the backend of a flow that was just made.
#[inline(never)]
fn remember<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>) {
    let (service, id) = (entry.service.get(), entry.backend_id.get());
    affinity::remember(world, service, &entry.client.addr, id, entry.generation.get());
}

/// Whether an interface is one that pods of this node do not send by.
#[inline(always)]
fn is_uplink<A: Addr, W: Tables<A>>(world: &W, device: u32) -> bool {
    Setting::UPLINKS.iter().any(|setting| {
        let word = world.setting(*setting);
        word as u32 == device || (word >> 32) as u32 == device
    })
}

/// Whether the backend must see this node as the source: by the rule (semantics.md 2.4.1 to 2.4.3), or because client and
/// backend are the same pod (2.4.4). Where the backend is this node itself there is no egress, as with kube-proxy's
/// POSTROUTING; and a host's packets may carry the right source already.
#[inline(always)]
fn needs_source<A: Addr>(entry: &Conntrack<A>, hop: &NextHop<A>, masquerade: bool) -> bool {
    let wanted = masquerade || entry.client.addr == entry.backend.addr;
    wanted && hop.flags.get() & NextHop::<A>::LOCAL == 0 && entry.client.addr != hop.prefsrc
}

/// An address and port without a frontend.
#[inline(always)]
fn no_frontend<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) -> Outcome {
    if world.is_vip(&flow.key.0.destination) {
        let martian = flow.key.0.source.is_martian();
        return if martian { Outcome::Drop(Counter::Martian) } else { Outcome::Refuse(Counter::NoSuchPort) };
    }
    if world.prefix(&flow.key.0.destination).contains(PrefixFlags::SERVICE) {
        return Outcome::Drop(Counter::Unallocated);
    }
    Outcome::Pass(Counter::NotAService)
}
