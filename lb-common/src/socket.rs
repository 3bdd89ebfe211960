//! The socket hooks: a connection chooses its backend once, at `connect`. UDP is beside it, in [`crate::udp_socket`].

use crate::{
    affinity,
    backend::{Backend, NextHop},
    family::Addr,
    frontend::{Client, Frontend, FrontendFlags, FrontendId, FrontendKey, PrefixFlags, Scope},
    hash::{cookie_hash, scale},
    protocol::Protocol,
    ring::WhenEmpty,
    select::{self, Choice},
    settings::Setting,
    tables::{Tables, World},
    tuple::L4Addr,
    verdict::{Counter, SocketAction, SocketVerdict},
};

/// Entries of `LB_SOCKETS`.
pub const SOCKET_SLOTS: u32 = 65_536;

/// A socket that connects or sends.
#[derive(Clone, Copy, Debug)]
pub struct Socket<A> {
    /// Socket cookie: unique while the machine is up.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Connected (UDP: TCP asks once only).
    pub connected: bool,
    /// The address it is bound to, unspecified where it is not.
    pub bound: A,
}

impl<A: Addr> Socket<A> {
    #[inline(always)]
    pub(crate) fn client<W: World>(&self, world: &W) -> Client {
        if self.netns == world.setting(Setting::NetnsCookie) { Client::Host } else { Client::Pod }
    }

    /// Whether the backend is out of this socket's reach: from a loopback address one gets to this node only. Elsewhere
    /// the kernel would refuse (`EINVAL`), or send what everybody drops.
    #[inline(always)]
    pub(crate) fn cannot_reach<W: Tables<A>>(&self, world: &W, backend: &Backend<A>) -> bool {
        let is_local = |hop: &NextHop<A>| hop.flags.get() & NextHop::<A>::LOCAL != 0;
        self.bound.is_loopback() && !world.next_hop(backend.next_hop).is_some_and(is_local)
    }

    /// What becomes of a host process that may not use a frontend (semantics.md 2.7.1): the packet path drops what it
    /// sends, where there is one.
    #[inline(always)]
    pub(crate) fn turned_away<W: Tables<A>>(&self, world: &W, frontend: &Frontend<A>) -> Option<SocketVerdict<A>> {
        if !frontend.flags.contains(FrontendFlags::SOURCE_RANGES) || is_allowed(world, frontend, &self.bound) {
            None
        } else if frontend.flags.contains(FrontendFlags::OWN_ADDRESS) {
            Some(SocketVerdict::refuse(Counter::SocketSourceRange))
        } else {
            Some(SocketVerdict::leave(Counter::SocketLeft))
        }
    }
}

// Subprograms, for the sake of the hooks' stack: an address takes much of it. `bound`: the socket's address.

/// Whether a host process is in a source range of a frontend's service.
#[inline(never)]
fn is_allowed<A: Addr, W: Tables<A>>(world: &W, frontend: &Frontend<A>, bound: &A) -> bool {
    if *bound != A::UNSPECIFIED {
        world.is_allowed(frontend.service, bound)
    } else if frontend.flags.contains(FrontendFlags::OWN_ADDRESS) {
        world.is_allowed(frontend.service, &frontend.address.addr)
    } else {
        world.is_allowed(frontend.service, &host_source(world))
    }
}

/// Number of the backend that a host process is remembered with, for a frontend that sends it to set `scope`; 0: none.
#[inline(never)]
fn recall<A: Addr, W: Tables<A>>(world: &W, frontend: &Frontend<A>, bound: &A, scope: Scope) -> u32 {
    affinity::recall(world, frontend.service.get(), scope, source(frontend, bound, &host_source(world)))
}

/// Remembers the backend of a host process's new connection.
#[inline(never)]
fn remember_client<A: Addr, W: Tables<A>>(world: &W, frontend: &Frontend<A>, bound: &A, id: u32, generation: u32) {
    let service = frontend.service.get();
    affinity::remember(world, service, source(frontend, bound, &host_source(world)), id, generation);
}

/// The source that a host process's packets to a frontend would have; unspecified where nobody knows. `own`:
/// [`host_source`].
#[inline(always)]
fn source<'a, A: Addr>(frontend: &'a Frontend<A>, bound: &'a A, own: &'a A) -> &'a A {
    if *bound != A::UNSPECIFIED {
        bound
    } else if frontend.flags.contains(FrontendFlags::OWN_ADDRESS) {
        // The kernel speaks to an address of its own from that address (semantics.md 2.7.3).
        &frontend.address.addr
    } else {
        own
    }
}

/// The source that an unbound host process's packets into `ballast0` have; unspecified where there is none.
#[inline(always)]
fn host_source<A: Addr, W: World>(world: &W) -> A {
    A::from_words(A::HOST_SOURCE.map(|setting| world.setting(setting)))
}

/// A frontend that a socket asked for.
pub(crate) struct Asked<'w, A> {
    pub(crate) id: FrontendId,
    pub(crate) frontend: &'w Frontend<A>,
}

/// `connect` of TCP: the backend for a destination, if it is a frontend (design.md section 2.2).
///
/// A policy that drops leaves the address alone: the packet path then drops, and `connect` times out as with kube-proxy.
#[inline(always)]
pub fn connect<A: Addr, W: Tables<A>>(world: &W, socket: Socket<A>, destination: L4Addr<A>) -> SocketVerdict<A> {
    let verdict = decide(world, socket, destination);
    if verdict.action != SocketAction::Rewrite {
        forget(world, socket.cookie);
    }
    verdict
}

#[inline(always)]
fn decide<A: Addr, W: Tables<A>>(world: &W, socket: Socket<A>, destination: L4Addr<A>) -> SocketVerdict<A> {
    let client = socket.client(world);
    let Asked { id: frontend_id, frontend } = match look_up(world, &socket, client, destination) {
        Ok(asked) => asked,
        Err(verdict) => return verdict,
    };
    if client == Client::Pod && frontend.flags.contains(FrontendFlags::NO_POD_SOCKET) {
        return SocketVerdict::leave(Counter::SocketLeft);
    }
    if client == Client::Host
        && let Some(verdict) = socket.turned_away(world, frontend)
    {
        return verdict;
    }
    let hash = cookie_hash(socket.cookie, world.setting(Setting::HashSeed));
    let scope = frontend.rule(client).scope();
    // A pod's address is not known, and not needed: see NO_POD_SOCKET.
    let remembered = recall(world, frontend, &socket.bound, scope);
    match select::remembered_or(world, remembered, frontend.service, scope, hash) {
        Choice::Backend(_, backend) if client == Client::Host && socket.cannot_reach(world, backend) => {
            SocketVerdict::refuse(Counter::SocketBoundLoopback)
        }
        Choice::Backend(id, backend) => {
            remember(world, socket.cookie, frontend_id);
            remember_client(world, frontend, &socket.bound, id.get(), backend.generation.get());
            world.count_connection(frontend.service, id);
            SocketVerdict::rewrite(Counter::SocketConnect, backend.address)
        }
        Choice::Empty(when_empty) => no_backend(when_empty),
        Choice::Inconsistent => SocketVerdict::leave(Counter::Inconsistent),
    }
}

/// The frontend at a destination, or what happens without one.
#[inline(always)]
pub(crate) fn look_up<'w, A: Addr, W: Tables<A>>(
    world: &'w W,
    socket: &Socket<A>,
    client: Client,
    destination: L4Addr<A>,
) -> Result<Asked<'w, A>, SocketVerdict<A>> {
    // A pod's loopback addresses are its own.
    if client == Client::Pod && destination.addr.is_loopback() {
        return Err(SocketVerdict::leave(Counter::SocketOther));
    }
    let id = FrontendId(record_at(world, socket.protocol, &destination));
    if id.0 == 0 {
        return Err(match no_frontend(world, &destination.addr) {
            Counter::SocketNoSuchPort => SocketVerdict::refuse(Counter::SocketNoSuchPort),
            reason => SocketVerdict::leave(reason),
        });
    }
    match world.record(id) {
        Some(frontend) => Ok(Asked { id, frontend }),
        None => Err(SocketVerdict::leave(Counter::Inconsistent)),
    }
}

/// Number of the record of the frontend at an address; 0: there is none.
#[inline(never)]
fn record_at<A: Addr, W: Tables<A>>(world: &W, protocol: Protocol, address: &L4Addr<A>) -> u32 {
    world.frontend(&FrontendKey::of_host(protocol, *address)).map_or(0, |word| word.id().0)
}

/// What an address without a frontend is.
#[inline(never)]
fn no_frontend<A: Addr, W: Tables<A>>(world: &W, addr: &A) -> Counter {
    if world.is_vip(addr) {
        Counter::SocketNoSuchPort
    } else if world.prefix(addr).contains(PrefixFlags::SERVICE) {
        Counter::SocketLeft
    } else {
        Counter::SocketOther
    }
}

/// A frontend whose backend set is empty.
#[inline(always)]
pub(crate) const fn no_backend<A: Addr>(when_empty: WhenEmpty) -> SocketVerdict<A> {
    match when_empty {
        WhenEmpty::Reject => SocketVerdict::refuse(Counter::SocketNoEndpoint),
        WhenEmpty::Drop => SocketVerdict::leave(Counter::SocketLeft),
    }
}

/// `getpeername`: the address the application asked for. `None`: not a socket we know (its slot may have been taken by
/// another socket; then the backend's address is shown).
#[inline(always)]
pub fn peer_name<A: Addr, W: Tables<A>>(world: &W, cookie: u64) -> Option<L4Addr<A>> {
    let word = world.socket_slot(index(cookie));
    if word == 0 || word >> 24 != cookie & COOKIE_MASK {
        return None;
    }
    world.record(FrontendId(word as u32 & FRONTEND_MASK)).map(|frontend| frontend.address)
}

const COOKIE_MASK: u64 = (1 << 40) - 1;
const FRONTEND_MASK: u32 = (1 << 24) - 1;

#[inline(always)]
fn index(cookie: u64) -> u32 {
    scale(cookie_hash(cookie, 0), SOCKET_SLOTS)
}

#[inline(always)]
fn remember<W: World>(world: &W, cookie: u64, frontend: FrontendId) {
    world.set_socket_slot(index(cookie), cookie << 24 | u64::from(frontend.0 & FRONTEND_MASK));
}

/// A socket that connects elsewhere must not keep the name of an earlier frontend.
#[inline(always)]
fn forget<W: World>(world: &W, cookie: u64) {
    let slot = index(cookie);
    let word = world.socket_slot(slot);
    if word != 0 && word >> 24 == cookie & COOKIE_MASK {
        world.set_socket_slot(slot, 0);
    }
}
