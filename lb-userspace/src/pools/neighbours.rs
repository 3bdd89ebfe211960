//! What is held, by whom, and who may be beside them.

use super::{
    tests::{Town, asking, service, sharing, with},
    *,
};
use crate::{desired::fixture, model::Balancer};

const HOME: &str = "[{name: home, addresses: [198.51.100.0/29]}]";

fn foreign(service: Service) -> Service {
    with(service, Balancer { class: Some("metallb.io/lb".to_owned()), ..Balancer::default() })
}

#[test]
fn a_held_address_that_is_a_cluster_ip_by_now_is_replaced() {
    let mut town = Town::of([("a", service())]).holding("a", &["198.51.100.0"]);
    town.taken.insert("198.51.100.0".parse().expect("an address"), "a cluster IP of Service default/x".to_owned());
    assert_eq!(town.told(HOME), ["a 198.51.100.1@home"]);
}

#[test]
fn of_each_family_one_is_kept_and_the_others_are_free() {
    let town = Town::of([("a", service()), ("b", service())]).holding("a", &["198.51.100.1", "198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.1@home", "b 198.51.100.0@home"]);
    // Of a family it has no more.
    let town = Town::of([("a", service())]).holding("a", &["2001:db8::1", "198.51.100.3"]);
    let both = "[{name: home, addresses: [198.51.100.0/29, '2001:db8::/64']}]";
    assert_eq!(town.told(both), ["a 198.51.100.3@home"]);
}

/// Only the last of them finds its address free at the first look.
#[test]
fn a_chain_of_moves_is_followed_to_its_end() {
    let names = ["a", "b", "c", "d", "e"];
    let mut town = Town::default();
    for (place, name) in names.into_iter().enumerate() {
        let next = format!("198.51.100.{}", place + 1);
        town.services.insert(fixture::name(name), asking(service(), &next));
        town = town.holding(name, &[&format!("198.51.100.{place}")]);
    }
    let expected: Vec<String> =
        names.iter().enumerate().map(|(place, name)| format!("{name} 198.51.100.{}@home", place + 1)).collect();
    assert_eq!(town.told(HOME), expected);
}

/// Another controller gave an address that one of ours shares already.
#[test]
fn nobody_is_put_beside_a_stranger() {
    let town =
        Town::of([("a", sharing(service(), "k", 80)), ("b", foreign(service())), ("c", sharing(service(), "k", 443))])
            .holding("a", &["198.51.100.0"])
            .holding("b", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.0@home", "c 198.51.100.1@home"]);
    // The one who is no part of the group goes: the address is shared again.
    let town = Town::of([
        ("a", asking(service(), "198.51.100.5")),
        ("b", foreign(sharing(service(), "k", 80))),
        ("c", sharing(service(), "k", 443)),
    ])
    .holding("a", &["198.51.100.0"])
    .holding("b", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.5@home", "c 198.51.100.0@home"]);
}
