//! Whether the kernel's tables hold what was programmed: read back a slice at a time, and mended where they do not.
//!
//! ```text
//! what we wrote -----> is it there?      -+
//! what the table has -> did we write it?  -+-> drift -> repair, in the order of a plan
//! ```
//! design.md section 6; reliability.md section 2: a cache that nobody compares goes wrong in silence.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
};

use crate::{
    image::{Image, Table},
    plan::{self, ApplyError},
    store::{Cursor, Entry, MapStore},
};

/// A walk over all tables takes about so many rounds.
const ROUNDS: usize = 240;
/// Entries of ours looked up in a round at least: small clusters are verified whole each time.
const LEAST_OURS: usize = 1024;
/// Entries of the tables read in a round at least.
const LEAST_THEIRS: usize = 1024;
/// A walk over arrays takes so many times as long: what is in use of them is among ours, and what somebody wrote to the rest of a
/// million entries leads nobody anywhere.
const PATIENCE: usize = 4;
/// Room of hashes that is walked in a round: an empty bucket takes its time as well.
const BUCKETS: usize = 1 << 20;
/// Writes of a sync that are read back at once, the last ones.
const READ_BACK: usize = 1024;

/// An entry of a table, by its key.
pub type Place = (Table, Box<[u8]>);

/// What a round found.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries compared.
    pub compared: u64,
    /// Each entry was compared at least once since the last time this was told.
    pub ended: bool,
    /// What is not as programmed.
    pub drift: BTreeSet<Place>,
}

/// The tables could not be verified or mended.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A read failed.
    #[error("map {map} cannot be read back: {cause}")]
    Read {
        /// The map.
        map: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A write failed.
    #[error(transparent)]
    Write(#[from] ApplyError),
    /// The kernel took the writes and does not have them.
    #[error("map {map} does not hold what was written to it ({} entries in all)", .places.len())]
    NotKept {
        /// The first map.
        map: &'static str,
        /// All the entries.
        places: BTreeSet<Place>,
    },
}

/// Where the rounds have got to.
#[derive(Debug, Default)]
pub struct Verifier {
    ours: Walk<Box<[u8]>>,
    /// Where readers begin: what nobody wrote there takes effect. Walked more often than the rest.
    published: Walk<Cursor>,
    arrays: Walk<Cursor>,
    /// Rounds before the published tables are walked again.
    rest: usize,
}

#[derive(Debug)]
struct Walk<T> {
    /// Index into [`Table::ALL`].
    table: usize,
    from: Option<T>,
    ended: bool,
}

impl<T> Default for Walk<T> {
    fn default() -> Self {
        Self { table: 0, from: None, ended: false }
    }
}

impl<T> Walk<T> {
    /// The table, or none at the end of the walk.
    fn table(&self) -> Option<Table> {
        Table::ALL.get(self.table).copied()
    }

    /// On behind `from`; with the next table if there is nothing behind.
    fn go_on(&mut self, from: Option<T>) {
        self.table += usize::from(from.is_none());
        self.from = from;
    }

    /// Begins anew if it has come to the end; whether it has.
    fn wrap(&mut self) -> bool {
        let ended = self.table().is_none();
        if ended {
            *self = Self { ended: true, ..Self::default() };
        }
        ended
    }
}

impl Verifier {
    /// Compares a slice of `mirror`, what was programmed, with the tables, and a slice of the tables with it.
    pub fn round(&mut self, store: &mut dyn MapStore, mirror: &Image) -> Result<Round, VerifyError> {
        let mut round = Round::default();
        self.ours(store, mirror, &mut round)?;
        let (hashes, arrays) = sizes(store);
        if let Some(rest) = self.rest.checked_sub(1) {
            self.rest = rest;
        } else {
            let used = Table::ALL.iter().filter(|table| !table.is_array()).map(|table| mirror.len(*table)).sum();
            if theirs(&mut self.published, false, used, store, mirror, &mut round)? {
                self.rest = hashes / BUCKETS;
            }
        }
        theirs(&mut self.arrays, true, arrays, store, mirror, &mut round)?;
        if self.ours.ended && self.published.ended && self.arrays.ended {
            round.ended = true;
            (self.ours.ended, self.published.ended, self.arrays.ended) = (false, false, false);
        }
        Ok(round)
    }

    fn ours(&mut self, store: &mut dyn MapStore, mirror: &Image, round: &mut Round) -> Result<(), VerifyError> {
        let all: usize = Table::ALL.iter().map(|table| mirror.len(*table)).sum();
        let mut left = (all / ROUNDS).max(LEAST_OURS);
        while let Some(table) = self.ours.table().filter(|_| left > 0) {
            let slice: Vec<&[u8]> =
                mirror.table_after(table, self.ours.from.as_deref()).map(|(key, _)| key).take(left).collect();
            for key in &slice {
                if !holds(store, mirror, table, key)? {
                    round.drift.insert((table, Box::from(*key)));
                }
            }
            round.compared += slice.len() as u64;
            let full = slice.len() == left;
            left -= slice.len();
            self.ours.go_on(slice.last().filter(|_| full).map(|key| Box::from(*key)));
        }
        self.ours.wrap();
        Ok(())
    }
}

/// Room of all hashes and tries, and of all arrays.
fn sizes(store: &dyn MapStore) -> (usize, usize) {
    let sum = |arrays: bool| {
        let of = Table::ALL.iter().filter(|table| table.is_array() == arrays);
        of.map(|table| store.capacity(*table) as usize).sum()
    };
    (sum(false), sum(true))
}

/// Reads a slice of the tables that are arrays or are not, of `all` entries; whether the walk came to its end.
fn theirs(
    walk: &mut Walk<Cursor>,
    arrays: bool,
    all: usize,
    store: &mut dyn MapStore,
    mirror: &Image,
    round: &mut Round,
) -> Result<bool, VerifyError> {
    let slow = if arrays { PATIENCE } else { 1 };
    let mut left = (all / (ROUNDS * slow)).max(LEAST_THEIRS);
    while let Some(table) = walk.table().filter(|_| left > 0) {
        if table.is_array() != arrays {
            walk.go_on(None);
            continue;
        }
        let most = left.min(size_of_walk(store, mirror, table));
        let (entries, next) = store
            .walk(table, walk.from.as_ref(), u32::try_from(most).unwrap_or(u32::MAX))
            .map_err(|cause| VerifyError::Read { map: table.map_name(), cause })?;
        for (key, value) in entries {
            if mirror.get(table, &key) != Some(&*value) {
                round.drift.insert((table, key));
            }
        }
        // Zeroes in arrays are read as well, though they are not told.
        round.compared += most as u64;
        left -= most;
        walk.go_on(next);
    }
    Ok(walk.wrap())
}

/// Entries that a walk over a table reads at most at a time.
fn size_of_walk(store: &dyn MapStore, mirror: &Image, table: Table) -> usize {
    let size = if table.is_array() { store.capacity(table) as usize } else { mirror.len(table) };
    // What is there beside what was written counts too.
    size.saturating_add(16)
}

/// Whether an entry is as programmed.
fn holds(store: &mut dyn MapStore, mirror: &Image, table: Table, key: &[u8]) -> Result<bool, VerifyError> {
    Ok(read(store, table, key)?.as_deref() == mirror.get(table, key))
}

/// An entry of the kernel's, as an image has it: without zeroes in arrays.
fn read(store: &mut dyn MapStore, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, VerifyError> {
    let found = store.read(table, key).map_err(|cause| VerifyError::Read { map: table.map_name(), cause })?;
    Ok(found.filter(|value| !table.is_array() || value.iter().any(|byte| *byte != 0)))
}

/// Makes entries what they are in `mirror`, and looks whether they are then; the number of writes.
pub fn repair(store: &mut dyn MapStore, mirror: &Image, drift: &BTreeSet<Place>) -> Result<usize, VerifyError> {
    let (mut should, mut is) = (Image::default(), Image::default());
    for (table, key) in drift {
        if let Some(value) = mirror.get(*table, key) {
            should.insert_bytes(*table, key.clone(), value.into());
        }
        if let Some(value) = read(store, *table, key)? {
            is.insert_bytes(*table, key.clone(), value.into_boxed_slice());
        }
    }
    let applied = plan::apply(&plan::diff(&should, &is), store, &mut is)?;
    confirm(store, mirror, &mut drift.iter())?;
    Ok(applied.writes)
}

/// Looks whether entries are as programmed.
pub fn confirm(
    store: &mut dyn MapStore,
    mirror: &Image,
    places: &mut dyn Iterator<Item = &Place>,
) -> Result<(), VerifyError> {
    let mut wrong = BTreeSet::new();
    for (table, key) in places {
        if !holds(store, mirror, *table, key)? {
            wrong.insert((*table, key.clone()));
        }
    }
    match wrong.first() {
        Some((table, _)) => Err(VerifyError::NotKept { map: table.map_name(), places: wrong }),
        None => Ok(()),
    }
}

/// What became of the writes to a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ops {
    /// Entries set.
    pub updates: u64,
    /// Entries removed.
    pub deletes: u64,
    /// Writes that failed.
    pub failures: u64,
}

/// A store that notes what is written through it.
pub struct Noting<'a> {
    store: &'a mut dyn MapStore,
    written: VecDeque<Place>,
    ops: &'a mut BTreeMap<Table, Ops>,
}

impl<'a> Noting<'a> {
    /// Counts into `ops`.
    pub const fn new(store: &'a mut dyn MapStore, ops: &'a mut BTreeMap<Table, Ops>) -> Self {
        Self { store, written: VecDeque::new(), ops }
    }

    /// Reads back what was written, the last of it if that was much: whether it is what `mirror` says.
    pub fn confirm(self, mirror: &Image) -> Result<(), VerifyError> {
        confirm(self.store, mirror, &mut self.written.iter())
    }

    fn note(&mut self, table: Table, key: &[u8], failed: bool, count: impl FnOnce(&mut Ops)) {
        let ops = self.ops.entry(table).or_default();
        if failed {
            ops.failures += 1;
            return;
        }
        count(ops);
        if self.written.len() == READ_BACK {
            self.written.pop_front();
        }
        self.written.push_back((table, key.into()));
    }
}

impl MapStore for Noting<'_> {
    fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        let result = self.store.update(table, key, value);
        self.note(table, key, result.is_err(), |ops| ops.updates += 1);
        result
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()> {
        let result = self.store.delete(table, key);
        self.note(table, key, result.is_err(), |ops| ops.deletes += 1);
        result
    }

    fn dump(&mut self, table: Table) -> io::Result<Vec<Entry>> {
        self.store.dump(table)
    }

    fn read(&mut self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.store.read(table, key)
    }

    fn walk(&mut self, table: Table, from: Option<&Cursor>, most: u32) -> io::Result<(Vec<Entry>, Option<Cursor>)> {
        self.store.walk(table, from, most)
    }

    fn forget_clients(&mut self, services: &BTreeSet<u32>) -> io::Result<()> {
        self.store.forget_clients(services)
    }

    fn capacity(&self, table: Table) -> u32 {
        self.store.capacity(table)
    }

    fn grace_period(&mut self) -> io::Result<()> {
        self.store.grace_period()
    }
}

#[cfg(test)]
mod tests;
