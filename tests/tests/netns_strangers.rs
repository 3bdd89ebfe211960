//! reliability.md section 7 on a node: who comes by an uplink with an address of the node's own pods is nobody.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Cluster, Setup,
    client::{Call, Transport},
    needs_root, scoreboard,
};

const SETUPS: [fn(bool) -> Setup; 2] = [Setup::tcx, Setup::xdp];

#[test]
fn r22_a_pods_address_from_outside_gets_nothing() {
    needs_root!();
    for setup in SETUPS {
        let cluster = Cluster::start(&setup(false)).expect("a cluster");
        let (world, node) = (&cluster.world, cluster.world.node(0));
        // The router asks nothing: it is the node that must.
        let interfaces = world.router().run(|| std::fs::read_dir("/proc/sys/net/ipv4/conf")).expect("the router");
        for interface in interfaces.expect("its interfaces") {
            let name = interface.expect("an interface").file_name().to_string_lossy().into_owned();
            world.router().sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0").expect("no rp_filter");
        }
        let counted = || {
            let counters = cluster.agents[0].status().expect("a status").counters;
            counters.get("SpoofedSource").copied().unwrap_or(0)
        };
        for (index, to) in cluster.node_ports().into_iter().enumerate() {
            let pod: IpAddr = node.pod(0).place().ip_like(to.ip());
            let length = if to.is_ipv4() { 32 } else { 128 };
            // The client pretends to be the pod.
            world.client().namespace().ip(&format!("addr add {pod}/{length} dev lo")).expect("an address");
            for transport in [Transport::Tcp, Transport::Udp] {
                let before = counted();
                let call = Call::new(transport, to).timeout(std::time::Duration::from_millis(300));
                let source = SocketAddr::new(pod, 41_000 + u16::try_from(index).expect("small"));
                let answer = call.source(source).run_one(world.client()).expect("a run");
                assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{transport:?} from {pod} to {to}: {answer:?}");
                assert!(counted() > before, "{transport:?} from {pod} to {to}");
            }
            // Under its own name it is served, and so is the pod.
            for place in [world.client(), node.pod(0).place()] {
                Call::tcp(to).run_one(place).expect("a run").reached().expect("an answer");
            }
        }
        let words = "a pod's address from outside: TCP and UDP of both families dropped and counted";
        scoreboard("R22", &format!("{words} ({})", if setup(false).xdp == "on" { "XDP" } else { "tcx" }));
    }
}
