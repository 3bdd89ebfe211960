//! Who gets which address and nodePort, and who keeps it.

use super::*;

#[test]
fn allocations_are_stable_unique_and_shared_by_nodes_that_start_at_once() {
    let many = |count: usize| {
        (0..count)
            .map(|n| service(&format!("s{n}"), "type: NodePort, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]"))
            .collect::<String>()
    };
    let folder = Folder::new(&[("a.yaml", &many(200))]);
    let options = folder.options();
    let threads: Vec<_> =
        (0..4).map(|_| options.clone()).map(|options| thread::spawn(move || load(&options).unwrap())).collect();
    let loads: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(loads.windows(2).all(|pair| pair[0] == pair[1]));
    let services = &loads[0].model.services;
    let ips: BTreeSet<_> = services.values().flat_map(|service| service.cluster_ips.clone()).collect();
    let ports: BTreeSet<_> = services.values().map(|service| service.ports[0].node_port).collect();
    assert_eq!((ips.len(), ports.len()), (400, 200));
    // Others come before them in order; the old ones keep theirs. A reader sees the same and writes nothing.
    folder.write("0.yaml", &many(300).replace("name: s", "name: a"));
    let later = folder.load();
    assert!(services.iter().all(|(name, service)| later.model.services[name] == *service));
    let reader = load(&Options { write_allocations: false, ..options }).unwrap();
    assert_eq!(reader, later);
}

#[test]
fn a_reader_without_allocations_has_no_addresses_yet() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE)]);
    let loaded = load(&Options { write_allocations: false, ..folder.options() }).unwrap();
    assert!(get(&loaded, "my-service").cluster_ips.is_empty());
    assert_eq!(loaded.findings.len(), 1);
    assert!(!folder.options().allocation_path().exists());
}

#[test]
fn a_number_taken_twice_refuses_the_second_and_names_the_owner() {
    let port = "type: NodePort, ports: [{port: 80, nodePort: 30080}]";
    let folder = Folder::new(&[("a.yaml", &service("b", port))]);
    folder.load();
    // a comes first in order, but b is recorded.
    folder.write("b.yaml", &service("a", port));
    let loaded = folder.load();
    assert!(only_error(&loaded).reason.contains("default/b"));
    assert!(loaded.model.services.contains_key(&name("b")) && !loaded.model.services.contains_key(&name("a")));
    // Another protocol may have it, and a VIP used twice is refused as well.
    folder.write("b.yaml", &service("a", "type: NodePort, ports: [{port: 80, protocol: UDP, nodePort: 30080}]"));
    assert_eq!(folder.load().findings, []);
    let vip = "clusterIP: 10.96.3.3, ports: [{port: 80}]";
    folder.write("c.yaml", &(service("c", vip) + &service("d", vip)));
    let loaded = folder.load();
    assert!(only_error(&loaded).reason.contains("default/c"));
    assert_eq!(loaded.model.services.len(), 3);
}

#[test]
fn two_services_can_swap_their_node_ports() {
    let write = |a: u16, b: u16| {
        service("a", &format!("type: NodePort, ports: [{{port: 80, nodePort: {a}}}]"))
            + &service("b", &format!("type: NodePort, ports: [{{port: 80, nodePort: {b}}}]"))
    };
    let folder = Folder::new(&[("a.yaml", &write(30001, 30002))]);
    folder.load();
    folder.write("a.yaml", &write(30002, 30001));
    let loaded = folder.load();
    assert_eq!(loaded.findings, []);
    assert_eq!(get(&loaded, "a").ports[0].node_port, NonZeroU16::new(30_002));
}

#[test]
fn addresses_outside_the_ranges_are_kept_with_a_warning() {
    let text = service("a", "type: NodePort, clusterIP: 172.20.0.1, ports: [{port: 80, nodePort: 80}]");
    let loaded = Folder::new(&[("a.yaml", &text)]).load();
    assert_eq!(loaded.findings.len(), 2);
    assert!(loaded.findings.iter().all(|finding| finding.severity == Severity::Warning));
    assert_eq!(get(&loaded, "a").cluster_ips[0].to_string(), "172.20.0.1");
}

#[test]
fn an_exhausted_range_refuses_only_who_finds_no_room() {
    let text: String = (0..8).map(|n| service(&format!("s{n}"), "ports: [{port: 80}]")).collect();
    let folder = Folder::new(&[("a.yaml", &text)]);
    let options = Options { service_cidrs: vec!["10.0.0.0/29".parse().unwrap()], ..folder.options() };
    let loaded = load(&options).unwrap();
    assert_eq!((loaded.model.services.len(), loaded.findings.len()), (6, 2));
    assert!(loaded.findings[0].reason.contains("no free IPv4 address"));
}

#[test]
fn removed_services_release_theirs_only_when_all_was_readable() {
    let folder = Folder::new(&[
        ("a.yaml", &service("a", "ports: [{port: 80}]")),
        ("b.yaml", &service("b", "ports: [{port: 80}]")),
    ]);
    let read = || fs::read_to_string(folder.options().allocation_path()).unwrap();
    folder.load();
    fs::remove_file(folder.docs().join("a.yaml")).unwrap();
    folder.write("c.yaml", "kind: [");
    folder.load();
    assert!(read().contains("default/a"));
    fs::remove_file(folder.docs().join("c.yaml")).unwrap();
    folder.load();
    assert!(!read().contains("default/a"));
}

#[test]
fn a_corrupt_or_locked_allocation_file_is_an_error_and_stays_as_it_is() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE)]);
    let path = folder.options().allocation_path();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    for text in [
        "{",
        "",
        "{\"version\":2,\"services\":{}}",
        "{\"version\":1,\"services\":{\"a/a\":{\"clusterIPs\":[\"10.96.0.1\"]},\"a/b\":{\"clusterIPs\":[\"10.96.0.1\"]}}}",
    ] {
        fs::write(&path, text).unwrap();
        let error = load(&folder.options()).unwrap_err();
        assert!(matches!(error, LoadError::AllocationsCorrupt { .. }), "{error}");
        assert!(error.to_string().contains("allocations.json"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// Its content may be right: nobody is told to delete it.
#[test]
fn an_allocation_file_that_cannot_be_read_is_not_called_damaged() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE)]);
    fs::create_dir_all(folder.options().allocation_path()).unwrap();
    let error = load(&folder.options()).unwrap_err();
    assert!(matches!(error, LoadError::AllocationsUnreadable { .. }), "{error}");
    assert!(error.to_string().contains("cannot be read") && !error.to_string().contains("delete"), "{error}");
}

#[test]
fn a_change_that_takes_a_node_port_in_use_keeps_what_worked() {
    let folder = Folder::new(&[
        ("a.yaml", SERVICE_PYTHON),
        ("b.yaml", &service("b", "type: NodePort, ports: [{port: 80, nodePort: 30001}]")),
    ]);
    let mut source = Source::new(folder.options());
    let good = source.reload().unwrap();
    folder.write("b.yaml", &service("b", "type: NodePort, ports: [{port: 80, nodePort: 30080}]"));
    let loaded = source.reload().unwrap();
    assert_eq!(loaded.model, good.model);
    assert!(only_error(&loaded).reason.contains("default/service-python"));
}

#[test]
fn a_load_balancer_address_is_shared_by_port_only() {
    let lb = |name: &str, ports: &str| {
        service(name, &format!("type: LoadBalancer, ports: [{ports}]"))
            + "status: {loadBalancer: {ingress: [{ip: 192.0.2.9}]}}\n"
    };
    let folder = Folder::new(&[("a.yaml", &(lb("a", "{port: 80}") + &lb("b", "{port: 81}")))]);
    assert_eq!(folder.load().findings, []);
    folder.write("b.yaml", &lb("c", "{name: x, port: 90}, {name: y, port: 81}"));
    let loaded = folder.load();
    assert!(only_error(&loaded).reason.contains("default/b"), "{:?}", loaded.findings);
}

#[test]
fn a_writer_waits_for_the_lock() {
    let folder = Folder::new(&[("a.yaml", MY_SERVICE)]);
    let options = folder.options();
    let lock = allocation_file::lock(&options.allocation_path()).unwrap();
    let waiting = thread::spawn(move || load(&options));
    // Nothing was written while the lock was held, whenever the other thread began.
    assert!(!folder.options().allocation_path().exists());
    drop(lock);
    assert_eq!(waiting.join().unwrap().unwrap().model.services.len(), 1);
}

const PROBED: &str = "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]";

fn probed(number: u16) -> String {
    PROBED.replace("ports", &format!("healthCheckNodePort: {number}, ports"))
}

#[test]
fn rule_2_6_1_a_probed_service_gets_a_health_check_node_port_and_keeps_it() {
    let folder = Folder::new(&[("b.yaml", &service("b", PROBED))]);
    let port = |loaded: &Loaded, name: &str| get(loaded, name).health_check_port();
    let given = port(&folder.load(), "b").expect("a port");
    assert!(folder.options().node_port_range.contains(&given.get()));
    // Others come before it in order, and want the very number.
    folder.write("a.yaml", &(service("a", PROBED) + &service("n", "type: NodePort, ports: [{port: 80}]")));
    let loaded = folder.load();
    assert_eq!((port(&loaded, "b"), loaded.findings.len()), (Some(given), 0));
    let numbers = [port(&loaded, "a"), get(&loaded, "n").ports[0].node_port, get(&loaded, "b").ports[0].node_port];
    assert!(numbers.iter().all(|number| number.is_some_and(|number| number != given)), "{numbers:?}");
    // A command that writes nothing sees the same.
    assert_eq!(load(&Options { write_allocations: false, ..folder.options() }).unwrap(), loaded);
    // Who is not probed any more gives it back.
    folder.write("b.yaml", &service("b", &PROBED.replace("Local", "Cluster")));
    assert_eq!(port(&folder.load(), "b"), None);
    folder.write("c.yaml", &service("c", &probed(given.get())));
    let loaded = folder.load();
    assert_eq!((port(&loaded, "c"), loaded.findings.len()), (Some(given), 0));
    // A written one takes the place of the one it had.
    folder.write("c.yaml", &service("c", &probed(30_777)));
    assert_eq!(port(&folder.load(), "c"), NonZeroU16::new(30_777));
    let range = Options { node_port_range: 30_777..=30_777, ..folder.options() };
    fs::remove_file(folder.options().allocation_path()).unwrap();
    folder.write("a.yaml", &service("a", &PROBED.replace("ports", "allocateLoadBalancerNodePorts: false, ports")));
    folder.write("b.yaml", "");
    folder.write(
        "c.yaml",
        &service("c", &probed(30_777).replace("ports", "allocateLoadBalancerNodePorts: false, ports")),
    );
    let loaded = load(&range).unwrap();
    assert!(only_error(&loaded).reason.contains("no free port"), "{:?}", loaded.findings);
}

#[test]
fn a_health_check_node_port_that_is_taken_is_refused_with_its_owner() {
    let folder = Folder::new(&[("python.yaml", SERVICE_PYTHON), ("web.yaml", &service("web", &probed(30_080)))]);
    let loaded = folder.load();
    let error = only_error(&loaded);
    assert!(error.reason.contains("30080") && error.reason.contains("default/service-python"), "{error:?}");
    assert!(!loaded.model.services.contains_key(&name("web")));
    // Its own nodePort cannot be it either.
    folder.write("web.yaml", &service("web", &probed(30_090).replace("port: 80", "port: 80, nodePort: 30090")));
    assert!(only_error(&folder.load()).reason.contains("port 80"), "{:?}", folder.load().findings);
    // Another one is taken, and nobody else gets it, as a nodePort neither.
    folder.write("web.yaml", &service("web", &probed(30_090)));
    let taken =
        service("web2", &probed(30_090)) + &service("web3", "type: NodePort, ports: [{port: 1, nodePort: 30090}]");
    folder.write("web2.yaml", &taken);
    let loaded = folder.load();
    let reasons: Vec<_> = loaded.findings.iter().map(|finding| &finding.reason).collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|reason| reason.contains("default/web")), "{reasons:?}");
    assert!(loaded.model.services.contains_key(&name("web")));
}

#[test]
fn a_health_check_node_port_without_probes_is_refused() {
    let folder = Folder::new(&[("a.yaml", &service("a", &probed(30_090).replace("Local", "Cluster")))]);
    assert!(only_error(&folder.load()).reason.contains("externalTrafficPolicy: Local"));
}
