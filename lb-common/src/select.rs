//! Choosing a backend for a new connection.

use crate::{
    backend::{Backend, BackendId, ServiceId},
    family::Addr,
    frontend::Scope,
    hash::scale,
    ring::WhenEmpty,
    tables::Tables,
};

/// The outcome of a choice.
pub enum Choice<'w, A> {
    /// This backend.
    Backend(BackendId, &'w Backend<A>),
    /// Nobody there: what to do about it.
    Empty(WhenEmpty),
    /// The ring names a backend that does not exist or belongs to another service.
    Inconsistent,
}

/// The backend that `hash` falls on in a service's ring.
#[inline(always)]
pub fn backend<A: Addr, W: Tables<A>>(world: &W, service: ServiceId, scope: Scope, hash: u32) -> Choice<'_, A> {
    backend_after(world, service, scope, hash, 0)
}

/// The backend of a client: the one it is remembered with (semantics.md 2.5; its number, or 0), else the one that `hash`
/// falls on.
#[inline(always)]
pub(crate) fn remembered_or<A: Addr, W: Tables<A>>(
    world: &W,
    remembered: u32,
    service: ServiceId,
    scope: Scope,
    hash: u32,
) -> Choice<'_, A> {
    if remembered != 0
        && let Some(backend) = world.backend(BackendId::new(remembered))
    {
        return Choice::Backend(BackendId::new(remembered), backend);
    }
    backend(world, service, scope, hash)
}

/// The backend that stands `step` slots behind the one that `hash` falls on, round the ring.
#[inline(always)]
pub fn backend_after<A: Addr, W: Tables<A>>(
    world: &W,
    service: ServiceId,
    scope: Scope,
    hash: u32,
    step: u32,
) -> Choice<'_, A> {
    let ring = world.ring(service, scope);
    let length = ring.length();
    if length == 0 {
        return Choice::Empty(ring.when_empty());
    }
    let first = scale(hash, length);
    let index = if step == 0 { first } else { first.wrapping_add(step).checked_rem(length).unwrap_or(0) };
    let Some(id) = world.slot(ring.offset().wrapping_add(index)) else {
        return Choice::Inconsistent;
    };
    match world.backend(id) {
        Some(backend) if backend.service == service => Choice::Backend(id, backend),
        _ => Choice::Inconsistent,
    }
}
