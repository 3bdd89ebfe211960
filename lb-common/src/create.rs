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
    settings::Setting,
    tables::{InsertError, Scratch, Tables},
    tuple::{FlowKey, L4Addr},
    verdict::Counter,
};

/// Probes for a free source port before giving up.
const SNAT_PROBES: u32 = 32;

/// What becomes of a packet that belongs to no flow.
pub(crate) enum Outcome {
    /// Not ours.
    Pass(Counter),
    /// Dropped in silence.
    Drop(Counter),
    /// Refused at once.
    Refuse(Counter),
    /// The flow is in the tables.
    Made,
}

/// Decides about a packet of no known flow, and creates the flow. `host`: the client is a process of this node.
#[inline(never)]
pub(crate) fn new_flow<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, host: bool) -> Outcome {
    let Some(word) = world.frontend(&FrontendKey::new(flow.protocol(), flow.destination())) else {
        return unknown(world, flow);
    };
    if flow.protocol() == Protocol::SCTP {
        return Outcome::Drop(Counter::Sctp);
    }
    // TCP begins with a SYN; anything else without state is somebody's past (design.md section 4).
    if flow.protocol() == Protocol::TCP && !flow.flags.opens() {
        return Outcome::Refuse(Counter::NoState);
    }
    let Some(frontend) = world.record(word.id()) else {
        return Outcome::Drop(Counter::Inconsistent);
    };
    let client = if host {
        Client::Host
    } else if world.prefix(&flow.key.0.source).contains(PrefixFlags::LOCAL_PODS) {
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
    let made = world.scratch(|scratch| {
        let Scratch { entry, other } = scratch;
        *entry = Conntrack {
            client: flow.source(),
            frontend: flow.destination(),
            backend: backend.address,
            source: L4Addr::NONE,
            service: frontend.service,
            backend_id: id,
            generation: backend.generation,
            stamp: U32::new(world.now()),
            packets: U64::new(1),
            bytes: U64::new(flow.bytes()),
            protocol: flow.protocol(),
            kind: EntryKind::ORIGINAL,
            phase: Phase::OPENING,
            host: u8::from(host),
            device: hop.ifindex,
        };
        if needs_source(entry, &hop, rule.masquerade()) {
            if hop.prefsrc == A::UNSPECIFIED {
                return Err(Counter::NoRoute);
            }
            entry.source = L4Addr { addr: hop.prefsrc, port: flow.key.0.source_port };
        }
        insert(world, entry, other, hash)
    });
    match made {
        Some(Ok(())) => {
            world.count_connection(frontend.service, id);
            Outcome::Made
        }
        Some(Err(reason)) => Outcome::Refuse(reason),
        None => Outcome::Drop(Counter::Inconsistent),
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
fn unknown<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>) -> Outcome {
    if world.is_vip(&flow.key.0.destination) {
        return Outcome::Refuse(Counter::NoSuchPort);
    }
    if world.prefix(&flow.key.0.destination).contains(PrefixFlags::SERVICE) {
        return Outcome::Drop(Counter::Unallocated);
    }
    Outcome::Pass(Counter::NotAService)
}

/// Writes the entries of a flow, the original one last, since it is what other packets find. Whatever fails is undone.
#[inline(never)]
fn insert<A: Addr, W: Tables<A>>(
    world: &W,
    entry: &mut Conntrack<A>,
    other: &mut Conntrack<A>,
    hash: u32,
) -> Result<(), Counter> {
    let bytes = entry.bytes;
    // What the others count: no packet so far.
    entry.packets = U64::ZERO;
    entry.bytes = U64::ZERO;
    let probes = entry.has_source();
    // A host's masqueraded flow is answered at the port that probing finds.
    if !(probes && entry.host != 0) {
        insert_answer(world, entry, other)?;
    }
    let mut done = Ok(());
    if probes {
        done = insert_source(world, entry, hash);
    }
    if done.is_ok() {
        entry.kind = EntryKind::ORIGINAL;
        entry.packets = U64::new(1);
        entry.bytes = bytes;
        done = world.insert(&entry.original_key(), entry).map_err(reason);
    }
    if done.is_err() {
        remove_others(world, entry);
    }
    done
}

fn reason(error: InsertError) -> Counter {
    match error {
        InsertError::Exists => Counter::TupleTaken,
        InsertError::Full => Counter::ConntrackFull,
    }
}

/// The entry for the backend's packets. It names client and backend, so whoever holds it already is equal to this flow
/// between the NAT points; one that is over makes room.
#[inline(always)]
fn insert_answer<A: Addr, W: Tables<A>>(
    world: &W,
    entry: &mut Conntrack<A>,
    other: &mut Conntrack<A>,
) -> Result<(), Counter> {
    entry.kind = if entry.host == 0 { EntryKind::REPLY } else { EntryKind::RETURN };
    let key = entry.answer_key();
    let mut done = world.insert(&key, entry);
    if done == Err(InsertError::Exists) && evict(world, &key, other) {
        done = world.insert(&key, entry);
    }
    done.map_err(reason)
}

/// Removes the flow behind an entry, if it has ended. `other`: room for it.
#[inline(never)]
fn evict<A: Addr, W: Tables<A>>(world: &W, key: &FlowKey<A>, other: &mut Conntrack<A>) -> bool {
    if world.conntrack(key, |entry| *other = *entry).is_none() {
        return true;
    }
    // Without its original entry, a flow is being removed.
    let ended = world.conntrack(&other.original_key(), |original| *other = *original).is_none()
        || pipeline::effective_phase(world, other).0 >= Phase::CLOSING.0
        || pipeline::is_dead(world, other, world.now())
        || other.protocol != Protocol::TCP && pipeline::alive(world, other).is_none();
    if ended {
        remove_flow(world, other);
        world.count(Counter::FlowReplaced);
    }
    ended
}

/// The entries that rewrite the source; allocates its port (semantics.md 2.4.5, 2.10.9). On failure the flow has no
/// source any more.
#[inline(never)]
fn insert_source<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>, hash: u32) -> Result<(), Counter> {
    entry.kind = EntryKind::RETURN;
    let mut failure = Counter::SnatExhausted;
    let range = world.setting(Setting::SnatPorts) as u32;
    let first = range & 0xffff;
    let size = (range >> 16).wrapping_add(1).wrapping_sub(first);
    if first != 0 && size <= 0xffff {
        let own = u32::from(entry.source.port.number()).wrapping_sub(first);
        let mut offset = if own < size { own } else { scale(hash, size) };
        let mut key = entry.return_key();
        let mut probe = 0;
        while probe < SNAT_PROBES {
            let port = Port::new(first.wrapping_add(offset) as u16);
            entry.source.port = port;
            key.0.destination_port = port;
            match world.insert(&key, entry) {
                Ok(()) => return insert_egress(world, entry),
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
    entry.source = L4Addr::NONE;
    Err(failure)
}

/// The entry of NAT point 2. Nobody else can have it: the answer entry is ours.
#[inline(always)]
fn insert_egress<A: Addr, W: Tables<A>>(world: &W, entry: &mut Conntrack<A>) -> Result<(), Counter> {
    entry.kind = EntryKind::SOURCE;
    match world.insert(&entry.source_key(), entry) {
        Ok(()) => Ok(()),
        // What a flow of the same pair left behind.
        Err(InsertError::Exists) => {
            world.remove(&entry.source_key());
            world.insert(&entry.source_key(), entry).map_err(reason)
        }
        Err(InsertError::Full) => Err(Counter::ConntrackFull),
    }
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

/// Removes all entries of a flow and hands what they counted to its service.
#[inline(never)]
pub(crate) fn remove_flow<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>) {
    count(world, entry.service, &entry.original_key());
    count(world, entry.service, &entry.answer_key());
    remove_others(world, entry);
    world.remove(&entry.original_key());
}

/// Hands an entry's numbers over.
#[inline(always)]
fn count<A: Addr, W: Tables<A>>(world: &W, service: ServiceId, key: &FlowKey<A>) {
    let counted = world.conntrack(key, |entry| (entry.packets.get(), entry.bytes.get()));
    if let Some((packets, bytes)) = counted {
        world.add_traffic(service, packets, bytes);
    }
}
