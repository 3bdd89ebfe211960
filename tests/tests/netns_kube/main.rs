//! Agents on an API server: what it says is served, and goes on to be when it is away.

mod clock;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Echo, Setup, TARGET, World,
    api_server::{ApiServer, Fault},
    client::{Call, Hold},
    needs_root, scoreboard, wait_until,
};
use serde_json::{Value, json};

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];

/// A world with an API server at its client's address, which nodes reach without any Service.
struct Kube {
    api: ApiServer,
    _servers: Vec<Echo>,
    world: World,
}

impl Kube {
    fn new() -> Self {
        let world = World::builder().rp_filter(1).build().expect("a world");
        let api = ApiServer::of_world(&world).expect("an API server");
        let servers = world.pods().map(|pod| Echo::start(pod.place(), &[TARGET], &[TARGET]));
        let servers = servers.collect::<anyhow::Result<_>>().expect("servers");
        Self { api, _servers: servers, world }
    }

    /// Service `web` with these pods, by their numbers.
    fn serve(&self, pods: &[usize]) {
        self.api.put(service("web", VIPS));
        for family in ["IPv4", "IPv6"] {
            self.api.put(self.slice(family, pods));
        }
    }

    fn slice(&self, family: &str, pods: &[usize]) -> Value {
        let all: Vec<_> = self.world.pods().collect();
        let endpoint = |index: &usize| {
            let pod = all[*index];
            let address: IpAddr = if family == "IPv4" { pod.ipv4().into() } else { pod.ipv6().into() };
            json!({"addresses": [address], "nodeName": pod.node(), "conditions": {"ready": true}})
        };
        let trigger = jiff::Timestamp::now().to_string();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("web-{}", family.to_lowercase()), "namespace": "default",
                "labels": {
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger},
            },
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }

    fn agent(&self, setup: &Setup) -> Agent {
        Agent::start_on(&self.world, self.world.node(0), setup, ["--master", &self.api.url()]).expect("an agent")
    }

    /// Who answers a connection from a pod of node 1.
    fn call(&self, vip: &str) -> anyhow::Result<String> {
        let to = SocketAddr::new(vip.parse()?, 80);
        let answer = Call::tcp(to).timeout(Duration::from_secs(2)).run_one(self.world.node(0).pod(0).place())?;
        Ok(answer.reached()?.0.to_owned())
    }

    fn wait_call(&self, vip: &str, expected: &str) {
        wait_until(&format!("{expected} behind {vip}"), Duration::from_secs(10), || match self.call(vip) {
            Ok(name) if name == expected => Ok(()),
            Ok(name) => Err(format!("{name} answered")),
            Err(error) => Err(format!("{error:#}")),
        })
        .expect("served");
    }

    fn pod(&self, index: usize) -> String {
        self.world.pods().nth(index).expect("a pod").name().to_owned()
    }
}

fn service(name: &str, vips: [&str; 2]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": vips[0], "clusterIPs": vips, "ipFamilies": ["IPv4", "IPv6"],
            "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET}],
        },
        "status": {"loadBalancer": {}},
    })
}

#[test]
fn what_the_api_says_is_served_and_stays_so_without_it() {
    needs_root!();
    let kube = Kube::new();
    kube.serve(&[2]);
    let mut agent = kube.agent(&Setup::tcx(true));
    for vip in VIPS {
        kube.wait_call(vip, &kube.pod(2));
    }
    let status = agent.status().expect("a status");
    assert!(status.source.contains(&kube.api.url()), "{}", status.source);
    assert_eq!(status.watches.len(), 4);
    assert!(status.watches.iter().all(|watch| watch.synced), "{:?}", status.watches);
    assert_eq!(status.warnings, []);
    assert_eq!(status.detector, format!("NodeCIDR {}", kube.world.node(0).pod_cidrs().join(",")));

    // A change, another kind of change, and a Service that another proxy serves.
    kube.serve(&[3]);
    kube.wait_call(VIPS[0], &kube.pod(3));
    let mut foreign = service("foreign", ["10.96.0.20", "fd00:10:96::20"]);
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    kube.api.put(foreign);
    kube.api.put(service("last", ["10.96.0.30", "fd00:10:96::30"]));
    agent.wait_service("last", 0).expect("listed");
    assert!(agent.services().expect("rows").iter().all(|row| row.name != "foreign"));

    // The API server goes away: forwarding goes on, and it is told.
    let to = SocketAddr::new(VIPS[0].parse().expect("an address"), 80);
    let hold = Hold::start(kube.world.node(0).pod(0).place(), to).expect("a held connection");
    kube.api.away(true);
    wait_until("the watches to be told broken", Duration::from_secs(20), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let broken = status.problems.iter().filter(|problem| problem.object.starts_with("watch of ")).count();
        if broken == 4 { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .expect("told");
    assert_eq!(kube.call(VIPS[0]).expect("an answer"), kube.pod(3));
    // So does the agent, and comes back to no API server: nothing is touched.
    agent.kill().expect("killed");
    agent.launch().expect("launched");
    assert_eq!(kube.call(VIPS[1]).expect("an answer"), kube.pod(3));
    let status = agent.status().expect("a status");
    assert!(status.problems.iter().any(|problem| problem.object == "source"), "{:?}", status.problems);
    // What was last saved is shown, at most 30 s old: it is from the start of this test.
    agent.wait_service("web", 2).expect("shown");

    // What changed meanwhile is there soon after it is back.
    kube.serve(&[2]);
    kube.api.delete("services", "default", "last");
    let begin = Instant::now();
    kube.api.away(false);
    kube.wait_call(VIPS[0], &kube.pod(2));
    let back = begin.elapsed();
    wait_until("the deleted Service to go", Duration::from_secs(10), || {
        let rows = agent.services().map_err(|error| format!("{error:#}"))?;
        if rows.iter().any(|row| row.name == "last") { Err("listed".to_owned()) } else { Ok(()) }
    })
    .expect("gone");
    wait_until("all to be well", Duration::from_secs(10), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        if status.problems.is_empty() { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .expect("well");
    let report = hold.stop().expect("a report");
    assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
    scoreboard(
        "R4",
        &format!(
            "the API server away, the agent killed and started meanwhile: an open connection echoed {} times without an error, \
             new ones are served, nothing is deleted; changes are there {} ms after it is back",
            report.rounds,
            back.as_millis()
        ),
    );
}

#[test]
fn a_cluster_that_does_not_answer_yet_deletes_nothing() {
    needs_root!();
    let kube = Kube::new();
    kube.serve(&[2]);
    let mut agent = kube.agent(&Setup::tcx(true));
    kube.wait_call(VIPS[0], &kube.pod(2));
    agent.stop().expect("stopped");
    std::fs::remove_file(kube.world.node(0).state_dir().join("snapshot")).expect("removed");
    // Services are listed, slices are refused: half of the truth is none.
    kube.api.refuse("list", "endpointslices", Some(Fault::Answer(403, None)));
    agent.launch().expect("launched");
    let problem = wait_until("the refusal to be told", Duration::from_secs(10), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let listed = status.watches.iter().any(|watch| watch.resource == "services" && watch.synced);
        let told = status.problems.iter().find(|problem| problem.object == "watch of endpointslices");
        told.filter(|_| listed).cloned().ok_or_else(|| format!("{:?}", status.problems))
    })
    .expect("told");
    assert!(problem.cause.contains("403"), "{problem:?}");
    let rule = r#"{apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [list, watch]}"#;
    assert!(problem.fix.contains(rule), "{problem:?}");
    // A change of the network is no reason to write tables either.
    kube.world
        .node(0)
        .place()
        .namespace()
        .ip("link add late0 type veth peer name late1\nlink set late0 up\nlink set late1 up\n")
        .expect("a link");
    wait_until("the link to be seen", Duration::from_secs(10), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let seen = status.devices.iter().any(|device| device.name == "late0");
        if seen { Ok(()) } else { Err(format!("{:?}", status.devices)) }
    })
    .expect("seen");
    assert_eq!(kube.call(VIPS[0]).expect("an answer"), kube.pod(2));
    let told = agent.stderr().matches("watch of endpointslices").count();
    assert_eq!(told, 1, "told once: {}", agent.stderr());
    kube.serve(&[3]);
    kube.api.refuse("list", "endpointslices", None);
    kube.wait_call(VIPS[0], &kube.pod(3));
}

#[test]
fn after_a_reboot_a_snapshot_serves_until_the_api_answers() {
    needs_root!();
    let kube = Kube::new();
    kube.serve(&[2]);
    let mut agent = kube.agent(&Setup::tcx(true));
    kube.wait_call(VIPS[0], &kube.pod(2));
    agent.stop().expect("stopped");
    agent.reboot().expect("as after a reboot");
    assert!(kube.call(VIPS[0]).is_err(), "nothing is served");
    kube.api.away(true);
    let begin = Instant::now();
    agent.launch().expect("launched");
    kube.wait_call(VIPS[0], &kube.pod(2));
    let booted = begin.elapsed().as_millis();
    scoreboard("R13", &format!("nothing pinned and no API server: a snapshot of one Service serves after {booted} ms"));
    let status = agent.status().expect("a status");
    assert!(status.stale_seconds.is_some(), "{status:?}");
    assert!(status.problems.iter().any(|problem| problem.object == "source"), "{:?}", status.problems);
    kube.serve(&[3]);
    kube.api.away(false);
    kube.wait_call(VIPS[0], &kube.pod(3));
    wait_until("the snapshot to be over", Duration::from_secs(10), || {
        let stale = agent.status().map_err(|error| format!("{error:#}"))?.stale_seconds;
        if stale.is_none() { Ok(()) } else { Err(format!("{stale:?}")) }
    })
    .expect("over");
}

#[test]
fn rule_2_3_7_ranges_come_from_the_server_from_a_flag_or_are_missed() {
    needs_root!();
    let kube = Kube::new();
    kube.serve(&[2]);
    let ranges = kube.api.objects("servicecidrs");
    kube.api.delete("servicecidrs", "", "kubernetes");
    let mut agent = kube.agent(&Setup::tcx(true));
    kube.wait_call(VIPS[0], &kube.pod(2));
    let ask = |agent: &Agent, counts: bool| {
        wait_until(&format!("dropped: {counts}"), Duration::from_secs(20), || {
            if let Ok(name) = kube.call("10.96.0.99") {
                return Err(format!("{name} answered"));
            }
            let status = agent.status().map_err(|error| format!("{error:#}"))?;
            let count = status.counters.get("Unallocated").copied().unwrap_or(0);
            let told = status.warnings.iter().any(|warning| warning.object == "Service CIDRs");
            if (count > 0, told) == (counts, !counts) { Ok(()) } else { Err(format!("{count} dropped, told: {told}")) }
        })
        .expect("as wanted");
    };
    ask(&agent, false);
    // As soon as the server has some.
    for range in ranges {
        kube.api.put(range);
    }
    ask(&agent, true);
    agent.stop().expect("stopped");
    agent.cleanup().expect("cleaned");
    // With the flag nobody asks the server for any.
    kube.api.delete("servicecidrs", "", "kubernetes");
    let asked = |kube: &Kube| kube.api.requests().iter().filter(|request| request.contains("servicecidrs")).count();
    let before = asked(&kube);
    let url = kube.api.url();
    let source = ["--master", &url, "--service-cidr", "10.96.0.0/16,fd00:10:96::/112"];
    let agent = Agent::start_on(&kube.world, kube.world.node(0), &Setup::tcx(true), source).expect("an agent");
    kube.wait_call(VIPS[0], &kube.pod(2));
    ask(&agent, true);
    assert_eq!(asked(&kube), before);
    assert_eq!(agent.status().expect("a status").watches.len(), 3);
}
