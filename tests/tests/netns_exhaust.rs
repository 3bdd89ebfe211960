//! R11: conntrack and the SNAT ports run out. New flows are refused and counted, flows that are there go on, and what ends
//! makes room within its timeout and a second.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Cluster, Echo, Setup, TARGET, World,
    client::{Call, Crowd},
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use serde_json::json;

/// How long a flow stays after an RST (`lb_common::state::timeout_seconds`).
const CLOSED: Duration = Duration::from_secs(10);

/// What runs out, and how.
struct Row {
    name: &'static str,
    /// Lines of BallastConfiguration.
    config: &'static str,
    /// What counts the refusals.
    counter: &'static str,
    /// What `status` tells to change.
    mend: &'static str,
    /// TCP flows that fit, and that many more do not.
    flows: u32,
}

/// A masqueraded flow takes four entries.
const CONNTRACK: Row = Row {
    name: "ct_exhaust",
    config: "maps: {conntrack: 1024}\n",
    counter: "ConntrackFull",
    mend: "maps.conntrack",
    flows: 200,
};
const SNAT: Row = Row {
    name: "snat_exhaust",
    config: "snatPorts: 40000-40031\n",
    counter: "SnatExhausted",
    mend: "snatPorts",
    flows: 20,
};

fn refused(agent: &Agent, counter: &str) -> u64 {
    agent.status().expect("a status").counters.get(counter).copied().unwrap_or(0)
}

fn assert_recovers(row: &Row, setup: &Setup, ipv6: bool) {
    let world = World::builder().nodes(2).pods(1).build().expect("a world");
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("set");
    }
    world.apply_nodes().expect("nodes");
    // One backend, on the other node: every flow is masqueraded towards it.
    let (node, pod) = (world.node(0), world.node(1).pod(0));
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    let web = Service::new("web", "app", "web").port(80, TARGET, Some(lb_tests::NODE_PORT));
    world.apply_service(&web.fields(json!({"type": "NodePort"}))).expect("a Service");
    let _server = Echo::start(pod, &[TARGET], &[TARGET]).expect("a server");
    let agent = Agent::start(&world, node, &Setup { more: row.config.to_owned(), ..setup.clone() }).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let to: SocketAddr = Cluster::node_ports_of(node)[usize::from(ipv6)];
    let call = || Call::tcp(to).run_one(world.client()).expect("a run");

    let held = Crowd::resetting(world.client(), &[to], row.flows).expect("a crowd");
    for none in [row.counter, "HalfOpenEvicted", "NoState"] {
        assert_eq!(refused(&agent, none), 0, "{}: they fit, {none}", row.name);
    }
    let more = Crowd::resetting(world.client(), &[to], row.flows).expect("a crowd");
    let count = refused(&agent, row.counter);
    assert!(count > 0, "{}: {:?}", row.name, agent.status().expect("a status").counters);
    assert_eq!(call().error.as_deref(), Some("ECONNREFUSED"), "{}", row.name);
    let told = wait_until("the refusals in status", Duration::from_secs(2), || {
        let problems = agent.status().map_err(|error| error.to_string())?.problems;
        let found = problems.into_iter().find(|problem| problem.object == "new flows");
        found.ok_or_else(|| "not told".to_owned())
    });
    let told = told.expect("told");
    assert!(told.cause.contains(row.counter) && told.fix.contains(row.mend), "{told:?}");

    let more = more.stop().expect("a report");
    assert!(more.flows > 0 && more.broken > 0 && more.moved == 0, "{}: {more:?}", row.name);
    let held = held.stop().expect("a report");
    let start = Instant::now();
    let fared = (held.flows, held.broken, held.moved);
    let counters = agent.status().expect("a status").counters;
    assert_eq!(fared, (row.flows.into(), 0, 0), "{}: {held:?}, {counters:?}", row.name);
    assert_eq!(call().error.as_deref(), Some("ECONNREFUSED"), "{}: still", row.name);
    wait_until("room", CLOSED + Duration::from_secs(20), || {
        call().reached().map(drop).map_err(|error| error.to_string())
    })
    .expect("room again");
    let took = start.elapsed();
    scoreboard(
        "R11",
        &format!(
            "{} ({}, {}): {} of {} new flows refused with TCP RST and counted, {} open ones went on, room {:.1} s \
         after the last one's end (timeout {} s)",
            row.name,
            if setup.xdp == "on" { "XDP" } else { "tcx" },
            if ipv6 { "IPv6" } else { "IPv4" },
            more.broken,
            more.broken + more.flows,
            held.flows,
            took.as_secs_f64(),
            CLOSED.as_secs()
        ),
    );
    assert!(took <= CLOSED + Duration::from_secs(1), "{}: {took:?}", row.name);
    assert!(
        agent.status().expect("a status").problems.iter().any(|problem| problem.object == "new flows"),
        "still told"
    );
}

#[test]
fn r11_ct_exhaust_at_tcx() {
    needs_root!();
    assert_recovers(&CONNTRACK, &Setup::tcx(false), false);
}

#[test]
fn r11_ct_exhaust_at_xdp() {
    needs_root!();
    assert_recovers(&CONNTRACK, &Setup::xdp(false), true);
}

#[test]
fn r11_snat_exhaust_at_tcx() {
    needs_root!();
    assert_recovers(&SNAT, &Setup::tcx(false), true);
}

#[test]
fn r11_snat_exhaust_at_xdp() {
    needs_root!();
    assert_recovers(&SNAT, &Setup::xdp(false), false);
}
