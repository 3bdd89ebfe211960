//! What somebody else writes to the pinned maps is found, mended and told; the tables follow the network while the API is
//! away; what does not fit is an Event.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData};
use lb_tests::{
    Agent, Echo, NODE_PORT, Place, Setup, TARGET, World,
    api_server::ApiServer,
    client::Call,
    freeze,
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
    web::{get, value},
};
use lb_userspace::{
    bpf::Pins,
    report::{BackendRow, VerifyStatus},
};
use serde_json::{Value, json};

/// A small cluster is verified whole each second.
const BOUND: Duration = Duration::from_secs(5);

fn open(maps: &Path, name: &str) -> MapData {
    MapData::from_pin(maps.join(name)).expect("a pinned map")
}

fn verified(agent: &Agent) -> VerifyStatus {
    agent.status().expect("a status").verified.expect("of a running agent")
}

#[test]
fn what_was_changed_behind_the_agent_is_mended_and_told() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    world.apply_nodes().expect("nodes");
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
    let _server = Echo::start(pod, &[TARGET], &[]).expect("a server");
    let agent = Agent::start(&world, node, &Setup::tcx(false)).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let ask = || Call::tcp((IpAddr::V4(node.ipv4()), NODE_PORT)).timeout(Duration::from_secs(2));
    ask().run_one(world.client()).expect("a run").reached().expect("an answer");
    let cpu = |page: &str| value(page, "process_cpu_seconds_total");
    let page = || get(node, "127.0.0.1:10249", "/metrics").expect("a page").1;
    let (begin, idle) = (verified(&agent).entries, cpu(&page()));
    let since = Instant::now();
    wait_until("rounds over more than what is programmed", Duration::from_secs(30), || {
        let entries = verified(&agent).entries - begin;
        if entries > 30_000 { Ok(()) } else { Err(format!("{entries}")) }
    })
    .expect("rounds");
    let share = (cpu(&page()) - idle) / since.elapsed().as_secs_f64() * 100.0;
    println!("CPU of an idle agent that is asked for its status all the time: {share:.2} %");
    assert_eq!(verified(&agent).drift, [].into(), "nothing is wrong by itself");

    // Every frontend's record and every backend zeroed, a VIP removed and one added that nobody asked for.
    let maps = Pins::new(&node.bpffs()).maps();
    let mut vips: HashMap<_, [u8; 4], u64> = HashMap::try_from(Map::HashMap(open(&maps, "LB4_VIPS"))).expect("a hash");
    let before: Vec<[u8; 4]> = vips.keys().map(|key| key.expect("a key")).collect();
    vips.remove(before.first().expect("a VIP")).expect("removed");
    vips.insert([10, 96, 77, 77], 1, 0).expect("added");
    let mut words: Array<_, u64> = Array::try_from(Map::Array(open(&maps, "LB_SERVICES"))).expect("an array");
    let broken: Vec<u32> = (0..words.len()).filter(|index| words.get(index, 0).is_ok_and(|word| word != 0)).collect();
    for index in &broken {
        words.set(*index, 0, 0).expect("zeroed");
    }
    let since = Instant::now();
    let drift = 2 + broken.len() as u64;
    wait_until("the drift to be mended", BOUND, || {
        let found = verified(&agent);
        let told: u64 = found.drift.values().sum();
        if told == drift && found.repaired == drift { Ok(()) } else { Err(format!("{found:?} of {drift}")) }
    })
    .expect("mended");
    scoreboard("R17", &format!("{drift} foreign writes mended within {} ms", since.elapsed().as_millis()));
    let mut now: Vec<[u8; 4]> = vips.keys().map(|key| key.expect("a key")).collect();
    let mut before = before;
    now.sort_unstable();
    before.sort_unstable();
    assert_eq!(now, before, "the same VIPS as before");
    ask().run_one(world.client()).expect("a run").reached().expect("an answer");
    let status = agent.status().expect("a status");
    let told = status.warnings.iter().find(|warning| warning.object == "maps").expect("told");
    assert!(told.cause.contains("LB4_VIPS") && told.cause.contains("LB_SERVICES"), "{told:?}");
    assert_eq!(status.problems.iter().find(|problem| problem.object == "maps"), None, "nothing is degraded");
    let (_, page) = get(node, "127.0.0.1:10249", "/metrics").expect("a page");
    assert!((value(&page, "ballast_map_drift_entries_total{map=\"LB4_VIPS\"}") - 2.0).abs() < f64::EPSILON, "{page}");
    assert_eq!(get(node, "127.0.0.1:10256", "/healthz").expect("an answer").0, 200);
    // A round may have come between two of the writes.
    let lines = agent.stderr().matches("were not as programmed").count();
    assert!((1..=2).contains(&lines), "told once: {}", agent.stderr());
}

/// Waits for as long as a change may wait, which is a minute, until `/healthz` is 503; why it is.
fn unhealthy(node: &Place) -> String {
    let body = wait_until("/healthz", Duration::from_secs(90), || match get(node, "127.0.0.1:10256", "/healthz")? {
        (503, body) => Ok(body),
        other => Err(format!("{other:?}")),
    })
    .expect("unhealthy");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    body["cause"].as_str().expect("a cause").to_owned()
}

#[test]
fn a_map_that_nobody_can_write_to_any_more_is_told_by_healthz() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    world.apply_nodes().expect("nodes");
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    world.apply_service(&Service::new("web", "app", "web").port(80, TARGET, None)).expect("a Service");
    let agent = Agent::start(&world, node, &Setup::tcx(false)).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    assert_eq!(get(node, "127.0.0.1:10256", "/healthz").expect("an answer").0, 200);
    // Before the agent's next round, a second later at most, could mend it: a round between the two ends the test as well.
    let maps = Pins::new(&node.bpffs()).maps();
    let (map, same) = (open(&maps, "LB4_VIPS"), open(&maps, "LB4_VIPS"));
    let mut vips: HashMap<_, [u8; 4], u64> = HashMap::try_from(Map::HashMap(map)).expect("a hash");
    vips.insert([10, 96, 77, 77], 1, 0).expect("added");
    freeze(same.fd().as_fd()).expect("frozen");
    let since = Instant::now();
    let told = wait_until("the problem", BOUND, || {
        let problems = agent.status().map_err(|error| format!("{error:#}"))?.problems;
        problems.into_iter().find(|problem| problem.object == "maps").ok_or_else(|| "not told".to_owned())
    })
    .expect("told");
    assert!(told.cause.contains("LB4_VIPS") && told.fix.contains("frozen"), "{told:?}");
    let cause = unhealthy(node);
    println!("/healthz is 503 after {} s", since.elapsed().as_secs());
    assert!(cause.starts_with("maps: writing map LB4_VIPS failed") && cause.contains("frozen"), "{cause}");
    // What the map held before is served on.
    assert_eq!(agent.status().expect("a status").services, 1);
}

/// A world with an API server at its client's address.
fn cluster_ip(name: &str, vip: &str, ports: u16) -> Value {
    let ports: Vec<_> = (0..ports)
        .map(|number| json!({"name": format!("p{number}"), "protocol": "TCP", "port": 80 + number}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
        "spec": {
            "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"],
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "ports": ports,
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(name: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "p0", "protocol": "TCP", "port": TARGET}],
        "endpoints": endpoints,
    })
}

/// Gives a node the address `source`, from which it reaches `to` from now on.
fn another_way(node: &Place, to: &str, source: &str) {
    let route = node.namespace().ip_output(&["-4", "route", "get", to]).expect("a route");
    let words: Vec<&str> = route.split_whitespace().collect();
    let after = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]).expect(name);
    let (gateway, device) = (after("via"), after("dev"));
    let batch =
        format!("addr add {source}/32 dev {device}\nroute replace {to}/32 via {gateway} dev {device} src {source}\n");
    node.namespace().ip(&batch).expect("another way");
}

#[test]
fn while_the_api_is_away_after_a_restart_the_tables_follow_the_network() {
    needs_root!();
    let world = World::builder().rp_filter(1).build().expect("a world");
    let api = ApiServer::of_world(&world).expect("an API server");
    let node = world.node(0);
    let other = world.pods().nth(2).expect("a pod of another node");
    let _server = Echo::start(other.place(), &[TARGET], &[]).expect("a server");
    api.put(cluster_ip("web", "10.96.0.10", 1));
    api.put(slice("web", &[other.ipv4().to_string()]));
    let mut agent = Agent::start_on(&world, node, &Setup::tcx(true), ["--master", &api.url()]).expect("an agent");
    let call = || {
        let to = SocketAddr::new("10.96.0.10".parse().expect("an address"), 80);
        let answer = Call::tcp(to).timeout(Duration::from_secs(2)).run_one(node.pod(0).place());
        answer.map_err(|error| format!("{error:#}"))?.reached().map(drop).map_err(|error| format!("{error:#}"))
    };
    wait_until("an answer", Duration::from_secs(10), call).expect("served");
    let row = |agent: &Agent| -> BackendRow {
        let rows = agent.query(&["backend", "list", "-o", "json"]).expect("backends");
        let rows: Vec<BackendRow> = serde_json::from_str(&rows).expect("rows");
        rows.into_iter().find(|row| row.address == IpAddr::V4(other.ipv4())).expect("the backend")
    };
    let first = row(&agent);
    api.away(true);
    agent.kill().expect("killed");
    // While it is down, and again while it runs: the node has another address towards the backend.
    let mut seen = Vec::new();
    for (number, running) in [(1, false), (2, true)] {
        let source = format!("192.0.2.{number}");
        if running {
            assert!(seen.iter().all(|seen| *seen != source));
        }
        another_way(node, &other.ipv4().to_string(), &source);
        if !running {
            agent.launch().expect("launched");
        }
        wait_until(&format!("{source} in the tables"), Duration::from_secs(10), || {
            let row = row(&agent);
            let source: IpAddr = source.parse().map_err(|_| "no address".to_owned())?;
            if row.source == Some(source) { Ok(()) } else { Err(format!("{row:?}")) }
        })
        .expect("followed");
        seen.push(source);
        // The same backend, in the same slot: its flows stay.
        let now = row(&agent);
        assert_eq!((now.slot, now.generation, &now.state), (first.slot, first.generation, &first.state));
        call().expect("still served");
    }
    let status = agent.status().expect("a status");
    assert!(status.problems.iter().any(|problem| problem.object == "source"), "{:?}", status.problems);
    api.away(false);
    wait_until("all to be well", Duration::from_secs(15), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        if status.problems.is_empty() { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .expect("well");
    assert_eq!(row(&agent).generation, first.generation);
    call().expect("served");
}

#[test]
fn tables_that_cannot_follow_the_network_while_the_api_is_away_are_told_by_healthz() {
    needs_root!();
    let world = World::builder().rp_filter(1).build().expect("a world");
    let api = ApiServer::of_world(&world).expect("an API server");
    let node = world.node(0);
    let other = world.pods().nth(2).expect("a pod of another node").ipv4().to_string();
    api.put(cluster_ip("web", "10.96.0.10", 1));
    api.put(slice("web", std::slice::from_ref(&other)));
    let mut agent = Agent::start_on(&world, node, &Setup::tcx(true), ["--master", &api.url()]).expect("an agent");
    agent.wait_service("web", 1).expect("the Service");
    api.away(true);
    agent.kill().expect("killed");
    freeze(open(&Pins::new(&node.bpffs()).maps(), "LB4_NEXT_HOPS").fd().as_fd()).expect("frozen");
    another_way(node, &other, "192.0.2.1");
    agent.launch().expect("launched");
    let cause = unhealthy(node);
    assert!(cause.starts_with("maps: writing map LB4_NEXT_HOPS failed") && cause.contains("frozen"), "{cause}");
}

#[test]
fn r8_what_does_not_fit_is_an_event_and_a_metric_within_a_second() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    let api = ApiServer::of_world(&world).expect("an API server");
    let node = world.node(0);
    api.put(cluster_ip("web", "10.96.0.10", 1));
    let more = "maps: {services: 16, frontends: 16, backends: 16, rings: 16}\n".to_owned();
    let setup = Setup { more, ..Setup::tcx(false) };
    let agent = Agent::start_on(&world, node, &setup, ["--master", &api.url()]).expect("an agent");
    agent.wait_service("web", 0).expect("listed");
    assert_eq!(api.objects("events"), [Value::Null; 0]);
    api.put(cluster_ip("large", "10.96.0.20", 40));
    let since = Instant::now();
    let told = wait_until("the Event", Duration::from_secs(5), || {
        api.objects("events").into_iter().next().ok_or_else(|| "none".to_owned())
    })
    .expect("an Event");
    let took = since.elapsed();
    scoreboard("R8", &format!("a Service that does not fit is an Event after {} ms", took.as_millis()));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let regarding = &told["regarding"];
    assert_eq!(
        (&regarding["name"], &regarding["uid"], &told["reason"]),
        (&"large".into(), &"uid-of-large".into(), &"NoRoom".into())
    );
    let note = told["note"].as_str().expect("a note");
    assert!(note.contains("max_entries 16") && note.contains("BallastConfiguration"), "{note}");
    let (_, page) = get(node, "127.0.0.1:10249", "/metrics").expect("a page");
    assert!((value(&page, "ballast_skipped_services{reason=\"NoRoom\"}") - 1.0).abs() < f64::EPSILON, "{page}");
    assert!((value(&page, "ballast_events_total{outcome=\"sent\"}") - 1.0).abs() < f64::EPSILON, "{page}");
    let of_client =
        page.lines().filter(|line| line.starts_with("rest_client_requests_total{code=\"200\",method=\"GET\""));
    assert_eq!(of_client.count(), 1, "{page}");
    // Told once, however often the rest changes; over when there is room.
    for number in 0..3_u16 {
        api.put(cluster_ip("web", "10.96.0.10", 1 + number % 2));
        agent.wait_service("web", 0).expect("listed");
    }
    api.delete("services", "default", "large");
    wait_until("the metric to go", Duration::from_secs(5), || {
        let (_, page) = get(node, "127.0.0.1:10249", "/metrics")?;
        let refused = value(&page, "ballast_skipped_services{reason=\"NoRoom\"}");
        if refused.abs() < f64::EPSILON { Ok(()) } else { Err(format!("{refused}")) }
    })
    .expect("gone");
    let events = api.objects("events");
    assert_eq!(events.len(), 1, "{events:#?}");
}

#[test]
fn a_node_and_a_service_cidr_that_cannot_be_used_have_an_event() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    let api = ApiServer::of_world(&world).expect("an API server");
    let node = world.node(0);
    api.put(cluster_ip("web", "10.96.0.10", 1));
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name(), "uid": "uid-of-the-node"},
        "spec": {"podCIDRs": ["nonsense"]},
    }));
    api.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "uid": "uid-of-the-range"}, "spec": {"cidrs": ["10.96.0.0/99"]},
    }));
    let agent = Agent::start_on(&world, node, &Setup::tcx(false), ["--master", &api.url()]).expect("an agent");
    agent.wait_service("web", 0).expect("listed");
    let told = |event: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["regarding"]["uid"]), text(&event["metadata"]["namespace"]), text(&event["reason"]))
    };
    let wanted: BTreeSet<_> = ["uid-of-the-node", "uid-of-the-range"]
        .map(|uid| (uid.to_owned(), "default".to_owned(), "Invalid".to_owned()))
        .into();
    wait_until("the Events", Duration::from_secs(10), || {
        let found: BTreeSet<_> = api.objects("events").iter().map(told).collect();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .expect("told");
}
