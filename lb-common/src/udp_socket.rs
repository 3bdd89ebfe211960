//! UDP at the sockets of this host's processes: `connect`, `sendmsg`, `recvmsg` and `getpeername`.
//!
//! What a socket was told is remembered with the socket itself (`LB4_UDP_SOCKETS`, `LB6_UDP_SOCKETS`; socket storage), so
//! that nothing is evicted and nothing can be another socket's. The kernel holds the socket's lock in all four hooks.
//! Answers are told apart by the backend they come from: a socket never speaks to one backend by two addresses.
//! docs/decisions/0004-udp-at-the-socket.md has the reasons.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U32};

use crate::{
    backend::{Backend, BackendId, ServiceId},
    family::Addr,
    frontend::{Client, Frontend, FrontendFlags},
    hash::cookie_hash,
    select::{self, Choice},
    settings::Setting,
    socket::{Asked, Socket, look_up, no_backend},
    tables::Tables,
    tuple::L4Addr,
    verdict::{Counter, SocketAction, SocketVerdict},
};

/// Frontends that a socket can speak to at once.
pub const PEERS: usize = 8;
/// Entries of `LB4_CONNECTED` and `LB6_CONNECTED`: connected UDP sockets of host processes.
pub const CONNECTED: u32 = 16_384;
/// Slots of a ring that are tried for a backend the socket does not speak to yet.
const STEPS: u32 = 8;

/// A backend that a socket speaks to, and the address its application knows it by. 22 bytes for IPv4, 46 for IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Peer<A> {
    /// Where the application sends; [`L4Addr::NONE`] where it uses the backend's own address.
    pub frontend: L4Addr<A>,
    /// Where the datagrams go.
    pub backend: L4Addr<A>,
    /// The backend's slot; zero in an empty record.
    pub id: BackendId,
    /// The slot's generation when it was chosen, host byte order.
    pub generation: U32,
    /// Those of the frontend.
    pub flags: FrontendFlags,
    /// Zero.
    pub reserved: u8,
}

impl<A: Addr> Peer<A> {
    /// Nobody.
    pub const NONE: Self = Self {
        frontend: L4Addr::NONE,
        backend: L4Addr::NONE,
        id: BackendId::new(0),
        generation: U32::ZERO,
        flags: FrontendFlags::NONE,
        reserved: 0,
    };

    /// Field by field, from map to map: the stack is small.
    #[inline(always)]
    const fn set(&mut self, frontend: &Frontend<A>, id: BackendId, backend: &Backend<A>) {
        self.frontend = frontend.address;
        self.flags = frontend.flags;
        self.backend = backend.address;
        self.id = id;
        self.generation = backend.generation;
    }

    #[inline(always)]
    const fn is_empty(&self) -> bool {
        self.id.get() == 0
    }

    /// Whether the slot still holds the backend that was chosen. One that was left keeps its generation.
    #[inline(always)]
    pub fn lives(&self, slot: Option<&Backend<A>>) -> bool {
        let same = |slot: &Backend<A>| slot.generation == self.generation && slot.service.get() != 0;
        !self.is_empty() && slot.is_some_and(same)
    }

    #[inline(always)]
    fn shown(&self) -> Option<L4Addr<A>> {
        (self.frontend != L4Addr::NONE).then_some(self.frontend)
    }
}

/// What is remembered with a socket. 200 bytes for IPv4, 416 for IPv6; zeroes at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdpSocket<A> {
    /// Whom it was connected to by us. A socket that was disconnected since (`AF_UNSPEC`) still has it.
    pub connected: Peer<A>,
    /// Whom it sent to unconnected.
    pub peers: [Peer<A>; PEERS],
    /// Not zero: all it sends to Services is left to the packet path, for the rest of its life. Never a part of it: a flow of
    /// the packet path takes all answers of its backend, also those to what the hook sent there.
    pub by_packets: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<UdpSocket<[u8; 4]>>() == 200 && size_of::<UdpSocket<[u8; 16]>>() == 416);

impl<A: Addr> UdpSocket<A> {
    /// Nobody yet.
    pub const NEW: Self = Self { connected: Peer::NONE, peers: [Peer::NONE; PEERS], by_packets: 0, reserved: 0 };

    /// Whether it is connected to this backend, by another address than `frontend`: then it hears this backend alone, and
    /// takes all for answers of the other address.
    #[inline(always)]
    fn hears_only(&self, socket: &Socket<A>, backend: &L4Addr<A>, frontend: &L4Addr<A>) -> bool {
        let connected = &self.connected;
        socket.connected && !connected.is_empty() && connected.backend == *backend && connected.frontend != *frontend
    }

    #[inline(always)]
    fn peer(&self, place: u32) -> Option<&Peer<A>> {
        self.peers.get(place as usize)
    }
}

// Searches are subprograms: unrolled into their callers they would take more stack than a program has. Each returns the
// place of the first peer that suits, `PEERS` if none does.

/// The peer that the application knows by this address.
#[inline(never)]
fn with_frontend<A: Addr>(own: &UdpSocket<A>, frontend: &L4Addr<A>) -> u32 {
    place(own, |peer| !peer.is_empty() && peer.frontend == *frontend)
}

/// The peer whose datagrams come from this address.
#[inline(never)]
fn with_backend<A: Addr>(own: &UdpSocket<A>, backend: &L4Addr<A>) -> u32 {
    place(own, |peer| !peer.is_empty() && peer.backend == *backend)
}

/// Whether there is one. Apart from [`with_backend`], whose nine answers a verifier would all follow.
#[inline(never)]
fn speaks_to<A: Addr>(own: &UdpSocket<A>, backend: &L4Addr<A>) -> bool {
    own.peers.iter().any(|peer| !peer.is_empty() && peer.backend == *backend)
}

/// A place that is empty.
#[inline(never)]
fn empty<A: Addr>(own: &UdpSocket<A>) -> u32 {
    place(own, Peer::is_empty)
}

/// A peer at an address of this node.
#[inline(never)]
fn with_own_address<A: Addr>(own: &UdpSocket<A>) -> u32 {
    place(own, |peer| !peer.is_empty() && peer.flags.contains(FrontendFlags::OWN_ADDRESS))
}

/// A place whose backend is gone.
#[inline(always)]
fn dead<A: Addr, W: Tables<A>>(world: &W, own: &UdpSocket<A>) -> u32 {
    place(own, |peer| !peer.lives(world.backend(peer.id)))
}

#[inline(always)]
fn place<A: Addr>(own: &UdpSocket<A>, suits: impl FnMut(&Peer<A>) -> bool) -> u32 {
    own.peers.iter().position(suits).unwrap_or(PEERS) as u32
}

/// The storage of one socket.
pub trait Storage<A> {
    /// Lends what is remembered with the socket; with `make` it is made first if need be. `without` is the answer where
    /// there is none, or the kernel has no memory for it.
    fn visit<R>(&self, make: bool, without: R, visit: impl FnOnce(&mut UdpSocket<A>) -> R) -> R;
}

/// `connect` of UDP.
#[inline(always)]
pub fn connect<A: Addr, W: Tables<A>, S: Storage<A>>(
    world: &W,
    storage: &S,
    socket: Socket<A>,
    destination: L4Addr<A>,
) -> SocketVerdict<A> {
    // It is connected anew, whatever it was.
    let socket = Socket { connected: false, ..socket };
    let verdict = ask(world, storage, &socket, destination, |own, asked| {
        if let Some(verdict) = socket.turned_away(world, asked.frontend) {
            return verdict;
        }
        let (service, scope) = (asked.frontend.service, asked.frontend.rule(Client::Host).scope());
        let hash = cookie_hash(socket.cookie, world.setting(Setting::HashSeed));
        match select::backend(world, service, scope, hash) {
            Choice::Backend(_, backend) if socket.cannot_reach(world, backend) => {
                SocketVerdict::refuse(Counter::SocketBoundLoopback)
            }
            Choice::Backend(id, backend) => {
                own.connected.set(asked.frontend, id, backend);
                // User space must be able to end it when its backend goes.
                if !world.set_connected(socket.cookie, &own.connected) {
                    return give_up(own, &socket, asked, Counter::SocketFull);
                }
                // It hears this backend alone now, by this address.
                let place = with_backend(own, &backend.address);
                if let Some(peer) = own.peers.get_mut(place as usize) {
                    *peer = Peer::NONE;
                }
                world.count_connection(service, id);
                SocketVerdict::rewrite(Counter::SocketConnect, backend.address)
            }
            Choice::Empty(when_empty) => no_backend(when_empty),
            Choice::Inconsistent => SocketVerdict::leave(Counter::Inconsistent),
        }
    });
    if verdict.action != SocketAction::Rewrite {
        // A socket that connects elsewhere must not keep the name of an earlier frontend.
        storage.visit(false, (), |own| {
            if !own.connected.is_empty() {
                own.connected = Peer::NONE;
                world.remove_connected(socket.cookie);
            }
        });
    }
    verdict
}

/// `sendmsg` with an address: the socket keeps its backend while that lives.
#[inline(always)]
pub fn send<A: Addr, W: Tables<A>, S: Storage<A>>(
    world: &W,
    storage: &S,
    socket: Socket<A>,
    destination: L4Addr<A>,
) -> SocketVerdict<A> {
    let verdict =
        ask(world, storage, &socket, destination, |own, asked| send_to(world, own, &socket, asked, &destination));
    if verdict.action == SocketAction::Leave && verdict.counter == Counter::SocketOther {
        // From now on answers of this backend, if it is one, are its own.
        let plain = |own: &mut UdpSocket<A>| {
            // What a connected IPv6 socket writes over IPv4 comes here with the address it is connected to.
            if socket.connected && own.connected.backend == destination {
                return;
            }
            let place = with_backend(own, &destination);
            if let Some(peer) = own.peers.get_mut(place as usize) {
                peer.frontend = L4Addr::NONE;
            }
        };
        storage.visit(false, (), plain);
    }
    verdict
}

/// `recvmsg`: the address that the application sent to, if a datagram from `from` answers that.
#[inline(always)]
pub fn received<A: Addr, S: Storage<A>>(storage: &S, socket: Socket<A>, from: L4Addr<A>) -> Option<L4Addr<A>> {
    storage.visit(false, None, |own| {
        let connected = &own.connected;
        if socket.connected && !connected.is_empty() && connected.backend == from {
            return connected.shown();
        }
        own.peer(with_backend(own, &from)).and_then(Peer::shown)
    })
}

/// `getpeername`: the address that the application connected to.
#[inline(always)]
pub fn peer_name<A: Addr, S: Storage<A>>(storage: &S) -> Option<L4Addr<A>> {
    storage.visit(false, None, |own| own.connected.shown())
}

/// What a destination means; `choose` finds the backend of a frontend.
#[inline(always)]
fn ask<'w, A: Addr, W: Tables<A>, S: Storage<A>>(
    world: &'w W,
    storage: &S,
    socket: &Socket<A>,
    destination: L4Addr<A>,
    choose: impl FnOnce(&mut UdpSocket<A>, &Asked<'w, A>) -> SocketVerdict<A>,
) -> SocketVerdict<A> {
    // The packet path keeps a pod's UDP: those sockets would outlive their backends, and nobody here could end them.
    if socket.client(world) != Client::Host {
        return SocketVerdict::leave(Counter::SocketLeft);
    }
    match look_up(world, socket, Client::Host, destination) {
        Ok(asked) => storage.visit(true, cannot(&asked, Counter::SocketFull), |own| {
            own.by_packets |= u8::from(is_left(asked.frontend.flags));
            if own.by_packets == 0 {
                choose(own, &asked)
            } else if asked.frontend.flags.contains(FrontendFlags::OWN_ADDRESS) {
                SocketVerdict::refuse(Counter::SocketAmbiguous)
            } else {
                SocketVerdict::leave(Counter::SocketLeft)
            }
        }),
        Err(verdict) => verdict,
    }
}

/// Whether a frontend leaves a socket to the packet path, which alone remembers clients for UDP. To an address of this node
/// there is no packet path: it is served without.
#[inline(always)]
const fn is_left(flags: FrontendFlags) -> bool {
    flags.contains(FrontendFlags::AFFINITY) && !flags.contains(FrontendFlags::OWN_ADDRESS)
}

#[inline(always)]
fn send_to<A: Addr, W: Tables<A>>(
    world: &W,
    own: &mut UdpSocket<A>,
    socket: &Socket<A>,
    asked: &Asked<'_, A>,
    destination: &L4Addr<A>,
) -> SocketVerdict<A> {
    let mut place = with_frontend(own, destination);
    if let Some(peer) = own.peer(place) {
        let backend = world.backend(peer.id);
        // Another Service may have got the address.
        if peer.lives(backend)
            && backend.is_some_and(|backend| backend.service == asked.frontend.service)
            && !own.hears_only(socket, &peer.backend, destination)
        {
            return SocketVerdict::rewrite(Counter::SocketSend, peer.backend);
        }
    } else if empty(own) as usize == PEERS {
        place = dead(world, own);
    }
    if let Some(peer) = own.peers.get_mut(place as usize) {
        *peer = Peer::NONE;
    }
    if let Some(verdict) = socket.turned_away(world, asked.frontend) {
        return verdict;
    }
    let chosen = choose(world, own, socket, asked, destination);
    let Some(backend) = chosen.backend else { return chosen.verdict };
    let place = empty(own);
    let Some(peer) = own.peers.get_mut(place as usize) else {
        return give_up(own, socket, asked, Counter::SocketFull);
    };
    peer.set(asked.frontend, chosen.id, backend);
    world.count_connection(asked.frontend.service, chosen.id);
    SocketVerdict::rewrite(Counter::SocketSend, backend.address)
}

/// A choice without undefined bytes: see [`SocketVerdict`].
struct Chosen<'w, A> {
    backend: Option<&'w Backend<A>>,
    id: BackendId,
    /// What happens without a backend.
    verdict: SocketVerdict<A>,
}

impl<A> Chosen<'_, A> {
    #[inline(always)]
    const fn nobody(verdict: SocketVerdict<A>) -> Self {
        Self { backend: None, id: BackendId::new(0), verdict }
    }
}

/// A backend of the frontend that the socket does not speak to.
#[inline(always)]
fn choose<'w, A: Addr, W: Tables<A>>(
    world: &'w W,
    own: &mut UdpSocket<A>,
    socket: &Socket<A>,
    asked: &Asked<'_, A>,
    destination: &L4Addr<A>,
) -> Chosen<'w, A> {
    let service: ServiceId = asked.frontend.service;
    let scope = asked.frontend.rule(Client::Host).scope();
    let hash = cookie_hash(socket.cookie, world.setting(Setting::HashSeed));
    for step in 0..STEPS {
        let (id, backend) = match select::backend_after(world, service, scope, hash, step) {
            Choice::Backend(id, backend) => (id, backend),
            Choice::Empty(when_empty) => return Chosen::nobody(no_backend(when_empty)),
            Choice::Inconsistent => return Chosen::nobody(SocketVerdict::leave(Counter::Inconsistent)),
        };
        if own.hears_only(socket, &backend.address, destination) || speaks_to(own, &backend.address) {
            continue;
        }
        return if socket.cannot_reach(world, backend) {
            Chosen::nobody(SocketVerdict::refuse(Counter::SocketBoundLoopback))
        } else {
            Chosen { backend: Some(backend), id, verdict: SocketVerdict::leave(Counter::SocketSend) }
        };
    }
    Chosen::nobody(give_up(own, socket, asked, Counter::SocketAmbiguous))
}

/// Leaves the whole socket to the packet path, which does what its record cannot hold: it tells answers apart by ports. Not a
/// socket that is connected by a hook, or speaks to addresses of this node: what that hears, the packet path cannot serve.
#[inline(always)]
fn give_up<A: Addr>(
    own: &mut UdpSocket<A>,
    socket: &Socket<A>,
    asked: &Asked<'_, A>,
    reason: Counter,
) -> SocketVerdict<A> {
    let is_connected = socket.connected && !own.connected.is_empty();
    if is_connected || with_own_address(own) as usize != PEERS {
        return SocketVerdict::refuse(reason);
    }
    let verdict = cannot(asked, reason);
    if verdict.action == SocketAction::Leave {
        own.by_packets = 1;
    }
    verdict
}

/// The packet path never sees what this node's processes send to this node's addresses.
#[inline(always)]
const fn cannot<A: Addr>(asked: &Asked<'_, A>, reason: Counter) -> SocketVerdict<A> {
    if asked.frontend.flags.contains(FrontendFlags::OWN_ADDRESS) {
        SocketVerdict::refuse(reason)
    } else {
        SocketVerdict::leave(reason)
    }
}
