//! `ballast controller` on an API server: addresses in statuses, one leader, nothing of others touched, reasons told.

mod refused;
mod wrong_pools;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use lb_tests::{
    Process,
    api_server::{ApiServer, Fault},
    binary, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const CONDITION: &str = "ballast.dev/LoadBalancerAddresses";
const POOLS: &str = "[{name: home, addresses: [198.51.100.1-198.51.100.2, '2001:db8::1-2001:db8::9']}]";

struct Controller {
    process: Process,
    health: SocketAddr,
    metrics: SocketAddr,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

impl Controller {
    fn start(api: &ApiServer, more: &[&str]) -> Self {
        let (health, metrics) = (free(), free());
        let mut command = Command::new(binary("ballast").expect("ballast"));
        command.args(["controller", "--master", &api.url()]).args(more);
        command.args(["--healthz-bind-address", &health.to_string(), "--metrics-bind-address", &metrics.to_string()]);
        if !more.contains(&"--leader-elect") {
            let quick = ["--leader-elect-lease-duration", "3s", "--leader-elect-renew-deadline", "2s"];
            command.args(quick).args(["--leader-elect-retry-period", "200ms"]);
        }
        Self { process: Process::spawn("ballast controller", command).expect("started"), health, metrics }
    }

    fn with_map(api: &ApiServer) -> Self {
        Self::start(api, &["--config-map", "kube-system/pools"])
    }

    fn get(at: SocketAddr, path: &str) -> String {
        let url = format!("http://{at}{path}");
        let output = Command::new("curl").args(["-s", "-w", " %{http_code}", &url]).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn() -> Result<(), String>) {
        wait_until(what, Duration::from_secs(30), done)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.process.stderr()));
    }

    fn leads(&self) -> bool {
        Self::get(self.metrics, "/metrics").lines().any(|line| line == "ballast_controller_leader 1")
    }
}

fn service(name: &str, spec: &Value) -> Value {
    let mut whole = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    });
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("fields").clone());
    let metadata = json!({"name": name, "namespace": "default", "uid": format!("uid-of-{name}")});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": whole})
}

fn pools(yaml: &str) -> Value {
    let text = format!("apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\naddressPools: {yaml}\n");
    let metadata = json!({"name": "pools", "namespace": "kube-system"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": text}})
}

fn cluster() -> ApiServer {
    let api = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("a listener")).expect("a server");
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
    api.put(service(
        "kubernetes",
        &json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}),
    ));
    api.put(pools(POOLS));
    api
}

fn find(api: &ApiServer, name: &str) -> Value {
    api.objects("services").into_iter().find(|service| service["metadata"]["name"] == name).unwrap_or_default()
}

fn ips(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress
        .iter()
        .map(|entry| format!("{}/{}", entry["ip"].as_str().unwrap_or("?"), entry["ipMode"].as_str().unwrap_or("?")))
        .collect()
}

fn condition(service: &Value) -> Value {
    let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == CONDITION).unwrap_or_default()
}

fn has(api: &ApiServer, name: &str, expected: &[&str]) -> Result<(), String> {
    let service = find(api, name);
    let expected: Vec<String> = expected.iter().map(|ip| format!("{ip}/VIP")).collect();
    if ips(&service) == expected { Ok(()) } else { Err(format!("{name}: {}", service["status"])) }
}

#[test]
fn addresses_are_given_refused_with_an_event_and_given_back() {
    let api = cluster();
    api.put(service("a", &json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.9", "fd00::9"]})));
    let mut b = service("b", &json!({"loadBalancerClass": "ballast.dev/lb"}));
    b["status"] = json!({"conditions": [{"type": "other", "status": "True"}], "loadBalancer": {}});
    api.put(b);
    let controller = Controller::with_map(&api);
    controller.wait("both have addresses", || {
        has(&api, "a", &["198.51.100.1", "2001:db8::1"])?;
        has(&api, "b", &["198.51.100.2"])
    });
    let b = find(&api, "b");
    assert_eq!(condition(&b)["message"], "198.51.100.2 of pool home");
    assert_eq!((&condition(&b)["status"], &b["status"]["conditions"][0]["type"]), (&json!("True"), &json!("other")));

    api.put(service("c", &json!({})));
    controller.wait("c is told why not", || {
        let condition = condition(&find(&api, "c"));
        let events = api.objects("events");
        let told = events.iter().any(|event| {
            event["reason"] == "AddressPoolsExhausted"
                && event["regarding"]["uid"] == "uid-of-c"
                && event["note"].as_str().is_some_and(|note| note.contains("home (198.51.100.1-198.51.100.2"))
        });
        if condition["status"] == "False" && told { Ok(()) } else { Err(format!("{condition} {events:?}")) }
    });
    has(&api, "a", &["198.51.100.1", "2001:db8::1"]).expect("a keeps its addresses");
    let page = Controller::get(controller.metrics, "/metrics");
    for line in [
        "ballast_controller_leader 1",
        "ballast_controller_services{state=\"pending\"} 1",
        "ballast_controller_pool_addresses_in_use{pool=\"home\"} 3",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }

    // Its type changes, so what it had is free.
    let mut changed = find(&api, "a");
    changed["spec"]["type"] = json!("NodePort");
    api.put(changed);
    controller.wait("c has an address", || has(&api, "c", &["198.51.100.1"]));
    controller.wait("a says nothing any more", || {
        let a = find(&api, "a");
        if ips(&a).is_empty() && condition(&a).is_null() { Ok(()) } else { Err(a["status"].to_string()) }
    });
    api.delete("services", "default", "b");
    api.put(service("d", &json!({})));
    controller.wait("d has what b had", || has(&api, "d", &["198.51.100.2"]));
    assert_eq!(api.objects("events").len(), 1, "{:?}", api.objects("events"));
}

#[test]
fn nothing_of_another_controller_is_touched() {
    let api = cluster();
    let mut foreign = service("a", &json!({"loadBalancerClass": "metallb.io/lb"}));
    foreign["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}});
    let mut cloud = service("b", &json!({}));
    cloud["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}});
    api.put(foreign.clone());
    api.put(cloud.clone());
    api.put(service("c", &json!({})));
    let controller = Controller::with_map(&api);
    controller.wait("c has what is free", || has(&api, "c", &["198.51.100.2"]));
    for (name, before) in [("a", foreign), ("b", cloud)] {
        assert_eq!(find(&api, name)["status"], before["status"], "{name}");
    }
    let writes: Vec<_> = api.requests().into_iter().filter(|request| request.ends_with("services/status")).collect();
    assert_eq!(writes, ["patch services/status"], "one write, for the one Service of ours");
}

#[test]
fn a_refused_service_is_logged_once() {
    let api = cluster();
    api.put(service("wrong", &json!({"clusterIP": "None", "clusterIPs": ["None"]})));
    api.put(service("a", &json!({})));
    let controller = Controller::with_map(&api);
    controller.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
    api.put(service("b", &json!({})));
    controller.wait("b has an address", || has(&api, "b", &["198.51.100.2"]));
    let log = controller.process.stderr();
    assert_eq!(log.lines().filter(|line| line.contains("default/wrong")).count(), 1, "{log}");
}

#[test]
fn one_leads_the_other_takes_over_when_it_ends_or_dies() {
    let api = cluster();
    let first = Controller::with_map(&api);
    first.wait("the first leads", || if first.leads() { Ok(()) } else { Err("it does not".to_owned()) });
    let second = Controller::with_map(&api);
    second.wait("the second is ready and knows its place", || {
        let ready = Controller::get(second.health, "/ready");
        if ready == "OK\n 200" && !second.leads() { Ok(()) } else { Err(ready) }
    });
    api.put(service("a", &json!({})));
    first.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
    let lease = || api.objects("leases").first().cloned().unwrap_or_default();
    let holder = lease()["spec"]["holderIdentity"].clone();
    assert_eq!(lease()["spec"]["leaseDurationSeconds"], 3);

    // Told to end, it gives the Lease back.
    first.process.signal(Signal::TERM).expect("signalled");
    second.wait("the second leads", || if second.leads() { Ok(()) } else { Err(lease().to_string()) });
    assert_ne!(lease()["spec"]["holderIdentity"], holder);
    assert_eq!(lease()["spec"]["leaseTransitions"], 1);
    assert!(
        first.process.stderr().contains("gave back Lease kube-system/ballast-controller"),
        "{}",
        first.process.stderr()
    );
    api.put(service("b", &json!({})));
    second.wait("b has an address, a its own", || {
        has(&api, "a", &["198.51.100.1"])?;
        has(&api, "b", &["198.51.100.2"])
    });

    // Killed, it holds the Lease until that ends.
    let third = Controller::with_map(&api);
    second.process.signal(Signal::KILL).expect("signalled");
    third.wait("the third leads", || if third.leads() { Ok(()) } else { Err(lease().to_string()) });
    api.delete("services", "default", "a");
    api.put(service("c", &json!({})));
    third.wait("c has what a had", || has(&api, "c", &["198.51.100.1"]));
}

#[test]
fn a_leader_that_cannot_renew_writes_nothing_more() {
    let api = cluster();
    api.put(service("z", &json!({})));
    let controller = Controller::with_map(&api);
    let assigned = |count: u32| {
        let page = Controller::get(controller.metrics, "/metrics");
        let line = format!("ballast_controller_services{{state=\"assigned\"}} {count}");
        if page.lines().any(|found| found == line) { Ok(()) } else { Err(page) }
    };
    controller.wait("it leads", || assigned(1));
    api.refuse("update", "leases", Some(Fault::Answer(500, None)));
    controller.wait("it leads no more", || if controller.leads() { Err("it does".to_owned()) } else { Ok(()) });
    controller.wait("what it decided is no more", || assigned(0));
    api.put(service("a", &json!({})));
    let renewals = || api.requests().iter().filter(|request| *request == "update leases").count();
    let before = renewals();
    controller.wait("it tries to renew", || if renewals() > before + 3 { Ok(()) } else { Err("no".to_owned()) });
    assert!(ips(&find(&api, "a")).is_empty());
    assert!(
        controller.process.stderr().contains("lost Lease kube-system/ballast-controller"),
        "{}",
        controller.process.stderr()
    );
    api.refuse("update", "leases", None);
    controller.wait("it leads again and writes", || has(&api, "a", &["198.51.100.2"]));
}

#[test]
fn who_loses_the_race_for_the_lease_does_not_lead() {
    let api = cluster();
    api.refuse("create", "leases", Some(Fault::Answer(409, None)));
    api.put(service("a", &json!({})));
    let controller = Controller::with_map(&api);
    controller.wait("it tries", || {
        let tries = api.requests().iter().filter(|request| *request == "create leases").count();
        if tries > 3 { Ok(()) } else { Err(tries.to_string()) }
    });
    assert!(!controller.leads() && ips(&find(&api, "a")).is_empty());
    api.refuse("create", "leases", None);
    controller.wait("it leads and writes", || has(&api, "a", &["198.51.100.1"]));
}

/// Its event is late: what is read in front of a write counts.
#[test]
fn a_service_that_is_another_one_by_now_is_not_written() {
    let api = cluster();
    api.put(pools("[{name: home, addresses: [198.51.100.1]}]"));
    for name in ["a", "b"] {
        api.put(service(name, &json!({})));
    }
    let controller = Controller::with_map(&api);
    controller.wait("b waits", || {
        let condition = condition(&find(&api, "b"));
        if condition["reason"] == "AddressPoolsExhausted" { Ok(()) } else { Err(condition.to_string()) }
    });
    api.hold("services", true);
    let mut changed = find(&api, "b");
    changed["spec"]["type"] = json!("NodePort");
    api.put(changed);
    api.put(pools(POOLS));
    controller.wait("it sees that b is another one", || {
        let page = Controller::get(controller.metrics, "/metrics");
        let outdated =
            page.lines().find_map(|line| line.strip_prefix("ballast_controller_status_writes_outdated_total "));
        if outdated.is_some_and(|count| count != "0") { Ok(()) } else { Err(page) }
    });
    assert!(ips(&find(&api, "b")).is_empty());
    api.hold("services", false);
    controller.wait("b says nothing any more", || {
        let condition = condition(&find(&api, "b"));
        if condition.is_null() { Ok(()) } else { Err(condition.to_string()) }
    });
}

#[test]
fn what_cannot_be_written_is_told_and_written_later() {
    let api = cluster();
    api.refuse("patch", "services/status", Some(Fault::Answer(403, None)));
    api.put(service("a", &json!({})));
    let controller = Controller::with_map(&api);
    controller.wait("it tells the missing rule", || {
        let log = controller.process.stderr();
        let rule = r#"{apiGroups: [""], resources: [services/status], verbs: [patch]}"#;
        if log.contains(rule) { Ok(()) } else { Err(log) }
    });
    // Somebody else is faster by one write: the newer object counts.
    api.refuse("patch", "services/status", None);
    api.fail("services/status", [Fault::Answer(409, None)]);
    controller.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
}

/// As `kubectl replace --force` does it; the events come together, while the write is under way.
#[test]
fn a_service_that_is_made_again_while_its_status_is_written_gets_its_address() {
    let api = cluster();
    let controller = Controller::with_map(&api);
    controller.wait("it leads", || if controller.leads() { Ok(()) } else { Err("it does not".to_owned()) });
    api.undo_patches("services", "a", 2);
    api.put(service("a", &json!({})));
    controller.wait("a has an address in the end", || has(&api, "a", &["198.51.100.1"]));
    assert_eq!(find(&api, "a")["metadata"]["uid"], "uid-of-a-again-again");
}

/// Of what was between nothing is told.
#[test]
fn a_service_that_a_new_list_shows_as_it_was_gets_its_address() {
    let api = cluster();
    let controller = Controller::with_map(&api);
    controller.wait("it leads", || if controller.leads() { Ok(()) } else { Err("it does not".to_owned()) });
    api.undo_patches("services", "a", 1);
    api.refuse("patch", "services/status", Some(Fault::Slow(1000)));
    api.put(service("a", &json!({})));
    controller.wait("a is written", || {
        let written = api.requests().iter().any(|request| request == "patch services/status");
        if written { Ok(()) } else { Err("it is not".to_owned()) }
    });
    api.hold("services", true);
    api.refuse("patch", "services/status", None);
    controller.wait("a is made again", || {
        let uid = find(&api, "a")["metadata"]["uid"].clone();
        if uid == "uid-of-a-again" { Ok(()) } else { Err(uid.to_string()) }
    });
    api.compact();
    api.hold("services", false);
    controller.wait("a has an address in the end", || has(&api, "a", &["198.51.100.1"]));
}

#[test]
fn pools_come_of_a_file_and_a_wrong_command_line_is_told() {
    let api = cluster();
    api.put(service("a", &json!({})));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.yaml");
    fs::write(&file, pools(POOLS)["data"]["config.yaml"].as_str().expect("text")).expect("written");
    let controller = Controller::start(&api, &["--config", file.to_str().expect("a path"), "--leader-elect", "false"]);
    controller.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
    assert!(api.objects("leases").is_empty(), "alone it needs no Lease");
    let said = |arguments: &[&str]| {
        let output = Command::new(binary("ballast").expect("ballast")).arg("controller").args(arguments).output();
        let output = output.expect("ballast");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--master", "http://127.0.0.1:1"]).contains("--config FILE or --config-map NAMESPACE/NAME"));
    let long = ["--leader-elect-lease-duration", "18446744073709551615s"];
    let long =
        said(&[&["--config-map", "a/b", "--leader-elect-renew-deadline", "18446744073709551614s"], &long[..]].concat());
    assert!(long.contains("18446744073709551614s is too long: write at most 1440m"), "{long}");
    let short = ["--master", "http://127.0.0.1:1", "--config-map", "a/b", "--leader-elect-lease-duration", "10s"];
    assert!(said(&short).contains("must be longer than the renew deadline"));
}
