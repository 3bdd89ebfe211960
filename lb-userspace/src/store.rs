//! The operations the control plane needs of the kernel's tables.

use std::{collections::BTreeSet, io};

use crate::image::Table;

/// An entry as bytes.
pub type Entry = (Box<[u8]>, Box<[u8]>);

/// Where a walk over a table goes on; only the store that made it understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub(crate) Box<[u8]>);

/// Tables that can be written: the BPF maps, or a fake in tests.
pub trait MapStore {
    /// Sets an entry.
    fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Removes an entry of a hash or trie; absent is not an error.
    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()>;
    /// Every entry of a table; for arrays only those that are not all zeroes.
    fn dump(&mut self, table: Table) -> io::Result<Vec<Entry>>;
    /// The value of an entry.
    fn read(&mut self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Some entries of a table, about `most` of them, and where the walk goes on; `None`: this was its end. Entries that
    /// change meanwhile may be seen old, new, or not at all. Zeroes in arrays are left out.
    fn walk(&mut self, table: Table, from: Option<&Cursor>, most: u32) -> io::Result<(Vec<Entry>, Option<Cursor>)>;
    /// Forgets the clients that services with session affinity remember.
    fn forget_clients(&mut self, services: &BTreeSet<u32>) -> io::Result<()>;
    /// `max_entries` of a table.
    fn capacity(&self, table: Table) -> u32;
    /// Waits until every BPF program that may have read an old word has ended (design.md section 4).
    fn grace_period(&mut self) -> io::Result<()>;
}

pub mod testing {
    //! Tables in memory, as strict as the kernel's.

    use std::{
        collections::{BTreeMap, BTreeSet},
        io,
    };

    use super::{Cursor, Entry, MapStore};
    use crate::image::{Capacity, Table};

    /// A store in memory that refuses what the kernel would refuse.
    #[derive(Clone, Debug)]
    pub struct FakeStore {
        tables: BTreeMap<(Table, Box<[u8]>), Box<[u8]>>,
        capacity: Capacity,
        fail_after: Option<usize>,
        /// Writes and deletions so far.
        pub writes: usize,
        /// Grace periods so far.
        pub graces: usize,
        /// Services whose clients were forgotten, in this order.
        pub forgotten: Vec<u32>,
    }

    impl FakeStore {
        /// Empty tables.
        pub const fn new(capacity: Capacity) -> Self {
            Self { tables: BTreeMap::new(), capacity, fail_after: None, writes: 0, graces: 0, forgotten: Vec::new() }
        }

        /// After `writes` more writes every operation fails, until this is called with `None`.
        pub const fn fail_after(&mut self, writes: Option<usize>) {
            self.fail_after = writes;
        }

        fn spend(&mut self) -> io::Result<()> {
            match &mut self.fail_after {
                Some(0) => return Err(io::Error::other("injected failure")),
                Some(left) => *left -= 1,
                None => {}
            }
            self.writes += 1;
            Ok(())
        }
    }

    impl MapStore for FakeStore {
        fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
            let max_entries = self.capacity(table);
            if table.is_array() {
                let index = key.try_into().map(u32::from_ne_bytes);
                if index.map_or(true, |index| index >= max_entries) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "E2BIG: no such index"));
                }
            } else if !self.tables.contains_key(&(table, key.into())) {
                let used = self.tables.keys().filter(|(other, _)| *other == table).count();
                if used >= max_entries as usize {
                    return Err(io::Error::new(io::ErrorKind::StorageFull, "E2BIG: the map is full"));
                }
            }
            self.spend()?;
            self.tables.insert((table, key.into()), value.into());
            Ok(())
        }

        fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()> {
            if table.is_array() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "EINVAL: arrays cannot delete"));
            }
            self.spend()?;
            self.tables.remove(&(table, key.into()));
            Ok(())
        }

        fn dump(&mut self, table: Table) -> io::Result<Vec<Entry>> {
            let all = self.tables.iter().filter(|((other, _), _)| *other == table);
            let used = all.filter(|(_, value)| !table.is_array() || value.iter().any(|byte| *byte != 0));
            Ok(used.map(|((_, key), value)| (key.clone(), value.clone())).collect())
        }

        fn read(&mut self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
            let found = self.tables.get(&(table, key.into())).map(|value| value.to_vec());
            // An array has every entry.
            Ok(found.or_else(|| table.is_array().then(Vec::new)))
        }

        fn walk(&mut self, table: Table, from: Option<&Cursor>, most: u32) -> io::Result<(Vec<Entry>, Option<Cursor>)> {
            let after = |key: &[u8]| from.is_none_or(|from| *key > *from.0);
            let left = self.tables.iter().filter(|((of, key), _)| *of == table && after(key));
            let mut found: Vec<Entry> =
                left.map(|((_, key), value)| (key.clone(), value.clone())).take(most as usize).collect();
            let next = found.last().filter(|_| found.len() == most as usize).map(|(key, _)| Cursor(key.clone()));
            found.retain(|(_, value)| !table.is_array() || value.iter().any(|byte| *byte != 0));
            Ok((found, next))
        }

        fn forget_clients(&mut self, services: &BTreeSet<u32>) -> io::Result<()> {
            self.forgotten.extend(services);
            Ok(())
        }

        fn capacity(&self, table: Table) -> u32 {
            self.capacity.get(table)
        }

        fn grace_period(&mut self) -> io::Result<()> {
            if self.fail_after == Some(0) {
                return Err(io::Error::other("injected failure"));
            }
            self.graces += 1;
            Ok(())
        }
    }
}
