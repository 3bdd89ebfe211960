//! What the pipeline needs of the world: tables, clock, counters.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    affinity::Client,
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId},
    conntrack::Conntrack,
    family::Addr,
    flow::Parked,
    fragment::{Fragment, FragmentKey},
    frontend::{Frontend, FrontendId, FrontendKey, FrontendWord, PrefixFlags, Scope},
    half_open::HalfOpen,
    icmp::Fault,
    ring::RingWord,
    settings::Setting,
    tuple::FlowKey,
    udp_socket::Peer,
    verdict::Counter,
};

/// Why an insert failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// The key is there already.
    Exists,
    /// No room, or no memory.
    Full,
}

/// Room for the entries of one flow while they are made or looked at: a BPF program's stack has 512 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Scratch<A> {
    /// The entry being made.
    pub entry: Conntrack<A>,
    /// An entry of an earlier flow.
    pub other: Conntrack<A>,
    /// The packet in question.
    pub flow: Parked<A>,
    /// An ICMP error in question.
    pub fault: Fault<A>,
}

/// The parts of the world that know no address.
pub trait World {
    /// Low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Adds one to a counter.
    fn count(&self, counter: Counter);
    /// A setting.
    fn setting(&self, setting: Setting) -> u64;
    /// The ring of a service; an unknown service has an empty one that rejects.
    fn ring(&self, service: ServiceId, scope: Scope) -> RingWord;
    /// A slot of `LB_RINGS`.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// Seconds that a service port remembers its clients; 0: not at all.
    fn affinity(&self, service: ServiceId) -> u64;
    /// Adds what an ended flow carried to its service: packets and bytes.
    fn add_traffic(&self, service: ServiceId, packets: u64, bytes: u64);
    /// Reads a word of `LB_SOCKETS`.
    fn socket_slot(&self, index: u32) -> u64;
    /// Writes a word of `LB_SOCKETS`.
    fn set_socket_slot(&self, index: u32, word: u64);
}

/// The tables of one family.
pub trait Tables<A: Addr>: World {
    /// Looks up a frontend.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendWord>;
    /// Reads a frontend's record.
    fn record(&self, id: FrontendId) -> Option<&Frontend<A>>;
    /// Whether the address is ours.
    fn is_vip(&self, addr: &A) -> bool;
    /// What the prefixes say about an address.
    fn prefix(&self, addr: &A) -> PrefixFlags;
    /// Whether an address is in one of a service's source ranges.
    fn is_allowed(&self, service: ServiceId, source: &A) -> bool;
    /// Reads a backend.
    fn backend(&self, id: BackendId) -> Option<&Backend<A>>;
    /// Reads a next hop.
    fn next_hop(&self, id: NextHopId) -> Option<&NextHop<A>>;
    /// Counts a new connection of a service and its backend.
    fn count_connection(&self, service: ServiceId, backend: BackendId);
    /// Lends this CPU's scratch memory, contents unspecified. Not for hooks that may be preempted (the socket hooks), and
    /// never twice at a time. `None` never happens; the kernel's verifier asks.
    fn scratch<R>(&self, visit: impl FnOnce(&mut Scratch<A>) -> R) -> Option<R>;
    /// Looks up a flow's entry and lets `visit` read and change it in place.
    fn conntrack<R>(&self, key: &FlowKey<A>, visit: impl FnOnce(&mut Conntrack<A>) -> R) -> Option<R>;
    /// Inserts an entry that must not exist.
    fn insert(&self, key: &FlowKey<A>, entry: &Conntrack<A>) -> Result<(), InsertError>;
    /// Removes an entry, if it is there.
    fn remove(&self, key: &FlowKey<A>);
    /// Lends a slot of the half-open table. `None`: there is no such slot.
    fn half_open<R>(&self, index: u32, visit: impl FnOnce(&mut HalfOpen<A>) -> R) -> Option<R>;
    /// Lends a slot of the affinity table. `None`: there is no such slot.
    fn client<R>(&self, index: u32, visit: impl FnOnce(&mut Client<A>) -> R) -> Option<R>;
    /// Remembers whom a UDP socket (by its cookie) was connected to, for user space to end it; false without room.
    fn set_connected(&self, cookie: u64, peer: &Peer<A>) -> bool;
    /// Forgets it.
    fn remove_connected(&self, cookie: u64);
    /// Looks up what the first fragment of a packet said.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;
    /// Remembers it, in place of another's if there is no room.
    fn set_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
}
