//! How much the tables hold.

use std::collections::BTreeMap;

use super::Table;
use crate::store::MapStore;

/// `max_entries` by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity(BTreeMap<Table, u32>);

impl Capacity {
    /// The same size for every table.
    pub fn uniform(max_entries: u32) -> Self {
        Self(Table::ALL.into_iter().map(|table| (table, max_entries)).collect())
    }

    /// The sizes of a store's tables.
    pub fn of(store: &dyn MapStore) -> Self {
        Self(Table::ALL.into_iter().map(|table| (table, store.capacity(table))).collect())
    }

    /// With one table of another size.
    #[must_use]
    pub fn with(mut self, table: Table, max_entries: u32) -> Self {
        self.0.insert(table, max_entries);
        self
    }

    /// The size of a table.
    pub fn get(&self, table: Table) -> u32 {
        self.0.get(&table).copied().unwrap_or(0)
    }
}
