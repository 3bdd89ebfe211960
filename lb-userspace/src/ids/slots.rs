//! Numbers of one array: who owns which, which are free, and which may still be in use by the kernel side.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

/// A freed number rests until this many others are free too: a flow or a socket may remember it for long, and a record
/// it finds empty is easier to tell from its own than one with a new owner.
const REST: usize = 1024;

/// The numbers of one array. Zero is never given out. A number goes `owned -> retiring -> free -> owned`: it leaves
/// `retiring` only once the plan that stopped using it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots<K> {
    owned: BTreeMap<K, u32>,
    /// By number; counts the changes of owner and is never reset. Entry 0 is unused.
    generations: Vec<u32>,
    retiring: BTreeSet<u32>,
    /// Oldest first.
    free: VecDeque<u32>,
    /// Numbers used by the build in progress.
    marked: BTreeSet<u32>,
    /// What was given out since [`Self::begin`], with the generation each number had before.
    taken: Vec<(K, u32, u32)>,
}

/// The saved form: JSON has no map with structured keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedSlots<K> {
    owned: Vec<(K, u32)>,
    generations: Vec<u32>,
    retiring: Vec<u32>,
    free: Vec<u32>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self {
            owned: BTreeMap::new(),
            generations: Vec::new(),
            retiring: BTreeSet::new(),
            free: VecDeque::new(),
            marked: BTreeSet::new(),
            taken: Vec::new(),
        }
    }
}

/// What the kernel's array holds at a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<K> {
    /// The owner, if the slot is in use by somebody we can name.
    pub(super) owner: Option<K>,
    /// In use, by whomever.
    pub(super) live: bool,
    /// Generation, where the record carries one; else 0.
    pub(super) generation: u32,
}

impl<K: Ord + Clone> Slots<K> {
    /// The number of `key`.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.owned.get(key).copied()
    }

    /// Owners and their numbers, in the order of the owners.
    pub fn owners(&self) -> impl Iterator<Item = (&K, u32)> {
        self.owned.iter().map(|(key, id)| (key, *id))
    }

    /// The generation of a number: 0 if it was never given out.
    pub fn generation(&self, id: u32) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or(0)
    }

    /// Numbers without an owner that once had one, with their generations.
    pub fn vacant(&self) -> impl Iterator<Item = (u32, u32)> {
        let vacant = self.retiring.iter().chain(&self.free);
        vacant.map(|id| (*id, self.generation(*id))).filter(|(_, generation)| *generation != 0)
    }

    /// How many more owners find a number in an array of `max_entries`.
    pub(crate) fn room(&self, max_entries: u32) -> usize {
        self.free.len() + self.never_used(max_entries)
    }

    /// Whether an array of `max_entries` has all the numbers there are.
    pub(super) fn fits(&self, max_entries: u32) -> bool {
        self.generations.len() <= max_entries as usize || self.generations.len() <= 1
    }

    fn never_used(&self, max_entries: u32) -> usize {
        (max_entries as usize).saturating_sub(self.generations.len().max(1))
    }

    /// The number of `key`, a new one if it has none; `None` when the array is full. Marks it as used by this build. To be
    /// called for one array only, which all numbers fit into ([`Self::fits`]).
    pub(crate) fn assign(&mut self, key: &K, max_entries: u32) -> Option<u32> {
        if let Some(id) = self.get(key) {
            self.marked.insert(id);
            return Some(id);
        }
        let id = self.take(max_entries)?;
        self.taken.push((key.clone(), id, self.generation(id)));
        self.bump(id);
        self.owned.insert(key.clone(), id);
        self.marked.insert(id);
        Some(id)
    }

    fn take(&mut self, max_entries: u32) -> Option<u32> {
        if self.free.len() < REST && self.never_used(max_entries) > 0 {
            if self.generations.is_empty() {
                self.generations.push(0);
            }
            let id = u32::try_from(self.generations.len()).ok()?;
            self.generations.push(0);
            return Some(id);
        }
        self.free.pop_front()
    }

    fn bump(&mut self, id: u32) {
        if let Some(generation) = self.generations.get_mut(id as usize) {
            // Generation 0 means a slot that never had an owner.
            *generation = generation.checked_add(1).unwrap_or(1);
        }
    }

    /// Takes back the mark of a number.
    pub(crate) fn unmark(&mut self, id: u32) {
        self.marked.remove(&id);
    }

    /// From here on [`Self::give_back`] takes everything back.
    pub(crate) fn begin(&mut self) {
        self.taken.clear();
    }

    /// Takes back what was given out since [`Self::begin`], as if nobody had asked: nobody has seen it, and a number that
    /// is refused again and again must not get a new generation, which is a write, each time.
    pub(crate) fn give_back(&mut self) {
        for (key, id, generation) in std::mem::take(&mut self.taken).into_iter().rev() {
            self.owned.remove(&key);
            self.marked.remove(&id);
            if let Some(current) = self.generations.get_mut(id as usize) {
                *current = generation;
            }
            if generation == 0 && self.generations.len() == id as usize + 1 {
                self.generations.pop();
            } else {
                self.free.push_front(id);
            }
        }
    }

    /// Ends a build: numbers without a mark lose their owner.
    pub(crate) fn sweep(&mut self) {
        self.taken.clear();
        let marked = std::mem::take(&mut self.marked);
        let mut lost = Vec::new();
        self.owned.retain(|_, id| {
            let keep = marked.contains(id);
            if !keep {
                lost.push(*id);
            }
            keep
        });
        for id in lost {
            self.bump(id);
            self.retiring.insert(id);
        }
    }

    /// Ends a build of some owners: of those in `range` the ones without a mark lose their numbers, which it returns. To be
    /// called for each range that was built, and then [`Self::settle`].
    pub(crate) fn sweep_some(&mut self, range: std::ops::Range<K>) -> Vec<u32> {
        let lost = self.owned.range(range).filter(|(_, id)| !self.marked.contains(id));
        let lost: Vec<(K, u32)> = lost.map(|(key, id)| (key.clone(), *id)).collect();
        for (key, id) in &lost {
            self.owned.remove(key);
            self.bump(*id);
            self.retiring.insert(*id);
        }
        lost.into_iter().map(|(_, id)| id).collect()
    }

    /// A build of some owners is over: all others keep their numbers.
    pub(crate) fn settle(&mut self) {
        self.taken.clear();
        self.marked.clear();
    }

    /// The plan was applied: nothing in the kernel uses the retiring numbers any more. Tells whether there were any.
    pub(super) fn commit(&mut self) -> bool {
        let freed = !self.retiring.is_empty();
        self.free.extend(std::mem::take(&mut self.retiring));
        freed
    }

    /// Makes the state agree with what the kernel's array holds. The kernel is right about slots in use: a flow can
    /// only have seen what stood there.
    pub(super) fn adopt(&mut self, found: BTreeMap<u32, Found<K>>) {
        let mut owners: BTreeMap<u32, K> = self.owned.iter().map(|(key, id)| (*id, key.clone())).collect();
        let length = found.keys().next_back().map_or(0, |last| *last as usize + 1);
        if self.generations.len() < length {
            self.generations.resize(length, 0);
        }
        for (id, found) in found {
            let mut seen = self.generation(id).max(found.generation);
            if found.live {
                match (owners.get(&id), found.owner) {
                    (Some(owner), Some(key)) if *owner == key => seen = found.generation.max(1),
                    (None, Some(key)) if !self.owned.contains_key(&key) => {
                        seen = found.generation.max(1);
                        self.owned.insert(key.clone(), id);
                        owners.insert(id, key);
                        self.retiring.remove(&id);
                    }
                    (owner, _) => {
                        // Somebody else's record is published there: it rests until it is taken down.
                        if let Some(owner) = owner {
                            self.owned.remove(owner);
                        }
                        owners.remove(&id);
                        self.retiring.insert(id);
                        seen = seen.max(found.generation.saturating_add(1));
                    }
                }
            }
            if let Some(generation) = self.generations.get_mut(id as usize) {
                *generation = seen;
            }
        }
        self.free.retain(|id| !owners.contains_key(id) && !self.retiring.contains(id));
        let known: BTreeSet<u32> = self.free.iter().copied().collect();
        let end = u32::try_from(self.generations.len()).unwrap_or(u32::MAX);
        let lost = (1..end).filter(|id| !owners.contains_key(id) && !self.retiring.contains(id) && !known.contains(id));
        self.free.extend(lost);
    }

    /// Takes the number from its owner, if it has one.
    pub(super) fn disown(&mut self, id: u32) {
        let before = self.owned.len();
        self.owned.retain(|_, owned| *owned != id);
        if self.owned.len() != before {
            self.bump(id);
            self.retiring.insert(id);
        }
    }

    pub(super) fn save(&self) -> SavedSlots<K> {
        SavedSlots {
            owned: self.owned.iter().map(|(key, id)| (key.clone(), *id)).collect(),
            generations: self.generations.clone(),
            retiring: self.retiring.iter().copied().collect(),
            free: self.free.iter().copied().collect(),
        }
    }

    /// Every number but zero has exactly one place, or the state is not ours.
    pub(super) fn load(saved: SavedSlots<K>) -> Result<Self, String> {
        let count = saved.owned.len() + saved.retiring.len() + saved.free.len();
        let ids = saved.owned.iter().map(|(_, id)| id).chain(&saved.retiring).chain(&saved.free);
        let distinct: BTreeSet<u32> = ids.copied().filter(|id| *id != 0).collect();
        let in_range = distinct.last().is_none_or(|last| (*last as usize) < saved.generations.len());
        if distinct.len() != count || !in_range || saved.generations.len().saturating_sub(1) != count {
            return Err("an id is missing, given out twice or out of range".to_owned());
        }
        let owned: BTreeMap<K, u32> = saved.owned.into_iter().collect();
        if owned.len() + saved.retiring.len() + saved.free.len() != count {
            return Err("an owner has two ids".to_owned());
        }
        Ok(Self {
            owned,
            generations: saved.generations,
            retiring: saved.retiring.into_iter().collect(),
            free: saved.free.into(),
            marked: BTreeSet::new(),
            taken: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(slots: &mut Slots<&'static str>, keys: &[&'static str], max_entries: u32) -> Vec<Option<u32>> {
        let ids = keys.iter().map(|key| slots.assign(key, max_entries)).collect();
        slots.sweep();
        ids
    }

    #[test]
    fn a_number_is_free_only_after_the_plan_was_applied_and_its_generation_grows() {
        let mut slots = Slots::default();
        assert_eq!(build(&mut slots, &["a", "b"], 3), [Some(1), Some(2)]);
        assert_eq!(build(&mut slots, &["b", "c"], 3), [Some(2), None]);
        assert_eq!(build(&mut slots, &["b", "c"], 3), [Some(2), None]);
        let vacated = slots.generation(1);
        assert!(vacated > 1 && slots.commit());
        assert_eq!(build(&mut slots, &["b", "c"], 3), [Some(2), Some(1)]);
        assert!(slots.generation(1) > vacated);
    }

    #[test]
    fn numbers_are_reused_oldest_first() {
        let mut slots = Slots::default();
        build(&mut slots, &["a", "b", "c"], 4);
        build(&mut slots, &["a", "c"], 4);
        slots.commit();
        build(&mut slots, &["c"], 4);
        slots.commit();
        assert_eq!(build(&mut slots, &["c", "d", "e"], 4), [Some(3), Some(2), Some(1)]);
    }

    #[test]
    fn a_saved_state_with_an_id_twice_is_refused() {
        let mut slots = Slots::default();
        build(&mut slots, &["a", "b"], 9);
        let mut saved = slots.save();
        saved.owned[1].1 = 1;
        assert!(Slots::load(saved).is_err());
        assert_eq!(Slots::load(slots.save()), Ok(slots));
    }
}
