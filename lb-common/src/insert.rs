//! The entries of a flow in conntrack: written together, removed together, and a port of its own where the flow would equal
//! another one between the NAT points.

use crate::{
    backend::ServiceId,
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    hash::scale,
    pipeline,
    protocol::{Port, Protocol},
    settings::Setting,
    tables::{InsertError, Tables},
    tuple::{FlowKey, L4Addr, Side},
    verdict::Counter,
};

/// Probes for a free source port before giving up.
const SNAT_PROBES: u32 = 32;

/// Writes the entries of a flow, the original one last, since it is what other packets find. Whatever fails is undone.
#[inline(always)]
pub(crate) fn insert<A: Addr, W: Tables<A>>(
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
pub(crate) fn is_same<A: Addr>(entry: &Conntrack<A>, other: &Conntrack<A>) -> bool {
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
        let remains = world.now().wrapping_sub(other.stamp.get()) > world.setting(Setting::TicksPerSecond) as u32;
        if remains && !host && other.has_source() {
            // The answer entry is written before the port is found: what it names may be another flow's.
            world.remove(&other.source_key());
            other.source = L4Addr::NONE;
        }
        return remains;
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
        // Neighbours do not probe the same ports in the same order; a small range is looked through one by one.
        let step = if size > 0xff { (hash & 0xff) | 1 } else { 1 };
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
            offset = offset.wrapping_add(step);
            if offset >= size {
                offset = offset.wrapping_sub(size);
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
