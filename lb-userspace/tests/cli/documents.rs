//! Documents that are wrong: each is named with its place, and the rest go on.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use crate::place::{Answer, Place};

/// Reads the documents as the agent does; without a bpffs it ends right after.
fn read(place: &Place) -> Answer {
    place.run(&["run", "-f", "docs", "--node", "node1", "--allocations", "allocations.json"])
}

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: twice}
spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: family}
spec: {ipFamilies: [IPv4], clusterIP: 'fd00:10:96::20', ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: port-1}
spec: {type: NodePort, ports: [{port: 80, nodePort: 30500}]}
---
apiVersion: v1
kind: Service
metadata: {name: port-2}
spec: {type: NodePort, ports: [{port: 80, nodePort: 30500}]}
---
apiVersion: v1
kind: Service
metadata: {name: vip-1}
spec: {clusterIP: 10.96.0.30, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: vip-2}
spec: {clusterIP: 10.96.0.30, ports: [{port: 81}]}
---
apiVersion: v1
kind: Services
metadata: {name: misspelt}
---
kind: [
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: slice, labels: {kubernetes.io/service-name: vip-1}}
addressType: IPv4
endpoints: [{addresses: ['fd00::1']}]
ports: [{port: 80}]
";

#[test]
fn each_wrong_object_is_named_with_its_place_and_the_rest_go_on() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    read(&place).expect_error(
        1,
        &[
            "docs/all.yaml:4: Service default/twice: spec.ports[1].port: port 80/TCP is there twice: refused (remove one)",
            "docs/all.yaml:9: Service default/family: spec.clusterIPs[0]: fd00:10:96::20 is not an IPv4 address",
            "Service default/port-2: spec.ports[0].nodePort: nodePort 30500/TCP belongs to Service default/port-1",
            "Service default/vip-2: spec.clusterIPs[0]: 10.96.0.30 belongs to Service default/vip-1",
            "docs/all.yaml:32: kind: no kind Services (did you mean Service?)",
            "docs/all.yaml:35: unclosed bracket",
            "EndpointSlice default/slice: endpoints[0].addresses[0]: fd00::1 is not an IPv4 address",
            // It went as far as a machine without a bpffs lets it.
            "is not a bpffs",
        ],
    );
    let allocated = fs::read_to_string(place.path("allocations.json")).expect("allocations");
    for (service, is_there) in [("default/port-1", true), ("default/vip-1", true), ("default/twice", false)] {
        assert_eq!(allocated.contains(service), is_there, "{service} in {allocated}");
    }
}

#[test]
fn where_nothing_can_be_read_the_first_error_is_told() {
    let place = Place::new();
    read(&place).expect_error(1, &["docs: No such file", "give a file or folder"]);
    place.file("docs/broken.yaml", "kind: Service\n  metadata: [\n");
    read(&place).expect_error(1, &["no document can be read", "docs/broken.yaml:"]);
    place.file("docs/broken.yaml", "\u{0}\u{1}\u{fffd}");
    read(&place).expect_error(1, &["docs/broken.yaml"]);
}

#[test]
fn a_corrupt_allocation_file_is_told_and_left_alone() {
    let place = Place::new();
    place.file("docs/empty.yaml", "");
    let service = "{\"clusterIPs\": [\"10.96.0.1\"]}";
    for text in [
        "",
        "{",
        "[]",
        "{\"version\": 9, \"services\": {}}",
        "{\"version\": 1, \"services\": {\"a\": {}}}",
        &format!("{{\"version\": 1, \"services\": {{\"d/a\": {service}, \"d/b\": {service}}}}}"),
    ] {
        let file = place.file("allocations.json", text);
        read(&place).expect_error(1, &["allocation file allocations.json: ", "restore it, or delete it"]);
        assert_eq!(fs::read_to_string(file).expect("still there"), text);
    }
}

#[test]
fn a_locked_allocation_file_is_waited_for_and_then_told() {
    let place = Place::new();
    place.file("docs/empty.yaml", "");
    let lock = fs::File::create(place.path("allocations.json.lock")).expect("the lock file");
    lock.lock().expect("the lock");
    let start = Instant::now();
    read(&place).expect_error(1, &["allocation file allocations.json: locked by another process", "stop that process"]);
    let waited = start.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(30)).contains(&waited), "{waited:?}");
    drop(lock);
    read(&place).expect_error(1, &["is not a bpffs"]);
}

#[test]
fn who_must_listen_and_cannot_ends_and_says_why() {
    let place = Place::new();
    place.file("docs/empty.yaml", "");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("an address");
    let config = |hard: bool, field: &str| {
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             healthzBindAddress: 'off'\nmetricsBindAddress: 'off'\nbindAddressHardFail: {hard}\n"
        )
        .replace(&format!("{field}: 'off'"), &format!("{field}: {at}"))
    };
    let run = |text: String| {
        place.file("config.yaml", &text);
        place.run(&[
            "run",
            "-f",
            "docs",
            "--node",
            "node1",
            "--allocations",
            "allocations.json",
            "--config",
            "config.yaml",
        ])
    };
    for (server, field) in [("health", "healthzBindAddress"), ("metrics", "metricsBindAddress")] {
        let cause = format!("{server}: cannot listen at {at}: Address already in use");
        let hard =
            format!("{cause} (os error 98), and bindAddressHardFail is true; end what listens there, or set {field}");
        run(config(true, field)).expect_error(1, &[&hard]);
        // Without it the agent goes on, and ends for want of a bpffs.
        run(config(false, field)).expect_error(1, &["is not a bpffs"]);
    }
    drop(taken);
    // A child that another test starts has a copy of the socket until it is its program.
    let end = Instant::now() + Duration::from_secs(10);
    let free = loop {
        let free = run(config(true, "healthzBindAddress"));
        if !free.stderr.contains("Address already in use") || Instant::now() > end {
            break free;
        }
    };
    free.expect_error(1, &["is not a bpffs"]);
}
