//! Saved states: our own, foreign, damaged, stale.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;

use super::*;
use crate::{
    desired::{Desired, NodeContext, desired, fixture},
    image::{Capacity, Image, NextHopInfo, build},
    model::Model,
    plan::{apply, diff},
    store::testing::FakeStore,
};

fn image(desired: &Desired, ids: &mut Ids) -> Image {
    let built = build(desired, ids, &BTreeMap::new(), &[], &Capacity::uniform(256));
    assert_eq!(built.refused, []);
    built.image
}

/// Two Services with addresses of their own.
fn two() -> (Model, NodeContext) {
    let (mut model, node) = fixture::web();
    let mut other = fixture::service();
    other.cluster_ips = vec![[10, 96, 0, 11].into()];
    other.load_balancer_ips = vec![];
    other.ports[0].node_port = None;
    model.services.insert(fixture::name("other"), other);
    let mut slice = model.slices[&fixture::name("web-1")].clone();
    slice.service = "other".into();
    model.slices.insert(fixture::name("other-1"), slice);
    (model, node)
}

#[test]
fn a_saved_state_comes_back_as_it_was() {
    let (mut model, node) = two();
    let mut ids = Ids::default();
    image(&desired(&model, &node), &mut ids);
    model.services.remove(&fixture::name("other"));
    let desired = desired(&model, &node);
    let mirror = image(&desired, &mut ids);
    ids.commit();
    let mut loaded = Ids::from_json(&ids.to_json().expect("serialises")).expect("our own");
    loaded.adopt(&mirror, &desired);
    assert_eq!((&loaded.services, &loaded.v4, &loaded.v6), (&ids.services, &ids.v4, &ids.v6));
    assert_eq!(image(&desired, &mut loaded), mirror);
}

#[test]
fn what_is_not_a_saved_state_is_a_clear_error() {
    let json = String::from_utf8(Ids::default().to_json().expect("serialises")).expect("text");
    for bad in ["", "{", "[]", "null", "{\"format\":7}", &json[..json.len() - 1], &json.replace("\"v6\"", "\"v7\"")] {
        let error = Ids::from_json(bad.as_bytes()).expect_err("not a state");
        assert!(matches!(error, LoadError::Malformed(_)), "{bad}: {error}");
        assert!(error.to_string().ends_with("delete the file, and the ids are recovered from the maps"));
    }
    let foreign = Ids::from_json(json.replace("ballast-ids/2", "ballast-ids/9").as_bytes());
    assert_eq!(foreign, Err(LoadError::Foreign { found: "ballast-ids/9".into() }));
    // As an agent wrote it that saved the numbers of backends as well.
    let backends = "{\"owned\":[],\"generations\":[],\"retiring\":[],\"free\":[]}";
    let older = json.replace("ballast-ids/2", "ballast-ids/1");
    let older = older.replace("\"records\":", &format!("\"backends\":{backends},\"records\":"));
    assert_eq!(Ids::from_json(older.as_bytes()), Ok(Ids::default()), "{older}");
    let (model, node) = two();
    let mut ids = Ids::default();
    image(&desired(&model, &node), &mut ids);
    let json = String::from_utf8(ids.to_json().expect("serialises")).expect("text");
    let damaged = json.replacen("\"generations\":[0,1,1]", "\"generations\":[0,1]", 1);
    assert_ne!(damaged, json);
    assert!(matches!(Ids::from_json(damaged.as_bytes()), Err(LoadError::Damaged { table: "services", .. })));
}

#[test]
fn without_a_saved_state_nothing_in_use_moves_and_the_rest_is_freed() {
    let (mut model, node) = two();
    let mut ids = Ids::default();
    let mirror = image(&desired(&model, &node), &mut ids);
    // While the agent was away one Service went and another lost a backend.
    model.services.remove(&fixture::name("other"));
    model.slices.get_mut(&fixture::name("web-1")).expect("exists").endpoints.remove(0);
    let desired = desired(&model, &node);
    let mut recovered = Ids::recover(&mirror, &desired);
    let key = desired.services.keys().next().expect("one");
    assert_eq!(recovered.services.get(key), ids.services.get(key));
    let before: BTreeMap<_, _> = ids.v4.backends.owners().collect();
    image(&desired, &mut recovered);
    for (backend, id) in recovered.v4.backends.owners() {
        assert_eq!(before.get(backend), Some(&id));
    }
    assert_eq!(recovered.v4.backends.owners().count(), 1);
    assert!(recovered.commit());
}

/// A file from before the maps were made anew gives the numbers to others than the maps do.
#[test]
fn a_stale_saved_state_yields_to_the_maps() {
    let (model, node) = two();
    let desired = desired(&model, &node);
    let mut now = Ids::default();
    let mirror = image(&desired, &mut now);
    let names: Vec<_> = desired.services.keys().collect();
    let mut stale = Ids::default();
    stale.services.assign(names[1], 9);
    stale.services.assign(names[0], 9);
    stale.services.sweep();
    assert_ne!(stale.services.get(names[0]), now.services.get(names[0]));
    stale.adopt(&mirror, &desired);
    let after = image(&desired, &mut stale);
    // Nothing the maps publish is rewritten in place.
    for table in [Table::Records4, Table::Backends4] {
        for (key, value) in mirror.table(table) {
            let new = after.get(table, key);
            assert!(new.is_none_or(|new| new == value || new[8..12] == [0; 4]), "{table:?} {key:?}");
        }
    }
}

#[test]
fn an_empty_mirror_or_a_mirror_of_zeroes_is_no_trouble() {
    let (model, node) = two();
    let desired = desired(&model, &node);
    let mut ids = Ids::recover(&Image::default(), &desired);
    assert_eq!(ids, Ids::default());
    image(&desired, &mut ids);
    let mut saved = Ids::from_json(&ids.to_json().expect("serialises")).expect("our own");
    // The maps were lost, the file was not: the same numbers again.
    saved.adopt(&Image::default(), &desired);
    let key = desired.services.keys().next().expect("one");
    assert_eq!(saved.services.get(key), ids.services.get(key));
}

/// Numbers everything `rounds` times anew in maps of `size`, so that the numbers are high, and saves them.
fn saved_of(size: u32, rounds: usize, desired: &Desired, ways: &BTreeMap<IpAddr, NextHopInfo>) -> Vec<u8> {
    let mut ids = Ids::default();
    for _ in 0..rounds {
        for desired in [desired, &Desired::default()] {
            let _built = build(desired, &mut ids, ways, &[], &Capacity::uniform(size));
            ids.commit();
        }
    }
    let _built = build(desired, &mut ids, ways, &[], &Capacity::uniform(size));
    ids.to_json().expect("serialises")
}

/// The way to every backend.
fn ways(desired: &Desired) -> BTreeMap<IpAddr, NextHopInfo> {
    let hop = NextHopInfo { ifindex: 2, prefsrc: None, local: false };
    desired.services.values().flat_map(|service| &service.backends).map(|at| (at.addr, hop)).collect()
}

/// The maps were made anew with fewer entries, the file stayed.
fn program_in_smaller(saved: &[u8], size: u32, desired: &Desired) -> (usize, Ids) {
    let mut ids = Ids::from_json(saved).expect("our own");
    ids.adopt(&Image::default(), desired);
    let (mut store, mut mirror) = (FakeStore::new(Capacity::uniform(size)), Image::default());
    let built = build(desired, &mut ids, &ways(desired), &[], &Capacity::uniform(size));
    apply(&diff(&built.image, &mirror), &mut store, &mut mirror).expect("what was built fits");
    assert_eq!(mirror, built.image);
    ids.commit();
    (built.refused.len(), Ids::from_json(&ids.to_json().expect("serialises")).expect("our own"))
}

#[test]
fn saved_numbers_past_the_end_of_smaller_maps_are_given_out_anew() {
    let (model, node) = two();
    let desired = desired(&model, &node);
    let saved = saved_of(256, 9, &desired, &ways(&desired));
    let before = Ids::from_json(&saved).expect("our own");
    assert!(before.services.owners().all(|(_, id)| id >= 16), "the test needs numbers that do not fit");
    let (refused, after) = program_in_smaller(&saved, 32, &desired);
    assert_eq!(refused, 0);
    assert!(after.services.owners().all(|(_, id)| id < 16));
    assert_eq!(after.services.owners().count(), before.services.owners().count());
}

#[test]
fn what_a_forgotten_service_had_is_room_at_once() {
    let (model, node) = two();
    let desired = desired(&model, &node);
    // The second Service's number is past the end, those of its backends are not.
    let (refused, _) = program_in_smaller(&saved_of(16, 4, &desired, &ways(&desired)), 6, &desired);
    assert_eq!(refused, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the maps were and are: what is built fits, and what does not fit is refused as it is without a file.
    #[test]
    fn a_saved_state_never_makes_a_plan_that_does_not_fit(before in 8_u32..64, now in 2_u32..64, rounds in 0_usize..12) {
        let (model, node) = two();
        let desired = desired(&model, &node);
        let saved = saved_of(before, rounds, &desired, &ways(&desired));
        let (refused, _) = program_in_smaller(&saved, now, &desired);
        let (fresh, _) = program_in_smaller(&Ids::default().to_json().expect("serialises"), now, &desired);
        prop_assert_eq!(refused, fresh);
    }
}
