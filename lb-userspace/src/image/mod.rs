//! The image of the control plane's BPF maps: every table as keys and values in bytes, built from typed values.
//!
//! A mirror of the kernel's tables, the tables that should be, and a scenario's expected dump are all this type.

use std::{cmp::Ordering, collections::BTreeMap, ops::Bound};

use lb_common::family::Abi;

use self::pages::Pages;

mod build;
mod capacity;
mod dump;
pub(crate) mod octets;
mod pages;
mod programmed;
pub mod reroute;
mod ring_order;

#[cfg(test)]
mod tests;

pub use self::{
    build::{Built, BuiltSome, NextHopInfo, NextHops, build, build_some},
    capacity::Capacity,
    dump::dump,
    programmed::{Programmed, ProgrammedBackend, ProgrammedFrontend, prefixes, programmed},
};

/// A table the control plane owns. Conntrack, counters and socket slots belong to the kernel side and are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `LB4_FRONTENDS`: hash [`lb_common::frontend::FrontendKey`] -> [`lb_common::frontend::FrontendWord`].
    Frontends4,
    /// `LB6_FRONTENDS`
    Frontends6,
    /// `LB4_RECORDS`: array of [`lb_common::frontend::Frontend`].
    Records4,
    /// `LB6_RECORDS`
    Records6,
    /// `LB_SERVICES`: array of [`lb_common::ring::RingWord`], index `2 * service + scope`.
    Services,
    /// `LB_SVC_AFFINITY`: array of u64 by service: seconds it remembers its clients, zero for not at all.
    Affinities,
    /// `LB_RINGS`: array of u32 backend ids. Ids are of the family of the service whose ring it is.
    Rings,
    /// `LB4_BACKENDS`: array of [`lb_common::backend::Backend`].
    Backends4,
    /// `LB6_BACKENDS`
    Backends6,
    /// `LB4_NEXT_HOPS`: array of [`lb_common::backend::NextHop`].
    NextHops4,
    /// `LB6_NEXT_HOPS`
    NextHops6,
    /// `LB4_VIPS`: hash address -> u64 [`lb_common::frontend::VIP_OWNED`].
    Vips4,
    /// `LB6_VIPS`
    Vips6,
    /// `LB4_PREFIXES`: LPM trie [`lb_common::frontend::PrefixKey`] -> [`lb_common::frontend::PrefixFlags`].
    Prefixes4,
    /// `LB6_PREFIXES`
    Prefixes6,
    /// `LB4_SOURCES`: LPM trie [`lb_common::frontend::SourceKey`] -> u32 [`lb_common::frontend::SOURCE_ALLOWED`].
    Sources4,
    /// `LB6_SOURCES`
    Sources6,
    /// `LB_SETTINGS`: array of u64 by [`lb_common::settings::Setting`].
    Settings,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 18] = [
        Self::Frontends4,
        Self::Frontends6,
        Self::Records4,
        Self::Records6,
        Self::Services,
        Self::Affinities,
        Self::Rings,
        Self::Backends4,
        Self::Backends6,
        Self::NextHops4,
        Self::NextHops6,
        Self::Vips4,
        Self::Vips6,
        Self::Prefixes4,
        Self::Prefixes6,
        Self::Sources4,
        Self::Sources6,
        Self::Settings,
    ];

    /// Name of the BPF map.
    pub const fn map_name(self) -> &'static str {
        match self {
            Self::Frontends4 => "LB4_FRONTENDS",
            Self::Frontends6 => "LB6_FRONTENDS",
            Self::Records4 => "LB4_RECORDS",
            Self::Records6 => "LB6_RECORDS",
            Self::Services => "LB_SERVICES",
            Self::Affinities => "LB_SVC_AFFINITY",
            Self::Rings => "LB_RINGS",
            Self::Backends4 => "LB4_BACKENDS",
            Self::Backends6 => "LB6_BACKENDS",
            Self::NextHops4 => "LB4_NEXT_HOPS",
            Self::NextHops6 => "LB6_NEXT_HOPS",
            Self::Vips4 => "LB4_VIPS",
            Self::Vips6 => "LB6_VIPS",
            Self::Prefixes4 => "LB4_PREFIXES",
            Self::Prefixes6 => "LB6_PREFIXES",
            Self::Sources4 => "LB4_SOURCES",
            Self::Sources6 => "LB6_SOURCES",
            Self::Settings => "LB_SETTINGS",
        }
    }

    /// The order of two keys of it: indices of arrays by number, others by their bytes.
    pub fn order(self, one: &[u8], other: &[u8]) -> Ordering {
        let index = |key: &[u8]| key.try_into().map(u32::from_ne_bytes);
        match (index(one), index(other)) {
            (Ok(one), Ok(other)) if self.is_array() => one.cmp(&other),
            _ => one.cmp(other),
        }
    }

    /// Whether it is a BPF array: keys are u32 indices in host byte order, nothing is ever deleted, an absent entry is
    /// all zeroes.
    pub const fn is_array(self) -> bool {
        !matches!(
            self,
            Self::Frontends4
                | Self::Frontends6
                | Self::Vips4
                | Self::Vips6
                | Self::Prefixes4
                | Self::Prefixes6
                | Self::Sources4
                | Self::Sources6
        )
    }
}

/// The contents of all tables. For arrays only the entries that are not all zeroes are present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Hashes and tries.
    tables: BTreeMap<Table, BTreeMap<Box<[u8]>, Box<[u8]>>>,
    arrays: BTreeMap<Table, Pages>,
}

impl Image {
    /// Sets an entry; an all-zero value in an array removes it.
    pub fn insert<K: Abi, V: Abi>(&mut self, table: Table, key: &K, value: &V) {
        if table.is_array() {
            self.set(table, key.as_bytes(), value.as_bytes());
        } else {
            self.insert_bytes(table, key.as_bytes().into(), value.as_bytes().into());
        }
    }

    /// Sets an entry given as bytes.
    pub fn insert_bytes(&mut self, table: Table, key: Box<[u8]>, value: Box<[u8]>) {
        if table.is_array() {
            self.set(table, &key, &value);
        } else {
            self.tables.entry(table).or_default().insert(key, value);
        }
    }

    fn set(&mut self, array: Table, key: &[u8], value: &[u8]) {
        let pages = self.arrays.entry(array).or_default();
        pages.insert(key, value);
        // An empty table and an absent one are the same image.
        if pages.len() == 0 {
            self.arrays.remove(&array);
        }
    }

    /// Removes an entry.
    pub fn remove_bytes(&mut self, table: Table, key: &[u8]) {
        if table.is_array() {
            return self.set(table, key, &[]);
        }
        if let Some(entries) = self.tables.get_mut(&table) {
            entries.remove(key);
            if entries.is_empty() {
                self.tables.remove(&table);
            }
        }
    }

    /// Entries of a table in the order of [`Table::order`].
    pub fn table(&self, table: Table) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.table_after(table, None)
    }

    /// Entries of a table in the order of [`Table::order`], from the first one behind `key` on.
    pub fn table_after(&self, table: Table, key: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &[u8])> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.tables.get(&table).into_iter();
        let entries = entries
            .flat_map(move |table| table.range::<[u8], _>((from, Bound::Unbounded)))
            .map(|(key, value)| (&**key, &**value));
        // A table is in one of the two.
        entries.chain(self.arrays.get(&table).into_iter().flat_map(move |pages| pages.after(key)))
    }

    /// The value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<&[u8]> {
        if table.is_array() {
            return self.arrays.get(&table)?.get(key);
        }
        self.tables.get(&table)?.get(key).map(|value| &**value)
    }

    /// Number of entries.
    pub fn len(&self, table: Table) -> usize {
        let hash = self.tables.get(&table).map_or(0, BTreeMap::len);
        self.arrays.get(&table).map_or(hash, Pages::len)
    }
}
