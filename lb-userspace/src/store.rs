//! The four operations the control plane needs of the kernel's tables.

use std::io;

use crate::image::Table;

/// Tables that can be written: the BPF maps, or a fake in tests.
pub trait MapStore {
    /// Sets an entry.
    fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Removes an entry of a hash or trie; absent is not an error.
    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()>;
    /// Every entry of a table; for arrays only those that are not all zeroes.
    fn dump(&mut self, table: Table) -> io::Result<Vec<(Box<[u8]>, Box<[u8]>)>>;
    /// `max_entries` of a table.
    fn capacity(&self, table: Table) -> u32;
    /// Waits until every BPF program that may have read an old word has ended (design.md section 4).
    fn grace_period(&mut self) -> io::Result<()>;
}
