//! Packets and tables in memory, for tests, tools and fuzzers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    vec::Vec,
};

use zerocopy::{FromZeros, IntoBytes};

use crate::{
    affinity::Client,
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId},
    checksum::{Checksum, Sum},
    conntrack::Conntrack,
    family::{Addr, Family, Full, V4, V6},
    fragment::{Fragment, FragmentKey, Part},
    frontend::{Frontend, FrontendId, FrontendKey, FrontendWord, PrefixFlags, Scope},
    half_open::HalfOpen,
    packet::{L4Change, LAST_HEADER, Packet, Wire, replace_inline},
    ring::RingWord,
    settings::Setting,
    tables::{InsertError, Scratch, Tables, World},
    tuple::{FlowKey, FlowTuple},
    udp_socket::{Peer, Storage, UdpSocket},
    verdict::Counter,
    wire::eth::Eth,
};

/// A frame in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffer(pub Vec<u8>);

impl Packet for Buffer {
    fn get<T: Wire>(&self, offset: usize) -> Option<&T> {
        if offset > LAST_HEADER {
            return None;
        }
        T::ref_from_prefix(self.0.get(offset..)?).ok().map(|(header, _)| header)
    }

    fn get_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        if offset > LAST_HEADER {
            return None;
        }
        T::mut_from_prefix(self.0.get_mut(offset..)?).ok().map(|(header, _)| header)
    }

    fn pull(&mut self) {}

    fn holds(&self, bytes: usize) -> bool {
        self.0.len() >= bytes
    }

    fn replace_l4(&mut self, change: L4Change) -> Option<()> {
        replace_inline(self, change)
    }

    fn addresses_changed(&mut self, _difference: Sum) {}

    fn is_partial(&mut self, _field: usize) -> bool {
        false
    }

    fn resize(&mut self, length: usize) -> Option<()> {
        self.0.resize(length, 0);
        Some(())
    }
}

/// The storage of a socket in memory.
#[derive(Debug, Default)]
pub struct SocketStorage<A> {
    /// What is remembered.
    pub record: RefCell<Option<UdpSocket<A>>>,
    /// Nothing can be remembered.
    pub no_memory: bool,
}

impl<A: Addr> Storage<A> for SocketStorage<A> {
    fn visit<R>(&self, make: bool, without: R, visit: impl FnOnce(&mut UdpSocket<A>) -> R) -> R {
        let mut record = self.record.borrow_mut();
        if make && !self.no_memory && record.is_none() {
            *record = Some(UdpSocket::NEW);
        }
        record.as_mut().map_or(without, visit)
    }
}

/// The tables of one family in memory.
#[derive(Clone, Debug)]
pub struct FamilyTables<A: Addr> {
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey<A>, FrontendWord>,
    /// Records by id.
    pub records: BTreeMap<u32, Frontend<A>>,
    /// Addresses of ours.
    pub vips: Vec<A>,
    /// Prefixes: length, address, flags. The longest match wins.
    pub prefixes: Vec<(u32, A, PrefixFlags)>,
    /// Source ranges: service, length, address.
    pub sources: Vec<(u32, u32, A)>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend<A>>,
    /// Next hops by id.
    pub next_hops: BTreeMap<u32, NextHop<A>>,
    /// Flows.
    pub conntrack: RefCell<BTreeMap<FlowTuple<A>, Conntrack<A>>>,
    /// Room for flows.
    pub conntrack_capacity: usize,
    /// Connections by service and backend.
    pub connections: RefCell<BTreeMap<(u32, u32), u64>>,
    /// Slots of half-open flows.
    pub half_open: RefCell<BTreeMap<u32, HalfOpen<A>>>,
    /// Remembered clients by slot.
    pub clients: RefCell<BTreeMap<u32, Client<A>>>,
    /// Connected UDP sockets by cookie.
    pub connected: RefCell<BTreeMap<u64, Peer<A>>>,
    /// Room for them.
    pub connected_capacity: usize,
    /// First fragments.
    pub fragments: RefCell<BTreeMap<FragmentKey<A>, Fragment>>,
    /// Scratch memory.
    pub scratch: RefCell<Scratch<A>>,
}

impl<A: Addr> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            records: BTreeMap::new(),
            vips: Vec::new(),
            prefixes: Vec::new(),
            sources: Vec::new(),
            backends: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            conntrack: RefCell::default(),
            conntrack_capacity: 65_536,
            connections: RefCell::default(),
            half_open: RefCell::default(),
            clients: RefCell::default(),
            connected: RefCell::default(),
            connected_capacity: 16_384,
            fragments: RefCell::default(),
            scratch: RefCell::new(Scratch::new_zeroed()),
        }
    }
}

/// A world in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// IPv4.
    pub v4: FamilyTables<[u8; 4]>,
    /// IPv6.
    pub v6: FamilyTables<[u8; 16]>,
    /// Ring words by `2 * service + scope`.
    pub services: BTreeMap<u32, RingWord>,
    /// Affinity timeouts by service.
    pub affinities: BTreeMap<u32, u64>,
    /// The ring array.
    pub rings: BTreeMap<u32, BackendId>,
    /// Settings.
    pub settings: BTreeMap<Setting, u64>,
    /// The clock.
    pub now: u32,
    /// For a clock that moves while a packet is looked at: how many more times it tells `now`, and what it tells from then
    /// on.
    pub turn: Cell<Option<(u32, u32)>>,
    /// Counters.
    pub counters: RefCell<BTreeMap<Counter, u64>>,
    /// Socket slots.
    pub sockets: RefCell<BTreeMap<u32, u64>>,
    /// Traffic of ended flows.
    pub traffic: RefCell<BTreeMap<u32, (u64, u64)>>,
}

impl World for Memory {
    fn now(&self) -> u32 {
        match self.turn.get() {
            None => self.now,
            Some((0, then)) => then,
            Some((readings, then)) => {
                self.turn.set(Some((readings - 1, then)));
                self.now
            }
        }
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn setting(&self, setting: Setting) -> u64 {
        self.settings.get(&setting).copied().unwrap_or(0)
    }

    fn ring(&self, service: ServiceId, scope: Scope) -> RingWord {
        let index = service.get().wrapping_mul(2).wrapping_add(scope as u32);
        self.services.get(&index).copied().unwrap_or(RingWord(0))
    }

    fn slot(&self, index: u32) -> Option<BackendId> {
        self.rings.get(&index).copied()
    }

    fn affinity(&self, service: ServiceId) -> u64 {
        self.affinities.get(&service.get()).copied().unwrap_or(0)
    }

    fn add_traffic(&self, service: ServiceId, packets: u64, bytes: u64) {
        let mut traffic = self.traffic.borrow_mut();
        let entry = traffic.entry(service.get()).or_default();
        entry.0 += packets;
        entry.1 += bytes;
    }

    fn socket_slot(&self, index: u32) -> u64 {
        self.sockets.borrow().get(&index).copied().unwrap_or(0)
    }

    fn set_socket_slot(&self, index: u32, word: u64) {
        self.sockets.borrow_mut().insert(index, word);
    }
}

macro_rules! tables {
    ($addr:ty, $field:ident) => {
        impl Tables<$addr> for Memory {
            fn frontend(&self, key: &FrontendKey<$addr>) -> Option<FrontendWord> {
                self.$field.frontends.get(key).copied()
            }

            fn record(&self, id: FrontendId) -> Option<&Frontend<$addr>> {
                self.$field.records.get(&id.0)
            }

            fn is_vip(&self, addr: &$addr) -> bool {
                self.$field.vips.contains(addr)
            }

            fn prefix(&self, addr: &$addr) -> PrefixFlags {
                let matching = self.$field.prefixes.iter().filter(|(length, prefix, _)| covers(*length, prefix, addr));
                matching.max_by_key(|(length, ..)| *length).map_or(PrefixFlags::NONE, |(.., flags)| *flags)
            }

            fn is_allowed(&self, service: ServiceId, source: &$addr) -> bool {
                let of_service = self.$field.sources.iter().filter(|(id, ..)| *id == service.get());
                of_service.into_iter().any(|(_, length, prefix)| covers(*length, prefix, source))
            }

            fn backend(&self, id: BackendId) -> Option<&Backend<$addr>> {
                self.$field.backends.get(&id.get())
            }

            fn next_hop(&self, id: NextHopId) -> Option<&NextHop<$addr>> {
                self.$field.next_hops.get(&id.get())
            }

            fn count_connection(&self, service: ServiceId, backend: BackendId) {
                *self.$field.connections.borrow_mut().entry((service.get(), backend.get())).or_default() += 1;
            }

            fn scratch<R>(&self, visit: impl FnOnce(&mut Scratch<$addr>) -> R) -> Option<R> {
                // A copy, so that a test may let another CPU in meanwhile: what that one leaves is overwritten.
                let mut own = *self.$field.scratch.borrow();
                let result = visit(&mut own);
                *self.$field.scratch.borrow_mut() = own;
                Some(result)
            }

            fn conntrack<R>(&self, key: &FlowKey<$addr>, visit: impl FnOnce(&mut Conntrack<$addr>) -> R) -> Option<R> {
                let mut entry = *self.$field.conntrack.borrow().get(&key.0)?;
                let result = visit(&mut entry);
                self.$field.conntrack.borrow_mut().insert(key.0, entry);
                Some(result)
            }

            fn insert(&self, key: &FlowKey<$addr>, entry: &Conntrack<$addr>) -> Result<(), InsertError> {
                let mut flows = self.$field.conntrack.borrow_mut();
                if flows.contains_key(&key.0) {
                    return Err(InsertError::Exists);
                }
                if flows.len() >= self.$field.conntrack_capacity {
                    return Err(InsertError::Full);
                }
                flows.insert(key.0, *entry);
                Ok(())
            }

            fn remove(&self, key: &FlowKey<$addr>) {
                self.$field.conntrack.borrow_mut().remove(&key.0);
            }

            fn half_open<R>(&self, index: u32, visit: impl FnOnce(&mut HalfOpen<$addr>) -> R) -> Option<R> {
                let slots = &self.$field.half_open;
                let mut slot = slots.borrow().get(&index).copied().unwrap_or_else(HalfOpen::new_zeroed);
                let result = visit(&mut slot);
                slots.borrow_mut().insert(index, slot);
                Some(result)
            }

            fn client<R>(&self, index: u32, visit: impl FnOnce(&mut Client<$addr>) -> R) -> Option<R> {
                let clients = &self.$field.clients;
                let mut client = clients.borrow().get(&index).copied().unwrap_or(Client::NONE);
                let result = visit(&mut client);
                clients.borrow_mut().insert(index, client);
                Some(result)
            }

            fn set_connected(&self, cookie: u64, peer: &Peer<$addr>) -> bool {
                let mut connected = self.$field.connected.borrow_mut();
                let fits = connected.len() < self.$field.connected_capacity || connected.contains_key(&cookie);
                if fits {
                    connected.insert(cookie, *peer);
                }
                fits
            }

            fn remove_connected(&self, cookie: u64) {
                self.$field.connected.borrow_mut().remove(&cookie);
            }

            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<Fragment> {
                self.$field.fragments.borrow().get(key).copied()
            }

            fn set_fragment(&self, key: &FragmentKey<$addr>, fragment: &Fragment) {
                self.$field.fragments.borrow_mut().insert(*key, *fragment);
            }
        }
    };
}
tables!([u8; 4], v4);
tables!([u8; 16], v6);

fn covers<A: Addr>(length: u32, prefix: &A, addr: &A) -> bool {
    let bits = |addr: &A| addr.as_ref().iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    let width = 8 * u32::try_from(size_of::<A>()).unwrap_or(16);
    let shift = width.saturating_sub(length);
    shift >= 128 || (bits(prefix) ^ bits(addr)) >> shift == 0
}

/// The checksum of an SCTP packet whose own field is zero (RFC 9260 appendix A), bit by bit.
pub fn crc32c(message: &[u8]) -> [u8; 4] {
    let mut register = !0_u32;
    for byte in message {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = if register & 1 == 0 { register >> 1 } else { (register >> 1) ^ 0x82f6_3b78 };
        }
    }
    (!register).to_le_bytes()
}

/// Whether the L4 checksum of a whole, untagged and unfragmented TCP, UDP, SCTP, ICMP or ICMPv6 frame is right; `None`: not
/// such a frame.
pub fn l4_checksum_is_right(frame: &[u8]) -> Option<bool> {
    let buffer = Buffer(frame.to_vec());
    match buffer.get::<Eth>(0)?.ethertype {
        Eth::IPV4 => family_checksum_is_right::<V4>(&buffer),
        Eth::IPV6 => family_checksum_is_right::<V6>(&buffer),
        _ => None,
    }
}

fn family_checksum_is_right<F: Family>(frame: &Buffer) -> Option<bool> {
    let network = F::parse::<_, Full>(frame, Eth::LENGTH).ok()?;
    if network.position.part != Part::WHOLE {
        return None;
    }
    let (source, destination) = F::addresses(frame, Eth::LENGTH)?;
    let segment = frame.0.get(network.payload..network.payload + network.payload_length)?;
    let length = u16::try_from(segment.len()).ok()?;
    let pseudo = F::pseudo(*source, *destination, network.protocol.0, length);
    match network.protocol.0 {
        17 if segment.get(6..8)? == Checksum::ZERO.as_bytes() => Some(!F::IPV6),
        6 | 17 | 58 => Some(pseudo.add(segment).fold() == 0xffff),
        1 => Some(Sum::default().add(segment).fold() == 0xffff),
        132 => {
            let mut message = segment.to_vec();
            let written: [u8; 4] = message.get(8..12)?.try_into().ok()?;
            message.get_mut(8..12)?.fill(0);
            Some(crc32c(&message) == written)
        }
        _ => None,
    }
}
