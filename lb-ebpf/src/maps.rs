//! The maps, and the pipeline's view of them.

use core::{
    hint::assert_unchecked,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie::Key},
    helpers::generated::bpf_jiffies64,
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    affinity::{AFFINITY_SLOTS, Client},
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId},
    conntrack::Conntrack,
    fragment::{Fragment, FragmentKey},
    frontend::{Frontend, FrontendId, FrontendKey, FrontendWord, PrefixFlags, Scope, SourceRange},
    half_open::{HALF_OPEN_SLOTS, HalfOpen},
    ring::RingWord,
    settings::Setting,
    socket::SOCKET_SLOTS,
    tables::{InsertError, Scratch, Tables, World},
    tuple::{FlowKey, FlowTuple},
    udp_socket::{CONNECTED, Peer, Storage, UdpSocket},
    verdict::Counter,
};

type A4 = [u8; 4];
type A6 = [u8; 16];

// The sizes are defaults: user space sets others from its configuration when it creates the maps.
#[btf_map]
static LB4_FRONTENDS: HashMap<FrontendKey<A4>, FrontendWord, 65_536> = HashMap::new();
#[btf_map]
static LB6_FRONTENDS: HashMap<FrontendKey<A6>, FrontendWord, 65_536> = HashMap::new();
#[btf_map]
static LB4_RECORDS: Array<Frontend<A4>, 131_072> = Array::new();
#[btf_map]
static LB6_RECORDS: Array<Frontend<A6>, 131_072> = Array::new();
#[btf_map]
static LB4_VIPS: HashMap<A4, u64, 32_768> = HashMap::new();
#[btf_map]
static LB6_VIPS: HashMap<A6, u64, 32_768> = HashMap::new();
#[btf_map]
static LB4_PREFIXES: LpmTrie<A4, PrefixFlags, 1024> = LpmTrie::new();
#[btf_map]
static LB6_PREFIXES: LpmTrie<A6, PrefixFlags, 1024> = LpmTrie::new();
/// Source ranges by service.
#[btf_map]
static LB4_SOURCES: LpmTrie<SourceRange<A4>, u32, 131_072> = LpmTrie::new();
#[btf_map]
static LB6_SOURCES: LpmTrie<SourceRange<A6>, u32, 131_072> = LpmTrie::new();
#[btf_map]
static LB4_BACKENDS: Array<Backend<A4>, 131_072> = Array::new();
#[btf_map]
static LB6_BACKENDS: Array<Backend<A6>, 131_072> = Array::new();
#[btf_map]
static LB4_NEXT_HOPS: Array<NextHop<A4>, 4096> = Array::new();
#[btf_map]
static LB6_NEXT_HOPS: Array<NextHop<A6>, 4096> = Array::new();
#[btf_map]
static LB4_CONNTRACK: HashMap<FlowTuple<A4>, Conntrack<A4>, 262_144> = HashMap::new();
#[btf_map]
static LB6_CONNTRACK: HashMap<FlowTuple<A6>, Conntrack<A6>, 262_144> = HashMap::new();
/// Half-open flows; user space says how many of the slots are used.
#[btf_map]
static LB4_HALF_OPEN: Array<HalfOpen<A4>, { HALF_OPEN_SLOTS as usize }> = Array::new();
#[btf_map]
static LB6_HALF_OPEN: Array<HalfOpen<A6>, { HALF_OPEN_SLOTS as usize }> = Array::new();
/// Clients of services with session affinity.
#[btf_map]
static LB4_AFFINITY: Array<Client<A4>, { AFFINITY_SLOTS as usize }> = Array::new();
#[btf_map]
static LB6_AFFINITY: Array<Client<A6>, { AFFINITY_SLOTS as usize }> = Array::new();
/// Seconds that a service remembers its clients.
#[btf_map]
static LB_SVC_AFFINITY: Array<u64, 65_536> = Array::new();
/// First fragments; the oldest make room.
#[btf_map]
static LB4_FRAGMENTS: LruHashMap<FragmentKey<A4>, Fragment, 8192> = LruHashMap::new();
#[btf_map]
static LB6_FRAGMENTS: LruHashMap<FragmentKey<A6>, Fragment, 8192> = LruHashMap::new();
#[btf_map]
static LB_SERVICES: Array<RingWord, 131_072> = Array::new();
#[btf_map]
static LB_RINGS: Array<BackendId, 524_288> = Array::new();
#[btf_map]
static LB_SETTINGS: Array<u64, { Setting::COUNT as usize }> = Array::new();
#[btf_map]
static LB_COUNTERS: PerCpuArray<u64, { Counter::CAPACITY as usize }> = PerCpuArray::new();
#[btf_map]
static LB_SOCKETS: Array<u64, { SOCKET_SLOTS as usize }> = Array::new();
/// What a host process's UDP socket was told; gone with the socket.
#[btf_map]
static LB4_UDP_SOCKETS: SkStorage<UdpSocket<A4>> = SkStorage::new();
#[btf_map]
static LB6_UDP_SOCKETS: SkStorage<UdpSocket<A6>> = SkStorage::new();
/// Connected UDP sockets of host processes by their cookie, for user space: socket storage cannot be listed for UDP.
#[btf_map]
static LB4_CONNECTED: HashMap<u64, Peer<A4>, { CONNECTED as usize }> = HashMap::new();
#[btf_map]
static LB6_CONNECTED: HashMap<u64, Peer<A6>, { CONNECTED as usize }> = HashMap::new();
#[btf_map]
static LB4_SCRATCH: PerCpuArray<Scratch<A4>, 1> = PerCpuArray::new();
#[btf_map]
static LB6_SCRATCH: PerCpuArray<Scratch<A6>, 1> = PerCpuArray::new();
/// New connections by service id (both families share the ids).
#[btf_map]
static LB_SVC_CONNS: Array<u64, 65_536> = Array::new();
/// New connections by backend id.
#[btf_map]
static LB4_BKD_CONNS: Array<u64, 131_072> = Array::new();
#[btf_map]
static LB6_BKD_CONNS: Array<u64, 131_072> = Array::new();
/// Packets (even index) and bytes (odd) of flows the kernel side ended, by `2 * service`.
#[btf_map]
static LB_SVC_TRAFFIC: Array<u64, 131_072> = Array::new();

/// The kernel's tables.
pub(crate) struct Kernel;

/// A key on the stack where the compiler knows that whole words may be stored: the types of the maps have no alignment.
#[repr(align(8))]
struct Key8<T>(T);

/// The same for the key of a trie, whose address stands behind four bytes of length.
#[repr(C, align(8))]
struct TrieKey8<T> {
    before: u32,
    key: T,
}

/// Tells the compiler what the kernel promises: map values begin at a multiple of eight.
#[inline(always)]
fn value<T>(pointer: *mut T) -> *mut T {
    // SAFETY: array, hash and per-CPU values are all laid out that way (kernel: bpf_map_area_alloc, htab_elem, __percpu
    // with alignment 8).
    unsafe { assert_unchecked(pointer.addr().is_multiple_of(8)) };
    pointer
}

/// Reads one word of an array whose entries are published by one store.
#[inline(always)]
fn word<const N: usize>(array: &Array<u64, N>, index: u32) -> u64 {
    // SAFETY: the pointer is a live map value of 8 aligned bytes; others may store to it, whole words at a time.
    array.get_ptr(index).map_or(0, |pointer| unsafe { pointer.read_volatile() })
}

/// A record of an array.
#[inline(always)]
fn read<T, const N: usize>(array: &Array<T, N>, index: u32) -> Option<&T> {
    // SAFETY: a live map value, valid until the program ends. User space does not change a record while a published
    // word leads to it, but for single words.
    array.get_ptr_mut(index).map(|pointer| unsafe { &*value(pointer) })
}

#[inline(always)]
fn add<const N: usize>(array: &Array<u64, N>, index: u32, amount: u64) {
    if let Some(pointer) = array.get_ptr_mut(index) {
        // SAFETY: the pointer is a live map value of 8 aligned bytes, only ever changed by atomic additions.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(pointer, amount) };
    }
}

impl World for Kernel {
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(pointer) = LB_COUNTERS.get_ptr_mut(counter as u32) {
            // SAFETY: this CPU's own value; the programs run with preemption or migration off, and a lost increment
            // would be all the harm.
            unsafe { *pointer = (*pointer).wrapping_add(1) };
        }
    }

    #[inline(always)]
    fn setting(&self, setting: Setting) -> u64 {
        word(&LB_SETTINGS, setting as u32)
    }

    #[inline(always)]
    fn ring(&self, service: ServiceId, scope: Scope) -> RingWord {
        let index = service.get().wrapping_mul(2).wrapping_add(scope as u32);
        // SAFETY: as in `word`.
        LB_SERVICES.get_ptr(index).map_or(RingWord(0), |pointer| unsafe { pointer.read_volatile() })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<BackendId> {
        LB_RINGS.get(index).copied()
    }

    #[inline(always)]
    fn affinity(&self, service: ServiceId) -> u64 {
        word(&LB_SVC_AFFINITY, service.get())
    }

    #[inline(always)]
    fn add_traffic(&self, service: ServiceId, packets: u64, bytes: u64) {
        let index = service.get().wrapping_mul(2);
        add(&LB_SVC_TRAFFIC, index, packets);
        add(&LB_SVC_TRAFFIC, index.wrapping_add(1), bytes);
    }

    #[inline(always)]
    fn socket_slot(&self, index: u32) -> u64 {
        word(&LB_SOCKETS, index)
    }

    #[inline(always)]
    fn set_socket_slot(&self, index: u32, word: u64) {
        if let Some(pointer) = LB_SOCKETS.get_ptr_mut(index) {
            // SAFETY: the pointer is a live map value of 8 aligned bytes, stored to whole words at a time.
            unsafe { pointer.write_volatile(word) };
        }
    }
}

macro_rules! tables {
    ($addr:ty, $frontends:ident, $records:ident, $vips:ident, $prefixes:ident, $sources:ident, $backends:ident, $hops:ident,
     $conntrack:ident, $half_open:ident, $clients:ident, $fragments:ident, $connections:ident, $connected:ident,
     $scratch:ident) => {
        impl Tables<$addr> for Kernel {
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$addr>) -> Option<FrontendWord> {
                let key = Key8(*key);
                // SAFETY: the word is read at once and nothing is inserted meanwhile.
                unsafe { $frontends.get(&key.0) }.copied()
            }

            #[inline(always)]
            fn record(&self, id: FrontendId) -> Option<&Frontend<$addr>> {
                read(&$records, id.0)
            }

            #[inline(always)]
            fn is_vip(&self, addr: &$addr) -> bool {
                let key = Key8(*addr);
                $vips.get_ptr(&key.0).is_some()
            }

            #[inline(always)]
            fn prefix(&self, addr: &$addr) -> PrefixFlags {
                let key = TrieKey8 { before: 0, key: Key::new(8 * size_of::<$addr>() as u32, *addr) };
                $prefixes.get(&key.key).copied().unwrap_or(PrefixFlags::NONE)
            }

            #[inline(always)]
            fn is_allowed(&self, service: ServiceId, source: &$addr) -> bool {
                let range = SourceRange { service, addr: *source };
                // The length and the service are eight bytes: the address stands well.
                let key = Key8(Key::new(8 * size_of::<SourceRange<$addr>>() as u32, range));
                $sources.get(&key.0).is_some()
            }

            #[inline(always)]
            fn backend(&self, id: BackendId) -> Option<&Backend<$addr>> {
                read(&$backends, id.get())
            }

            #[inline(always)]
            fn next_hop(&self, id: NextHopId) -> Option<&NextHop<$addr>> {
                read(&$hops, id.get())
            }

            #[inline(always)]
            fn count_connection(&self, service: ServiceId, backend: BackendId) {
                add(&LB_SVC_CONNS, service.get(), 1);
                add(&$connections, backend.get(), 1);
            }

            #[inline(always)]
            fn scratch<R>(&self, visit: impl FnOnce(&mut Scratch<$addr>) -> R) -> Option<R> {
                // SAFETY: this CPU's own value, and packet programs run with bottom halves off, so not inside each other.
                $scratch.get_ptr_mut(0).map(|scratch| visit(unsafe { &mut *value(scratch) }))
            }

            #[inline(always)]
            fn conntrack<R>(&self, key: &FlowKey<$addr>, visit: impl FnOnce(&mut Conntrack<$addr>) -> R) -> Option<R> {
                // SAFETY: a live map value without alignment. Another CPU may visit it as well: each field is one
                // store, and a lost count is all that a race costs.
                $conntrack.get_ptr_mut(&key.0).map(|entry| visit(unsafe { &mut *value(entry) }))
            }

            #[inline(always)]
            fn insert(&self, key: &FlowKey<$addr>, entry: &Conntrack<$addr>) -> Result<(), InsertError> {
                $conntrack
                    .insert(&key.0, entry, u64::from(BPF_NOEXIST))
                    .map_err(|error| if error == -EEXIST { InsertError::Exists } else { InsertError::Full })
            }

            #[inline(always)]
            fn remove(&self, key: &FlowKey<$addr>) {
                // Absent is as good as removed.
                $conntrack.remove(&key.0).unwrap_or_default();
            }

            #[inline(always)]
            fn half_open<R>(&self, index: u32, visit: impl FnOnce(&mut HalfOpen<$addr>) -> R) -> Option<R> {
                // SAFETY: a live map value without alignment. Two CPUs may write it at once: see lb_common::half_open.
                $half_open.get_ptr_mut(index).map(|slot| visit(unsafe { &mut *value(slot) }))
            }

            #[inline(always)]
            fn client<R>(&self, index: u32, visit: impl FnOnce(&mut Client<$addr>) -> R) -> Option<R> {
                // SAFETY: a live map value without alignment. Two CPUs may write it at once: see lb_common::affinity.
                $clients.get_ptr_mut(index).map(|slot| visit(unsafe { &mut *value(slot) }))
            }

            #[inline(always)]
            fn set_connected(&self, cookie: u64, peer: &Peer<$addr>) -> bool {
                $connected.insert(&cookie, peer, 0).is_ok()
            }

            #[inline(always)]
            fn remove_connected(&self, cookie: u64) {
                // Absent is as good as removed.
                $connected.remove(&cookie).unwrap_or_default();
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<Fragment> {
                // SAFETY: the value is copied at once; another CPU may write it meanwhile, and a packet whose fragments
                // are torn between two first ones is nobody's.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn set_fragment(&self, key: &FragmentKey<$addr>, fragment: &Fragment) {
                // Without room the later ones pass up and are counted.
                $fragments.insert(key, fragment, 0).unwrap_or_default();
            }
        }
    };
}
const EEXIST: i32 = 17;
tables!(
    A4,
    LB4_FRONTENDS,
    LB4_RECORDS,
    LB4_VIPS,
    LB4_PREFIXES,
    LB4_SOURCES,
    LB4_BACKENDS,
    LB4_NEXT_HOPS,
    LB4_CONNTRACK,
    LB4_HALF_OPEN,
    LB4_AFFINITY,
    LB4_FRAGMENTS,
    LB4_BKD_CONNS,
    LB4_CONNECTED,
    LB4_SCRATCH
);
tables!(
    A6,
    LB6_FRONTENDS,
    LB6_RECORDS,
    LB6_VIPS,
    LB6_PREFIXES,
    LB6_SOURCES,
    LB6_BACKENDS,
    LB6_NEXT_HOPS,
    LB6_CONNTRACK,
    LB6_HALF_OPEN,
    LB6_AFFINITY,
    LB6_FRAGMENTS,
    LB6_BKD_CONNS,
    LB6_CONNECTED,
    LB6_SCRATCH
);

/// The storage of a hook's socket. The kernel runs the UDP hooks under the socket's lock.
pub(crate) struct OfSocket<'a>(pub(crate) &'a SockAddrContext);

macro_rules! storage {
    ($addr:ty, $map:ident) => {
        impl Storage<$addr> for OfSocket<'_> {
            #[inline(always)]
            fn visit<R>(&self, make: bool, without: R, visit: impl FnOnce(&mut UdpSocket<$addr>) -> R) -> R {
                let pointer = if make {
                    // SAFETY: the context's own socket.
                    unsafe { $map.get_or_insert_ptr_mut(self.0, None) }
                } else {
                    // SAFETY: as above.
                    unsafe { $map.get_ptr_mut(self.0) }
                };
                // SAFETY: null or a live value of zeroes at first, that nobody else visits while the socket is locked.
                unsafe { pointer.as_mut() }.map_or(without, visit)
            }
        }
    };
}
storage!(A4, LB4_UDP_SOCKETS);
storage!(A6, LB6_UDP_SOCKETS);
