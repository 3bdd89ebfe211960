//! The socket hooks: a connection chooses its backend once, at `connect`.

use crate::{
    family::Addr,
    frontend::{Client, FrontendFlags, FrontendId, FrontendKey, PrefixFlags},
    hash::{cookie_hash, scale},
    protocol::Protocol,
    ring::WhenEmpty,
    select::{self, Choice},
    settings::Setting,
    tables::Tables,
    tuple::L4Addr,
    verdict::{Counter, SocketVerdict},
};

/// Entries of `LB_SOCKETS`.
pub const SOCKET_SLOTS: u32 = 65_536;

/// A socket that connects.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// Socket cookie: unique while the machine is up.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// `connect`: the backend for a destination, if it is a frontend (design.md section 2.2).
///
/// A policy that drops leaves the address alone: the packet path then drops, and `connect` times out as with kube-proxy.
#[inline(always)]
pub fn connect<A: Addr, W: Tables<A>>(world: &W, socket: Socket, destination: L4Addr<A>) -> SocketVerdict<A> {
    let verdict = decide(world, socket, destination);
    if !matches!(verdict, SocketVerdict::Rewrite(..)) {
        forget(world, socket.cookie);
    }
    verdict
}

#[inline(always)]
fn decide<A: Addr, W: Tables<A>>(world: &W, socket: Socket, destination: L4Addr<A>) -> SocketVerdict<A> {
    let Some(word) = world.frontend(&FrontendKey::new(socket.protocol, destination)) else {
        if world.is_vip(&destination.addr) {
            return SocketVerdict::Refuse(Counter::SocketNoSuchPort);
        }
        return if world.prefix(&destination.addr).contains(PrefixFlags::SERVICE) {
            SocketVerdict::Leave(Counter::SocketLeft)
        } else {
            SocketVerdict::Leave(Counter::SocketOther)
        };
    };
    let Some(frontend) = world.record(word.id()) else {
        return SocketVerdict::Leave(Counter::Inconsistent);
    };
    let client = if socket.netns == world.setting(Setting::NetnsCookie) { Client::Host } else { Client::Pod };
    if client == Client::Pod && frontend.flags.contains(FrontendFlags::NO_POD_SOCKET) {
        return SocketVerdict::Leave(Counter::SocketLeft);
    }
    let hash = cookie_hash(socket.cookie, world.setting(Setting::HashSeed));
    match select::backend(world, frontend.service, frontend.rule(client).scope(), hash) {
        Choice::Backend(id, backend) => {
            remember(world, socket.cookie, word.id());
            world.count_connection(frontend.service, id);
            SocketVerdict::Rewrite(Counter::SocketConnect, backend.address)
        }
        Choice::Empty(WhenEmpty::Reject) => SocketVerdict::Refuse(Counter::SocketNoEndpoint),
        Choice::Empty(WhenEmpty::Drop) => SocketVerdict::Leave(Counter::SocketLeft),
        Choice::Inconsistent => SocketVerdict::Leave(Counter::Inconsistent),
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
fn remember<W: crate::tables::World>(world: &W, cookie: u64, frontend: FrontendId) {
    world.set_socket_slot(index(cookie), cookie << 24 | u64::from(frontend.0 & FRONTEND_MASK));
}

/// A socket that connects elsewhere must not keep the name of an earlier frontend.
#[inline(always)]
fn forget<W: crate::tables::World>(world: &W, cookie: u64) {
    let slot = index(cookie);
    let word = world.socket_slot(slot);
    if word != 0 && word >> 24 == cookie & COOKIE_MASK {
        world.set_socket_slot(slot, 0);
    }
}
