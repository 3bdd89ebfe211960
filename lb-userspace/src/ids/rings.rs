//! Ranges of `LB_RINGS` and the words that publish them.

use std::collections::BTreeMap;

use lb_common::ring::{RingWord, WhenEmpty};

/// Slots of one ring: a word counts them in 16 bits.
pub const MAX_RING: usize = u16::MAX as usize;

/// A published ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its word.
    pub word: RingWord,
    /// Its backends.
    pub slots: Vec<u32>,
}

/// Who holds which range. A range is never rewritten while it is published: a changed ring gets a fresh one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// By service and scope index (0 Cluster, 1 Local).
    leases: BTreeMap<(u32, usize), Lease>,
    /// Offset to length, never adjacent.
    free: BTreeMap<u32, u32>,
    /// The first slot that was never used, or is free up to the end of the array.
    end: u32,
    /// Ranges the kernel may still read: offset, length.
    retiring: Vec<(u32, u32)>,
}

impl Rings {
    /// The leases, by service and scope index.
    pub fn leases(&self) -> impl Iterator<Item = ((u32, usize), &Lease)> {
        self.leases.iter().map(|(key, lease)| (*key, lease))
    }

    /// The lease of a service's scope, if it has one.
    pub fn lease(&self, service: u32, scope: usize) -> Option<&Lease> {
        self.leases.get(&(service, scope))
    }

    /// Slots in leases.
    pub fn used(&self) -> usize {
        self.leases.values().map(|lease| lease.slots.len()).sum()
    }

    /// Gives the ring of a service the content `slots`; `None` when no range of the length is free, and nothing has
    /// changed then. A ring that stays as it is keeps its word.
    pub(crate) fn assign(
        &mut self,
        service: u32,
        scope: usize,
        slots: &[u32],
        when_empty: WhenEmpty,
        max_entries: u32,
    ) -> Option<RingWord> {
        let old = self.leases.get(&(service, scope));
        if let Some(lease) = old
            && lease.slots == slots
            && lease.word.when_empty() == when_empty
        {
            return Some(lease.word);
        }
        let tag = next_tag(old.map_or(0, |lease| lease.word.tag()));
        let length = u16::try_from(slots.len()).ok()?;
        let word = if let Some(lease) = old.filter(|lease| lease.slots == slots) {
            RingWord::new(lease.word.offset(), length, when_empty, tag)
        } else {
            let offset = self.allocate(u32::from(length), max_entries)?;
            self.retire(service, scope);
            RingWord::new(offset, length, when_empty, tag)
        };
        self.leases.insert((service, scope), Lease { word, slots: slots.to_vec() });
        Some(word)
    }

    /// Ends the lease of a service's scope.
    pub(crate) fn retire(&mut self, service: u32, scope: usize) {
        if let Some(lease) = self.leases.remove(&(service, scope)) {
            self.retire_range(lease.word.offset(), lease.word.length());
        }
    }

    /// Ends the leases of services that `keep` does not name.
    pub(crate) fn sweep(&mut self, keep: impl Fn(u32) -> bool) {
        let lost: Vec<_> = self.leases.keys().filter(|(service, _)| !keep(*service)).copied().collect();
        for (service, scope) in lost {
            self.retire(service, scope);
        }
    }

    fn retire_range(&mut self, offset: u32, length: u32) {
        if length > 0 {
            self.retiring.push((offset, length));
        }
    }

    /// The slots that the kernel may still read though nobody holds them.
    pub(crate) fn retiring_slots(&self) -> impl Iterator<Item = u32> {
        self.retiring.iter().flat_map(|(offset, length)| *offset..offset.saturating_add(*length))
    }

    /// The plan was applied: nothing reads the retiring ranges any more. Tells whether there were any.
    pub(super) fn commit(&mut self) -> bool {
        let retiring = std::mem::take(&mut self.retiring);
        for (offset, length) in &retiring {
            self.release(*offset, *length);
        }
        !retiring.is_empty()
    }

    /// First fit. An empty ring needs no slot.
    fn allocate(&mut self, length: u32, max_entries: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let fits = |offset: u32| offset.checked_add(length).is_some_and(|end| end <= max_entries);
        let hole = self.free.iter().find(|(offset, free)| **free >= length && fits(**offset));
        if let Some((&offset, &free)) = hole {
            self.free.remove(&offset);
            if free > length {
                self.free.insert(offset + length, free - length);
            }
            return Some(offset);
        }
        let offset = self.end;
        fits(offset).then(|| {
            self.end = offset + length;
            offset
        })
    }

    fn release(&mut self, offset: u32, length: u32) {
        let (mut offset, mut length) = (offset, length);
        if let Some((&before, &free)) = self.free.range(..offset).next_back()
            && before + free == offset
        {
            self.free.remove(&before);
            (offset, length) = (before, length + free);
        }
        if let Some(free) = self.free.remove(&(offset + length)) {
            length += free;
        }
        if offset + length == self.end {
            self.end = offset;
        } else {
            self.free.insert(offset, length);
        }
    }

    /// The state that agrees with published words. `ours` are rings of known services; `foreign` words belong to
    /// nobody we know and only hold their ranges. A word that overlaps an earlier one is damage: it is not adopted.
    pub(super) fn adopt(ours: BTreeMap<(u32, usize), Lease>, foreign: &[RingWord]) -> Self {
        let mut rings = Self::default();
        let mut ranges: BTreeMap<u32, u32> = BTreeMap::new();
        let mut hold = |word: RingWord| {
            let (offset, length) = (word.offset(), word.length());
            let Some(end) = offset.checked_add(length) else { return false };
            let before = ranges.range(..end).next_back();
            let is_clear = length == 0 || before.is_none_or(|(other, other_length)| other + other_length <= offset);
            if is_clear && length > 0 {
                ranges.insert(offset, length);
            }
            is_clear
        };
        for (key, lease) in ours {
            if hold(lease.word) {
                rings.leases.insert(key, lease);
            }
        }
        for word in foreign {
            if hold(*word) {
                rings.retire_range(word.offset(), word.length());
            }
        }
        for (offset, length) in ranges {
            if offset > rings.end {
                rings.free.insert(rings.end, offset - rings.end);
            }
            rings.end = offset + length;
        }
        rings
    }
}

/// Tags run from 1 to 0x7fff: the word of a scope in use is then never all zeroes, which means "not in use".
fn next_tag(tag: u16) -> u16 {
    if tag >= 0x7fff { 1 } else { tag + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(rings: &mut Rings, service: u32, slots: &[u32]) -> Option<(u32, u16)> {
        rings.assign(service, 0, slots, WhenEmpty::Reject, 8).map(|word| (word.offset(), word.tag()))
    }

    #[test]
    fn a_changed_ring_gets_a_fresh_range_and_tag_and_an_unchanged_one_keeps_both() {
        let mut rings = Rings::default();
        assert_eq!(assign(&mut rings, 1, &[1, 2]), Some((0, 1)));
        assert_eq!(assign(&mut rings, 1, &[1, 2]), Some((0, 1)));
        assert_eq!(assign(&mut rings, 1, &[1, 2, 3]), Some((2, 2)));
        assert_eq!(assign(&mut rings, 2, &[4, 5]), Some((5, 1)), "0..2 is still being read");
        assert!(rings.commit());
        assert_eq!(assign(&mut rings, 3, &[6, 7]), Some((0, 1)));
        assert_eq!(assign(&mut rings, 4, &[8, 9]), None);
    }

    #[test]
    fn freed_ranges_coalesce() {
        let mut rings = Rings::default();
        for service in 1..=4 {
            assign(&mut rings, service, &[1, 2]);
        }
        rings.sweep(|service| service == 4);
        rings.commit();
        assert_eq!(rings.free, BTreeMap::from([(0, 6)]));
        rings.sweep(|_| false);
        rings.commit();
        assert_eq!(rings, Rings::default());
    }

    #[test]
    fn an_overlapping_word_is_not_adopted() {
        let lease = |offset, slots: &[u32]| Lease {
            word: RingWord::new(offset, u16::try_from(slots.len()).expect("short"), WhenEmpty::Reject, 1),
            slots: slots.to_vec(),
        };
        let ours = BTreeMap::from([((1, 0), lease(2, &[1, 2])), ((2, 0), lease(3, &[3]))]);
        let rings = Rings::adopt(ours, &[RingWord::new(5, 2, WhenEmpty::Drop, 4)]);
        assert_eq!(rings.leases().map(|(key, _)| key).collect::<Vec<_>>(), [(1, 0)]);
        assert_eq!((rings.free.clone(), rings.end), (BTreeMap::from([(0, 2), (4, 1)]), 7));
    }

    /// Words the maps hold may be damaged; ranges are not saved, so no other can be of a larger array.
    #[test]
    fn a_word_past_the_end_of_the_array_is_given_up_for_a_range_that_fits() {
        for (offset, length) in [(7, 2), (1000, 2), (u32::MAX - 1, 1), (u32::MAX, u16::MAX)] {
            let word = RingWord::new(offset, length, WhenEmpty::Reject, 4);
            let lease = Lease { word, slots: vec![0; usize::from(length)] };
            let mut rings = Rings::adopt(BTreeMap::from([((1, 0), lease)]), &[word]);
            assert_eq!(assign(&mut rings, 1, &[1, 2]).map(|(offset, _)| offset), Some(0), "{word:?}");
            rings.commit();
            assert_eq!(assign(&mut rings, 2, &[3, 4]).map(|(offset, _)| offset), Some(2), "{word:?}");
        }
    }
}
