//! What holds of any pools and Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;

use super::{
    tests::{Town, pools, service, sharing},
    *,
};
use crate::{
    desired::fixture,
    model::{Balancer, TrafficPolicy},
};

const POOLS: &str = "[{name: a, addresses: [192.0.2.0/30], priority: 1}, \
                     {name: b, addresses: [192.0.2.8-192.0.2.9, '2001:db8::/127'], namespaces: [ns0]}, \
                     {name: c, addresses: [192.0.2.12, '2001:db8::8'], autoAssign: false}, \
                     {name: d, addresses: ['2001:db8::10-2001:db8::12'], serviceSelector: {matchLabels: {d: 'yes'}}}]";

fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = (0_u8..16).prop_map(|last| IpAddr::from([192, 0, 2, last]));
    let v6 = (0_u16..0x14).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
    prop_oneof![v4, v6]
}

prop_compose! {
    fn a_service()(
        families in prop_oneof![Just(vec![IpFamily::V4]), Just(vec![IpFamily::V6]), Just(vec![IpFamily::V4, IpFamily::V6])],
        class in prop_oneof![5 => Just(None), 1 => Just(Some("other/lb".to_owned()))],
        load_balancer in prop::bool::weighted(0.9),
        both_families in prop::bool::weighted(0.1),
        local in prop::bool::weighted(0.3),
        key in prop::option::of(0_u8..2),
        port in 80_u16..83,
        asked in prop::collection::vec(address(), 0..2),
        selected in any::<bool>(),
    ) -> Service {
        let mut service = match key {
            Some(key) => sharing(service(), &format!("k{key}"), port),
            None => service(),
        };
        if !asked.is_empty() {
            let text: Vec<String> = asked.iter().map(ToString::to_string).collect();
            service.annotations.insert(ANNOTATION_ADDRESSES.to_owned(), text.join(","));
        }
        if selected {
            service.labels.insert("d".to_owned(), "yes".to_owned());
        }
        Service {
            service_type: if load_balancer { ServiceType::LoadBalancer } else { ServiceType::NodePort },
            ip_families: families,
            external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            balancer: Some(Box::new(Balancer { class, both_families, ..Balancer::default() })),
            ..service
        }
    }
}

fn town() -> impl Strategy<Value = Town> {
    let name = (0_u8..2, 0_u8..12)
        .prop_map(|(namespace, name)| ObjectName { namespace: format!("ns{namespace}"), name: format!("s{name}") });
    prop::collection::btree_map(name, (a_service(), prop::collection::vec(address(), 0..2)), 0..16).prop_map(|all| {
        let mut town = Town::default();
        for (name, (service, held)) in all {
            town.held.insert(name.clone(), if is_ours(&service) { held } else { Vec::new() });
            town.services.insert(name, service);
        }
        town
    })
}

fn addresses(assignment: &Assignment) -> Vec<IpAddr> {
    assignment.addresses.iter().map(|granted| granted.ip).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whoever shares an address has the same key and other ports, and the same pods if it is about those of a node.
    #[test]
    fn no_address_is_given_twice_unless_it_is_shared(town in town()) {
        let mut owners: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
        for (name, assignment) in town.assign(&pools(POOLS).expect("pools")) {
            for ip in addresses(&assignment) {
                owners.entry(ip).or_default().push(&town.services[&name]);
            }
        }
        for sharers in owners.values().filter(|sharers| sharers.len() > 1) {
            let keys: BTreeSet<_> = sharers.iter().map(|service| service.annotations.get(ANNOTATION_SHARING)).collect();
            prop_assert!(keys.len() == 1 && !keys.contains(&None));
            let ports: BTreeSet<_> = sharers.iter().flat_map(|service| service.ports.iter().map(|port| (port.protocol, port.port))).collect();
            prop_assert_eq!(ports.len(), sharers.len());
            let policies: BTreeSet<_> = sharers.iter().map(|service| service.external_policy).collect();
            prop_assert_eq!(policies.len(), 1);
        }
    }

    /// What was assigned, held, is assigned again: nothing moves by itself.
    #[test]
    fn a_second_look_changes_nothing(town in town()) {
        let pools = pools(POOLS).expect("pools");
        let first = town.assign(&pools);
        let held = first.iter().map(|(name, assignment)| (name.clone(), addresses(assignment))).collect();
        let town = Town { held, ..town };
        let second = town.assign(&pools);
        for (name, assignment) in &first {
            prop_assert_eq!(addresses(assignment), addresses(&second[name]), "{}", name);
        }
    }

    /// One Service more or less moves none of the others.
    #[test]
    fn others_come_and_go_and_mine_stays(town in town(), gone in 0_usize..16) {
        let pools = pools(POOLS).expect("pools");
        let before = town.assign(&pools);
        let held = before.iter().map(|(name, assignment)| (name.clone(), addresses(assignment))).collect();
        let mut town = Town { held, ..town };
        let Some(name) = town.services.keys().nth(gone).cloned() else { return Ok(()) };
        town.services.remove(&name);
        town.held.remove(&name);
        for (name, after) in town.assign(&pools) {
            let kept = addresses(&after);
            // A request may be granted now, and what was missing given.
            let asks = town.services[&name].annotations.contains_key(ANNOTATION_ADDRESSES);
            prop_assert!(asks || addresses(&before[&name]).iter().all(|ip| kept.contains(ip)), "{}", name);
        }
        let mut newcomer = service();
        newcomer.ip_families = vec![IpFamily::V4];
        town.services.insert(name.clone(), newcomer);
        let held: BTreeMap<_, _> = town.held.clone();
        for (other, after) in town.assign(&pools).into_iter().filter(|(other, _)| *other != name) {
            let asks = town.services[&other].annotations.contains_key(ANNOTATION_ADDRESSES);
            prop_assert!(asks || held[&other].iter().all(|ip| addresses(&after).contains(ip)), "{}", other);
        }
    }

    /// Every Service of ours has an address for each family, or a reason; no other is spoken of.
    #[test]
    fn each_has_all_addresses_or_a_reason(town in town()) {
        let assigned = town.assign(&pools(POOLS).expect("pools"));
        for (name, service) in &town.services {
            let Some(assignment) = assigned.get(name) else {
                prop_assert!(!is_ours(service));
                continue;
            };
            prop_assert!(is_ours(service));
            let complete = assignment.addresses.len() == service.ip_families.len();
            prop_assert!(complete || !assignment.refusals.is_empty(), "{}", name);
            let families: BTreeSet<_> = addresses(assignment).iter().map(IpFamily::of).collect();
            prop_assert_eq!(families.len(), assignment.addresses.len());
            prop_assert!(families.iter().all(|family| service.ip_families.contains(family)));
            for refusal in &assignment.refusals {
                prop_assert!(!refusal.cause.is_empty() && !refusal.fix.is_empty() && !refusal.field.is_empty());
            }
            for Granted { ip, pool } in &assignment.addresses {
                prop_assert_eq!(pools(POOLS).expect("pools").of(*ip).map(|pool| pool.name.clone()), Some(pool.clone()));
            }
        }
    }

    /// The order in which Services are told is nothing.
    #[test]
    fn order_decides_nothing(town in town(), seed in any::<u64>()) {
        let pools = pools(POOLS).expect("pools");
        let mut names: Vec<_> = town.services.keys().collect();
        names.sort_by_key(|name| siphasher::sip::SipHasher13::new_with_keys(seed, 0).hash(name.to_string().as_bytes()));
        let claimants = names.into_iter().map(|name| {
            let service = &town.services[name];
            Claimant { name, service, held: town.held.get(name).map_or(&[][..], Vec::as_slice), ours: is_ours(service) }
        });
        let around = Surroundings { labels: &|_| None, taken: &|_| None, kept: &[] };
        prop_assert_eq!(assign(&pools, claimants, around), town.assign(&pools));
    }
}

/// As many as a cluster may have, alone and in groups: whoever walks all others for each would not come to an end.
#[test]
fn ten_thousand_services_all_have_their_address() {
    let pools = pools("[{name: big, addresses: [10.64.0.0/10, '2001:db8::/64']}]").expect("pools");
    let of = |count: u32, key: Option<&str>, ports: bool| {
        let mut town = Town::default();
        for number in 0..count {
            let port = if ports { u16::try_from(number % 60_000 + 1).expect("a port") } else { 80 };
            let service = match key {
                Some(key) => sharing(service(), key, port),
                None => service(),
            };
            town.services.insert(fixture::name(&format!("s{number}")), service);
        }
        town
    };
    for (key, ports) in [(None, false), (Some("k"), true), (Some("k"), false)] {
        let assigned = of(10_000, key, ports).assign(&pools);
        assert!(assigned.values().all(|assignment| assignment.addresses.len() == 1), "key {key:?}, own ports {ports}");
    }
}
