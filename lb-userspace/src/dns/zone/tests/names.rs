//! Names that are there and names that are not, with all that is asked of them.

use std::net::IpAddr;

use super::*;
use crate::model::{Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort};

fn named(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The answer for a name below `shop.svc.cluster.local`.
fn ask(zone: &Zone, name: &str, kind: Kind) -> Answer {
    zone.answer(&format!("{name}.shop.svc.cluster.local"), kind)
}

fn found(zone: &Zone, name: &str, kind: Kind) -> Vec<Data> {
    match ask(zone, name, kind) {
        Answer::Records(records) => records.into_iter().map(|record| record.data).collect(),
        Answer::NoData { .. } | Answer::NxDomain { .. } | Answer::Foreign => Vec::new(),
    }
}

#[track_caller]
fn is_no_name(zone: &Zone, name: &str, kind: Kind) {
    let answer = ask(zone, name, kind);
    assert!(matches!(answer, Answer::NxDomain { .. }), "{name}: {answer:?}");
}

fn changed(change: impl FnOnce(&mut Model)) -> Zone {
    let mut model = model();
    change(&mut model);
    Zone::new(&model, options())
}

fn service(model: &mut Model, name: &str, change: impl FnOnce(&mut Service)) {
    change(model.services.get_mut(&named(name)).expect("a Service"));
}

fn slice_of_db(model: &mut Model, change: impl FnOnce(&mut EndpointSlice)) {
    change(model.slices.get_mut(&named("db-1")).expect("a slice"));
}

fn slice(model: &Model, name: &str) -> EndpointSlice {
    model.slices[&named(name)].clone()
}

fn endpoint(address: &str, hostname: Option<&str>) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hostname: hostname.map(str::to_owned),
    }
}

#[test]
fn d1_the_version_is_text_and_nothing_else() {
    no_data("dns-version.cluster.local", Kind::A);
}

#[test]
fn d4_what_is_no_port_of_it_is_no_name() {
    let name = |name: &str| format!("{name}.shop.svc.cluster.local");
    for there in ["_tcp.web", "_http._tcp.web", "_tcp.db", "_sql._tcp.db"] {
        no_data(&name(there), Kind::A);
    }
    for none in [
        "_udp.web",
        "_other._tcp.web",
        "_http.tcp.web",
        "http._tcp.web",
        "more._http._tcp.web",
        "_udp.dual",
        "_udp.db",
        "_other._tcp.db",
    ] {
        no_name(&name(none), Kind::Srv);
    }
}

#[test]
fn d4_d9_srv_of_one_port_among_several() {
    let zone = changed(|model| {
        let port = |name: &str, number| ServicePort {
            name: name.to_owned(),
            port: std::num::NonZeroU16::new(number).expect("a port"),
            ..model.services[&named("web")].ports[0].clone()
        };
        let ports = vec![port("http", 80), port("admin", 81)];
        service(model, "web", |web| web.ports = ports);
        let mut slice = slice(model, "db-1");
        let second =
            EndpointPort { name: "admin".to_owned(), port: std::num::NonZeroU16::MIN, ..slice.ports[0].clone() };
        slice.ports.push(second);
        model.slices.insert(named("db-1"), slice);
    });
    assert_eq!(found(&zone, "_http._tcp.web", Kind::Srv), [srv(80, "web")]);
    assert_eq!(found(&zone, "web", Kind::Srv), [srv(80, "web"), srv(81, "web")], "the name itself has all");
    assert_eq!(found(&zone, "_admin._tcp.db", Kind::Srv), [srv(1, "10-0-0-8.db"), srv(1, "db-0.db")]);
    assert_eq!(found(&zone, "db", Kind::Srv).len(), 4, "the name itself has all");
}

#[test]
fn d5_addresses_have_pointers_and_nothing_else() {
    no_data("20.0.96.10.in-addr.arpa", Kind::A);
    no_data("7.0.0.10.in-addr.arpa", Kind::A);
    for apex in ["in-addr.arpa", "ip6.arpa"] {
        assert_eq!(data(apex, Kind::Soa), [Data::Soa]);
        no_data(apex, Kind::Ptr);
    }
}

#[test]
fn d5_of_two_services_with_one_address_the_first_is_named() {
    for (one, other) in [("a", "b"), ("b", "a")] {
        let web = model().services[&named("web")].clone();
        let mut model = Model::default();
        let mut zone = Zone::new(&model, options());
        for name in [one, other] {
            model.services.insert(named(name), web.clone());
            zone.follow(&model, &Touched::All, 1);
        }
        let answer = zone.answer("20.0.96.10.in-addr.arpa", Kind::Ptr);
        let Answer::Records(records) = answer else { panic!("{answer:?}") };
        assert_eq!(records[0].data, Data::Ptr("a.shop.svc.cluster.local".to_owned()));
        assert_eq!(records.len(), 1);
    }
}

#[test]
fn d6_an_address_in_two_slices_is_written_once() {
    let zone = changed(|model| {
        let second = slice(model, "db-1");
        model.slices.insert(named("db-2"), second);
    });
    assert_eq!(found(&zone, "db", Kind::A), [a([10, 0, 0, 7]), a([10, 0, 0, 8])]);
    assert_eq!(found(&zone, "_sql._tcp.db", Kind::Srv).len(), 2);
}

#[test]
fn d7_hosts_are_called_by_hostname_or_by_address() {
    let zone = changed(|_| {});
    is_no_name(&zone, "10-0-0-7.db", Kind::A);
    is_no_name(&zone, "nobody.db", Kind::A);
    is_no_name(&zone, "10-0-0-9.db", Kind::A);
    let zone = changed(|model| {
        let mut slice = slice(model, "db-1");
        slice.endpoints = vec![endpoint("10.0.0.7", Some("DB-0")), endpoint("10.0.0.8", Some("a.b"))];
        model.slices.insert(named("db-1"), slice);
    });
    assert_eq!(found(&zone, "db-0.db", Kind::A), [a([10, 0, 0, 7])], "D1: in any case");
    assert_eq!(found(&zone, "10-0-0-8.db", Kind::A), [a([10, 0, 0, 8])], "D8: what is no label is none");
}

#[test]
fn d11_the_alias_is_what_is_asked_for() {
    let alias = Data::Cname("web.shop.svc.cluster.local".to_owned());
    let zone = changed(|_| {});
    assert_eq!(found(&zone, "alias", Kind::Cname), std::slice::from_ref(&alias), "and not where it leads");
    assert_eq!(found(&zone, "alias", Kind::Aaaa), [alias], "its target has none");
    let zone = changed(|model| {
        let mut chain = model.services[&named("alias")].clone();
        chain.external_name = Some("alias.shop.svc.cluster.local".to_owned());
        model.services.insert(named("chain"), chain);
    });
    let first = Data::Cname("alias.shop.svc.cluster.local".to_owned());
    assert_eq!(found(&zone, "chain", Kind::Cname), [first], "the one of this name alone");
    assert_eq!(found(&zone, "chain", Kind::A).len(), 3);
    let target = |name: String| {
        let zone = changed(|model| service(model, "alias", |alias| alias.external_name = Some(name)));
        found(&zone, "alias", Kind::Cname)
    };
    assert_eq!(target("Example.ORG.".to_owned()), [Data::Cname("example.org".to_owned())], "without its dot");
    let long = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(61)].join(".");
    assert_eq!(target(long.clone()), [Data::Cname(long.clone())]);
    assert_eq!(target(format!("{long}x")), [], "more than 253 octets");
    assert_eq!(target("x".repeat(64)), [], "more than a label");
    assert_eq!(target("2001:db8::1".to_owned()), [], "an address");
}

#[test]
fn d11_nothing_is_below_an_alias_and_no_address_leads_to_it() {
    let zone = changed(|model| {
        let mut slice = slice(model, "db-1");
        slice.service = "alias".to_owned();
        slice.endpoints = vec![endpoint("10.0.0.77", None)];
        model.slices.insert(named("alias-1"), slice);
    });
    for name in ["10-0-0-77.alias", "_tcp.alias", "_sql._tcp.alias"] {
        is_no_name(&zone, name, Kind::A);
    }
    assert!(matches!(zone.answer("77.0.0.10.in-addr.arpa", Kind::Ptr), Answer::NxDomain { .. }));
}

#[test]
fn d13_a_namespace_is_one_by_its_objects_of_the_model_alone() {
    let zone = changed(|model| {
        model.namespaces.clear();
        let name = ObjectName { namespace: "slices".to_owned(), name: "s".to_owned() };
        let slice = slice(model, "db-1");
        model.slices.insert(name, slice);
    });
    assert!(matches!(zone.answer("shop.svc.cluster.local", Kind::A), Answer::NoData { .. }), "it has Services");
    assert!(matches!(zone.answer("slices.svc.cluster.local", Kind::A), Answer::NxDomain { .. }), "slices alone");
}

#[test]
fn d13_the_apex_has_an_soa_and_the_server_an_address() {
    assert_eq!(data("cluster.local", Kind::Soa), [Data::Soa]);
    no_data("ns.dns.cluster.local", Kind::A);
    let zone = changed(|model| {
        let name = ObjectName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() };
        let service = model.services[&named("dual")].clone();
        model.services.insert(name, service);
    });
    let answer = zone.answer("ns.dns.cluster.local", Kind::A);
    assert!(matches!(&answer, Answer::Records(all) if all[0].data == a([10, 96, 0, 21])), "{answer:?}");
}

#[test]
fn d16_the_names_above_those_of_pods() {
    let at = |pods, name: &str| Zone::new(&model(), Options { pods, ..options() }).answer(name, Kind::A);
    for name in ["pod.cluster.local", "shop.pod.cluster.local", "empty.pod.cluster.local"] {
        let answer = at(Pods::Disabled, name);
        assert!(matches!(answer, Answer::NxDomain { .. }), "{name}: {answer:?}");
        for pods in [Pods::Insecure, Pods::Verified] {
            let answer = at(pods, name);
            assert!(matches!(answer, Answer::NoData { .. }), "{name}: {answer:?}");
        }
    }
    let answer = at(Pods::Insecure, "none.pod.cluster.local");
    assert!(matches!(answer, Answer::NxDomain { .. }), "{answer:?}");
}

#[test]
fn d16_an_address_is_written_in_one_way() {
    let zone = Zone::new(&model(), Options { pods: Pods::Insecure, ..options() });
    let at = |label: &str| zone.answer(&format!("{label}.shop.pod.cluster.local"), Kind::Aaaa);
    assert!(matches!(at("fd00--7"), Answer::Records(_)));
    for label in ["fd00-0-0-0-0-0-0-7", "fd00--07", "fd00-0--7"] {
        assert!(matches!(at(label), Answer::NxDomain { .. }), "{label}");
    }
}

#[test]
fn d16_verified_names_follow_pods() {
    const POD: &str =
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}, status: {podIPs: [{ip: 10.0.0.7}]}}";
    let mut zone = Zone::new(&model_of(POD), Options { pods: Pods::Verified, ..options() });
    let has = |zone: &Zone, name: &str| {
        matches!(zone.answer(&format!("{name}.shop.pod.cluster.local"), Kind::A), Answer::Records(_))
    };
    assert!(has(&zone, "10-0-0-7") && !has(&zone, "10-0-0-8"));
    assert!(zone.follow(&model_of(&POD.replace(".7}", ".8}")), &Touched::All, 1));
    assert!(!has(&zone, "10-0-0-7") && has(&zone, "10-0-0-8"));
}

/// What is not taken away would be kept for ever.
#[test]
fn an_address_that_went_is_kept_no_longer() {
    let whole = model();
    let mut without = whole.clone();
    without.slices.clear();
    without.services.clear();
    let mut zone = Zone::new(&whole, options());
    let kept = |zone: &Zone| zone.objects.of_endpoint(ip("10.0.0.7")).count();
    assert_eq!(kept(&zone), 2, "db and web");
    for _ in 0..5 {
        zone.follow(&without, &Touched::All, 1);
        assert_eq!((kept(&zone), zone.objects.of_cluster_ip(ip("10.96.0.20"))), (0, None));
        zone.follow(&whole, &Touched::All, 1);
    }
    assert_eq!(kept(&zone), 2);
}

#[test]
fn what_of_a_service_or_slice_becomes_another_is_followed() {
    let whole = model();
    let mut zone = Zone::new(&whole, options());
    let changes: [(&str, fn(&mut Model)); 12] = [
        ("ports of a Service", |model| {
            let second = ServicePort { name: "admin".to_owned(), ..model.services[&named("web")].ports[0].clone() };
            service(model, "web", |web| web.ports.push(second));
        }),
        ("number of a port", |model| service(model, "web", |web| web.ports[0].port = std::num::NonZeroU16::MAX)),
        ("protocol of a port", |model| service(model, "web", |web| web.ports[0].protocol = Protocol::Sctp)),
        ("name of a port", |model| service(model, "web", |web| web.ports[0].name = "other".to_owned())),
        ("target of an alias", |model| {
            service(model, "alias", |alias| alias.external_name = Some("other.example.org".to_owned()));
        }),
        ("an alias becomes addressed", |model| {
            let web = model.services[&named("web")].clone();
            model.services.insert(named("alias"), web);
        }),
        ("addressed becomes an alias", |model| {
            let alias = model.services[&named("alias")].clone();
            model.services.insert(named("db"), alias);
        }),
        ("hostname of an endpoint", |model| {
            slice_of_db(model, |slice| slice.endpoints[0].hostname = Some("other".to_owned()));
        }),
        ("address of an endpoint", |model| slice_of_db(model, |slice| slice.endpoints[1].address = ip("10.0.0.99"))),
        ("a hostname comes", |model| {
            slice_of_db(model, |slice| slice.endpoints[1].hostname = Some("other".to_owned()));
        }),
        ("ports of a slice", |model| {
            slice_of_db(model, |slice| {
                let second = EndpointPort { name: "admin".to_owned(), ..slice.ports[0].clone() };
                slice.ports.push(second);
            });
        }),
        ("number of a port of a slice", |model| {
            slice_of_db(model, |slice| slice.ports[0].port = std::num::NonZeroU16::MAX);
        }),
    ];
    for (what, change) in changes {
        let mut other = whole.clone();
        change(&mut other);
        assert!(zone.follow(&other, &Touched::All, 1), "{what}");
        assert!(!zone.follow(&other, &Touched::All, 1), "{what}: it is followed");
        assert!(zone.follow(&whole, &Touched::All, 1), "{what}: back again");
    }
}

/// Documents may say of it no more than that, until it has its addresses.
#[test]
fn a_service_without_addresses_that_becomes_an_alias_is_followed() {
    let mut without = model();
    service(&mut without, "web", |web| web.cluster_ips.clear());
    let mut zone = Zone::new(&without, options());
    assert!(matches!(ask(&zone, "web", Kind::A), Answer::NoData { .. }));
    let mut alias = without.clone();
    service(&mut alias, "web", |web| {
        web.service_type = crate::model::ServiceType::ExternalName;
        web.external_name = Some("target.example.org".to_owned());
    });
    assert!(zone.follow(&alias, &Touched::All, 1));
    assert_eq!(found(&zone, "web", Kind::A), [Data::Cname("target.example.org".to_owned())]);
}
