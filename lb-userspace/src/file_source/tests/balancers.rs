//! Load balancer addresses: of pools, of documents, and whose they stay.

use super::*;
use crate::pools::{AddressPool, Pools};

const LB: &str = "type: LoadBalancer, ports: [{port: 80}]";
const HOME: &str = "[{name: home, addresses: [198.51.100.1-198.51.100.2, '2001:db8::/120'], avoidBuggyIPs: true}]";

fn pools(yaml: &str) -> Pools {
    let written: Vec<AddressPool> = serde_saphyr::from_str(yaml).unwrap();
    written.try_into().unwrap()
}

impl Folder {
    fn with(&self, yaml: &str) -> Loaded {
        load(&Options { pools: pools(yaml), ..self.options() }).unwrap()
    }
}

fn ips(loaded: &Loaded, name: &str) -> Vec<String> {
    get(loaded, name).load_balancer_ips.iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_come_of_pools_and_stay_over_restarts() {
    let folder = Folder::new(&[("b.yaml", &service("b", LB))]);
    assert!(ips(&folder.load(), "b").is_empty(), "without pools nobody gives any");
    assert_eq!(folder.load().findings, []);
    assert_eq!(ips(&folder.with(HOME), "b"), ["198.51.100.1"]);
    // Another comes first in order; each load is a new process.
    folder.write("a.yaml", &service("a", &format!("{LB}, ipFamilyPolicy: PreferDualStack")));
    let loaded = folder.with(HOME);
    assert_eq!(
        (ips(&loaded, "a"), ips(&loaded, "b")),
        (vec!["198.51.100.2".into(), "2001:db8::".into()], vec!["198.51.100.1".into()])
    );
    assert_eq!(loaded.findings, []);
    // Whoever reads sees the same, and needs no pools for it.
    let reader = load(&Options { write_allocations: false, ..folder.options() }).unwrap();
    assert_eq!(reader, loaded);
    // Neither does an agent without pools take anything from the others.
    assert_eq!(folder.load(), loaded);
    assert_eq!(folder.with(HOME), loaded);
    // Deleted and changed Services give theirs back.
    folder.write("a.yaml", &service("a", "type: NodePort, ports: [{port: 80}]"));
    folder.write("c.yaml", &service("c", LB));
    assert_eq!(ips(&folder.with(HOME), "c"), ["198.51.100.2"]);
    fs::remove_file(folder.docs().join("b.yaml")).unwrap();
    folder.write("d.yaml", &service("d", LB));
    let loaded = folder.with(HOME);
    assert_eq!((ips(&loaded, "c"), ips(&loaded, "d")), (vec!["198.51.100.2".into()], vec!["198.51.100.1".into()]));
}

#[test]
fn a_service_without_an_address_says_why_and_the_others_keep_theirs() {
    let folder = Folder::new(&[("a.yaml", &(service("b", LB) + &service("c", LB)))]);
    folder.with(HOME);
    folder.write("0.yaml", &service("a", LB));
    let loaded = folder.with(HOME);
    assert!(
        ips(&loaded, "a").is_empty() && ips(&loaded, "b") == ["198.51.100.1"] && ips(&loaded, "c") == ["198.51.100.2"]
    );
    assert_eq!(loaded.model.services.len(), 3, "it is served as far as it can be");
    let finding = only_error(&loaded);
    assert_eq!(finding.object.as_deref(), Some("Service default/a"));
    assert!(finding.reason.contains("no IPv4 address is left in home (198.51.100.1-198.51.100.2"), "{finding}");
}

#[test]
fn what_is_asked_for_is_given_or_refused_at_its_line() {
    let asking = |name: &str, ip: &str| {
        service(name, LB)
            .replace("metadata: {", &format!("metadata: {{annotations: {{ballast.dev/load-balancer-ips: {ip}}}, "))
    };
    let folder = Folder::new(&[("a.yaml", &asking("b", "198.51.100.2"))]);
    assert_eq!(ips(&folder.with(HOME), "b"), ["198.51.100.2"]);
    folder.write("b.yaml", &asking("a", "198.51.100.2"));
    let loaded = folder.with(HOME);
    let finding = only_error(&loaded);
    assert!(finding.reason.contains("198.51.100.2 of pool home belongs to Service default/b"), "{finding}");
    assert!(finding.line.is_some() && finding.file.ends_with("b.yaml"), "{finding:?}");
    assert_eq!(ips(&loaded, "b"), ["198.51.100.2"]);
}

#[test]
fn what_a_status_says_is_another_controllers() {
    let written =
        |name: &str, ip: &str| format!("{}status: {{loadBalancer: {{ingress: [{ip}]}}}}\n", service(name, LB));
    let text = written("a", "{ip: 198.51.100.1}") + &written("h", "{hostname: lb.example}") + &service("z", LB);
    let loaded = Folder::new(&[("a.yaml", &text)]).with(HOME);
    let found = ["a", "h", "z"].map(|name| ips(&loaded, name));
    assert_eq!(found, [vec!["198.51.100.1".to_owned()], vec![], vec!["198.51.100.2".to_owned()]]);
    assert_eq!(loaded.findings, []);
    // Another class is nobody's here.
    let foreign = service("f", &format!("{LB}, loadBalancerClass: other.example/lb"));
    let loaded = Folder::new(&[("a.yaml", &foreign)]).with(HOME);
    assert!(ips(&loaded, "f").is_empty() && loaded.findings.is_empty());
}

#[test]
fn no_pool_gives_a_cluster_ip_or_an_address_of_a_node() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.96.0.8}]}\n---\n";
    let text = service("a", "clusterIP: 10.96.0.9, ports: [{port: 80}]") + "---\n" + node + &service("b", LB);
    let folder = Folder::new(&[("a.yaml", &text)]);
    assert_eq!(ips(&folder.with("[{name: p, addresses: [10.96.0.8-10.96.0.10]}]"), "b"), ["10.96.0.10"]);
    // Later cluster IPs are not those of a load balancer either.
    folder.write("b.yaml", &service("c", "clusterIP: 10.96.0.10, ports: [{port: 80}]"));
    assert!(only_error(&folder.with("[{name: p, addresses: [10.96.0.8-10.96.0.10]}]")).reason.contains("default/b"));
}

#[test]
fn what_a_file_that_breaks_held_is_kept_for_it() {
    let folder = Folder::new(&[("a.yaml", &service("a", LB)), ("b.yaml", &service("b", LB))]);
    folder.with(HOME);
    // A new process that cannot read the file: it must not give the address to the newcomer.
    folder.write("a.yaml", "{");
    folder.write("c.yaml", &service("c", LB));
    let loaded = folder.with(HOME);
    assert!(ips(&loaded, "c").is_empty() && ips(&loaded, "b") == ["198.51.100.2"]);
    folder.write("a.yaml", &service("a", LB));
    assert_eq!(ips(&folder.with(HOME), "a"), ["198.51.100.1"]);
    // Neither does a Service that is refused by now.
    folder.write("a.yaml", &service("a", "type: LoadBalancer, ports: []"));
    let loaded = folder.with(HOME);
    assert!(ips(&loaded, "c").is_empty(), "{loaded:?}");
}

#[test]
fn whoever_shares_an_address_with_a_service_that_is_refused_keeps_it() {
    let shared = |name: &str, port: u16| {
        service(name, &format!("type: LoadBalancer, ports: [{{port: {port}}}]"))
            .replace("metadata: {", "metadata: {annotations: {ballast.dev/allow-shared-ip: k}, ")
    };
    let folder = Folder::new(&[("a.yaml", &shared("a", 80)), ("b.yaml", &shared("b", 81))]);
    let loaded = folder.with(HOME);
    assert_eq!((ips(&loaded, "a"), ips(&loaded, "b")), (vec!["198.51.100.1".into()], vec!["198.51.100.1".into()]));
    // Each load is a new process, which has no last good version.
    folder.write("a.yaml", &shared("a", 0));
    assert_eq!(ips(&folder.with(HOME), "b"), ["198.51.100.1"]);
    folder.write("c.yaml", &shared("c", 82));
    let loaded = folder.with(HOME);
    assert_eq!((ips(&loaded, "b"), ips(&loaded, "c")), (vec!["198.51.100.1".into()], vec!["198.51.100.2".into()]));
}

#[test]
fn pools_are_for_namespaces_by_their_labels() {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{team: red}}}}\n---\n{}---\n{}",
        service("a", LB),
        service("other/a", LB),
    );
    let loaded = Folder::new(&[("a.yaml", &text)])
        .with("[{name: red, addresses: [198.51.100.9], namespaceSelector: {matchLabels: {team: red}}}]");
    assert_eq!(ips(&loaded, "a"), ["198.51.100.9"]);
    assert_eq!(only_error(&loaded).object.as_deref(), Some("Service other/a"));
}
