//! The source as its users see it: files in, a model and findings out.

mod allocation;
mod balancers;
mod same_name;

use std::{collections::BTreeSet, fs, num::NonZeroU16, path::Path, thread};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    model::{IpFamily, ObjectName, Service, ServiceType, TargetPort},
    report::Problem,
};

const MY_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: my-service
  labels:
    app: my-service
spec:
  selector:
    app: MyApp
  ports:
  - protocol: TCP
    port: 80
    targetPort: 9376
";
const SERVICE_PYTHON: &str = "
apiVersion: v1
kind: Service
metadata:
  name: service-python
spec:
  ports:
  - port: 3000
    protocol: TCP
    targetPort: 443
    nodePort: 30080
  selector:
    run: pod-python
  type: NodePort
";

struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folder.0.path().join("docs")).unwrap();
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn docs(&self) -> PathBuf {
        self.0.path().join("docs")
    }

    fn write(&self, name: &str, text: &str) {
        let temporary = self.docs().join("new.tmp");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.docs().join(name)).unwrap();
    }

    fn options(&self) -> Options {
        let allocations = Some(self.0.path().join("state/allocations.json"));
        Options { allocations, write_allocations: true, ..Options::new(self.docs()) }
    }

    fn load(&self) -> Loaded {
        load(&self.options()).unwrap()
    }
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn get<'a>(loaded: &'a Loaded, service: &str) -> &'a Service {
    loaded.model.services.get(&name(service)).unwrap_or_else(|| panic!("no {service}: {:#?}", loaded.findings))
}

fn only_error(loaded: &Loaded) -> &Finding {
    let mut errors = loaded.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let first = errors.next().unwrap_or_else(|| panic!("no error: {:#?}", loaded.findings));
    assert_eq!(errors.next(), None);
    first
}

fn service(service: &str, spec: &str) -> String {
    let (name, namespace) = (name(service).name, name(service).namespace);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn pod(name: &str, more: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}{more}}}\nspec:\n  nodeName: n1\n  hostname: h-{name}\n  subdomain: web\n  containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]\nstatus: {{{status}}}\n"
    )
}

#[test]
fn the_users_own_examples_load_as_written() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE), ("b.yaml", SERVICE_PYTHON)]);
    let loaded = folder.load();
    assert_eq!(loaded.findings, []);
    let mine = get(&loaded, "my-service");
    assert_eq!(mine.ports[0].target, TargetPort::Number(NonZeroU16::new(9376).unwrap()));
    assert_eq!((mine.service_type, mine.cluster_ips.len()), (ServiceType::ClusterIp, 1));
    assert_eq!(mine.ip_families, [IpFamily::V4]);
    assert_eq!(get(&loaded, "service-python").ports[0].node_port, NonZeroU16::new(30_080));

    // The second document over the first: the type changes, the addresses stay.
    let before = get(&loaded, "service-python").cluster_ips.clone();
    folder.write("b.yaml", &SERVICE_PYTHON.replace("type: NodePort", "type: LoadBalancer"));
    let loaded = folder.load();
    assert_eq!(loaded.findings, []);
    let python = get(&loaded, "service-python");
    assert_eq!((python.service_type, &python.cluster_ips), (ServiceType::LoadBalancer, &before));
    assert_eq!(python.ports[0].node_port, NonZeroU16::new(30_080));
}

#[test]
fn output_of_kubectl_get_loads() {
    let text = "
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- apiVersion: v1
  kind: Service
  metadata:
    creationTimestamp: \"2026-01-01T00:00:00Z\"
    managedFields: [{manager: kubectl, operation: Update, fieldsV1: {f:spec: {f:ports: {}}}}]
    name: web
    namespace: shop
    resourceVersion: '17'
    uid: 0b7d5f0e-0000-0000-0000-000000000000
  spec:
    clusterIP: 10.96.0.77
    clusterIPs: [10.96.0.77]
    externalTrafficPolicy: Cluster
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{name: http, nodePort: 30081, port: 80, protocol: TCP, targetPort: http}]
    selector: {app: web}
    sessionAffinity: None
    type: LoadBalancer
  status: {loadBalancer: {ingress: [{ip: 192.0.2.9, ipMode: VIP}, {hostname: x}, {ip: 192.0.2.10, ipMode: Proxy}]}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  addressType: IPv4
  metadata: {name: web-abc, namespace: shop, generateName: web-, labels: {kubernetes.io/service-name: web}, creationTimestamp: null}
  endpoints:
  - addresses: [10.244.1.5, 10.244.9.9]
    conditions: {ready: true, serving: true, terminating: false}
    nodeName: n1
    targetRef: {kind: Pod, name: web-1, namespace: shop, uid: x}
  - addresses: [10.244.1.6]
    conditions: {}
  ports: [{name: http, port: 8080, protocol: TCP}, {name: any}]
- apiVersion: v1
  kind: Node
  metadata: {name: n1, annotations: {a: b}}
  spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: Hostname, address: n1}], capacity: {cpu: '2'}}
- {apiVersion: v1, kind: Namespace, metadata: {name: empty}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}}
";
    let loaded = Folder::new(&[("all.yaml", text)]).load();
    assert_eq!(loaded.findings.len(), 1, "{:#?}", loaded.findings);
    assert_eq!(loaded.findings[0].severity, Severity::Warning);
    let web = get(&loaded, "shop/web");
    assert_eq!(web.cluster_ips, ["10.96.0.77".parse::<std::net::IpAddr>().unwrap()]);
    // 2.1.3: no ip and ipMode Proxy are left alone.
    assert_eq!(web.load_balancer_ips, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
    // 2.1.4: first address only, nil conditions, port without number.
    let slice = &loaded.model.slices[&name("shop/web-abc")];
    assert_eq!((slice.endpoints.len(), slice.ports.len()), (2, 1));
    let second = &slice.endpoints[1];
    assert!(second.ready && second.serving && !second.terminating);
    assert_eq!(loaded.model.nodes["n1"].internal_ips.len(), 1);
    assert_eq!(loaded.model.namespaces, ["empty", "shop"].map(String::from).into());
}

#[test]
fn bad_services_are_refused_with_file_line_and_field_and_the_rest_goes_on() {
    for (spec, field) in [
        ("ports: [{port: 80}, {port: 81}]", "spec.ports[0].name"),
        ("ports: [{name: a, port: 80}, {name: a, port: 81}]", "spec.ports[1].name"),
        ("ports: [{name: a, port: 80}, {name: b, port: 80}]", "spec.ports[1].port"),
        ("ports: [{port: 0}]", "spec.ports[0].port"),
        ("ports: [{port: 70000}]", "spec.ports[0].port"),
        ("ports: [{port: eighty}]", "spec.ports[0].port"),
        ("ports: [{port: 80, protocol: tcp}]", "spec.ports[0].protocol"),
        ("ports: [{port: 80, nodePort: 30001}]", "spec.ports[0].nodePort"),
        ("ports: [{port: 80, targetPort: Not_A_Name}]", "spec.ports[0].targetPort"),
        ("type: Balanced, ports: [{port: 80}]", "spec.type"),
        ("type: NodePort, clusterIP: None, ports: [{port: 80}]", "spec.clusterIP"),
        ("type: ExternalName", "spec.externalName"),
        ("clusterIP: 10.96.0.300, ports: [{port: 80}]", "spec.clusterIP"),
        ("clusterIP: 127.0.0.1, ports: [{port: 80}]", "spec.clusterIP"),
        ("clusterIP: 'fd00:10:96::5', ipFamilies: [IPv4], ports: [{port: 80}]", "spec.clusterIPs[0]"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, ports: [{port: 80}]",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]", "spec.ipFamilyPolicy"),
        ("externalTrafficPolicy: Local, ports: [{port: 80}]", "spec.externalTrafficPolicy"),
        ("loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]", "spec.loadBalancerSourceRanges"),
        ("selector: {a: b}", "spec.ports"),
    ] {
        let text = service("good", "ports: [{port: 80}]") + &service("bad", spec);
        let loaded = Folder::new(&[("a.yaml", &text)]).load();
        assert_eq!(loaded.model.services.len(), 1, "{spec}");
        let error = only_error(&loaded);
        assert_eq!(error.field.as_deref(), Some(field), "{spec}: {error}");
        assert_eq!(error.object.as_deref(), Some("Service default/bad"));
        assert!(error.line.is_some_and(|line| (7..=10).contains(&line)), "{error:?}");
        assert!(Problem::from(error).cause.contains("a.yaml:"));
    }
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let text = service(
        "dual",
        "ipFamilyPolicy: PreferDualStack, sessionAffinity: ClientIP, ports: [{port: 53, name: d, protocol: UDP}, {port: 53, name: t}], type: NodePort",
    ) + &service(
        "lb",
        "type: LoadBalancer, loadBalancerSourceRanges: [' 10.1.2.3/8 '], ports: [{port: 80}], allocateLoadBalancerNodePorts: false",
    ) + &service("six", "ipFamilies: [IPv6], ports: [{port: 80}]")
        + &service("headless", "clusterIP: None")
        + &service("alias", "type: ExternalName, externalName: example.org");
    let loaded = Folder::new(&[("a.yaml", &text)]).load();
    assert_eq!(loaded.findings, []);
    let dual = get(&loaded, "dual");
    assert_eq!(dual.ip_families, [IpFamily::V4, IpFamily::V6]);
    assert_eq!(dual.cluster_ips.iter().map(IpFamily::of).collect::<Vec<_>>(), dual.ip_families);
    assert_eq!(dual.affinity_seconds, Some(10_800));
    assert!(dual.ports[0].node_port.is_some());
    assert_eq!(dual.ports[0].node_port, dual.ports[1].node_port);
    assert_eq!(get(&loaded, "lb").source_ranges[0].to_string(), "10.0.0.0/8");
    assert_eq!(get(&loaded, "lb").ports[0].node_port, None);
    assert!(get(&loaded, "six").cluster_ips[0].is_ipv6());
    assert!(get(&loaded, "headless").cluster_ips.is_empty() && get(&loaded, "headless").headless);
    assert!(get(&loaded, "alias").cluster_ips.is_empty());
}

#[test]
fn slices_are_made_from_pods() {
    let ready = "phase: Running, conditions: [{type: Ready, status: 'True'}]";
    let text =
        service("web", "selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: http}]")
            + &service("early", "selector: {app: web}, publishNotReadyAddresses: true, ports: [{port: 80}]")
            + &pod("a", "", &format!("podIP: 10.244.1.1, podIPs: [{{ip: 10.244.1.1}}, {{ip: 'fd00::1'}}], {ready}"))
            + &pod("b", ", deletionTimestamp: '2026-01-01T00:00:00Z'", &format!("podIP: 10.244.1.2, {ready}"))
            + &pod("c", "", "podIP: 10.244.1.3, phase: Running, conditions: [{type: Ready, status: 'False'}]")
            + &pod("d", "", "podIP: 10.244.1.4, phase: Succeeded")
            + &pod("e", "", "phase: Pending")
            + &pod("f", "", "podIP: 127.0.0.1, phase: Running")
            + &pod("g", "", &format!("podIP: 10.244.1.7, {ready}")).replace("8080", "9090");
    let loaded = Folder::new(&[("a.yaml", &text)]).load();
    assert!(only_error(&loaded).reason.contains("loopback"));
    let of = |service: &str, family: IpFamily| {
        let slices =
            loaded.model.slices.values().filter(move |slice| slice.service == service && slice.family == family);
        slices
            .flat_map(|slice| slice.endpoints.iter().map(|one| (one.clone(), slice.ports.clone())))
            .collect::<Vec<_>>()
    };
    let web = of("web", IpFamily::V4);
    let state: BTreeSet<_> = web
        .iter()
        .map(|(one, ports)| (one.pod.clone().unwrap(), one.ready, one.serving, one.terminating, ports[0].port.get()))
        .collect();
    assert_eq!(
        state,
        [
            ("a".into(), true, true, false, 8080),
            ("b".into(), false, true, true, 8080),
            ("c".into(), false, false, false, 8080),
            ("g".into(), true, true, false, 9090),
        ]
        .into()
    );
    assert_eq!(of("web", IpFamily::V6).len(), 1);
    assert!(of("early", IpFamily::V4).iter().all(|(one, _)| one.ready));
    // D8: a hostname only under the Service that the subdomain names.
    assert!(web.iter().all(|(one, _)| one.hostname.is_some() && one.node.as_deref() == Some("n1")));
    assert!(of("early", IpFamily::V4).iter().all(|(one, _)| one.hostname.is_none()));
}

#[test]
fn a_pod_without_status_is_absent_with_a_warning() {
    let text =
        service("web", "selector: {app: web}, ports: [{port: 80}]") + &pod("a", "", "").replace("status: {}\n", "");
    let loaded = Folder::new(&[("a.yaml", &text)]).load();
    assert_eq!(loaded.findings.len(), 1);
    assert_eq!(loaded.findings[0].field.as_deref(), Some("status"));
    assert!(loaded.model.slices.is_empty() && loaded.model.pods.len() == 1);
}

#[test]
fn endpoints_are_mirrored_only_without_selector_and_slices() {
    let endpoints = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets: [{{addresses: [{{ip: 192.0.2.1}}], notReadyAddresses: [{{ip: 192.0.2.2}}], ports: [{{port: 80}}]}}]\n"
        )
    };
    let text = service("plain", "ports: [{port: 80}]")
        + &service("selected", "selector: {a: b}, ports: [{port: 80}]")
        + &endpoints("plain")
        + &endpoints("selected")
        + &endpoints("stray");
    let loaded = Folder::new(&[("a.yaml", &text)]).load();
    assert_eq!(loaded.model.slices.len(), 1);
    let slice = loaded.model.slices.values().next().unwrap();
    assert_eq!((slice.service.as_str(), slice.endpoints.len()), ("plain", 2));
    assert_eq!(slice.endpoints.iter().filter(|one| one.ready).count(), 1);
}

#[test]
fn endpoints_of_another_family_or_special_addresses_are_refused_one_by_one() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints:\n- addresses: [169.254.169.254]\n- addresses: ['fd00::1']\n- addresses: [10.0.0.1]\n";
    let loaded = Folder::new(&[("a.yaml", text)]).load();
    assert_eq!(loaded.findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [Some(6), Some(7)]);
    assert_eq!(loaded.model.slices.values().next().unwrap().endpoints.len(), 1);
}

#[test]
fn r22_endpoints_at_addresses_of_the_node_or_of_many_are_refused() {
    let v4 = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
    let v6 = ["::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1"];
    for (family, addresses, good) in [("IPv4", &v4[..], "10.0.0.1"), ("IPv6", &v6[..], "fd00::1")] {
        for bad in addresses {
            let text = format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: \
                 {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nendpoints:\n- addresses: ['{bad}']\n\
                 - addresses: ['{good}']\n"
            );
            let loaded = Folder::new(&[("a.yaml", &text)]).load();
            let reason = &only_error(&loaded).reason;
            assert!(reason.contains(bad), "{bad}: {reason}");
            let slice = loaded.model.slices.values().next().unwrap();
            let kept: Vec<String> = slice.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
            assert_eq!(kept, [good], "{bad}");
        }
        let count = addresses.len();
        println!(
            "SCOREBOARD R22 endpoints at loopback, link-local, multicast and such: {count} {family} ones refused by name"
        );
    }
}

#[test]
fn a_broken_file_never_destroys_the_last_good_state() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE), ("b.yaml", SERVICE_PYTHON)]);
    let mut source = Source::new(folder.options());
    let good = source.reload().unwrap();
    for broken in [
        "",
        "kind: [",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: my-service\nspec:\n  ports: [{port: \"",
        "\u{0}",
    ] {
        fs::write(folder.docs().join("a.yaml"), broken).unwrap();
        let loaded = source.reload().unwrap();
        assert_eq!(loaded.model, good.model, "{broken:?}");
        assert_eq!(loaded.findings.len(), 1);
        assert!(loaded.findings[0].file.ends_with("a.yaml"));
    }
    // Invalid: the last good version stays. Gone: so are its objects. Restored: as before.
    folder.write("a.yaml", &MY_SERVICE.replace("port: 80", "port: 0"));
    let loaded = source.reload().unwrap();
    assert_eq!(loaded.model, good.model);
    assert!(only_error(&loaded).reason.contains("last good version"));
    fs::remove_file(folder.docs().join("a.yaml")).unwrap();
    assert_eq!(source.reload().unwrap().model.services.len(), 1);
    folder.write("a.yaml", MY_SERVICE);
    assert_eq!(source.reload().unwrap(), good);
}

#[test]
fn unreadable_sources_are_errors() {
    assert!(matches!(load(&Options::new("/nonexistent/x")), Err(LoadError::Unreadable { .. })));
    let folder = Folder::new(&[("a.yaml", "kind: [")]);
    assert!(matches!(load(&folder.options()), Err(LoadError::NoDocument(_))));
    assert!(Folder::new(&[]).load().model.services.is_empty());
}

#[test]
fn kinds_of_others_and_wrong_versions() {
    let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n---\napiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n";
    let loaded = Folder::new(&[("a.yaml", text)]).load();
    assert_eq!(loaded.findings.len(), 3);
    assert_eq!(only_error(&loaded).field.as_deref(), Some("apiVersion"));
}

#[tokio::test]
async fn the_watch_ticks_on_rename_write_and_removal() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE)]);
    let (_watch, mut ticks) = Watch::new(&folder.docs()).unwrap();
    let file = folder.docs().join("a.yaml");
    let changes: [&dyn Fn(); 3] =
        [&|| folder.write("a.yaml", SERVICE_PYTHON), &|| fs::write(&file, MY_SERVICE).unwrap(), &|| {
            fs::remove_file(&file).unwrap();
        }];
    for change in changes {
        change();
        let tick = tokio::time::timeout(std::time::Duration::from_secs(10), ticks.recv()).await;
        assert_eq!(tick, Ok(Some(())));
    }
    // A file is watched through its folder, so that it may come later.
    let (_watch, mut ticks) = Watch::new(Path::new(&file)).unwrap();
    folder.write("a.yaml", MY_SERVICE);
    assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(10), ticks.recv()).await, Ok(Some(())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn load_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..600_usize, cut in 0..40_usize, splice in "[-a-z0-9:{}\\[\\]\"' \n]{0,12}") {
        let folder = Folder::new(&[]);
        fs::write(folder.docs().join("a.yaml"), &bytes).unwrap();
        let mut text = MY_SERVICE.to_owned() + "---" + SERVICE_PYTHON;
        let at = at.min(text.len());
        text.replace_range(at..(at + cut).min(text.len()), &splice);
        folder.write("b.yaml", &text);
        drop(load(&folder.options()));
    }
}

#[test]
fn each_of_thousands_of_findings_names_its_line() {
    let item = "- apiVersion: v1\n  kind: Pod\n  metadata: {name: pN, labels: {app: web}}\n";
    let text = (0..2_000)
        .fold("kind: List\napiVersion: v1\nitems:\n".to_owned(), |text, n| text + &item.replace('N', &n.to_string()));
    let folder = Folder::new(&[("a.yaml", &text)]);
    let loaded = folder.load();
    assert_eq!(loaded.findings.len(), 2_000);
    assert_eq!(loaded.findings[1_999].line, Some(4 + 1_999 * 3));
}
