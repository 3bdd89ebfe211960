//! R8 on a node: with a map of the configured size full, a Service that does not fit is refused whole and told at once,
//! the others serve old and new connections, and room that comes is used without a restart.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Cluster, Echo, Setup, TARGET, World,
    client::{Call, Hold},
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use serde_json::{Value, json};

/// The smallest sizes there are.
const MAPS: &str = "maps: {services: 16, frontends: 16, backends: 16, rings: 16}\n";

/// A Service with endpoints that nobody needs to answer for.
fn filler(name: &str, family: &str, ports: u16, balancers: u8, endpoints: u8) -> Vec<Value> {
    let port = |number: u16| json!({"name": format!("p{number}"), "port": 1000 + number, "targetPort": 9});
    let number = u8::from(name == "late") * 100;
    let ip = |index: u8| json!({"ip": format!("203.0.113.{}", number + index + 1)});
    let address = |index: u8| match family {
        "IPv4" => format!("10.244.9.{}", number + index + 1),
        _ => format!("fd00:10:244:9::{}", number + index + 1),
    };
    let ports: Vec<_> = (0..ports).map(port).collect();
    let endpoints: Vec<_> = (0..endpoints).map(|index| json!({"addresses": [address(index)]})).collect();
    let slice_ports: Vec<_> = ports.iter().map(|port| json!({"name": port["name"], "port": 9})).collect();
    let balancers: Vec<_> = (0..balancers).map(ip).collect();
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ipFamilies": [family], "ports": ports},
            "status": {"loadBalancer": {"ingress": balancers}},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": family, "ports": slice_ports, "endpoints": endpoints,
        }),
    ]
}

fn problem(agent: &Agent, object: &str) -> Option<(String, String)> {
    let problems = agent.status().expect("a status").problems;
    problems.into_iter().find(|problem| problem.object == object).map(|problem| (problem.cause, problem.fix))
}

#[test]
fn r8_map_full_in_a_node() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    world.apply_nodes().expect("nodes");
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    let web = Service::new("web", "app", "web").port(80, TARGET, Some(lb_tests::NODE_PORT));
    world.apply_service(&web.fields(json!({"type": "NodePort"}))).expect("a Service");
    let _server = Echo::start(pod, &[TARGET], &[TARGET]).expect("a server");
    let setup = Setup { more: MAPS.to_owned(), ..Setup::tcx(false) };
    let agent = Agent::start(&world, node, &setup).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let to: Vec<SocketAddr> = Cluster::node_ports_of(node).into();
    let held: Vec<_> = to.iter().map(|to| Hold::start(world.client(), *to).expect("a held connection")).collect();
    // `web` has 4 service ports, and of each family 2 backends, 2 slots and some 4 frontends.
    let mut slowest = Duration::ZERO;
    let rows = [
        ("LB_SERVICES", filler("first", "IPv4", 7, 0, 0), filler("late", "IPv4", 7, 0, 0)),
        ("LB4_FRONTENDS", filler("first", "IPv4", 1, 6, 0), filler("late", "IPv4", 1, 6, 0)),
        ("LB4_BACKENDS", filler("first", "IPv4", 1, 0, 8), filler("late", "IPv4", 1, 0, 8)),
        ("LB_RINGS", filler("first", "IPv4", 1, 0, 6), filler("late", "IPv6", 1, 0, 8)),
    ];
    for (map, first, late) in &rows {
        world.apply_documents("first.yaml", first).expect("documents");
        let endpoints = |documents: &[Value]| documents[1]["endpoints"].as_array().map_or(0, |all| all.len() as u64);
        agent.wait_service("first", endpoints(first)).expect("the first Service");
        assert_eq!(problem(&agent, "Service default/first"), None, "{map}");
        let frontends = |name: &str| {
            let text = agent.query(&["backend", "list", "-o", "json"]).expect("backends");
            text.matches(&format!("\"name\": \"{name}\"")).count() as u64
        };

        let start = Instant::now();
        world.apply_documents("late.yaml", late).expect("documents");
        let (cause, fix) = wait_until(&format!("{map}: the refusal"), Duration::from_secs(1), || {
            problem(&agent, "Service default/late").ok_or_else(|| "not told".to_owned())
        })
        .expect("told");
        slowest = slowest.max(start.elapsed());
        assert!(cause.contains(&format!("map {map} ")) && cause.contains("is not programmed"), "{map}: {cause}");
        assert!(fix.contains("in BallastConfiguration") && fix.contains("remove Services"), "{map}: {fix}");
        let detail = agent.query(&["service", "describe", "default/late"]).expect("a detail");
        assert!(detail.contains("does not fit"), "{detail}");
        assert_eq!(frontends("late"), 0, "{map}: refused whole");
        assert_eq!(frontends("first"), endpoints(first), "{map}");
        for to in &to {
            Call::tcp(*to).run_one(world.client()).expect("a run").reached().expect("the others serve");
        }

        world.remove("first.yaml").expect("removed");
        wait_until(&format!("{map}: room"), Duration::from_secs(10), || {
            match problem(&agent, "Service default/late") {
                None => Ok(()),
                Some((cause, _)) => Err(cause),
            }
        })
        .expect("recovered");
        assert_eq!(frontends("late"), endpoints(late), "{map}");
        world.remove("late.yaml").expect("removed");
        wait_until(&format!("{map}: empty"), Duration::from_secs(10), || match frontends("late") {
            0 => Ok(()),
            count => Err(format!("{count} backends")),
        })
        .expect("gone");
    }
    let mut echoes = 0;
    for hold in held {
        let report = hold.stop().expect("a report");
        assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
        echoes += report.rounds;
    }
    scoreboard(
        "R8",
        &format!(
            "map_full in a node, {} maps at their configured size: told after at most {} ms, other Services answer new \
             connections and {echoes} echoes of open ones, room is used without a restart",
            rows.len(),
            slowest.as_millis()
        ),
    );
}
