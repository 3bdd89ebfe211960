//! The rules of semantics.md 5a, by number.

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

fn zone() -> Zone {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("all.yaml");
    fs::write(&path, DOCUMENTS).expect("written");
    let mut options = crate::file_source::Options::new(&path);
    options.allocations = Some(directory.path().join("allocations.json"));
    let model = crate::file_source::load(&options).expect("documents").model;
    Zone::new(&model, Options::new("cluster.local".to_owned(), 5))
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
