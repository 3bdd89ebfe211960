//! XDP where somebody else has it, and where it costs more than it gives.

use std::time::Duration;

use lb_tests::{
    Agent, Cluster, ForeignXdp, Node, Setup, World,
    client::{Call, Transport},
    needs_root, wait_until,
};
use lb_userspace::report::{DeviceStatus, Status};

fn device(status: &Status, name: &str) -> DeviceStatus {
    let found = status.devices.iter().find(|device| device.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", status.devices)).clone()
}

/// The id of the XDP program on `eth0`, as `ip` shows it.
fn program_id(node: &Node) -> Option<String> {
    let line = node.namespace().ip_output(&["-o", "link", "show", "eth0"]).expect("ip");
    let (_, rest) = line.split_once("prog/xdp id ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn assert_node_ports_answer(cluster: &Cluster) {
    for to in cluster.node_ports() {
        for transport in [Transport::Tcp, Transport::Udp] {
            Call::new(transport, to).run_one(cluster.world.client()).expect("a run").reached().expect("an answer");
        }
    }
}

#[test]
fn a_foreign_xdp_program_is_kept_and_tcx_serves_until_it_goes() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::xdp(true)).expect("a cluster");
    let node = cluster.world.node(0);
    let agent = &mut cluster.agents[0];
    assert_eq!(device(&agent.status().expect("a status"), "eth0").hooks, "xdp+tcx");
    // Ours goes with its pins.
    agent.stop().expect("an end");
    agent.cleanup().expect("cleanup");
    assert_eq!(program_id(node), None);
    let foreign = ForeignXdp::attach(node.namespace(), "eth0").expect("a foreign program");
    let id = program_id(node);
    assert!(id.is_some());

    agent.launch().expect("an agent");
    agent.wait_service("web", 8).expect("the Service");
    let status = agent.status().expect("a status");
    let eth0 = device(&status, "eth0");
    assert_eq!(eth0.hooks, "tcx", "{eth0:?}");
    assert!(eth0.degraded.as_ref().is_some_and(|why| why.contains("another XDP program is there")), "{eth0:?}");
    let told = status.problems.iter().find(|problem| problem.object == "device eth0").expect("a problem");
    assert!(told.cause.contains("XDP refused") && told.fix.contains("xdp: off"), "{told:?}");
    assert_node_ports_answer(&cluster);
    assert_eq!(program_id(cluster.world.node(0)), id);

    drop(foreign);
    // Any change of the network makes the agent try again.
    let node = cluster.world.node(0);
    node.namespace().ip("link set eth0 mtu 1400\nlink set eth0 mtu 1500\n").expect("ip");
    wait_until("XDP is back", Duration::from_secs(5), || {
        let status = cluster.agents[0].status().map_err(|error| format!("{error:#}"))?;
        let eth0 = device(&status, "eth0");
        if eth0.hooks == "xdp+tcx" { Ok(()) } else { Err(format!("{eth0:?}")) }
    })
    .expect("XDP");
    assert_node_ports_answer(&cluster);
}

#[test]
fn xdp_forced_on_software_devices_is_shown_as_degraded() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let node = world.node(0);
    node.namespace()
        .ip("link add br9 type bridge\n\
             tuntap add mode tap name tap9\n\
             link add mv9 link eth0 type macvlan\n\
             link set br9 up\n\
             link set tap9 up\n\
             link set mv9 up\n")
        .expect("ip");
    world.apply_nodes().expect("nodes");
    let more = "interfaces: [{match: '*9', role: uplink, xdp: 'on'}]\n".to_owned();
    let agent = Agent::start(&world, node, &Setup { more, ..Setup::tcx(true) }).expect("an agent");
    let status = agent.status().expect("a status");
    for (name, kind) in [("br9", "bridge"), ("tap9", "tun"), ("mv9", "macvlan")] {
        let device = device(&status, name);
        println!("{device:?}");
        let expected = match &*device.hooks {
            // As this kernel's driver has it.
            "xdp+tcx" => format!("XDP is forced on a {kind} device"),
            "tcx" => "the driver has no native XDP".to_owned(),
            other => panic!("{name}: {other}"),
        };
        assert!(device.degraded.as_ref().is_some_and(|why| why.contains(&expected)), "{device:?}");
        let object = format!("device {name}");
        let told: Vec<_> = status.problems.iter().filter(|problem| problem.object == object).collect();
        assert!(told.len() == 1 && told[0].cause.contains(&expected), "{told:?}");
    }
    // Nobody forced it there.
    let eth0 = device(&status, "eth0");
    assert_eq!((&*eth0.hooks, eth0.degraded), ("tcx", None));
    let text = agent.query(&["status"]).expect("a status");
    assert_eq!(text.matches("DEGRADED").count(), 3, "{text}");
}
