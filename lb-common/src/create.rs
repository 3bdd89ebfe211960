//! The first packet of a flow: find the frontend, apply the client's rule, choose a backend, write the entries.

use zerocopy::native_endian::{U32, U64};

use crate::{
    backend::{NextHop, ServiceId},
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    flow::Flow,
    frontend::{Client, FrontendKey, PrefixFlags},
    hash::{flow_hash, scale},
    pipeline,
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    select::{self, Choice},
    settings::{Setting, takeover_left},
    state,
    tables::{InsertError, Scratch, Tables},
    tuple::{FlowKey, L4Addr, Side},
    verdict::Counter,
};

/// "No device": the packet was made on this host.
pub(crate) const HOST: u32 = 0;

/// Probes for a free source port before giving up.
const SNAT_PROBES: u32 = 32;

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
            Ok(()) => Outcome::Flow(Counter::NewFlow),
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
    let from_pod = !host && world.prefix(&flow.key.0.source).contains(PrefixFlags::LOCAL_PODS);
    // Before anything is granted for the sake of the source (reliability.md section 7).
    if from_pod && is_uplink(world, device) {
        return Outcome::Drop(Counter::SpoofedSource);
    }
    // TCP begins with a SYN, SCTP with an INIT; anything else without state is somebody's past (design.md section 4).
    if flow.protocol() != Protocol::UDP && !flow.flags.opens() {
        if flow.protocol() == Protocol::TCP && takeover_left(world.setting(Setting::Takeover), world.now()) != 0 {
            return Outcome::Pass(Counter::TakenOver);
        }
        return Outcome::Refuse(Counter::NoState);
    }
    let Some(frontend) = world.record(word.id()) else {
        return Outcome::Drop(Counter::Inconsistent);
    };
    let client = if host {
        Client::Host
    } else if from_pod {
        Client::Pod
    } else {
        Client::Outside
    };
    let rule = frontend.rule(client);
    let hash = flow_hash(&flow.key.0, world.setting(Setting::HashSeed));
    let (id, backend) = match select::backend(world, frontend.service, rule.scope(), hash) {
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

/// Writes the entries of a flow, the original one last, since it is what other packets find. Whatever fails is undone.
#[inline(always)]
fn insert<A: Addr, W: Tables<A>>(
    world: &W,
    entry: &mut Conntrack<A>,
    other: &mut Conntrack<A>,
    hash: u32,
) -> Result<(), Counter> {
    let probes = entry.has_source();
    let mut done;
    // A host's masqueraded flow is answered at the port that probing finds.
    if !(probes && entry.host != 0) {
        done = insert_answer(world, entry);
        if done == Err(Counter::TupleTaken) {
            if is_over(world, entry, other) {
                remove_flow(world, other);
                done = insert_answer(world, entry);
            } else if !is_same(entry, other) {
                done = insert_at_free_port(world, entry, hash, Which::Alias);
            }
        }
        done?;
    }
    if probes {
        done = insert_source(world, entry, hash);
        if done == Err(Counter::TupleTaken) {
            if is_over(world, entry, other) {
                remove_flow(world, other);
                done = insert_source(world, entry, hash);
            } else if !is_same(entry, other) {
                // One try: the table says who has a port towards this backend only port by port.
                entry.alias = Port::new((hash as u16) | 0x8000);
                done = insert_source(world, entry, hash);
            }
        }
        if done.is_err() {
            // What insert_source began it undid.
            if entry.host == 0 {
                entry.source = L4Addr::NONE;
                remove_others(world, entry);
            }
            return done;
        }
    }
    done = insert_original(world, entry);
    if done.is_err() {
        remove_others(world, entry);
    }
    if done.is_ok() {
        if entry.alias != Port::NONE {
            world.count(Counter::PortChanged);
        }
        world.count_connection(entry.service, entry.backend_id);
    }
    done
}

/// Whether another CPU makes, or has just made, the very flow that is being made here.
#[inline(always)]
fn is_same<A: Addr>(entry: &Conntrack<A>, other: &Conntrack<A>) -> bool {
    other.client == entry.client && other.frontend == entry.frontend
}

#[inline(always)]
fn put<A: Addr, W: Tables<A>>(world: &W, key: &FlowKey<A>, entry: &Conntrack<A>) -> Result<(), Counter> {
    match world.insert(key, entry) {
        Ok(()) => Ok(()),
        Err(InsertError::Exists) => Err(Counter::TupleTaken),
        Err(InsertError::Full) => Err(Counter::ConntrackFull),
    }
}

#[inline(never)]
fn insert_original<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>) -> Result<(), Counter> {
    entry.kind = EntryKind::ORIGINAL;
    put(world, &entry.original_key(), entry)
}

/// The entry for the backend's packets. It names client and backend, so whoever holds it already is equal to this flow
/// between the NAT points.
#[inline(never)]
fn insert_answer<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>) -> Result<(), Counter> {
    entry.kind = if entry.host == 0 { EntryKind::REPLY } else { EntryKind::RETURN };
    put(world, &entry.answer_key(), entry)
}

/// Whether the flow that is equal to this one between the NAT points has ended. `other` becomes that flow's entry.
#[inline(never)]
fn is_over<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>, other: &mut Conntrack<A>) -> bool {
    let (host, rewritten) = (entry.host != 0, entry.has_source());
    let side = if host && !rewritten { Side::INGRESS } else { Side::EGRESS };
    let (source, destination) =
        if host && rewritten { (&entry.client, &entry.backend) } else { (&entry.backend, &entry.client) };
    let key = FlowKey::new(side, entry.protocol, *source, *destination);
    if world.conntrack(&key, |found| *other = *found).is_none() {
        return false;
    }
    if world.conntrack(&other.original_key(), |original| *other = *original).is_none() {
        // Another CPU is making it. If it has been doing so for a second, these are the remains of a flow.
        return world.now().wrapping_sub(other.stamp.get()) > world.setting(Setting::TicksPerSecond) as u32;
    }
    pipeline::effective_phase(world, other).0 >= Phase::CLOSING.0
        || pipeline::is_dead(world, other, world.now())
        || other.protocol == Protocol::UDP && pipeline::alive(world, other).is_none()
}

/// The entries that rewrite the source; allocates its port (semantics.md 2.4.5, 2.10.9). On failure there is neither.
#[inline(never)]
fn insert_source<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, hash: u32) -> Result<(), Counter> {
    insert_at_free_port(world, entry, hash, Which::Source)?;
    let done = insert_egress(world, entry);
    if done.is_err() {
        world.remove(&entry.return_key());
    }
    done
}

/// Which port is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// That of the rewritten source: the RETURN entry names it.
    Source,
    /// That of the client between the NAT points: the answer entry names it.
    Alias,
}

/// Inserts the entry for the backend's packets under the first port of our range that is free towards this backend.
#[inline(never)]
fn insert_at_free_port<A: Addr, W: Tables<A>>(
    world: &W,
    entry: &mut Conntrack<A>,
    hash: u32,
    which: Which,
) -> Result<(), Counter> {
    let (wanted, mut failure) = match which {
        Which::Source => (entry.source.port, Counter::SnatExhausted),
        Which::Alias => (Port::NONE, Counter::TupleTaken),
    };
    let range = world.setting(Setting::SnatPorts) as u32;
    let first = range & 0xffff;
    let size = (range >> 16).wrapping_add(1).wrapping_sub(first);
    if first != 0 && size != 0 && size <= 0xffff {
        let mut key = if which == Which::Source {
            entry.kind = EntryKind::RETURN;
            entry.return_key()
        } else {
            entry.answer_key()
        };
        let own = u32::from(wanted.number()).wrapping_sub(first);
        let mut offset = if own < size { own } else { scale(hash, size) };
        let mut probe = 0;
        while probe < SNAT_PROBES {
            let port = Port::new(first.wrapping_add(offset) as u16);
            match which {
                Which::Source => entry.source.port = port,
                Which::Alias => entry.alias = port,
            }
            key.0.destination_port = port;
            match world.insert(&key, entry) {
                Ok(()) => return Ok(()),
                Err(InsertError::Full) => {
                    failure = Counter::ConntrackFull;
                    break;
                }
                Err(InsertError::Exists) => {}
            }
            // An odd step of the hash: neighbours do not probe the same ports in the same order.
            offset = offset.wrapping_add((hash & 0xff) | 1);
            if offset >= size {
                offset = offset.wrapping_sub(size);
            }
            if offset >= size {
                offset = 0;
            }
            probe = probe.wrapping_add(1);
        }
    }
    Err(failure)
}

/// The entry of NAT point 2. Where the answer entry names client and backend and is ours, nobody else can have this one,
/// but a flow of the same pair may have left it behind. A host's answer entry names the rewritten source: this entry is
/// then what tells that another flow is equal between the NAT points.
#[inline(always)]
fn insert_egress<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>) -> Result<(), Counter> {
    entry.kind = EntryKind::SOURCE;
    let key = entry.source_key();
    if entry.host == 0 {
        world.remove(&key);
    }
    put(world, &key, entry)
}

/// Removes all entries of a flow but the original one.
#[inline(never)]
fn remove_others<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>) {
    if entry.has_source() {
        world.remove(&entry.source_key());
        world.remove(&entry.return_key());
    }
    world.remove(&entry.answer_key());
}

/// Removes all entries of a flow and hands what they counted to its service. It calls nothing, for the sake of the BPF
/// stack: it is the deepest call there is.
#[inline(never)]
pub(crate) fn remove_flow<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>) {
    world.count(Counter::FlowReplaced);
    let original = entry.original_key();
    count(world, entry.service, &original);
    world.remove(&original);
    let answer = entry.answer_key();
    count(world, entry.service, &answer);
    world.remove(&answer);
    if entry.has_source() {
        world.remove(&entry.source_key());
        world.remove(&entry.return_key());
    }
}

/// Hands an entry's numbers over.
#[inline(always)]
fn count<A: Addr, W: Tables<A>>(world: &W, service: ServiceId, key: &FlowKey<A>) {
    let counted = world.conntrack(key, |entry| (entry.packets.get(), entry.bytes.get()));
    if let Some((packets, bytes)) = counted {
        world.add_traffic(service, packets, bytes);
    }
}
