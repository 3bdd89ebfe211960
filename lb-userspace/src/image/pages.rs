//! An array's entries that are not all zeroes: by index, in pages of bytes, for there may be a hundred thousand.

use std::{collections::BTreeMap, ops::Bound};

/// Entries of a page.
const PAGE: u32 = 256;

/// The entries of an array whose values all have one size. Equal arrays are equal: no page is all zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    /// By index divided by [`PAGE`].
    pages: BTreeMap<u32, Page>,
    len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    /// Of all its entries, so that they can be lent.
    keys: Box<[[u8; 4]]>,
    values: Box<[u8]>,
    /// Bytes of a value.
    width: usize,
    /// Entries that are not all zeroes.
    used: usize,
}

impl Page {
    fn new(number: u32, width: usize) -> Self {
        let first = number.saturating_mul(PAGE);
        let keys = (0..PAGE).map(|offset| first.saturating_add(offset).to_ne_bytes()).collect();
        Self { keys, values: vec![0; PAGE as usize * width].into(), width, used: 0 }
    }

    fn value(&self, offset: usize) -> Option<&[u8]> {
        self.values.get(offset * self.width..(offset + 1) * self.width).filter(|value| !is_zero(value))
    }

    fn entries(&self, from: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
        (from..PAGE as usize).filter_map(|offset| Some((self.keys.get(offset)?.as_slice(), self.value(offset)?)))
    }
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0)
}

/// Number of the page of an index, and its place there.
const fn place(index: u32) -> (u32, usize) {
    (index / PAGE, (index % PAGE) as usize)
}

fn index(key: &[u8]) -> Option<u32> {
    key.try_into().ok().map(u32::from_ne_bytes)
}

impl Pages {
    /// Sets an entry; zeroes remove it. A key that is no index is of no entry; a value of another size than the first one's
    /// is cut, or filled with zeroes.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        if is_zero(value) {
            return self.remove(key);
        }
        let Some((number, offset)) = index(key).map(place) else { return };
        let page = self.pages.entry(number).or_insert_with(|| Page::new(number, value.len()));
        let is_new = page.value(offset).is_none();
        let width = page.width;
        let Some(entry) = page.values.get_mut(offset * width..(offset + 1) * width) else { return };
        entry.fill(0);
        for (to, from) in entry.iter_mut().zip(value) {
            *to = *from;
        }
        let is_there = !is_zero(entry);
        page.used = page.used + usize::from(is_there) - usize::from(!is_new);
        self.len = self.len + usize::from(is_there) - usize::from(!is_new);
        if page.used == 0 {
            self.pages.remove(&number);
        }
    }

    /// Makes an entry zeroes.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let Some((number, offset)) = index(key).map(place) else { return };
        let Some(page) = self.pages.get_mut(&number).filter(|page| page.value(offset).is_some()) else { return };
        let width = page.width;
        if let Some(entry) = page.values.get_mut(offset * width..(offset + 1) * width) {
            entry.fill(0);
        }
        page.used -= 1;
        self.len -= 1;
        if page.used == 0 {
            self.pages.remove(&number);
        }
    }

    /// The value at a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (number, offset) = index(key).map(place)?;
        self.pages.get(&number)?.value(offset)
    }

    /// Entries in the order of their indices, from the first one behind `key` on.
    pub(super) fn after(&self, key: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &[u8])> {
        let after = key.and_then(index);
        let (number, from) = after.map_or((0, 0), |index| {
            let (number, offset) = place(index);
            (number, offset + 1)
        });
        let first = self.pages.get(&number).into_iter().flat_map(move |page| page.entries(from));
        let rest = self.pages.range((Bound::Excluded(number), Bound::Unbounded));
        first.chain(rest.flat_map(|(_, page)| page.entries(0)))
    }

    /// Number of entries.
    pub(super) const fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_a_map_of_the_same_entries_is() {
        let (mut pages, mut map) = (Pages::default(), BTreeMap::new());
        let mut random = 7_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [_, _, one, two, three, four, five, _] = random.to_ne_bytes();
            let base = [0, 255, 256, 1000, u32::MAX][usize::from(five) % 5];
            let index = base.wrapping_add(u32::from(one) + u32::from(two) % 50);
            let (value, inserts) = ([three % 3, 0], four % 2 == 0);
            if inserts {
                pages.insert(&index.to_ne_bytes(), &value);
            } else {
                pages.remove(&index.to_ne_bytes());
            }
            if inserts && value != [0, 0] {
                map.insert(index, value);
            } else {
                map.remove(&index);
            }
            assert_eq!(
                (pages.len(), pages.get(&index.to_ne_bytes())),
                (map.len(), map.get(&index).map(<[u8; 2]>::as_slice))
            );
        }
        let entry = |(key, value): (&u32, &[u8; 2])| (key.to_ne_bytes().to_vec(), value.to_vec());
        let of = |key: Option<&[u8]>| {
            pages.after(key).map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(of(None), map.iter().map(entry).collect::<Vec<_>>());
        for from in [0, 254, 255, 256, 512, 1299, u32::MAX] {
            let rest = map.range((Bound::Excluded(from), Bound::Unbounded)).map(entry);
            assert_eq!(of(Some(&from.to_ne_bytes())), rest.collect::<Vec<_>>(), "behind {from}");
        }
        for index in map.keys() {
            pages.remove(&index.to_ne_bytes());
        }
        assert_eq!(pages, Pages::default());
    }

    #[test]
    fn what_is_no_entry_of_an_array_changes_nothing_else() {
        let mut pages = Pages::default();
        pages.insert(&7_u32.to_ne_bytes(), &[1, 2]);
        pages.insert(&[1], &[1, 2]);
        pages.insert(&8_u32.to_ne_bytes(), &[1, 2, 3]);
        pages.insert(&9_u32.to_ne_bytes(), &[1]);
        pages.insert(&10_u32.to_ne_bytes(), &[]);
        pages.remove(&[]);
        let all: Vec<&[u8]> = pages.after(None).map(|(_, value)| value).collect();
        assert_eq!(all, [&[1, 2], &[1, 2], &[1, 0]]);
    }
}
