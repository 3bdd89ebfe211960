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

    /// How many service ports have room for their two words.
    pub(crate) fn services(&self) -> u32 {
        self.get(Table::Services) / 2
    }

    /// How many of the records in `table` a [`lb_common::frontend::FrontendWord`] can name.
    pub(crate) fn records(&self, table: Table) -> u32 {
        self.get(table).min(1 << 24)
    }
}

/// How room is made in a table.
pub(super) fn enlarging(table: Table) -> String {
    let map = table.map_name();
    let field = match table {
        Table::Services | Table::Affinities => "services",
        Table::Frontends4
        | Table::Frontends6
        | Table::Records4
        | Table::Records6
        | Table::Vips4
        | Table::Vips6
        | Table::Sources4
        | Table::Sources6 => "frontends",
        Table::Backends4 | Table::Backends6 => "backends",
        Table::Rings => "rings",
        Table::NextHops4 | Table::NextHops6 => {
            return "use fewer devices and source addresses towards backends".to_owned();
        }
        Table::Prefixes4 | Table::Prefixes6 => return "give fewer Service CIDRs and podCIDRs".to_owned(),
        Table::Settings => return "nothing: please file a bug".to_owned(),
    };
    format!(
        "remove Services, or make map {map} larger: maps.{field} in BallastConfiguration, and `ballast cleanup` before the \
         agent starts anew (it ends the flows)"
    )
}
