//! The rules E1 to E11 of environment variables, by number.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{
    file_source::{self, Options},
    model::Protocol,
};

/// The model of these documents, as the commands read them.
fn model(documents: &str) -> Model {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("all.yaml");
    fs::write(&path, documents).expect("written");
    let options = Options { allocations: Some(place.path().join("allocations.json")), ..Options::new(path) };
    let loaded = file_source::load(&options).expect("documents");
    assert!(Path::new(&options.path).exists());
    loaded.model
}

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{{name}}}\nspec: {{{spec}}}\n")
}

fn variables(documents: &str, namespace: &str, links: bool) -> Vec<String> {
    let env = ServiceEnv::of(&model(documents), namespace, links);
    env.variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

const KUBERNETES: (&str, &str) = ("name: kubernetes", "clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]");

fn hosts(documents: &str, namespace: &str, links: bool) -> Vec<String> {
    let all = variables(documents, namespace, links);
    all.into_iter().filter(|line| line.contains("_SERVICE_HOST=")).collect()
}

#[test]
fn e1_headless_and_external_names_have_no_variables_and_node_ports_never_appear() {
    let documents = service("name: a", "clusterIP: None, ports: [{port: 80}]")
        + &service("name: b", "type: ExternalName, externalName: example.com")
        + &service(
            "name: c",
            "type: LoadBalancer, clusterIP: 10.96.0.7, loadBalancerIP: 192.0.2.1, ports: [{port: 80, nodePort: 30080}]",
        );
    let all = variables(&documents, "default", true);
    assert_eq!(all.len(), 7, "{all:?}");
    assert!(all.iter().all(|line| line.starts_with("C_") && !line.contains("30080") && !line.contains("192.0.2.1")));
}

#[test]
fn e2_own_namespace_with_links_and_kubernetes_always() {
    let documents = service(KUBERNETES.0, KUBERNETES.1)
        + &service("name: web", "clusterIP: 10.96.0.2, ports: [{port: 80}]")
        + &service("name: web, namespace: shop", "clusterIP: 10.96.0.3, ports: [{port: 80}]")
        + &service("name: kubernetes, namespace: other", "clusterIP: 10.96.0.9, ports: [{port: 80}]");
    let kubernetes = "KUBERNETES_SERVICE_HOST=10.96.0.1";
    assert_eq!(hosts(&documents, "shop", true), [kubernetes, "WEB_SERVICE_HOST=10.96.0.3"]);
    assert_eq!(hosts(&documents, "default", true), [kubernetes, "WEB_SERVICE_HOST=10.96.0.2"]);
    assert_eq!(hosts(&documents, "default", false), [kubernetes]);
    assert_eq!(hosts(&documents, "empty", true), [kubernetes]);
    let without = service("name: web, namespace: shop", "clusterIP: 10.96.0.3, ports: [{port: 80}]");
    assert_eq!(variables(&without, "empty", true), [""; 0]);
}

#[test]
fn e3_an_own_kubernetes_replaces_the_default_one_only_with_links() {
    // Before and after "default" in the alphabet: the order of the documents decides nothing.
    for namespace in ["aaa", "shop"] {
        let own = |spec| service(&format!("name: kubernetes, namespace: {namespace}"), spec);
        let master = service(KUBERNETES.0, KUBERNETES.1);
        let both = master.clone() + &own("clusterIP: 10.96.0.9, ports: [{port: 80}]");
        assert_eq!(hosts(&both, namespace, true), ["KUBERNETES_SERVICE_HOST=10.96.0.9"]);
        assert_eq!(hosts(&both, namespace, false), ["KUBERNETES_SERVICE_HOST=10.96.0.1"]);
        assert!(!variables(&both, namespace, true).iter().any(|line| line.contains("443")));
        let headless = master.clone() + &own("clusterIP: None, ports: [{port: 80}]");
        assert_eq!(hosts(&headless, namespace, true), ["KUBERNETES_SERVICE_HOST=10.96.0.1"]);
        let waiting = master + &own("ports: [{port: 80}]");
        assert_eq!(hosts(&waiting, namespace, true), ["KUBERNETES_SERVICE_HOST=10.96.0.1"], "E1 before E3");
        let without = ServiceEnv::of(&model(&waiting), namespace, true).without_address;
        assert_eq!(without.iter().map(ToString::to_string).collect::<Vec<_>>(), [format!("{namespace}/kubernetes")]);
    }
}

#[test]
fn e4_names_are_upper_case_with_underscores_and_the_primary_family_is_shown() {
    let documents = service(
        "name: a-b-2c",
        "ipFamilyPolicy: RequireDualStack, clusterIPs: ['fd00:10:96::7', 10.96.0.7], ipFamilies: [IPv6, IPv4], ports: [{port: 80}]",
    );
    assert_eq!(hosts(&documents, "default", true), ["A_B_2C_SERVICE_HOST=fd00:10:96::7"]);
}

#[test]
fn a_name_that_begins_with_a_digit_is_one() {
    let documents = service("name: 2web", "clusterIP: 10.96.0.7, ports: [{port: 80}]");
    assert_eq!(hosts(&documents, "default", true), ["2WEB_SERVICE_HOST=10.96.0.7"]);
}

#[test]
fn e5_e6_the_first_port_in_spec_order_and_each_name() {
    let documents = service(
        "name: web",
        "clusterIP: 10.96.0.7, ports: [{name: z-last, port: 9000}, {name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]",
    );
    let all = variables(&documents, "default", true);
    for line in [
        "WEB_SERVICE_PORT=9000",
        "WEB_PORT=tcp://10.96.0.7:9000",
        "WEB_SERVICE_PORT_Z_LAST=9000",
        "WEB_SERVICE_PORT_HTTP=80",
        "WEB_SERVICE_PORT_DNS=53",
    ] {
        assert!(all.iter().any(|other| other == line), "{line} in {all:?}");
    }
    assert_eq!(all.len(), 3 + 3 + 3 * 4);
}

#[test]
fn e7_each_number_and_protocol_has_four() {
    let spec = "clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]";
    let all = variables(&service("name: dns", spec), "default", true);
    for line in [
        "DNS_PORT=udp://10.96.0.10:53",
        "DNS_PORT_53_UDP=udp://10.96.0.10:53",
        "DNS_PORT_53_UDP_PROTO=udp",
        "DNS_PORT_53_UDP_PORT=53",
        "DNS_PORT_53_UDP_ADDR=10.96.0.10",
        "DNS_PORT_53_TCP=tcp://10.96.0.10:53",
        "DNS_PORT_53_TCP_PROTO=tcp",
    ] {
        assert!(all.iter().any(|other| other == line), "{line} in {all:?}");
    }
}

#[test]
fn e8_ipv6_has_brackets_in_urls_only() {
    let spec = "clusterIP: 'fd00:10:96::7', ipFamilies: [IPv6], ports: [{port: 80}]";
    let expected = [
        "SIX_PORT=tcp://[fd00:10:96::7]:80",
        "SIX_PORT_80_TCP=tcp://[fd00:10:96::7]:80",
        "SIX_PORT_80_TCP_ADDR=fd00:10:96::7",
        "SIX_PORT_80_TCP_PORT=80",
        "SIX_PORT_80_TCP_PROTO=tcp",
        "SIX_SERVICE_HOST=fd00:10:96::7",
        "SIX_SERVICE_PORT=80",
    ];
    assert_eq!(variables(&service("name: six", spec), "default", true), expected);
}

#[test]
fn e10_what_the_caller_has_wins() {
    let env = ServiceEnv::of(&model(&service("name: a", "clusterIP: 10.96.0.7, ports: [{port: 80}]")), "default", true);
    let absent: Vec<_> = env.absent(|name| name == "A_PORT").map(|(name, _)| name).collect();
    assert_eq!(absent.len(), 6);
    assert!(!absent.contains(&"A_PORT") && absent.contains(&"A_PORT_80_TCP"));
}

#[test]
fn e11_the_vector() {
    let expected = [
        "MY_SERVICE_PORT=tcp://10.0.0.11:6379",
        "MY_SERVICE_PORT_6379_TCP=tcp://10.0.0.11:6379",
        "MY_SERVICE_PORT_6379_TCP_ADDR=10.0.0.11",
        "MY_SERVICE_PORT_6379_TCP_PORT=6379",
        "MY_SERVICE_PORT_6379_TCP_PROTO=tcp",
        "MY_SERVICE_SERVICE_HOST=10.0.0.11",
        "MY_SERVICE_SERVICE_PORT=6379",
    ];
    let spec = |port: &str| service("name: my-service", &format!("clusterIP: 10.0.0.11, ports: [{{{port}}}]"));
    assert_eq!(variables(&spec("port: 6379"), "default", true), expected);
    let named = variables(&spec("name: redis, port: 6379"), "default", true);
    let mut with_name = expected.map(str::to_owned).to_vec();
    with_name.push("MY_SERVICE_SERVICE_PORT_REDIS=6379".to_owned());
    assert_eq!(named, with_name);
}

#[test]
fn a_service_without_an_address_has_none_and_is_named() {
    let env = ServiceEnv::of(&model(&service("name: web", "ports: [{port: 80}]")), "default", true);
    assert!(env.variables.is_empty());
    assert_eq!(env.without_address.iter().map(ToString::to_string).collect::<Vec<_>>(), ["default/web"]);
}

#[test]
fn e7_sctp_too() {
    let all =
        variables(&service("name: s", "clusterIP: 10.96.0.7, ports: [{port: 9, protocol: SCTP}]"), "default", true);
    for line in ["S_PORT=sctp://10.96.0.7:9", "S_PORT_9_SCTP_PROTO=sctp", "S_PORT_9_SCTP=sctp://10.96.0.7:9"] {
        assert!(all.iter().any(|other| other == line), "{line} in {all:?}");
    }
}

/// A Service of the properties: its name, a number for its address, whether that is IPv6, its ports.
type Sketch = (String, u8, bool, Vec<(u16, Protocol, String)>);

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let name = "[a-z]([-a-z0-9]{0,6}[a-z0-9])?";
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let port = (1..=u16::MAX, protocol, name);
    prop::collection::vec((name, any::<u8>(), any::<bool>(), prop::collection::vec(port, 1..4)), 0..5)
}

fn modelled(sketches: &[Sketch]) -> Model {
    let documents = sketches.iter().map(|(name, number, v6, ports)| {
        let address = if *v6 { format!("fd00:10:96::{number:x}") } else { format!("10.96.1.{number}") };
        let family = if *v6 { "IPv6" } else { "IPv4" };
        // A port's name and number may come twice in a sketch, and not in a Service.
        let mut seen = std::collections::BTreeSet::new();
        let ports = ports.iter().enumerate().filter(|(_, (number, protocol, _))| seen.insert((*number, *protocol)));
        let ports: Vec<_> = ports
            .map(|(index, (number, protocol, name))| {
                let name = format!("{}{index}", name.chars().take(6).collect::<String>());
                format!("{{name: '{name}', port: {number}, protocol: {protocol}}}")
            })
            .collect();
        let spec = format!("clusterIP: '{address}', ipFamilies: [{family}], ports: [{}]", ports.join(", "));
        service(&format!("name: '{name}'"), &spec)
    });
    let documents: String = documents.collect();
    if documents.is_empty() { Model::default() } else { model(&documents) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// E4 to E8 as a reader of the variables sees them, for any Services.
    #[test]
    fn every_variable_leads_to_its_service(sketches in sketches()) {
        let model = modelled(&sketches);
        let env = ServiceEnv::of(&model, "default", true);
        let get = |name: String| env.variables.get(&name).cloned();
        let names: Vec<_> = model.services.keys().map(|name| variable_name(&name.name)).collect();
        for (name, value) in &env.variables {
            let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            prop_assert!(name.bytes().all(legal), "{name}");
            prop_assert!(!value.is_empty() && !value.contains(char::is_whitespace), "{name}={value}");
            prop_assert!(names.iter().any(|prefix| name.starts_with(&format!("{prefix}_"))), "{name}");
        }
        // Where one name begins another one (`a` with port name `b`, and `a-service-port-b`) they may share variables.
        let alone = |own: &String| names.iter().all(|other| other == own || !other.starts_with(&format!("{own}_")) && !own.starts_with(&format!("{other}_")));
        for (object, service) in &model.services {
            let prefix = variable_name(&object.name);
            if !alone(&prefix) {
                continue;
            }
            let address = service.cluster_ips[0];
            prop_assert_eq!(get(format!("{prefix}_SERVICE_HOST")), Some(address.to_string()));
            for (index, port) in service.ports.iter().enumerate() {
                let of_port = format!("{prefix}_PORT_{}_{}", port.port, port.protocol);
                let url = get(of_port.clone()).unwrap_or_default();
                let (scheme, at) = url.split_once("://").unwrap_or_default();
                prop_assert_eq!(scheme.to_uppercase(), port.protocol.to_string());
                prop_assert_eq!(at.parse::<SocketAddr>().ok(), Some(SocketAddr::new(address, port.port.get())));
                prop_assert_eq!(get(format!("{of_port}_ADDR")), Some(address.to_string()));
                prop_assert_eq!(get(format!("{of_port}_PORT")), Some(port.port.to_string()));
                prop_assert_eq!(get(format!("{of_port}_PROTO")), Some(scheme.to_owned()));
                let named = format!("{prefix}_SERVICE_PORT_{}", variable_name(&port.name));
                prop_assert_eq!(get(named), Some(port.port.to_string()));
                if index == 0 {
                    prop_assert_eq!(get(format!("{prefix}_SERVICE_PORT")), Some(port.port.to_string()));
                    prop_assert_eq!(get(format!("{prefix}_PORT")), Some(url));
                }
            }
        }
    }

    /// The order of the documents decides nothing; that of the ports does (E5), so it is kept.
    #[test]
    fn the_order_of_documents_decides_nothing(sketches in sketches()) {
        let mut turned: Vec<Sketch> = Vec::new();
        for sketch in sketches.iter().rev() {
            if sketches.iter().filter(|other| other.0 == sketch.0 || (other.1, other.2) == (sketch.1, sketch.2)).count() == 1 {
                turned.push(sketch.clone());
            }
        }
        let straight: Vec<Sketch> = turned.iter().rev().cloned().collect();
        let env = |sketches: &[Sketch]| ServiceEnv::of(&modelled(sketches), "default", true);
        prop_assert_eq!(env(&turned), env(&straight));
    }

    #[test]
    fn any_service_name_makes_a_variable_name(name in "[a-z]([-a-z0-9]{0,20}[a-z0-9])?") {
        let made = variable_name(&name);
        prop_assert_eq!(made.len(), name.len());
        prop_assert!(made.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'));
    }
}
