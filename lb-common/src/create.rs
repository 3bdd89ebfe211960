//! The first packet of a flow: find the frontend, apply the client's rule, choose a backend, write the entries.

use zerocopy::native_endian::{U32, U64};

use crate::{
    backend::NextHop,
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    flow::Flow,
    frontend::{Client, FrontendKey, PrefixFlags},
    hash::{flow_hash, scale},
    pipeline,
    protocol::{Port, Protocol},
    ring::WhenEmpty,
    select::{self, Choice},
    settings::Setting,
    tables::{InsertError, Tables},
    tuple::{L4Addr, Side},
    verdict::Counter,
};

/// Probes for a free source port before giving up.
const SNAT_PROBES: u32 = 32;

/// What becomes of a packet that belongs to no flow.
pub(crate) enum Outcome<A> {
    /// Not ours.
    Pass(Counter),
    /// Dropped in silence.
    Drop(Counter),
    /// Refused at once.
    Refuse(Counter),
    /// The flow is in the tables.
    Made { backend: L4Addr<A>, device: u32 },
}

/// Decides about a packet of no known flow, and creates the flow. `host`: the client is a process of this node.
#[inline(never)]
pub(crate) fn new_flow<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, host: bool) -> Outcome<A> {
    let Some(word) = world.frontend(&FrontendKey::new(flow.protocol, flow.destination)) else {
        return unknown(world, flow);
    };
    if flow.protocol == Protocol::SCTP {
        return Outcome::Drop(Counter::Sctp);
    }
    // TCP begins with a SYN; anything else without state is somebody's past (design.md section 4).
    if flow.protocol == Protocol::TCP && !flow.flags.opens() {
        return Outcome::Refuse(Counter::NoState);
    }
    let Some(frontend) = world.record(word.id()) else {
        return Outcome::Drop(Counter::Inconsistent);
    };
    let client = if host {
        Client::Host
    } else if world.prefix(&flow.source.addr).contains(PrefixFlags::LOCAL_PODS) {
        Client::Pod
    } else {
        Client::Outside
    };
    let rule = frontend.rule(client);
    let hash = flow_hash(&flow.key(Side::INGRESS), world.setting(Setting::HashSeed));
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
    let mut entry = Conntrack {
        client: flow.source,
        frontend: flow.destination,
        backend: backend.address,
        source: L4Addr::NONE,
        service: frontend.service,
        backend_id: id,
        generation: backend.generation,
        stamp: U32::new(world.now()),
        packets: U64::new(1),
        bytes: U64::new(flow.bytes()),
        protocol: flow.protocol,
        kind: EntryKind::ORIGINAL,
        phase: Phase::OPENING,
        host: u8::from(host),
        device: hop.ifindex,
    };
    if needs_source(&entry, &hop, rule.masquerade()) {
        if hop.prefsrc == A::UNSPECIFIED {
            return Outcome::Refuse(Counter::NoRoute);
        }
        entry.source = L4Addr { addr: hop.prefsrc, port: flow.source.port };
    }
    match insert(world, &mut entry, hash) {
        Ok(()) => {
            world.count_connection(frontend.service, id);
            Outcome::Made { backend: entry.backend, device: hop.ifindex.get() }
        }
        Err(reason) => Outcome::Refuse(reason),
    }
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
fn unknown<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) -> Outcome<A> {
    if world.is_vip(&flow.destination.addr) {
        return Outcome::Refuse(Counter::NoSuchPort);
    }
    if world.prefix(&flow.destination.addr).contains(PrefixFlags::SERVICE) {
        return Outcome::Drop(Counter::Unallocated);
    }
    Outcome::Pass(Counter::NotAService)
}

/// Writes the entries of a flow: the return entry first, since it may take probing, the original one last, since it is
/// what other packets find. Whatever fails is undone.
#[inline(always)]
fn insert<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, hash: u32) -> Result<(), Counter> {
    insert_return(world, entry, hash)?;
    let undo = |world: &W, entry: &Conntrack<A>, reason| {
        if let Some(key) = entry.return_key() {
            world.remove(&key);
        }
        Err(reason)
    };
    entry.kind = EntryKind::MIDDLE;
    let middle = entry.middle_key();
    // The middle entry counts the backend's packets, none so far.
    let mut counted = *entry;
    counted.packets = U64::ZERO;
    counted.bytes = U64::ZERO;
    match insert_once(world, &middle, &counted) {
        Ok(()) => {}
        Err(InsertError::Full) => return undo(world, entry, Counter::ConntrackFull),
        Err(InsertError::Exists) => return undo(world, entry, Counter::TupleTaken),
    }
    entry.kind = EntryKind::ORIGINAL;
    match world.insert(&entry.original_key(), entry) {
        Ok(()) => Ok(()),
        Err(InsertError::Full) => {
            world.remove(&middle);
            undo(world, entry, Counter::ConntrackFull)
        }
        Err(InsertError::Exists) => {
            world.remove(&middle);
            undo(world, entry, Counter::TupleTaken)
        }
    }
}

/// Inserts an entry; a flow that is over but still there makes room.
#[inline(always)]
fn insert_once<A: Addr, W: Tables<A>>(
    world: &W,
    key: &crate::tuple::FlowTuple<A>,
    entry: &Conntrack<A>,
) -> Result<(), InsertError> {
    match world.insert(key, entry) {
        Err(InsertError::Exists) if evict(world, key) => world.insert(key, entry),
        result => result,
    }
}

/// Removes the flow behind an entry, if it has ended.
#[inline(never)]
fn evict<A: Addr, W: Tables<A>>(world: &W, key: &crate::tuple::FlowTuple<A>) -> bool {
    let Some(mut other) = world.conntrack(key, |entry| *entry) else { return true };
    let ended = match world.conntrack(&other.original_key(), |entry| *entry) {
        None => true,
        Some(original) => {
            pipeline::effective_phase(world, &original).0 >= Phase::CLOSING.0
                || pipeline::is_dead(world, &original, world.now())
                || original.protocol != Protocol::TCP && pipeline::alive(world, &original).is_none()
        }
    };
    if ended {
        remove_flow(world, &mut other);
        world.count(Counter::FlowReplaced);
    }
    ended
}

/// The return entry, where the flow has one; allocates the source port (semantics.md 2.4.5, 2.10.9).
#[inline(always)]
fn insert_return<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, hash: u32) -> Result<(), Counter> {
    entry.kind = EntryKind::RETURN;
    if !entry.has_source() {
        let Some(key) = entry.return_key() else { return Ok(()) };
        return insert_once(world, &key, entry).map_err(|error| match error {
            InsertError::Exists => Counter::TupleTaken,
            InsertError::Full => Counter::ConntrackFull,
        });
    }
    let range = world.setting(Setting::SnatPorts) as u32;
    let first = range & 0xffff;
    let last = range >> 16;
    if first == 0 || last < first {
        return Err(Counter::SnatExhausted);
    }
    let size = last.wrapping_sub(first).wrapping_add(1);
    let own = u32::from(entry.source.port.number());
    let mut offset = if own >= first && own <= last { own.wrapping_sub(first) } else { scale(hash, size) };
    let mut probe = 0;
    while probe < SNAT_PROBES {
        entry.source.port = Port::new(first.wrapping_add(offset) as u16);
        if let Some(key) = entry.return_key() {
            match world.insert(&key, entry) {
                Ok(()) => return Ok(()),
                Err(InsertError::Full) => return Err(Counter::ConntrackFull),
                Err(InsertError::Exists) => {}
            }
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
    Err(Counter::SnatExhausted)
}

/// Removes all entries of a flow and hands what they counted to its service.
#[inline(never)]
pub(crate) fn remove_flow<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>) {
    let original = entry.original_key();
    let middle = entry.middle_key();
    let numbers = |entry: &mut Conntrack<A>| (entry.packets.get(), entry.bytes.get());
    let (packets, bytes) = world.conntrack(&original, numbers).unwrap_or_default();
    let (more_packets, more_bytes) = world.conntrack(&middle, numbers).unwrap_or_default();
    world.add_traffic(entry.service, packets.wrapping_add(more_packets), bytes.wrapping_add(more_bytes));
    if let Some(key) = entry.return_key() {
        world.remove(&key);
    }
    world.remove(&original);
    world.remove(&middle);
}
