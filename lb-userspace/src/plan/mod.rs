//! From the tables as they are to the tables as they should be, in an order that is right at every moment.
//!
//! ```text
//! unpublish -> write fresh records -> publish words -> grace period -> clear what nobody points at
//! ```
//! A reader starts at a frontend, a VIP or a prefix. So those go first and come last; a record they lead to is written
//! before the word that publishes it, and cleared only when no program can still hold that word.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    io,
};

use lb_common::{
    backend::{Backend, NextHop},
    family::Abi,
    frontend::PrefixFlags,
};

use crate::{
    image::{Image, Table, octets::Octets},
    store::MapStore,
};

#[cfg(test)]
mod tests;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The table.
    pub table: Table,
    /// The key.
    pub key: Box<[u8]>,
    /// The value; `None` deletes.
    pub value: Option<Box<[u8]>>,
}

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A write.
    Write(&'a Op),
    /// Wait until no program holds a word it read before.
    Grace,
}

/// Writes in their order.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Before the grace period.
    before: Vec<Op>,
    /// After it.
    after: Vec<Op>,
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The steps in order. Without anything to clear there is nothing to wait for.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let grace = (!self.after.is_empty()).then_some(Step::Grace);
        self.before.iter().map(Step::Write).chain(grace).chain(self.after.iter().map(Step::Write))
    }
}

/// When a write may happen. The order of the variants is the order of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    DeleteFrontend,
    DeleteVip,
    DeletePrefix,
    FreshNextHop,
    FreshBackend,
    FreshRing,
    FreshRecord,
    /// Before the frontend that asks for them.
    FreshSource,
    PublishSetting,
    /// Pods must be known as pods before rules treat other clients differently.
    PublishPods,
    /// A backend in use changes its next hop or its sets: one word of the record, one byte.
    PublishBackend,
    /// Both on and off: the word alone tells packets.
    PublishAffinity,
    PublishRing,
    PublishFrontend,
    PublishVip,
    /// Drops what is no VIP, so the VIPs come first.
    PublishServicePrefix,
    /// From here on, after the grace period.
    ClearService,
    ClearSource,
    ClearRing,
    ClearRecord,
    ClearBackend,
    ClearNextHop,
}

/// The plan that turns `mirror` into `desired`.
pub fn diff(desired: &Image, mirror: &Image) -> Plan {
    let mut ops: Vec<(Phase, Op)> = Vec::new();
    for table in Table::ALL {
        let (mut new, mut old) = (desired.table(table).peekable(), mirror.table(table).peekable());
        // Both walks are in the order of the keys.
        loop {
            let order = match (new.peek(), old.peek()) {
                (Some((new, _)), Some((old, _))) => table.order(new, old),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let new = if order.is_le() { new.next() } else { None };
            let old = if order.is_ge() { old.next() } else { None };
            let Some((key, _)) = new.or(old) else { break };
            ops.extend(change(table, key, new.map(|(_, value)| value), old.map(|(_, value)| value)));
        }
    }
    in_order(ops)
}

/// The same where nothing but the entries of `changed` and these `cleared` ones may differ: those that `changed` does not
/// have go.
pub fn diff_some(changed: &Image, cleared: &BTreeSet<(Table, Box<[u8]>)>, mirror: &Image) -> Plan {
    let mut ops: Vec<(Phase, Op)> = Vec::new();
    for table in Table::ALL {
        let written = changed.table(table).map(|(key, value)| (key, Some(value)));
        let cleared = cleared.range((table, Box::default())..).take_while(|(of, _)| *of == table);
        let gone = cleared.map(|(_, key)| (&**key, None)).filter(|(key, _)| changed.get(table, key).is_none());
        // A plan's keys are in order.
        let entries: BTreeMap<&[u8], Option<&[u8]>> = written.chain(gone).collect();
        ops.extend(entries.into_iter().filter_map(|(key, new)| change(table, key, new, mirror.get(table, key))));
    }
    in_order(ops)
}

/// The write that makes `new` of `old`, and when.
fn change(table: Table, key: &[u8], new: Option<&[u8]>, old: Option<&[u8]>) -> Option<(Phase, Op)> {
    if new == old {
        return None;
    }
    let value = match (new, old) {
        (Some(new), _) => Some(Box::from(new)),
        // Nothing is ever deleted from an array.
        (None, Some(old)) if table.is_array() => Some(vec![0; old.len()].into_boxed_slice()),
        (None, _) => None,
    };
    Some((phase(table, new, old), Op { table, key: key.into(), value }))
}

fn in_order(mut ops: Vec<(Phase, Op)>) -> Plan {
    // Stable: keys stay in order within a phase.
    ops.sort_by_key(|(phase, _)| *phase);
    let split = ops.partition_point(|(phase, _)| *phase < Phase::ClearService);
    let after = ops.split_off(split);
    let ops_of = |ops: Vec<(Phase, Op)>| ops.into_iter().map(|(_, op)| op).collect();
    Plan { before: ops_of(ops), after: ops_of(after) }
}

fn phase(table: Table, new: Option<&[u8]>, old: Option<&[u8]>) -> Phase {
    match table {
        Table::Frontends4 | Table::Frontends6 if new.is_some() => Phase::PublishFrontend,
        Table::Frontends4 | Table::Frontends6 => Phase::DeleteFrontend,
        Table::Vips4 | Table::Vips6 if new.is_some() => Phase::PublishVip,
        Table::Vips4 | Table::Vips6 => Phase::DeleteVip,
        Table::Prefixes4 | Table::Prefixes6 => match new.map(read::<PrefixFlags>) {
            None => Phase::DeletePrefix,
            Some(Some(flags)) if !flags.contains(PrefixFlags::SERVICE) => Phase::PublishPods,
            Some(_) => Phase::PublishServicePrefix,
        },
        Table::Sources4 | Table::Sources6 if new.is_some() => Phase::FreshSource,
        Table::Sources4 | Table::Sources6 => Phase::ClearSource,
        Table::Settings => Phase::PublishSetting,
        // A zero word belongs to a scope nobody is sent to any more: not before the frontends say so.
        Table::Services if new.is_some() => Phase::PublishRing,
        Table::Services => Phase::ClearService,
        Table::Affinities => Phase::PublishAffinity,
        Table::Rings if new.is_some() => Phase::FreshRing,
        Table::Rings => Phase::ClearRing,
        Table::Records4 | Table::Records6 if new.is_some() => Phase::FreshRecord,
        Table::Records4 | Table::Records6 => Phase::ClearRecord,
        Table::Backends4 => backend_phase::<[u8; 4]>(new, old),
        Table::Backends6 => backend_phase::<[u8; 16]>(new, old),
        Table::NextHops4 => next_hop_phase::<[u8; 4]>(new),
        Table::NextHops6 => next_hop_phase::<[u8; 16]>(new),
    }
}

fn backend_phase<A: Octets>(new: Option<&[u8]>, old: Option<&[u8]>) -> Phase {
    let Some(new) = new.and_then(read::<Backend<A>>).filter(|new| new.service.get() != 0) else {
        return Phase::ClearBackend;
    };
    let same_owner =
        |old: Backend<A>| (old.address, old.service, old.generation) == (new.address, new.service, new.generation);
    match old.and_then(read::<Backend<A>>) {
        Some(old) if same_owner(old) => Phase::PublishBackend,
        _ => Phase::FreshBackend,
    }
}

fn next_hop_phase<A: Octets>(new: Option<&[u8]>) -> Phase {
    match new.and_then(read::<NextHop<A>>) {
        Some(hop) if hop.ifindex.get() != 0 => Phase::FreshNextHop,
        _ => Phase::ClearNextHop,
    }
}

fn read<V: Abi>(bytes: &[u8]) -> Option<V> {
    V::read_from_bytes(bytes).ok()
}

/// Services whose affinity a plan switches: on, and off. Changing a timeout is neither.
fn switched(plan: &Plan, mirror: &Image) -> [BTreeSet<u32>; 2] {
    let mut switched = [BTreeSet::new(), BTreeSet::new()];
    for op in plan.before.iter().filter(|op| op.table == Table::Affinities) {
        let Some(service) = read::<u32>(&op.key) else { continue };
        let is_on = |word: &[u8]| word.iter().any(|byte| *byte != 0);
        let [on, off] = &mut switched;
        match (mirror.get(op.table, &op.key).is_some_and(is_on), op.value.as_deref().is_some_and(is_on)) {
            (false, true) => on.insert(service),
            (true, false) => off.insert(service),
            _ => false,
        };
    }
    switched
}

/// What [`apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Writes and deletions.
    pub writes: usize,
}

/// A write failed. The mirror holds what the kernel holds: a new [`diff`] continues from there.
#[derive(Debug, thiserror::Error)]
#[error("{what} failed after {done} of {total} writes: {cause}")]
pub struct ApplyError {
    /// What failed: a map by name, or the grace period.
    pub what: String,
    /// Writes done before.
    pub done: usize,
    /// Writes of the plan.
    pub total: usize,
    /// The system's error.
    #[source]
    pub cause: io::Error,
}

/// Carries a plan out. `mirror` follows write by write.
pub fn apply(plan: &Plan, store: &mut dyn MapStore, mirror: &mut Image) -> Result<Applied, ApplyError> {
    let mut writes = 0;
    // Turned off, an affinity forgets its clients (semantics.md 2.5.4); turned on, it begins without any, also if the
    // agent was killed between.
    let [on, off] = switched(plan, mirror);
    let forget = |store: &mut dyn MapStore, services: &BTreeSet<u32>, done| {
        if services.is_empty() {
            return Ok(());
        }
        let failed = |cause| ApplyError { what: "forgetting clients".to_owned(), done, total: plan.len(), cause };
        store.forget_clients(services).map_err(failed)
    };
    forget(store, &on, 0)?;
    for step in plan.steps() {
        let failed = |what, cause| ApplyError { what, done: writes, total: plan.len(), cause };
        match step {
            Step::Grace => {
                store.grace_period().map_err(|cause| failed("waiting for running programs".to_owned(), cause))?;
            }
            Step::Write(op) => {
                write(op, store).map_err(|cause| failed(format!("writing map {}", op.table.map_name()), cause))?;
                match &op.value {
                    Some(value) => mirror.insert_bytes(op.table, op.key.clone(), value.clone()),
                    None => mirror.remove_bytes(op.table, &op.key),
                }
                writes += 1;
            }
        }
    }
    forget(store, &off, writes)?;
    Ok(Applied { writes })
}

fn write(op: &Op, store: &mut dyn MapStore) -> io::Result<()> {
    match &op.value {
        Some(value) => store.update(op.table, &op.key, value),
        None => store.delete(op.table, &op.key),
    }
}

/// Reads all tables back.
pub fn read_mirror(store: &mut dyn MapStore) -> io::Result<Image> {
    let mut mirror = Image::default();
    for table in Table::ALL {
        for (key, value) in store.dump(table)? {
            mirror.insert_bytes(table, key, value);
        }
    }
    Ok(mirror)
}
