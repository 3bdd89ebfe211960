//! What the agent takes with a thousand Services.

use std::{fs, time::Duration};

use lb_tests::{Agent, Setup, World, needs_root, wait_until};
use serde_json::{Value, json};

const SERVICES: usize = 1000;
const PODS_OF_EACH: usize = 3;
/// Issue: under 60 MiB of anonymous resident memory.
const LIMIT_KIB: u64 = 60 * 1024;

/// Services of two ports and their Pods, as a cluster's own list has them.
fn documents(round: usize) -> Value {
    let service = |number: usize| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("svc-{number}"), "namespace": "default", "uid": format!("uid-{number}"),
                "labels": {"app": format!("app-{number}"), "helm.sh/chart": "chart-1.2.3"},
                "annotations": {"round": round.to_string()},
            },
            "spec": {
                "selector": {"app": format!("app-{number}")},
                "ports": [
                    {"name": "http", "port": 80, "targetPort": 8080},
                    {"name": "metrics", "port": 9090, "targetPort": 9090},
                ],
            },
        })
    };
    let pod = |number: usize| {
        let ip = format!("10.{}.{}.{}", 200 + number / 62_500, number / 250 % 250, 1 + number % 250);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("pod-{number}"), "namespace": "default",
                "labels": {"app": format!("app-{}", number / PODS_OF_EACH)},
            },
            "spec": {
                "nodeName": "elsewhere",
                "containers": [{"name": "main", "image": "example.org/main:1", "ports": [{"containerPort": 8080}]}],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    };
    let items: Vec<Value> = (0..SERVICES).map(service).chain((0..SERVICES * PODS_OF_EACH).map(pod)).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Anonymous resident memory of a process, in KiB.
fn anonymous_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_thousand_services_take_less_than_sixty_mebibytes() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let path = world.manifests().join("thousand.json");
    let write = |round: usize| {
        let new = path.with_extension("new");
        fs::write(&new, documents(round).to_string()).and_then(|()| fs::rename(&new, &path)).expect("documents");
    };
    write(0);
    let agent = Agent::start(&world, world.node(0), &Setup::tcx(true)).expect("an agent");
    let status = agent.status().expect("a status");
    assert_eq!((status.services, status.frontends, status.backends), (1000, 2000, 6000));
    let pid = status.agent_pid.expect("a pid");
    let mut taken = vec![anonymous_memory(pid)];
    // Reading takes more than keeping: what it took is given back, however often it happens.
    for round in 1..=4 {
        write(round);
        let annotation = round.to_string();
        wait_until("the agent has read the documents again", Duration::from_secs(30), || {
            let detail = agent.query(&["service", "describe", "default/svc-999", "-o", "json"]);
            let detail: Value = serde_json::from_str(&detail.map_err(|error| format!("{error:#}"))?).expect("JSON");
            let seen = &detail["annotations"]["round"];
            if *seen == *annotation { Ok(()) } else { Err(format!("round {seen}")) }
        })
        .expect("a reload");
        taken.push(anonymous_memory(pid));
    }
    println!(
        "anonymous memory at start and after each reload: {taken:?} KiB; BPF memory: {} KiB",
        status.bpf_memory_bytes / 1024
    );
    assert!(taken.iter().all(|taken| *taken < LIMIT_KIB), "{taken:?} KiB");
}
