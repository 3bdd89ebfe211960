//! Capacity, and changes that must stay small.

use std::collections::BTreeMap;

use lb_common::settings::Setting;

use super::*;
use crate::{
    desired::{Desired, desired, fixture},
    ids::Ids,
    plan::{Plan, diff},
};

fn web() -> Desired {
    let (model, node) = fixture::web();
    desired(&model, &node)
}

fn refused_by(capacity: &Capacity) -> Vec<String> {
    let built = build(&web(), &mut Ids::default(), &BTreeMap::new(), &[], capacity);
    let programmed = [Table::Records4, Table::Services, Table::Rings, Table::Backends4, Table::Frontends4];
    if !built.refused.is_empty() {
        assert!(programmed.iter().all(|table| built.image.len(*table) == 0 || *table == Table::Backends4), "whole");
    }
    built.refused.iter().map(|problem| format!("{}: {}; {}", problem.object, problem.cause, problem.fix)).collect()
}

#[test]
fn a_service_that_does_not_fit_is_refused_with_the_map_its_size_and_the_mend() {
    assert_eq!(refused_by(&Capacity::uniform(64)), [""; 0]);
    for (table, max_entries, needed) in [
        (Table::Services, 2, 1),
        (Table::Backends4, 2, 2),
        (Table::Records4, 3, 3),
        (Table::Frontends4, 2, 3),
        (Table::Vips4, 1, 2),
        (Table::Rings, 2, 1),
    ] {
        let refused = refused_by(&Capacity::uniform(64).with(table, max_entries));
        let [refused] = &refused[..] else { panic!("{table:?}: {refused:?}") };
        let map = table.map_name();
        assert!(refused.starts_with("Service default/web: does not fit and is not programmed: map "), "{refused}");
        assert!(refused.contains(&format!("map {map} (max_entries ")), "{refused}");
        assert!(
            refused.contains(&format!("{needed} are needed; remove Services, or make map {map} larger: maps.")),
            "{refused}"
        );
    }
}

#[test]
fn a_ring_that_does_not_fit_keeps_no_numbers_once_the_plan_was_applied() {
    let mut ids = Ids::default();
    let capacity = Capacity::uniform(64).with(Table::Rings, 2);
    let built = build(&web(), &mut ids, &BTreeMap::new(), &[], &capacity);
    assert_eq!((built.refused.len(), ids.services.owners().count(), ids.v4.backends.owners().count()), (1, 0, 0));
    assert_eq!(ids.rings.used(), 0);
}

#[test]
fn a_next_hop_that_changes_costs_one_record_and_one_word_for_each_backend() {
    let desired = web();
    let capacity = Capacity::uniform(64);
    let mut ids = Ids::default();
    let backend = [10, 244, 2, 5].into();
    let hops = |ifindex| BTreeMap::from([(backend, NextHopInfo { ifindex, prefsrc: None, local: false })]);
    let before = build(&desired, &mut ids, &hops(2), &[], &capacity).image;
    ids.commit();
    let after = build(&desired, &mut ids, &hops(3), &[], &capacity).image;
    // The new next hop, the backend's word, and the old next hop cleared.
    assert_eq!(diff(&after, &before).len(), 3);
}

#[test]
fn settings_are_published_alone() {
    let mut ids = Ids::default();
    let capacity = Capacity::uniform(64);
    let mut with = |settings: &[(Setting, u64)]| {
        let image = build(&web(), &mut ids, &BTreeMap::new(), settings, &capacity).image;
        ids.commit();
        image
    };
    let before = with(&[(Setting::HashSeed, 7), (Setting::HostDevice, 0)]);
    let after = with(&[(Setting::HashSeed, 7), (Setting::HostDevice, 4)]);
    assert_eq!(diff(&after, &before).len(), 1);
    assert_eq!(diff(&after, &after.clone()), Plan::default());
}
