//! Drift of each kind, on a store as strict as the kernel's.

use super::*;
use crate::{image::Capacity, store::testing::FakeStore};

/// Tables with `each` entries, and a store that holds them.
fn programmed(each: u32) -> (FakeStore, Image) {
    let mut store = FakeStore::new(Capacity::uniform(each + 50));
    let mut mirror = Image::default();
    for table in Table::ALL {
        for index in 1..=each {
            let (key, value) = (key(index), value(index));
            store.update(table, &key, &value).expect("room");
            mirror.insert_bytes(table, key, value);
        }
    }
    (store, mirror)
}

fn key(index: u32) -> Box<[u8]> {
    index.to_ne_bytes().into()
}

fn value(number: u32) -> Box<[u8]> {
    u64::from(number).to_ne_bytes().into()
}

/// Rounds until every entry was compared once; what was found.
fn pass(verifier: &mut Verifier, store: &mut FakeStore, mirror: &Image) -> (BTreeSet<Place>, usize) {
    let mut drift = BTreeSet::new();
    for rounds in 1..=2 * ROUNDS * PATIENCE {
        let round = verifier.round(store, mirror).expect("a round");
        drift.extend(round.drift);
        if round.ended {
            return (drift, rounds);
        }
    }
    panic!("no end");
}

#[test]
fn what_is_as_programmed_is_no_drift() {
    for each in [0, 1, 300] {
        let (mut store, mirror) = programmed(each);
        let mut verifier = Verifier::default();
        for _ in 0..3 {
            assert_eq!(pass(&mut verifier, &mut store, &mirror).0, BTreeSet::new(), "{each}");
        }
    }
}

#[test]
fn an_entry_changed_removed_or_added_behind_our_back_is_found_and_mended() {
    for table in Table::ALL {
        for each in [1, 150] {
            let (mut store, mirror) = programmed(each);
            let original = store.clone();
            let mut verifier = Verifier::default();
            // In the midst of a pass: before and behind where it is.
            assert_eq!(verifier.round(&mut store, &mirror).expect("a round").drift, BTreeSet::new());
            store.update(table, &key(1), &value(99)).expect("changed");
            let zero = vec![0; 8];
            if table.is_array() {
                store.update(table, &key(each), &zero).expect("cleared");
            } else {
                store.delete(table, &key(each)).expect("removed");
            }
            store.update(table, &key(each + 7), &value(7)).expect("added");
            let mut drift = pass(&mut verifier, &mut store, &mirror).0;
            drift.extend(pass(&mut verifier, &mut store, &mirror).0);
            let expected = [1, each, each + 7].map(|index| (table, key(index)));
            assert_eq!(drift, expected.into(), "{table:?} of {each}");
            let writes = repair(&mut store, &mirror, &drift).expect("mended");
            assert_eq!(writes, drift.len(), "nothing else is written");
            assert_eq!(pass(&mut verifier, &mut store, &mirror).0, BTreeSet::new());
            for index in 1..=each {
                let (is, was) = (store.clone().read(table, &key(index)), original.clone().read(table, &key(index)));
                assert_eq!(is.expect("read"), was.expect("read"), "{table:?} {index}");
            }
        }
    }
}

#[test]
fn a_round_reads_a_bounded_slice_and_a_pass_has_a_bounded_number() {
    let (mut store, mirror) = programmed(600);
    let mut verifier = Verifier::default();
    let round = verifier.round(&mut store, &mirror).expect("a round");
    let most = LEAST_OURS + 2 * LEAST_THEIRS;
    assert!(round.compared > 0 && round.compared <= most as u64, "{}", round.compared);
    let ours = 18 * 600_usize;
    assert_eq!(pass(&mut verifier, &mut store, &mirror).1, ours.div_ceil(LEAST_OURS) - 1);
    // A small cluster is verified in each.
    let (mut store, mirror) = programmed(50);
    assert!(pass(&mut Verifier::default(), &mut store, &mirror).1 <= 2);
}

#[test]
fn a_failed_repair_is_found_again() {
    let (mut store, mirror) = programmed(20);
    let mut verifier = Verifier::default();
    store.delete(Table::Frontends4, &key(3)).expect("removed");
    store.delete(Table::Frontends4, &key(4)).expect("removed");
    let (drift, _) = pass(&mut verifier, &mut store, &mirror);
    store.fail_after(Some(1));
    let error = repair(&mut store, &mirror, &drift).expect_err("half done");
    assert!(matches!(&error, VerifyError::Write(error) if error.done == 1), "{error}");
    store.fail_after(None);
    assert_eq!(pass(&mut verifier, &mut store, &mirror).0, [(Table::Frontends4, key(4))].into());
}

#[test]
fn writes_that_are_not_kept_are_no_success() {
    let (mut store, mut mirror) = programmed(20);
    let mut ops = BTreeMap::new();
    let mut noting = Noting::new(&mut store, &mut ops);
    noting.update(Table::Vips4, &key(3), &value(8)).expect("written");
    noting.delete(Table::Vips6, &key(3)).expect("removed");
    mirror.insert_bytes(Table::Vips4, key(3), value(8));
    mirror.remove_bytes(Table::Vips6, &key(3));
    noting.confirm(&mirror).expect("as written");
    let mut noting = Noting::new(&mut store, &mut ops);
    noting.update(Table::Vips4, &key(3), &value(9)).expect("written");
    let error = noting.confirm(&mirror).expect_err("another value");
    assert_eq!(error.to_string(), "map LB4_VIPS does not hold what was written to it (1 entries in all)");
    store.fail_after(Some(0));
    let mut noting = Noting::new(&mut store, &mut ops);
    noting.update(Table::Vips4, &key(3), &value(9)).expect_err("injected");
    assert_eq!(ops[&Table::Vips4], Ops { updates: 2, deletes: 0, failures: 1 });
    assert_eq!(ops[&Table::Vips6], Ops { updates: 0, deletes: 1, failures: 0 });
}
