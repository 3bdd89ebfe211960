//! Half-open flows: how many of them conntrack holds at most, and which one makes room.
//!
//! A flow that nobody has proved yet (see [`crate::state`]) takes a slot of its set in a lossy array. If the set is full,
//! the oldest makes room, and if that one is still half-open, its entries leave conntrack. So a flood of first packets
//! neither fills conntrack nor evicts an open flow, and what a slot's flow loses is made again by its next first packet:
//! the choice of a backend is a function of the addresses. Two CPUs may write one slot at once; what comes of it names no
//! flow, and the one that lost its slot leaves conntrack by its timeout.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U32};

use crate::{
    conntrack::{Conntrack, Phase},
    family::Addr,
    hash::{flow_hash, scale},
    insert,
    protocol::Protocol,
    settings::Setting,
    tables::{Scratch, Tables},
    tuple::{FlowKey, FlowTuple},
    verdict::Counter,
};

/// Slots of a set.
const WAYS: u32 = 4;

/// Entries of `LB4_HALF_OPEN` and `LB6_HALF_OPEN`. How many are used: [`Setting::HalfOpenSlots`].
pub const HALF_OPEN_SLOTS: u32 = 32_768;

/// How many slots serve a conntrack table of `entries`: a flow has four entries at most, so half-open ones take no more
/// than half of it. At least one set.
pub const fn slots(entries: u32) -> u32 {
    let wanted = entries / 8;
    if wanted > HALF_OPEN_SLOTS {
        HALF_OPEN_SLOTS
    } else if wanted < WAYS {
        WAYS
    } else {
        wanted
    }
}

/// Value of `LB4_HALF_OPEN` and `LB6_HALF_OPEN` (arrays). 20 bytes for IPv4, 44 for IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HalfOpen<A> {
    /// Key of the flow's ORIGINAL entry; all zeroes in a free slot.
    pub flow: FlowTuple<A>,
    /// Jiffies (low 32 bits) of the flow's first packet.
    pub stamp: U32,
}

/// Gives the flow that was just made in scratch memory a slot.
#[inline(never)]
pub(crate) fn enter<A: Addr, W: Tables<A>>(world: &W) -> Option<()> {
    world.scratch(|Scratch { entry, other, .. }| take_slot(world, entry, other))?
}

/// `victim` is room for the entry that makes room.
#[inline(always)]
fn take_slot<A: Addr, W: Tables<A>>(world: &W, entry: &Conntrack<A>, victim: &mut Conntrack<A>) -> Option<()> {
    let now = world.now();
    let mut key = entry.original_key();
    let first = first(world, &key)?;
    let (mut chosen, mut oldest, mut way) = (first, 0, 0);
    while way < WAYS {
        let index = first.wrapping_add(way);
        let age = world.half_open(index, |slot| match slot.flow.protocol {
            // A flow that is made again may still have a slot.
            _ if slot.flow == key.0 => u32::MAX,
            Protocol(0) => u32::MAX - 1,
            _ => now.wrapping_sub(slot.stamp.get()),
        })?;
        if age >= oldest {
            (chosen, oldest) = (index, age);
        }
        way = way.wrapping_add(1);
    }
    let other = world.half_open(chosen, |slot| {
        let other = slot.flow != key.0;
        core::mem::swap(&mut slot.flow, &mut key.0);
        slot.stamp.set(now);
        other
    })?;
    if !other {
        return None;
    }
    world.conntrack(&key, |found| *victim = *found)?;
    if is_half_open(world, victim) {
        world.count(Counter::HalfOpenEvicted);
        insert::remove_flow(world, victim);
    }
    Some(())
}

/// The flow of the parked packet is proved: its slot is free again.
#[inline(never)]
pub(crate) fn leave<A: Addr, W: Tables<A>>(world: &W) -> Option<()> {
    let key = world.scratch(|scratch| scratch.flow.get().key)?;
    let first = first(world, &key)?;
    let mut way = 0;
    while way < WAYS {
        world.half_open(first.wrapping_add(way), |slot| {
            if slot.flow == key.0 {
                slot.flow.protocol = Protocol(0);
            }
        })?;
        way = way.wrapping_add(1);
    }
    Some(())
}

/// First slot of a flow's set. `None`: there is no table yet.
#[inline(always)]
fn first<A: Addr, W: Tables<A>>(world: &W, key: &FlowKey<A>) -> Option<u32> {
    let hash = flow_hash(&key.0, world.setting(Setting::HashSeed));
    let sets = world.setting(Setting::HalfOpenSlots) as u32 / WAYS;
    if sets == 0 { None } else { Some(scale(hash, sets).wrapping_mul(WAYS)) }
}

/// UDP has no handshake: a flow counts as open once it was answered and its client came back.
#[inline(always)]
fn is_half_open<A: Addr, W: Tables<A>>(world: &W, original: &Conntrack<A>) -> bool {
    if original.protocol != Protocol::UDP {
        return original.phase == Phase::OPENING;
    }
    let answered = world.conntrack(&original.answer_key(), |answer| answer.phase.0 >= Phase::OPEN.0);
    original.packets.get() < 2 || answered != Some(true)
}

const _: () = assert!(size_of::<HalfOpen<[u8; 4]>>() == 20 && size_of::<HalfOpen<[u8; 16]>>() == 44);
