//! Session affinity (semantics.md 2.5): which backend a client's last connection to a service port got.
//!
//! Remembered clients stand in a lossy set-associative array (`LB4_AFFINITY`, `LB6_AFFINITY`): if the set of a new one is
//! full, the one whose last connection is the longest ago makes room, which is counted. The memory is one for all frontends
//! of a service port and for both its backend sets; a service port has an affinity while its word in `LB_SVC_AFFINITY` is
//! not zero. Who is not remembered gets a backend by the hash of the flow, never by the address alone: after the timeout
//! a client must be able to move.
//!
//! Two CPUs may write one slot at once. What comes of it is a backend of the same service or none: whoever reads a slot
//! checks the backend's service and generation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U32};

use crate::{
    backend::{BackendId, ServiceId, Sets},
    family::Addr,
    frontend::Scope,
    hash::{client_hash, scale},
    settings::Setting,
    tables::Tables,
    verdict::Counter,
};

/// Slots of a set.
const WAYS: u32 = 8;

/// Entries of `LB4_AFFINITY` and `LB6_AFFINITY`: clients remembered, a service port each.
pub const AFFINITY_SLOTS: u32 = 131_072;

/// The longest timeout in seconds, as the API allows it.
pub const LONGEST: u32 = 86_400;

/// A remembered client. 20 bytes for IPv4, 32 for IPv6; all zeroes in an empty slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Client<A> {
    /// Its address.
    pub addr: A,
    /// The service port; zero in an empty slot.
    pub service: ServiceId,
    /// The backend of its last connection.
    pub backend: BackendId,
    /// That slot's generation then.
    pub generation: U32,
    /// Jiffies (low 32 bits) of its last new connection.
    pub stamp: U32,
}

impl<A: Addr> Client<A> {
    /// An empty slot.
    pub const NONE: Self = Self {
        addr: A::UNSPECIFIED,
        service: ServiceId::new(0),
        backend: BackendId::new(0),
        generation: U32::ZERO,
        stamp: U32::ZERO,
    };

    /// Whether it still counts at `now`: its last connection is less than `timeout` ticks ago. A stamp ahead of the clock is
    /// another CPU's, and young.
    #[inline(always)]
    pub fn is_live(&self, now: u32, timeout: u32) -> bool {
        let age = now.wrapping_sub(self.stamp.get());
        age < timeout || age > u32::MAX / 2 && timeout != 0
    }

    #[inline(always)]
    fn is_of(&self, service: u32, addr: &A) -> bool {
        self.service.get() == service && self.addr == *addr
    }
}

/// The number of the backend in set `scope` that a client is to get again; 0: it is free to get any.
#[inline(always)]
pub(crate) fn recall<A: Addr, W: Tables<A>>(world: &W, service: u32, scope: Scope, client: &A) -> u32 {
    let timeout = timeout(world, service);
    if timeout == 0 {
        return 0;
    }
    let now = world.now();
    let first = first(world, service, client);
    let (mut id, mut generation, mut way) = (0, 0, 0);
    while way < WAYS {
        let visited = world.client(first.wrapping_add(way), |slot| {
            if slot.is_of(service, client) && slot.is_live(now, timeout) {
                id = slot.backend.get();
                generation = slot.generation.get();
            }
        });
        if visited.is_none() {
            return 0;
        }
        way = way.wrapping_add(1);
    }
    if id == 0 {
        return 0;
    }
    let Some(backend) = world.backend(BackendId::new(id)) else { return 0 };
    // It counts only while its backend is in the set that is chosen from (semantics.md 2.5.3).
    let same = backend.generation.get() == generation && backend.service.get() == service;
    if same && backend.sets.contains(Sets::of(scope)) { id } else { 0 }
}

/// Remembers the backend of a client's new connection, and begins its timeout anew.
#[inline(always)]
pub(crate) fn remember<A: Addr, W: Tables<A>>(world: &W, service: u32, client: &A, id: u32, generation: u32) {
    if timeout(world, service) == 0 {
        return;
    }
    let now = world.now();
    let first = first(world, service, client);
    let (mut chosen, mut oldest, mut way) = (first, 0, 0);
    while way < WAYS {
        let index = first.wrapping_add(way);
        let age = world.client(index, |slot| {
            if slot.is_of(service, client) {
                u32::MAX
            } else if slot.service.get() == 0 {
                u32::MAX - 1
            } else {
                // One of another CPU's clock is new, not old.
                now.wrapping_sub(slot.stamp.get()) & (u32::MAX >> 1)
            }
        });
        let Some(age) = age else { return };
        if age >= oldest {
            (chosen, oldest) = (index, age);
        }
        way = way.wrapping_add(1);
    }
    let other = world.client(chosen, |slot| {
        let other = slot.service.get();
        slot.addr = *client;
        slot.service = ServiceId::new(service);
        slot.backend = BackendId::new(id);
        slot.generation.set(generation);
        slot.stamp.set(now);
        other
    });
    if let Some(other @ 1..) = other
        && oldest < u32::MAX - 1
        && oldest < timeout(world, other)
    {
        world.count(Counter::AffinityEvicted);
    }
}

/// Ticks that a service port remembers a client; 0: it has no affinity.
#[inline(always)]
fn timeout<A: Addr, W: Tables<A>>(world: &W, service: u32) -> u32 {
    (world.affinity(ServiceId::new(service)) as u32).wrapping_mul(world.setting(Setting::TicksPerSecond) as u32)
}

/// First slot of a client's set.
#[inline(always)]
fn first<A: Addr, W: Tables<A>>(world: &W, service: u32, client: &A) -> u32 {
    let hash = client_hash(client, service, world.setting(Setting::HashSeed));
    scale(hash, AFFINITY_SLOTS / WAYS).wrapping_mul(WAYS)
}

const _: () = assert!(size_of::<Client<[u8; 4]>>() == 20 && size_of::<Client<[u8; 16]>>() == 32);
