//! The pinned maps: checked before they are reused, and written as bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use lb_common::{
    affinity::Client, conntrack::Conntrack, family::Abi, tuple::FlowTuple, udp_socket::Peer, verdict::Counter,
};
use zerocopy::IntoBytes as _;

use super::{
    chain,
    spec::{MAPS, SCHEMA, Size, Spec},
    sys::{self, Access, RawMap},
};
use crate::{
    image::Table,
    report::MapStatus,
    store::{Cursor, Entry, MapStore},
};

/// Sizes of the maps that grow with the cluster, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Service ports, both families together.
    pub services: u32,
    /// Frontends of a family.
    pub frontends: u32,
    /// Backends of a family.
    pub backends: u32,
    /// Slots of all rings together.
    pub rings: u32,
    /// Conntrack entries of a family; a flow takes two to four.
    pub conntrack: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { services: 65_536, frontends: 65_536, backends: 131_072, rings: 524_288, conntrack: 262_144 }
    }
}

impl MapSizes {
    pub(super) const fn of(&self, spec: &Spec) -> u32 {
        match spec.size {
            Size::Fixed(size) => size,
            Size::Services(times) => self.services.saturating_mul(times),
            Size::Frontends(times) => self.frontends.saturating_mul(times),
            Size::Backends(times) => self.backends.saturating_mul(times),
            Size::Rings => self.rings,
            Size::Conntrack => self.conntrack,
        }
    }
}

/// A pin that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another layout.
    #[error(
        "map {name} pinned at {path} has {what} {found} where this program needs {wanted}; it was left untouched: run \
         `ballast cleanup` with the same --bpffs (this ends its flows), or start the program that made it"
    )]
    Mismatch {
        /// The map.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// As pinned.
        found: String,
        /// As needed.
        wanted: String,
    },
    /// Not a map, or not readable.
    #[error("the pin {path} cannot be read as a map: {cause}; run this as root, remove it if it is not Ballast's")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Another version's pins are there.
    #[error(
        "{path} holds the pins of another version of Ballast, and this one's are in v{SCHEMA}: both would serve the same \
         traffic; nothing was touched: run that version's `ballast cleanup` with the same --bpffs (this ends its flows), \
         or start that version"
    )]
    OtherSchema {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else could have made the pins.
    #[error(
        "the directory {path} belongs to user {owner} and has mode {mode:o}, so that others may have put maps there; \
         nothing was touched: `chown 0 {path}; chmod 700 {path}` if they are yours, or remove it"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody removed it.
    #[error("the map {0} is not pinned any more, though others beside it are; `ballast run` pins a new one")]
    Missing(PathBuf),
    /// Per-CPU values cannot be read without.
    #[error("cannot read the number of CPUs ({what}): {cause}; mount sysfs on /sys")]
    Cpus {
        /// The file.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
}

/// Checks every pin that exists, before anything is touched.
pub(super) fn check_pins(directory: &Path, sizes: &MapSizes) -> Result<(), PinError> {
    for spec in &MAPS {
        let path = directory.join(spec.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path)
            .map_err(|error| PinError::Unreadable { path: path.clone(), cause: chain(&error) })?;
        check(spec, &info, Some(sizes.of(spec)), &path)?;
    }
    Ok(())
}

/// Checks that the directory of all pins is this user's alone, and holds no other version's.
pub(super) fn check_directory(base: &Path) -> Result<(), PinError> {
    let unreadable = |error: io::Error| PinError::Unreadable { path: base.to_owned(), cause: error.to_string() };
    let metadata = match base.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    // Whoever may write there may put a map of theirs under a name of ours.
    if owner != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(PinError::Owner { path: base.to_owned(), owner, mode });
    }
    let own = format!("v{SCHEMA}");
    for entry in base.read_dir().map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let text = name.to_string_lossy();
        let is_schema = text.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
        if is_schema && text != own {
            return Err(PinError::OtherSchema { path: base.join(name) });
        }
    }
    Ok(())
}

/// `max_entries`: the size it must have, if any.
fn check(spec: &Spec, info: &MapInfo, max_entries: Option<u32>, path: &Path) -> Result<(), PinError> {
    let mismatch = |what, found: String, wanted: String| PinError::Mismatch {
        name: spec.name,
        path: path.to_owned(),
        what,
        found,
        wanted,
    };
    let kind = info.map_type().map_or(0, |kind| kind as u32);
    let wanted_name = spec.name.as_bytes();
    if info.name() != wanted_name {
        return Err(mismatch("the name", String::from_utf8_lossy(info.name()).into_owned(), spec.name.to_owned()));
    }
    let key = u32::try_from(spec.key).unwrap_or(u32::MAX);
    let value = u32::try_from(spec.value).unwrap_or(u32::MAX);
    for (what, found, wanted) in [
        ("type", kind, spec.kind.number()),
        ("key size", info.key_size(), key),
        ("value size", info.value_size(), value),
        ("max entries", info.max_entries(), max_entries.unwrap_or_else(|| info.max_entries())),
        ("flags", info.map_flags(), spec.kind.flags()),
    ] {
        if found != wanted {
            return Err(mismatch(what, found.to_string(), wanted.to_string()));
        }
    }
    Ok(())
}

/// The open maps.
#[derive(Debug)]
pub struct Maps {
    raw: BTreeMap<&'static str, RawMap>,
    cpus: usize,
}

impl Maps {
    /// Opens the maps pinned in `directory`. Each must have the layout this program knows; of any size.
    pub(super) fn open(directory: &Path, access: Access) -> Result<Self, PinError> {
        let mut raw = BTreeMap::new();
        for spec in &MAPS {
            let path = directory.join(spec.name);
            let unreadable =
                |error: &(dyn Error + 'static)| PinError::Unreadable { path: path.clone(), cause: chain(error) };
            if !path.exists() {
                return Err(PinError::Missing(path));
            }
            let info = MapInfo::from_pin(&path).map_err(|error| unreadable(&error))?;
            check(spec, &info, None, &path)?;
            let fd: OwnedFd = sys::open(&path, access).map_err(|error| unreadable(&error))?;
            raw.insert(spec.name, RawMap::new(fd, info.key_size(), info.value_size(), info.max_entries()));
        }
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| PinError::Cpus { what, cause: error })?;
        Ok(Self { raw, cpus })
    }

    fn get(&self, name: &str) -> io::Result<&RawMap> {
        self.raw.get(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no map {name}")))
    }

    /// Every counter, summed over CPUs.
    pub fn counters(&self) -> io::Result<BTreeMap<Counter, u64>> {
        let mut sums: Vec<u64> = Vec::new();
        self.get("LB_COUNTERS")?.for_first(Counter::CAPACITY, self.cpus, |_, copies| sums.push(words(copies).sum()))?;
        let sum = |counter: Counter| sums.get(usize::from(counter as u8)).copied().unwrap_or_default();
        Ok(Counter::ALL.into_iter().map(|counter| (counter, sum(counter))).collect())
    }

    /// A counter, summed over CPUs.
    pub fn counter(&self, counter: Counter) -> io::Result<u64> {
        let key = u32::from(counter as u8).to_ne_bytes();
        let copies = self.get("LB_COUNTERS")?.lookup(&key, self.cpus)?.unwrap_or_default();
        Ok(words(&copies).sum())
    }

    /// Adds to a counter that no program of ours counts.
    pub fn add_to_counter(&self, counter: Counter, more: u64) -> io::Result<()> {
        let (map, key) = (self.get("LB_COUNTERS")?, u32::from(counter as u8).to_ne_bytes());
        let mut copies = map.lookup(&key, self.cpus)?.unwrap_or_default();
        if let Some(first) = copies.first_chunk_mut() {
            *first = u64::from_ne_bytes(*first).wrapping_add(more).to_ne_bytes();
        }
        map.update_copies(&key, &copies, self.cpus)
    }

    /// The connected UDP sockets that the hooks remember, by cookie.
    pub fn connected<A: FlowFamily>(&self) -> io::Result<Vec<(u64, Peer<A>)>> {
        let mut found = Vec::new();
        self.get(A::CONNECTED)?.for_each(|key, value| {
            if let (Some(cookie), Some(peer)) = (words(key).next(), read(value)) {
                found.push((cookie, peer));
            }
        })?;
        Ok(found)
    }

    /// Forgets one of them.
    pub fn remove_connected<A: FlowFamily>(&self, cookie: u64) -> io::Result<bool> {
        self.get(A::CONNECTED)?.delete(&cookie.to_ne_bytes())
    }

    /// Visits every client that services with session affinity remember.
    pub fn each_client<A: FlowFamily>(&self, mut visit: impl FnMut(u32, Client<A>)) -> io::Result<()> {
        self.get(A::AFFINITY)?.for_each(|key, value| {
            if let (Ok(key), Some(client)) = (key.try_into().map(u32::from_ne_bytes), read::<Client<A>>(value))
                && client.service.get() != 0
            {
                visit(key, client);
            }
        })
    }

    /// Forgets the clients that `which` names; their number. A program may write a slot meanwhile: then its client is
    /// forgotten as well, and free to choose anew.
    pub fn forget<A: FlowFamily>(&self, which: impl Fn(&Client<A>) -> bool) -> io::Result<u64> {
        let mut slots = Vec::new();
        self.each_client::<A>(|slot, client| {
            if which(&client) {
                slots.push(slot);
            }
        })?;
        let map = self.get(A::AFFINITY)?;
        for slot in &slots {
            map.update(&slot.to_ne_bytes(), Client::<A>::NONE.as_bytes())?;
        }
        Ok(slots.len() as u64)
    }

    /// A word of one of the arrays of u64.
    pub fn word(&self, map: &str, index: u32) -> io::Result<u64> {
        let bytes = self.get(map)?.lookup(&index.to_ne_bytes(), 1)?.unwrap_or_default();
        Ok(words(&bytes).sum())
    }

    /// Writes a word of one of the arrays of u64.
    pub fn set_word(&self, map: &str, index: u32, word: u64) -> io::Result<()> {
        self.get(map)?.update(&index.to_ne_bytes(), &word.to_ne_bytes())
    }

    /// The non-zero words of one of the arrays of u64.
    pub fn words(&self, map: &str) -> io::Result<BTreeMap<u32, u64>> {
        let mut found = BTreeMap::new();
        self.get(map)?.for_each(|key, value| {
            if let (Ok(key), word @ 1..) = (key.try_into().map(u32::from_ne_bytes), words(value).sum()) {
                found.insert(key, word);
            }
        })?;
        Ok(found)
    }

    /// Every entry of a map, as bytes.
    pub fn entries(&self, map: &str) -> io::Result<Vec<(Box<[u8]>, Box<[u8]>)>> {
        let mut entries = Vec::new();
        self.each_entry(map, |key, value| entries.push((key.into(), value.into())))?;
        Ok(entries)
    }

    /// Visits every entry of a map, as bytes.
    pub fn each_entry(&self, map: &str, visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.get(map)?.for_each(visit)
    }

    /// Removes an entry of a map; whether there was one.
    pub fn remove_entry(&self, map: &str, key: &[u8]) -> io::Result<bool> {
        self.get(map)?.delete(key)
    }

    /// An entry of a map, as bytes. Not of a per-CPU map.
    pub fn entry(&self, map: &str, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.get(map)?.lookup(key, 1)
    }

    /// The first `count` values of an array, as bytes.
    pub fn first(&self, map: &str, count: u32) -> io::Result<Vec<Box<[u8]>>> {
        let mut values = Vec::new();
        self.get(map)?.for_first(count, 1, |_, value| values.push(value.into()))?;
        Ok(values)
    }

    /// Every conntrack entry of a family.
    pub fn flows<A: FlowFamily>(&self) -> io::Result<Vec<(FlowTuple<A>, Conntrack<A>)>> {
        let mut flows = Vec::new();
        self.each_flow(|key, value| flows.push((key, value)))?;
        Ok(flows)
    }

    /// Visits every conntrack entry of a family: what is not kept takes no memory.
    pub fn each_flow<A: FlowFamily>(&self, mut visit: impl FnMut(FlowTuple<A>, Conntrack<A>)) -> io::Result<()> {
        self.get(A::CONNTRACK)?.for_each(|key, value| {
            if let (Some(key), Some(value)) = (A::tuple(key), A::entry(value)) {
                visit(key, value);
            }
        })
    }

    /// One conntrack entry.
    pub fn flow<A: FlowFamily>(&self, key: &FlowTuple<A>) -> io::Result<Option<Conntrack<A>>> {
        let bytes = self.get(A::CONNTRACK)?.lookup(A::bytes(key), 1)?;
        Ok(bytes.and_then(|bytes| A::entry(&bytes)))
    }

    /// Removes a conntrack entry.
    pub fn remove_flow<A: FlowFamily>(&self, key: &FlowTuple<A>) -> io::Result<bool> {
        self.get(A::CONNTRACK)?.delete(A::bytes(key))
    }

    /// Capacity of every map, with what is used of it; the image's tables are filled in by the caller.
    pub fn status(&self) -> BTreeMap<String, MapStatus> {
        let status = |map: &RawMap| MapStatus { used: 0, capacity: u64::from(map.max_entries()) };
        // Socket storage is as large as there are sockets.
        let limited = self.raw.iter().filter(|(_, map)| map.max_entries() > 0);
        limited.map(|(name, map)| ((*name).to_owned(), status(map))).collect()
    }

    /// Bytes of kernel memory the maps take, as the kernel accounts them.
    pub fn memory(&self) -> u64 {
        self.raw.values().filter_map(RawMap::memory).sum()
    }
}

/// A family's conntrack map.
pub trait FlowFamily: lb_common::family::Addr {
    /// Name of the map.
    const CONNTRACK: &'static str;
    /// Name of the map of connected UDP sockets.
    const CONNECTED: &'static str;
    /// Name of the map of remembered clients.
    const AFFINITY: &'static str;
    /// Key from bytes.
    fn tuple(bytes: &[u8]) -> Option<FlowTuple<Self>>;
    /// Value from bytes.
    fn entry(bytes: &[u8]) -> Option<Conntrack<Self>>;
    /// Key to bytes.
    fn bytes(key: &FlowTuple<Self>) -> &[u8];
}

macro_rules! flow_family {
    ($addr:ty, $name:literal, $connected:literal, $affinity:literal) => {
        impl FlowFamily for $addr {
            const CONNTRACK: &'static str = $name;
            const CONNECTED: &'static str = $connected;
            const AFFINITY: &'static str = $affinity;

            fn tuple(bytes: &[u8]) -> Option<FlowTuple<Self>> {
                read(bytes)
            }

            fn entry(bytes: &[u8]) -> Option<Conntrack<Self>> {
                read(bytes)
            }

            fn bytes(key: &FlowTuple<Self>) -> &[u8] {
                key.as_bytes()
            }
        }
    };
}
flow_family!([u8; 4], "LB4_CONNTRACK", "LB4_CONNECTED", "LB4_AFFINITY");
flow_family!([u8; 16], "LB6_CONNTRACK", "LB6_CONNECTED", "LB6_AFFINITY");

fn read<T: Abi>(bytes: &[u8]) -> Option<T> {
    T::read_from_bytes(bytes).ok()
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_ne_bytes)
}

impl MapStore for Maps {
    fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.get(table.map_name())?.update(key, value)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()> {
        self.get(table.map_name())?.delete(key).map(drop)
    }

    fn dump(&mut self, table: Table) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.get(table.map_name())?.for_each(|key, value| {
            if !table.is_array() || value.iter().any(|byte| *byte != 0) {
                entries.push((key.into(), value.into()));
            }
        })?;
        Ok(entries)
    }

    fn read(&mut self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.entry(table.map_name(), key)
    }

    fn walk(&mut self, table: Table, from: Option<&Cursor>, most: u32) -> io::Result<(Vec<Entry>, Option<Cursor>)> {
        let mut entries = Vec::new();
        let map = self.get(table.map_name())?;
        let next = map.for_some(from.map(|from| &*from.0), most, |key, value| {
            if !table.is_array() || value.iter().any(|byte| *byte != 0) {
                entries.push((key.into(), value.into()));
            }
        })?;
        Ok((entries, next.map(Cursor)))
    }

    fn forget_clients(&mut self, services: &BTreeSet<u32>) -> io::Result<()> {
        self.forget::<[u8; 4]>(|client| services.contains(&client.service.get()))?;
        self.forget::<[u8; 16]>(|client| services.contains(&client.service.get())).map(drop)
    }

    fn capacity(&self, table: Table) -> u32 {
        self.raw.get(table.map_name()).map_or(0, RawMap::max_entries)
    }

    fn grace_period(&mut self) -> io::Result<()> {
        sys::grace_period()
    }
}
