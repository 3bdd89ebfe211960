//! Session affinity (semantics.md 2.5) with real sockets: it sticks, ends with its timeout, and is switched.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Cluster, NODE_PORT, Place, Setup, TARGET,
    client::{Call, Transport},
    kube::Service,
    needs_root, wait_until,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);

fn apply(cluster: &Cluster, seconds: Option<u32>) {
    let web = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT)).fields(json!({"type": "NodePort"}));
    let web = match seconds {
        Some(seconds) => web.fields(json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        })),
        None => web,
    };
    cluster.world.apply_service(&web).expect("a Service");
    let wanted = if seconds.is_some() { 4 } else { 0 };
    for agent in &cluster.agents {
        wait_until("the affinity", LIMIT, || {
            let used = agent.status().map_err(|error| format!("{error:#}"))?.maps["LB_SVC_AFFINITY"].used;
            if used == wanted { Ok(()) } else { Err(format!("{used} ports have one")) }
        })
        .expect("programmed");
    }
}

fn backends(place: &Place, transport: Transport, to: SocketAddr, count: u32) -> BTreeSet<String> {
    let answers = Call::new(transport, to).count(count).run(place).expect("a run");
    let name = |answer: &lb_tests::client::Answer| answer.reached().expect("an answer").0.to_owned();
    answers.iter().map(name).collect()
}

fn remembered(agent: &Agent, map: &str) -> u64 {
    agent.status().expect("a status").maps[map].used
}

fn run(setup: &Setup) {
    let cluster = Cluster::start(setup).expect("a cluster");
    let pod = cluster.world.node(0).pod(0).place().clone();
    let (node, client) = (cluster.world.node(0).place().clone(), cluster.world.client().clone());
    let vips = cluster.vips(8).expect("cluster IPs");
    apply(&cluster, Some(100));
    for from in [&pod, &node, &client] {
        for transport in [Transport::Tcp, Transport::Udp] {
            for to in vips.iter().copied() {
                let got = backends(from, transport, to, 12);
                assert_eq!(got.len(), 1, "rule 2.5.1: {} by {transport:?} to {to}: {got:?}", from.name());
            }
        }
    }
    // One memory for both addresses of a port, as the same node is asked.
    for (vip, port) in vips.iter().zip(cluster.node_ports()) {
        let by_port = backends(&client, Transport::Tcp, port, 12);
        assert_eq!(by_port, backends(&client, Transport::Tcp, *vip, 12), "rule 2.5.1: {vip} and {port}");
    }
    assert!(remembered(&cluster.agents[0], "LB4_AFFINITY") > 0 && remembered(&cluster.agents[0], "LB6_AFFINITY") > 0);
    // Off: nobody is remembered; on: only what comes then.
    apply(&cluster, None);
    for to in vips.iter().copied() {
        assert!(backends(&client, Transport::Tcp, to, 40).len() > 1, "rule 2.5.4: {to}");
    }
    assert_eq!(remembered(&cluster.agents[0], "LB4_AFFINITY"), 0, "rule 2.5.4: the memory is gone");
    // After its timeout a client can move.
    apply(&cluster, Some(1));
    for to in vips.iter().copied() {
        let mut got = BTreeSet::new();
        wait_until("rule 2.5.4: another backend after the timeout", LIMIT, || {
            got.extend(backends(&client, Transport::Tcp, to, 1));
            // Longer than the timeout: asking begins it anew.
            std::thread::sleep(Duration::from_millis(1100));
            if got.len() > 1 { Ok(()) } else { Err(format!("always {got:?}")) }
        })
        .expect("the client moves");
    }
    // 2.5.3: a backend that is not ready loses its clients.
    apply(&cluster, Some(100));
    for to in vips.iter().copied() {
        let got = backends(&client, Transport::Tcp, to, 4);
        let name = got.first().expect("one").clone();
        let lost = cluster.pod(&name).expect("a pod");
        cluster.world.pod_ready(lost, false).expect("unready");
        cluster.wait(6).expect("three pods");
        let moved = backends(&client, Transport::Tcp, to, 4);
        assert!(moved.len() == 1 && moved != got, "rule 2.5.3: {moved:?} after {got:?}");
        cluster.world.pod_ready(lost, true).expect("ready");
        cluster.wait(8).expect("four pods");
        assert_eq!(backends(&client, Transport::Tcp, to, 4), moved, "rule 2.5.3");
    }
}

#[test]
fn rule_2_5_tcx_with_socket_hooks() {
    needs_root!();
    run(&Setup::tcx(true));
}

#[test]
fn rule_2_5_xdp_without_socket_hooks() {
    needs_root!();
    run(&Setup::xdp(false));
}
