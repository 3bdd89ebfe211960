//! The rules of semantics.md 5a, by number.

mod following;
mod names;

use std::fs;

use super::*;

const DOCUMENTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20], ipFamilies: [IPv4], ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: shop}
spec: {clusterIP: 10.96.0.21, clusterIPs: [10.96.0.21, "fd00:10:96::21"], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: Web.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: literal, namespace: shop}
spec: {type: ExternalName, externalName: 192.0.2.1}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5433, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.7], conditions: {ready: true}, hostname: db-0}
- {addresses: [10.0.0.8]}
- {addresses: [10.0.0.9], conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.7]}, {addresses: [10.96.0.21]}]
"#;

fn model() -> Model {
    model_of(DOCUMENTS)
}

fn model_of(documents: &str) -> Model {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("all.yaml");
    fs::write(&path, documents).expect("written");
    let mut options = crate::file_source::Options::new(&path);
    options.allocations = Some(directory.path().join("allocations.json"));
    crate::file_source::load(&options).expect("documents").model
}

fn zone() -> Zone {
    Zone::new(&model(), options())
}

fn options() -> Options {
    Options::new("cluster.local".to_owned(), 5)
}

fn data(name: &str, kind: Kind) -> Vec<Data> {
    match zone().answer(name, kind) {
        Answer::Records(records) => records.into_iter().map(|record| record.data).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

#[track_caller]
fn no_data(name: &str, kind: Kind) {
    let answer = zone().answer(name, kind);
    assert!(matches!(answer, Answer::NoData { .. }), "{name}: {answer:?}");
}

#[track_caller]
fn no_name(name: &str, kind: Kind) {
    let answer = zone().answer(name, kind);
    assert!(matches!(answer, Answer::NxDomain { .. }), "{name}: {answer:?}");
}

fn a(address: [u8; 4]) -> Data {
    Data::A(address.into())
}

fn srv(port: u16, target: &str) -> Data {
    Data::Srv { port, target: format!("{target}.shop.svc.cluster.local") }
}

#[test]
fn d1_names_in_any_case_and_the_version() {
    assert_eq!(data("WEB.Shop.svc.Cluster.LOCAL", Kind::A), [a([10, 96, 0, 20])]);
    let answer = zone().answer("dns-version.cluster.local", Kind::Txt);
    let data = Data::Txt("1.1.0".to_owned());
    assert_eq!(answer, Answer::Records(vec![Record { owner: None, ttl: 28_800, data }]));
}

#[test]
fn d2_d3_cluster_ips_of_each_family() {
    assert_eq!(data("dual.shop.svc.cluster.local", Kind::A), [a([10, 96, 0, 21])]);
    let v6 = "fd00:10:96::21".parse().expect("an address");
    assert_eq!(data("dual.shop.svc.cluster.local", Kind::Aaaa), [Data::Aaaa(v6)]);
    no_data("web.shop.svc.cluster.local", Kind::Aaaa);
}

#[test]
fn d4_named_ports_only_and_all_on_the_name_itself() {
    assert_eq!(data("_http._tcp.web.shop.svc.cluster.local", Kind::Srv), [srv(80, "web")]);
    assert_eq!(data("dual.shop.svc.cluster.local", Kind::Srv), [srv(53, "dual")]);
    no_name("_http._udp.web.shop.svc.cluster.local", Kind::Srv);
    no_name("_._udp.dual.shop.svc.cluster.local", Kind::Srv);
}

#[test]
fn d5_d10_one_name_of_a_cluster_ip_one_of_each_service_of_an_endpoint() {
    let ptr = |name: &str| Data::Ptr(format!("{name}.shop.svc.cluster.local"));
    // 10.96.0.21 is an endpoint of `web` too.
    assert_eq!(data("21.0.96.10.in-addr.arpa", Kind::Ptr), [ptr("dual")]);
    let v6 = "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(data(v6, Kind::Ptr), [ptr("dual")]);
    assert_eq!(data("7.0.0.10.in-addr.arpa", Kind::Ptr), [ptr("10-0-0-7.web"), ptr("db-0.db")]);
    no_name("9.0.0.10.in-addr.arpa", Kind::Ptr);
    no_data("0.0.10.in-addr.arpa", Kind::Ptr);
}

#[test]
fn d6_d12_ready_endpoints_or_no_name() {
    assert_eq!(data("db.shop.svc.cluster.local", Kind::A), [a([10, 0, 0, 7]), a([10, 0, 0, 8])]);
    no_data("db.shop.svc.cluster.local", Kind::Aaaa);
    no_name("idle.shop.svc.cluster.local", Kind::A);
}

#[test]
fn d7_d9_d17_hosts() {
    assert_eq!(data("db-0.db.shop.svc.cluster.local", Kind::A), [a([10, 0, 0, 7])]);
    assert_eq!(data("10-0-0-8.db.shop.svc.cluster.local", Kind::A), [a([10, 0, 0, 8])]);
    assert_eq!(data("10-0-0-7.web.shop.svc.cluster.local", Kind::A), [a([10, 0, 0, 7])]);
    let hosts = [srv(5433, "10-0-0-8.db"), srv(5433, "db-0.db")];
    assert_eq!(data("_sql._tcp.db.shop.svc.cluster.local", Kind::Srv), hosts);
}

#[test]
fn d7_a_dash_at_the_end_gets_a_zero() {
    let label = |address: &str| objects::dashed(address.parse().expect("an address"));
    assert_eq!(label("fd00::"), "fd00--0");
    assert_eq!(label("fd00::1"), "fd00--1");
}

#[test]
fn d11_an_alias_leads_to_its_target_inside_the_zone() {
    let target = "web.shop.svc.cluster.local".to_owned();
    let Answer::Records(records) = zone().answer("alias.shop.svc.cluster.local", Kind::A) else { panic!("no alias") };
    assert_eq!(records[0], Record { owner: None, ttl: 5, data: Data::Cname(target.clone()) });
    assert_eq!(records[1], Record { owner: Some(target), ttl: 5, data: a([10, 96, 0, 20]) });
    no_data("alias.shop.svc.cluster.local", Kind::Srv);
    no_name("literal.shop.svc.cluster.local", Kind::A);
}

#[test]
fn d11_aliases_in_a_circle_are_written_once() {
    let mut model = model();
    let alias = |name: &str| crate::model::ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
    let mut service = model.services[&alias("alias")].clone();
    for (name, target) in [("self", "self"), ("one", "two"), ("two", "one")] {
        service.external_name = Some(format!("{target}.shop.svc.cluster.local"));
        model.services.insert(alias(name), service.clone());
    }
    let zone = Zone::new(&model, options());
    for (name, count) in [("self", 1), ("one", 2), ("two", 2)] {
        let answer = zone.answer(&format!("{name}.shop.svc.cluster.local"), Kind::A);
        assert!(matches!(&answer, Answer::Records(records) if records.len() == count), "{name}: {answer:?}");
    }
}

#[test]
fn d13_namespaces_apexes_and_names_that_are_not() {
    for name in ["empty.svc.cluster.local", "shop.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        no_data(name, Kind::A);
    }
    no_name("none.svc.cluster.local", Kind::A);
    no_name("none.shop.svc.cluster.local", Kind::A);
    no_name("x.y.web.shop.svc.cluster.local", Kind::A);
    no_data("web.shop.svc.cluster.local", Kind::Other);
    assert_eq!(zone().answer("example.org", Kind::A), Answer::Foreign);
    assert_eq!(zone().answer("notcluster.local", Kind::A), Answer::Foreign);
    assert_eq!(data("cluster.local", Kind::Ns), [Data::Ns("ns.dns.cluster.local".to_owned())]);
}

#[test]
fn d13_a_namespace_of_pods_alone_exists_as_long_as_they_do() {
    const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: crowd}}";
    let mut zone = Zone::new(&model_of(POD), Options { pods: Pods::Insecure, ..options() });
    let found = |zone: &Zone, name: &str| zone.answer(&format!("{name}.cluster.local"), Kind::A);
    let apex = || "cluster.local".to_owned();
    for name in ["crowd.svc", "crowd.pod"] {
        assert_eq!(found(&zone, name), Answer::NoData { apex: apex() }, "{name}");
    }
    assert_eq!(found(&zone, "p.crowd.svc"), Answer::NxDomain { apex: apex() });
    let other = POD.replace("crowd", "other");
    assert!(zone.follow(&model_of(&other), &Touched::All, 1));
    for name in ["crowd.svc", "crowd.pod"] {
        assert_eq!(found(&zone, name), Answer::NxDomain { apex: apex() }, "{name}");
        let other = name.replace("crowd", "other");
        assert_eq!(found(&zone, &other), Answer::NoData { apex: apex() }, "{other}");
    }
}

#[test]
fn d16_names_of_pods() {
    let mut model = model();
    let pod = crate::model::Pod {
        node: None,
        ips: vec!["10.0.0.7".parse().expect("an address"), "fd00::7".parse().expect("an address")],
        host_network: false,
        ports: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        ready: false,
        terminating: false,
        finished: false,
        hostname: None,
        subdomain: None,
    };
    let named = |name: &str| crate::model::ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
    model.pods.insert(named("p"), pod.clone());
    let ended = crate::model::Pod { finished: true, ips: vec!["10.0.0.8".parse().expect("an address")], ..pod };
    model.pods.insert(named("ended"), ended);
    let with = |pods| Zone::new(&model, Options { pods, ..options() });
    let found = |pods, name: &str, kind| {
        matches!(with(pods).answer(&format!("{name}.pod.cluster.local"), kind), Answer::Records(_))
    };
    for (name, [insecure, verified]) in [
        ("10-0-0-7.shop", [true, true]),
        ("10-0-0-8.shop", [true, false]),
        ("10-0-0-9.shop", [true, false]),
        ("10-0-0-7.empty", [true, false]),
        ("10-0-0-7.none", [false, false]),
        ("10-0-0.shop", [false, false]),
        ("010-0-0-7.shop", [false, false]),
    ] {
        assert!(!found(Pods::Disabled, name, Kind::A), "{name}");
        assert_eq!(found(Pods::Insecure, name, Kind::A), insecure, "{name}");
        assert_eq!(found(Pods::Verified, name, Kind::A), verified, "{name}");
    }
    assert!(found(Pods::Verified, "fd00--7.shop", Kind::Aaaa) && !found(Pods::Verified, "fd00--7.shop", Kind::A));
}

#[test]
fn addresses_of_others_are_left_to_others() {
    let range = |text: &str| text.parse().expect("a range");
    let zone = |upstream, ranges| Zone::new(&model(), Options { ranges, upstream, ..options() });
    let own = zone(true, vec![range("10.96.0.0/16"), range("fd00:10::/32")]);
    assert_eq!(own.answer("1.2.0.192.in-addr.arpa", Kind::Ptr), Answer::Foreign);
    assert_eq!(own.answer("2.0.192.in-addr.arpa", Kind::Ptr), Answer::Foreign);
    assert_eq!(own.answer("8.b.d.0.1.0.0.2.ip6.arpa", Kind::Ptr), Answer::Foreign);
    assert!(matches!(own.answer("9.9.96.10.in-addr.arpa", Kind::Ptr), Answer::NxDomain { .. }));
    assert!(matches!(own.answer("10.in-addr.arpa", Kind::Ptr), Answer::NoData { .. }));
    // An endpoint's name is ours wherever it is.
    assert!(matches!(own.answer("7.0.0.10.in-addr.arpa", Kind::Ptr), Answer::Records(_)));
    let alone = zone(false, Vec::new());
    assert!(matches!(alone.answer("1.2.0.192.in-addr.arpa", Kind::Ptr), Answer::NxDomain { .. }));
    assert!(matches!(alone.answer("x.in-addr.arpa", Kind::Ptr), Answer::NxDomain { .. }));
}

#[test]
fn the_serial_grows_with_changes_and_only_then() {
    let mut model = model();
    let mut zone = Zone::new(&model, options());
    let first = zone.serial();
    assert!(!zone.follow(&model, &Touched::All, 1) && zone.serial() == first);
    model.namespaces.insert("new".to_owned());
    assert!(zone.follow(&model, &Touched::All, 1) && zone.serial() == first + 1);
    model.services.pop_first();
    assert!(zone.follow(&model, &Touched::All, 1000) && zone.serial() == 1000);
    model.slices.pop_first();
    assert!(zone.follow(&model, &Touched::All, 5) && zone.serial() == 1001);
}

#[test]
fn after_the_greatest_serial_comes_a_small_one_and_none_is_zero() {
    let mut model = model();
    let mut zone = Zone::new(&model, options());
    for (serial, now, next) in
        [(u32::MAX, 5, 5), (u32::MAX, 4_000_000_000, 1), (4_294_967_290, 4_294_967_295, 4_294_967_295), (9, 9, 10)]
    {
        zone.set_serial(serial);
        if !model.namespaces.remove("other") {
            model.namespaces.insert("other".to_owned());
        }
        assert!(
            zone.follow(&model, &Touched::All, now) && zone.serial() == next,
            "{serial} at {now}: {}",
            zone.serial()
        );
    }
}
