//! Source ranges of load balancer addresses (semantics.md 2.7), asked by pods, processes of the nodes and a client outside.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Echo, Expect, Place, Rows, Setup, TARGET, World,
    client::Transport,
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use serde_json::json;

const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The load balancer's address of a family.
fn balancer(v4: bool) -> SocketAddr {
    let v6 = IpAddr::from([0xfd00, 0x203, 0, 0x113, 0, 0, 0, 0x10]);
    SocketAddr::new(if v4 { IpAddr::from([203, 0, 113, 10]) } else { v6 }, 80)
}

fn apply(world: &World, policy: &str, ranges: &[String]) {
    let web = Service::new("web", "app", "web").port(80, TARGET, Some(30080));
    let web = web.load_balancer(&["203.0.113.10", "fd00:203:0:113::10"]);
    let fields = json!({"loadBalancerSourceRanges": ranges, "externalTrafficPolicy": policy});
    world.apply_service(&web.fields(fields)).expect("a Service");
}

/// One address as a range, of each family.
fn single(place: &Place) -> [String; 2] {
    place.ips().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
}

/// Waits until the agents have programmed this many ranges of IPv4.
fn wait(agents: &[Agent], ranges: u64) {
    for agent in agents {
        wait_until("the ranges", LIMIT, || {
            let used = agent.status().map_err(|error| format!("{error:#}"))?.maps["LB4_SOURCES"].used;
            if used == ranges { Ok(()) } else { Err(format!("{used} are there")) }
        })
        .expect("programmed");
    }
}

fn run(setup: &Setup, policy: &str) {
    let hooks = setup.socket_hooks;
    let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("ethtool");
    }
    world.apply_nodes().expect("nodes");
    let is_local = policy == "Local";
    // With that policy on the node that the router leads to.
    let serving = if is_local { world.node(0).pod(1) } else { world.node(1).pod(0) };
    let backend = serving.place().clone();
    world.apply_pod(serving, &PodSpec::labelled("app", "web")).expect("a pod");
    let _server = Echo::start(&backend, &[TARGET], &[TARGET]).expect("a server");
    let (pod, node, client) =
        (world.node(0).pod(0).place().clone(), world.node(0).place().clone(), world.client().clone());
    apply(&world, policy, &single(&client));
    let agents = Agent::start_all(&world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
    }
    let mut rows = Rows::default();
    for allowed in [&client, &pod, &node] {
        apply(&world, policy, &single(allowed));
        // TCP's port and UDP's, and where the node may ask also the balancer's own address (2.7.3) on that node.
        for (agent, own) in agents.iter().zip([allowed.name() == node.name(), false]) {
            wait(std::slice::from_ref(agent), if own { 4 } else { 2 });
        }
        for v4 in [true, false] {
            let to = balancer(v4);
            let at = |place: &Place| place.ip_like(to.ip());
            let of_node = world.source_towards(world.node(0), backend.name(), to.ip());
            for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
                for from in [&client, &pod, &node] {
                    let name = format!("2.7 {} asks where {} may, {policy}", from.name(), allowed.name());
                    // Only what a node itself sends has its address then (2.4.3).
                    let source = if is_local && from.name() != node.name() { at(from) } else { of_node };
                    let reach = Expect::Reach(&[&backend], source);
                    let expect = if from.name() == allowed.name() { &reach } else { &Expect::Silence };
                    rows.row(&name, from, transport, to, expect);
                }
                // Neither cluster IPs nor nodePorts have ranges (2.7.1).
                let port = SocketAddr::new(at(&node), 30080);
                let source = if is_local { at(&client) } else { of_node };
                rows.row("2.7.1 a nodePort", &client, transport, port, &Expect::Reach(&[&backend], source));
                let ips = agents[0].cluster_ips("web", 2).expect("cluster IPs");
                let ip = ips.into_iter().find(|ip| ip.is_ipv4() == v4).expect("one of the family");
                let vip = SocketAddr::new(ip, 80);
                rows.row("2.7.1 a cluster IP", &pod, transport, vip, &Expect::Reach(&[&backend], at(&pod)));
            }
        }
    }
    let dropped: u64 = agents
        .iter()
        .map(|agent| agent.status().expect("a status").counters.get("SourceRange").copied().unwrap_or(0))
        .sum();
    assert!(dropped > 0, "nothing was counted");
    // 2.7.4: the other family is open, and told.
    apply(&world, policy, &single(&pod)[..1]);
    wait(&agents, 2);
    let to = balancer(false).ip();
    let source = if is_local { client.ip_like(to) } else { world.source_towards(world.node(0), backend.name(), to) };
    rows.row("2.7.4 the other family", &client, Transport::Tcp, balancer(false), &Expect::Reach(&[&backend], source));
    rows.row("2.7.4 the family with ranges", &client, Transport::Tcp, balancer(true), &Expect::Silence);
    let warnings = agents[0].status().expect("a status").warnings;
    let told = warnings.iter().any(|it| it.object == "Service default/web" && it.cause.contains("IPv6"));
    assert!(told, "{warnings:?} with hooks {hooks}");
    rows.finish(&agents);
    let (xdp, hooks) = (if setup.xdp == "on" { "XDP" } else { "tcx" }, if hooks { "on" } else { "off" });
    let paths = "TCP, UDP and unconnected UDP of a client outside, a pod and a node, of both families";
    scoreboard("R22", &format!("source ranges, externalTrafficPolicy {policy}: {paths} ({xdp}, socket hooks {hooks})"));
}

#[test]
fn rule_2_7_tcx_with_socket_hooks() {
    needs_root!();
    run(&Setup::tcx(true), "Cluster");
}

#[test]
fn rule_2_7_tcx_without_socket_hooks() {
    needs_root!();
    run(&Setup::tcx(false), "Cluster");
}

#[test]
fn rule_2_7_xdp_with_socket_hooks() {
    needs_root!();
    run(&Setup::xdp(true), "Cluster");
}

#[test]
fn rule_2_7_xdp_without_socket_hooks() {
    needs_root!();
    run(&Setup::xdp(false), "Cluster");
}

#[test]
fn rule_2_7_local_tcx_with_socket_hooks() {
    needs_root!();
    run(&Setup::tcx(true), "Local");
}

#[test]
fn rule_2_7_local_xdp_without_socket_hooks() {
    needs_root!();
    run(&Setup::xdp(false), "Local");
}
