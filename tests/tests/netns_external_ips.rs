//! externalIPs (reliability.md section 7): nothing without the switch, and with it what kube-proxy does.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Echo, Expect, Rows, Setup, TARGET, World,
    client::Transport,
    kube::{PodSpec, Service},
    needs_root, scoreboard,
};
use serde_json::json;

/// Routed to node 1 like the load balancers' addresses, which are in this range.
fn external(v4: bool) -> SocketAddr {
    let v6 = IpAddr::from([0xfd00, 0x203, 0, 0x113, 0, 0, 0, 0x20]);
    SocketAddr::new(if v4 { IpAddr::from([203, 0, 113, 20]) } else { v6 }, 80)
}

fn run(setup: &Setup, served: bool) {
    let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("ethtool");
    }
    world.apply_nodes().expect("nodes");
    let backend = world.node(1).pod(0).place().clone();
    world.apply_pod(world.node(1).pod(0), &PodSpec::labelled("app", "web")).expect("a pod");
    let _server = Echo::start(&backend, &[TARGET], &[TARGET]).expect("a server");
    let externals = [true, false].map(|v4| external(v4).ip());
    let web = Service::new("web", "app", "web").port(80, TARGET, None);
    world.apply_service(&web.fields(json!({"externalIPs": externals}))).expect("a Service");
    let agents = Agent::start_all(&world, setup).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
        let warnings = agent.status().expect("a status").warnings;
        let told = warnings.iter().any(|it| it.object == "Service default/web" && it.fix.contains("externalIPs"));
        assert_eq!(told, !served, "sec: {warnings:?}");
    }
    let mut rows = Rows::default();
    let (pod, node, client) =
        (world.node(0).pod(0).place().clone(), world.node(0).place().clone(), world.client().clone());
    for v4 in [true, false] {
        let to = external(v4);
        let source = world.source_towards(world.node(0), backend.name(), to.ip());
        for transport in [Transport::Tcp, Transport::Udp] {
            let reach = Expect::Reach(&[&backend], source);
            rows.row(
                "2.4.2 outside to an external IP",
                &client,
                transport,
                to,
                if served { &reach } else { &Expect::Nobody },
            );
            if !served {
                // All are led to node 1, which leads them back to the router, until their hop limit ends.
                rows.row("sec: a host to an external IP", &node, transport, to, &Expect::Nobody);
                rows.row("sec: a pod to an external IP", &pod, transport, to, &Expect::Nobody);
                continue;
            }
            if setup.socket_hooks {
                rows.row("a host to an external IP", &node, transport, to, &reach);
            }
            // At the socket hook nothing masquerades (docs/differences.md).
            let seen = if setup.socket_hooks && transport == Transport::Tcp { pod.ip_like(to.ip()) } else { source };
            rows.row("2.4.2 a pod to an external IP", &pod, transport, to, &Expect::Reach(&[&backend], seen));
        }
    }
    rows.finish(&agents);
    if !served {
        let hook = if setup.xdp == "on" { "XDP" } else { "tcx" };
        let asked = "a client outside, a process of a node and a pod get no answer, both families; told";
        scoreboard("R22", &format!("externalIPs that are off or elsewhere (CVE-2020-8554): {asked} ({hook})"));
    }
}

fn on(setup: &Setup) -> Setup {
    let more = "externalIPs: {enabled: true, allowedCIDRs: [203.0.113.0/24, 'fd00:203:0:113::/64']}\n";
    Setup { more: more.to_owned(), ..setup.clone() }
}

#[test]
fn sec_external_ips_are_off() {
    needs_root!();
    run(&Setup::tcx(true), false);
}

#[test]
fn sec_external_ips_elsewhere_are_off() {
    needs_root!();
    let more = "externalIPs: {enabled: true, allowedCIDRs: [198.51.100.0/24]}\n".to_owned();
    run(&Setup { more, ..Setup::xdp(false) }, false);
}

#[test]
fn external_ips_tcx_with_socket_hooks() {
    needs_root!();
    run(&on(&Setup::tcx(true)), true);
}

#[test]
fn external_ips_xdp_without_socket_hooks() {
    needs_root!();
    run(&on(&Setup::xdp(false)), true);
}
