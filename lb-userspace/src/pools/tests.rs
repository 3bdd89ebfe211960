//! The rules, one test each.

use std::{collections::BTreeMap, net::IpAddr};

use super::*;
use crate::{
    desired::fixture,
    model::{Balancer, Protocol, ServicePort, TrafficPolicy},
};

pub(super) fn pools(yaml: &str) -> Result<Pools, PoolError> {
    let written: Vec<AddressPool> = serde_saphyr::from_str(yaml).expect("pools of the right types");
    written.try_into()
}

/// A LoadBalancer Service on port 80/TCP.
pub(super) fn service() -> Service {
    Service { external_policy: TrafficPolicy::Cluster, load_balancer_ips: Vec::new(), ..fixture::service() }
}

fn dual() -> Service {
    Service { ip_families: vec![IpFamily::V4, IpFamily::V6], ..service() }
}

pub(super) fn asking(mut service: Service, ips: &str) -> Service {
    service.annotations.insert(ANNOTATION_ADDRESSES.to_owned(), ips.to_owned());
    service
}

pub(super) fn sharing(mut service: Service, key: &str, port: u16) -> Service {
    service.annotations.insert(ANNOTATION_SHARING.to_owned(), key.to_owned());
    for written in &mut service.ports {
        written.port = fixture::port(port);
    }
    service
}

pub(super) fn with(service: Service, balancer: Balancer) -> Service {
    Service { balancer: Some(Box::new(balancer)), ..service }
}

#[derive(Debug, Default)]
pub(super) struct Town {
    pub(super) services: BTreeMap<ObjectName, Service>,
    pub(super) held: BTreeMap<ObjectName, Vec<IpAddr>>,
    pub(super) labels: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) taken: BTreeMap<IpAddr, String>,
    pub(super) kept: BTreeMap<IpAddr, ObjectName>,
}

impl Town {
    pub(super) fn of(services: impl IntoIterator<Item = (&'static str, Service)>) -> Self {
        let services = services.into_iter().map(|(name, service)| (fixture::name(name), service)).collect();
        Self { services, ..Self::default() }
    }

    pub(super) fn holding(mut self, name: &str, ips: &[&str]) -> Self {
        self.held.insert(fixture::name(name), ips.iter().map(|ip| ip.parse().expect("an address")).collect());
        self
    }

    pub(super) fn assign(&self, pools: &Pools) -> BTreeMap<ObjectName, Assignment> {
        let claimant = |(name, service): (_, _)| Claimant {
            name,
            service,
            held: self.held.get(name).map_or(&[][..], Vec::as_slice),
            ours: is_ours(service),
        };
        let kept: Vec<_> = self.kept.iter().map(|(ip, owner)| (*ip, owner)).collect();
        let around = Surroundings {
            labels: &|name| self.labels.get(name),
            taken: &|ip| self.taken.get(&ip).cloned(),
            kept: &kept,
        };
        assign(pools, self.services.iter().map(claimant), around)
    }

    /// What each Service has, and why not more: `web 198.51.100.1@home`, `db ! LoadBalancerIPTaken`.
    pub(super) fn told(&self, yaml: &str) -> Vec<String> {
        let words = |(name, assignment): (ObjectName, Assignment)| {
            let mut text = name.name;
            for Granted { ip, pool } in assignment.addresses {
                text.push_str(&format!(" {ip}@{pool}"));
            }
            for refusal in assignment.refusals {
                text.push_str(&format!(" ! {}", refusal.reason));
            }
            text
        };
        self.assign(&pools(yaml).expect("pools")).into_iter().map(words).collect()
    }

    fn causes(&self, yaml: &str) -> Vec<String> {
        let all = self.assign(&pools(yaml).expect("pools")).into_values();
        all.flat_map(|assignment| assignment.refusals.into_iter().map(|refusal| refusal.cause)).collect()
    }
}

const HOME: &str = "[{name: home, addresses: [198.51.100.0/30, '2001:db8::10-2001:db8::11']}]";

#[test]
fn the_lowest_free_address_of_each_family_is_given() {
    let town = Town::of([("a", service()), ("b", dual()), ("c", dual())]);
    let expected =
        ["a 198.51.100.0@home", "b 198.51.100.1@home 2001:db8::10@home", "c 198.51.100.2@home 2001:db8::11@home"];
    assert_eq!(town.told(HOME), expected);
}

#[test]
fn priority_decides_between_pools_then_the_name() {
    let pools = "[{name: c, addresses: [192.0.2.3], priority: 7}, {name: a, addresses: [192.0.2.1]}, \
                 {name: d, addresses: [192.0.2.4], priority: 7}, {name: b, addresses: [192.0.2.2], priority: 9}]";
    let town = Town::of(["1", "2", "3", "4"].map(|name| (name, service())));
    assert_eq!(town.told(pools), ["1 192.0.2.3@c", "2 192.0.2.4@d", "3 192.0.2.2@b", "4 192.0.2.1@a"]);
}

#[test]
fn what_is_held_stays_whatever_comes() {
    let town = Town::of([("a", service()), ("b", service())]).holding("b", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.1@home", "b 198.51.100.0@home"]);
}

/// Of a Service that is refused nothing is known but what it has: neither its ports nor with whom it shares.
#[test]
fn what_is_kept_for_a_refused_service_nobody_else_gets() {
    let pool = "[{name: home, addresses: [198.51.100.0-198.51.100.1]}]";
    let shared = |port| sharing(service(), "k", port);
    let mut town = Town::of([("a", shared(80)), ("b", shared(81)), ("c", asking(service(), "198.51.100.0"))])
        .holding("b", &["198.51.100.0"]);
    town.kept.insert("198.51.100.0".parse().expect("an address"), fixture::name("refused"));
    let expected = ["a 198.51.100.1@home", "b 198.51.100.0@home", "c ! LoadBalancerIPTaken"];
    assert_eq!(town.told(pool), expected, "whoever has it already keeps it");
    let [cause] = town.causes(pool).try_into().expect("one");
    assert_eq!(
        cause,
        "198.51.100.0 of pool home is kept for Service default/refused, which is refused or cannot be read"
    );
    town.held.clear();
    assert_eq!(town.told(pool), ["a 198.51.100.1@home", "b 198.51.100.1@home", "c ! LoadBalancerIPTaken"]);
    // Its last good version is in use: it may have what is kept for it.
    town.kept.insert("198.51.100.0".parse().expect("an address"), fixture::name("c"));
    assert_eq!(town.told(pool), ["a 198.51.100.1@home", "b 198.51.100.1@home", "c 198.51.100.0@home"]);
}

#[test]
fn what_may_not_be_held_any_more_is_replaced() {
    let pools = "[{name: home, addresses: [198.51.100.0/30]}, \
                 {name: other, addresses: [192.0.2.0/30], namespaces: [other]}]";
    // Of no pool, of a pool that is not for it, and what another holds by right.
    let town = Town::of([("a", service()), ("b", service()), ("c", service()), ("d", service())])
        .holding("a", &["203.0.113.1"])
        .holding("b", &["192.0.2.1"])
        .holding("c", &["198.51.100.3"])
        .holding("d", &["198.51.100.3"]);
    let expected = ["a 198.51.100.0@home", "b 198.51.100.1@home", "c 198.51.100.3@home", "d 198.51.100.2@home"];
    assert_eq!(town.told(pools), expected);
    // An address that is to be avoided by now is held on to.
    let town = Town::of([("a", service()), ("b", service())]).holding("b", &["198.51.100.0"]);
    let avoiding = "[{name: home, addresses: [198.51.100.0/30], avoidBuggyIPs: true}]";
    assert_eq!(town.told(avoiding), ["a 198.51.100.1@home", "b 198.51.100.0@home"]);
}

#[test]
fn another_class_and_another_type_are_nobodys_here() {
    let class = |class: &str| with(service(), Balancer { class: Some(class.to_owned()), ..Balancer::default() });
    let town = Town::of([
        ("foreign", class("metallb.io/lb")),
        ("ours", class(CLASS)),
        ("plain", Service { service_type: ServiceType::NodePort, ..service() }),
    ]);
    assert_eq!(town.told(HOME), ["ours 198.51.100.0@home"]);
    // What another controller gave is not given again.
    let town = Town::of([
        ("foreign", class("metallb.io/lb")),
        ("ours", class(CLASS)),
        ("wants", asking(service(), "198.51.100.0")),
    ])
    .holding("foreign", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["ours 198.51.100.1@home", "wants ! LoadBalancerIPTaken"]);
}

#[test]
fn requests_come_before_what_nobody_names() {
    let by_field = with(service(), Balancer { ip: Some("198.51.100.0".to_owned()), ..Balancer::default() });
    let town = Town::of([("a", service()), ("b", by_field), ("c", asking(dual(), " 2001:db8::11 , 198.51.100.1 "))]);
    let expected = ["a 198.51.100.2@home", "b 198.51.100.0@home", "c 198.51.100.1@home 2001:db8::11@home"];
    assert_eq!(town.told(HOME), expected);
    // Of one family it asks, the other is ours to choose.
    assert_eq!(Town::of([("a", asking(dual(), "2001:db8::11"))]).told(HOME), ["a 198.51.100.0@home 2001:db8::11@home"]);
    // A pool that gives nothing by itself gives what it is asked for.
    let quiet = "[{name: quiet, addresses: [192.0.2.0/30], autoAssign: false}]";
    let town = Town::of([("a", service()), ("b", asking(service(), "192.0.2.1"))]);
    assert_eq!(town.told(quiet), ["a ! NoAddressPool", "b 192.0.2.1@quiet"]);
}

#[test]
fn a_new_request_moves_a_service_and_a_refused_one_does_not() {
    let town = Town::of([("a", asking(service(), "198.51.100.2"))]).holding("a", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.2@home"]);
    let town = Town::of([("a", asking(service(), "203.0.113.9"))]).holding("a", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.0@home ! LoadBalancerIPOutsidePools"]);
    let causes = town.causes(HOME);
    assert!(
        causes[0].contains("203.0.113.9 is of no address pool") && causes[0].ends_with("198.51.100.0 stays"),
        "{causes:?}"
    );
    let town = Town::of([("a", asking(service(), "no address"))]).holding("a", &["198.51.100.0"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.0@home ! InvalidLoadBalancerIP"]);
    // Each waits for what the one after it gives up.
    let town = Town::of([("a", asking(service(), "198.51.100.1")), ("b", asking(service(), "198.51.100.2"))])
        .holding("a", &["198.51.100.0"])
        .holding("b", &["198.51.100.1"]);
    assert_eq!(town.told(HOME), ["a 198.51.100.1@home", "b 198.51.100.2@home"]);
}

#[test]
fn requests_that_cannot_be_are_refused_with_pool_and_owner() {
    let of = |ips: &str| Town::of([("a", service()), ("b", asking(service(), ips))]).holding("a", &["198.51.100.0"]);
    assert_eq!(of("198.51.100.0").told(HOME), ["a 198.51.100.0@home", "b ! LoadBalancerIPTaken"]);
    assert_eq!(of("198.51.100.0").causes(HOME), ["198.51.100.0 of pool home belongs to Service default/a"]);
    for bad in ["198.51.100.1,198.51.100.2", "2001:db8::10", "198.51.100.300", ",", "198.51.100.1,"] {
        assert_eq!(of(bad).told(HOME)[1], "b ! InvalidLoadBalancerIP", "{bad}");
    }
    let both =
        with(asking(service(), "198.51.100.1"), Balancer { ip: Some("198.51.100.2".into()), ..Balancer::default() });
    assert_eq!(Town::of([("a", both)]).told(HOME), ["a ! InvalidLoadBalancerIP"]);
    let avoiding = "[{name: home, addresses: [198.51.100.0/24], avoidBuggyIPs: true}]";
    assert_eq!(of("198.51.100.255").told(avoiding)[1], "b ! LoadBalancerIPOutsidePools");
    let other = "[{name: other, addresses: [192.0.2.0/30], namespaces: [other]}]";
    let town = Town::of([("a", asking(service(), "192.0.2.1"))]);
    assert_eq!(town.told(other), ["a ! PoolDoesNotSelectService"]);
    assert_eq!(town.causes(other), ["192.0.2.1 is of pool other, which is not for this Service"]);
    let mut town = Town::of([("a", asking(service(), "198.51.100.1")), ("b", service())]);
    town.taken.insert("198.51.100.1".parse().expect("an address"), "a cluster IP of Service default/db".to_owned());
    town.taken.insert("198.51.100.0".parse().expect("an address"), "a cluster IP of Service default/x".to_owned());
    assert_eq!(town.told(HOME), ["a ! LoadBalancerIPTaken", "b 198.51.100.2@home"]);
    assert_eq!(town.causes(HOME), ["198.51.100.1 of pool home is a cluster IP of Service default/db"]);
}

#[test]
fn exhausted_pools_are_named_and_nobody_loses_anything() {
    let pools = "[{name: small, addresses: [192.0.2.1-192.0.2.2]}]";
    let town = Town::of([("a", service()), ("b", service()), ("c", service())])
        .holding("b", &["192.0.2.1"])
        .holding("c", &["192.0.2.2"]);
    assert_eq!(town.told(pools), ["a ! AddressPoolsExhausted", "b 192.0.2.1@small", "c 192.0.2.2@small"]);
    assert_eq!(town.causes(pools), ["no IPv4 address is left in small (192.0.2.1-192.0.2.2)"]);
    // One family is missing, the other is given.
    assert_eq!(Town::of([("a", dual())]).told(pools), ["a 192.0.2.1@small ! NoAddressPool"]);
    let causes = Town::of([("a", dual())]).causes(pools);
    assert_eq!(causes, ["no address pool for this Service has IPv6 addresses: small (192.0.2.1-192.0.2.2)"]);
}

#[test]
fn both_families_or_none_where_both_are_required() {
    let required = || with(dual(), Balancer { both_families: true, ..Balancer::default() });
    let pools = "[{name: small, addresses: [192.0.2.1-192.0.2.2, '2001:db8::1']}]";
    let town = Town::of([("a", required()), ("b", required()), ("c", service())]);
    let expected =
        ["a 192.0.2.1@small 2001:db8::1@small", "b ! AddressPoolsExhausted ! RequireDualStack", "c 192.0.2.2@small"];
    assert_eq!(town.told(pools), expected);
    // Neither does it keep what it asked for, but what it had.
    let v4_only = "[{name: small, addresses: [192.0.2.1-192.0.2.2]}]";
    let town = Town::of([("a", asking(required(), "192.0.2.1"))]);
    assert_eq!(town.told(v4_only), ["a ! NoAddressPool ! RequireDualStack"]);
    assert_eq!(town.holding("a", &["192.0.2.2"]).told(v4_only)[0], "a ! NoAddressPool ! RequireDualStack");
    let town = Town::of([("a", required())]).holding("a", &["192.0.2.2"]);
    assert_eq!(town.told(v4_only), ["a 192.0.2.2@small ! NoAddressPool"]);
}

#[test]
fn addresses_are_shared_under_one_key_by_different_ports() {
    let town = Town::of([
        ("a", sharing(service(), "k", 80)),
        ("b", sharing(service(), "k", 443)),
        ("c", sharing(service(), "k", 80)),
        ("d", sharing(service(), "other", 81)),
        ("e", service()),
    ]);
    let pools = "[{name: home, addresses: [198.51.100.0/29]}]";
    let expected = [
        "a 198.51.100.0@home",
        "b 198.51.100.0@home",
        "c 198.51.100.1@home",
        "d 198.51.100.2@home",
        "e 198.51.100.3@home",
    ];
    assert_eq!(town.told(pools), expected);
    // The same port of another protocol is another port.
    let mut udp = sharing(service(), "k", 80);
    udp.ports[0].protocol = Protocol::Udp;
    assert_eq!(Town::of([("a", sharing(service(), "k", 80)), ("b", udp)]).told(pools)[1], "b 198.51.100.0@home");
    // Held addresses are shared as well, and asked for.
    let town =
        Town::of([("a", asking(sharing(service(), "k", 80), "198.51.100.5")), ("z", sharing(service(), "k", 443))])
            .holding("z", &["198.51.100.5"]);
    assert_eq!(town.told(pools), ["a 198.51.100.5@home", "z 198.51.100.5@home"]);
}

#[test]
fn what_cannot_be_shared_says_why() {
    let beside = |other: Service| {
        let town = Town::of([("a", asking(other, "198.51.100.0")), ("z", sharing(service(), "k", 80))]);
        town.holding("z", &["198.51.100.0"]).causes(HOME)
    };
    let owner = "198.51.100.0 of pool home belongs to Service default/z";
    assert_eq!(beside(service()), [owner]);
    assert_eq!(beside(sharing(service(), "other", 81)), [owner]);
    assert_eq!(beside(sharing(service(), "k", 80)), [format!("{owner}, which has port 80/TCP too")]);
    let local = Service { external_policy: TrafficPolicy::Local, ..sharing(service(), "k", 81) };
    assert_eq!(
        beside(local.clone()),
        [format!("{owner}, and with externalTrafficPolicy: Local only the same pods share one")]
    );
    // Local and Local share if they are the same pods; without a selector nobody knows.
    let other = Service { external_policy: TrafficPolicy::Local, ..sharing(service(), "k", 82) };
    let told = |one: Service, other: Service| Town::of([("a", one), ("b", other)]).told(HOME)[1].clone();
    assert_eq!(told(local.clone(), other.clone()), "b 198.51.100.0@home");
    let elsewhere = Service { selector: [("app".to_owned(), "x".to_owned())].into(), ..other.clone() };
    assert_eq!(told(local.clone(), elsewhere), "b 198.51.100.1@home");
    let bare = |service: &Service| Service { selector: BTreeMap::new(), ..service.clone() };
    assert_eq!(told(bare(&local), bare(&other)), "b 198.51.100.1@home");
}

#[test]
fn a_service_that_moves_away_leaves_its_group_to_the_others() {
    let pools = "[{name: home, addresses: [198.51.100.0/29]}]";
    let two = |service: Service| Service {
        ports: [80, 443].map(|port| ServicePort { port: fixture::port(port), ..service.ports[0].clone() }).into(),
        ..service
    };
    let town = Town::of([
        ("a", asking(two(sharing(service(), "k", 1)), "198.51.100.4")),
        ("b", sharing(service(), "k", 22)),
        ("c", sharing(service(), "k", 443)),
    ])
    .holding("a", &["198.51.100.3"])
    .holding("b", &["198.51.100.3"]);
    assert_eq!(town.told(pools), ["a 198.51.100.4@home", "b 198.51.100.3@home", "c 198.51.100.3@home"]);
}

#[test]
fn pools_are_for_namespaces_and_services() {
    let written = "[{name: a, addresses: [192.0.2.0/31], namespaces: [shop], serviceSelector: {matchLabels: {tier: front}}}, \
                 {name: b, addresses: [192.0.2.8/31], namespaces: [x], namespaceSelector: {matchLabels: {team: red}}}, \
                 {name: c, addresses: [192.0.2.16/31], namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: late}}}]";
    let mut town = Town::default();
    town.labels.insert("red".to_owned(), [("team".to_owned(), "red".to_owned())].into());
    for (namespace, tier) in
        [("shop", "front"), ("shop", "back"), ("red", "front"), ("x", "front"), ("late", "x"), ("none", "front")]
    {
        let name = ObjectName { namespace: namespace.to_owned(), name: tier.to_owned() };
        town.services.insert(name, Service { labels: [("tier".to_owned(), tier.to_owned())].into(), ..service() });
    }
    let found = town.assign(&pools(written).expect("pools"));
    let found: Vec<_> = found
        .iter()
        .map(|(name, assignment)| {
            let pool = assignment.addresses.first().map_or("none", |granted| &granted.pool);
            format!("{name} {pool}")
        })
        .collect();
    assert_eq!(found, ["late/x c", "none/front none", "red/front b", "shop/back none", "shop/front a", "x/front b"]);
}

/// It asks for one address and needs two.
#[test]
fn what_is_given_up_goes_to_who_found_none() {
    let pools = pools("[{name: one, addresses: [192.0.2.1]}]").expect("pools");
    let both = Balancer { both_families: true, ..Balancer::default() };
    for other in ["a", "z"] {
        let town = Town::of([("m", with(asking(dual(), "192.0.2.1"), both.clone())), (other, service())]);
        let first = town.assign(&pools);
        let ips =
            |name: &str| first[&fixture::name(name)].addresses.iter().map(|it| it.ip.to_string()).collect::<Vec<_>>();
        assert_eq!((ips("m"), ips(other)), (vec![], vec!["192.0.2.1".to_owned()]));
        assert!(first[&fixture::name(other)].refusals.is_empty() && !first[&fixture::name("m")].refusals.is_empty());
    }
}
