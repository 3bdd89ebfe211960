//! The agent's health and metrics, asked as a kubelet and a scraper ask (semantics.md 2.6.5, 2.6.6).

use std::{net::TcpListener, time::Duration};

use lb_tests::{
    Agent, Echo, NODE_PORT, Setup, TARGET, World,
    client::Call,
    kube::{PodSpec, Service},
    needs_root, wait_until,
    web::{get, value},
};
use serde_json::{Value, json};

fn world() -> World {
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    world.apply_nodes().expect("nodes");
    world.apply_pod(world.node(0).pod(0), &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
    world
}

#[test]
fn rule_2_6_5_a_running_agent_is_healthy_and_counts() {
    needs_root!();
    let world = world();
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    let _server = Echo::start(pod, &[TARGET], &[]).expect("a server");
    let agent = Agent::start(&world, node, &Setup::tcx(false)).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    for (path, keys) in
        [("/healthz", &["currentTime", "lastUpdated", "nodeEligible"][..]), ("/livez", &["currentTime", "lastUpdated"])]
    {
        let (status, body) = get(node, "127.0.0.1:10256", path).expect("an answer");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let found: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!((status, &found[..]), (200, keys), "{path}");
    }
    for ip in node.ips() {
        Call::tcp((ip, NODE_PORT)).run_one(world.client()).expect("a run").reached().expect("an answer");
    }
    let (status, page) = get(node, "127.0.0.1:10249", "/metrics").expect("a page");
    assert_eq!(status, 200);
    assert!(value(&page, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}") >= 1.0);
    assert!((value(&page, "kubeproxy_proxy_healthz_total{code=\"200\"}") - 1.0).abs() < f64::EPSILON, "{page}");
    assert!((value(&page, "ballast_services") - 1.0).abs() < f64::EPSILON, "{page}");
    assert!(value(&page, "ballast_packets_total{verdict=\"NewFlow\"}") >= 2.0, "{page}");
    assert!(value(&page, "ballast_map_pressure_ratios{map=\"LB4_FRONTENDS\"}") > 0.0, "{page}");
    assert!(value(&page, "process_resident_memory_bytes") > 1e6, "{page}");
    assert_eq!(get(node, "127.0.0.1:10249", "/proxyMode").expect("a page"), (200, "ebpf".to_owned()));
    assert_eq!(get(node, "127.0.0.1:10249", "/nothing").expect("a page").0, 404);

    // A change is counted once it is in the maps, and the agent is as healthy as before.
    let before = value(&page, "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}");
    world.apply_service(&Service::new("two", "app", "web").port(81, TARGET, None)).expect("a Service");
    agent.wait_service("two", 2).expect("the Service");
    let (_, page) = get(node, "127.0.0.1:10249", "/metrics").expect("a page");
    assert!(value(&page, "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}") > before);
    assert_eq!(get(node, "127.0.0.1:10256", "/healthz").expect("an answer").0, 200);
}

#[test]
fn a_node_that_is_being_deleted_is_not_eligible() {
    needs_root!();
    let world = world();
    let node = world.node(0);
    let agent = Agent::start(&world, node, &Setup::tcx(false)).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let going = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
        "spec": {
            "podCIDRs": node.pod_cidrs(),
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
        },
    });
    world.remove(&format!("node-{}.yaml", node.name())).unwrap_or_default();
    world.apply_documents("nodes.yaml", &[going]).expect("a Node");
    wait_until("the taint in /healthz", Duration::from_secs(10), || match get(node, "127.0.0.1:10256", "/healthz")? {
        (503, body) if body.contains("\"nodeEligible\":false") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("not eligible");
    assert_eq!(get(node, "127.0.0.1:10256", "/livez").expect("an answer").0, 200);
}

#[test]
fn a_port_that_is_taken_is_told_and_taken_once_it_is_free() {
    needs_root!();
    let world = world();
    let node = world.node(0);
    let taken = node.namespace().run(|| TcpListener::bind("127.0.0.1:10249")).expect("the node").expect("a port");
    let more = "---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                healthzBindAddress: 127.0.0.5\n";
    let setup = Setup { more: more.to_owned(), ..Setup::tcx(false) };
    let agent = Agent::start(&world, node, &setup).expect("an agent");
    let problem = || {
        let problems = agent.status().map_err(|error| format!("{error:#}"))?.problems;
        Ok::<_, String>(problems.into_iter().find(|problem| problem.object == "metrics"))
    };
    let told = wait_until("the problem", Duration::from_secs(5), || problem()?.ok_or_else(|| "not told".to_owned()));
    let told = told.expect("told");
    assert!(told.cause.contains("127.0.0.1:10249") && told.fix.contains("metricsBindAddress"), "{told:?}");
    assert_eq!(get(node, "127.0.0.5:10256", "/healthz").expect("an answer").0, 200);
    assert!(get(node, "127.0.0.1:10256", "/healthz").is_err(), "elsewhere only");
    drop(taken);
    wait_until("the page", Duration::from_secs(15), || get(node, "127.0.0.1:10249", "/metrics").map(drop))
        .expect("a page");
    assert_eq!(problem(), Ok(None));
}
