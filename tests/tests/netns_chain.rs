//! Other programs in the tcx chains take effect on Service traffic: between the NAT points they see client and backend.
//! And the chains of different CPUs share one conntrack.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    Cluster, Fate, ForeignProgram, Matching, Namespace, Place, Position, Setup, TcxHook,
    client::{Call, Transport},
    needs_root, tcx_chain,
};

const SETUPS: [fn(bool) -> Setup; 2] = [Setup::tcx, Setup::xdp];
/// The backend of all flows here: on the node that the client does not ask.
const BACKEND: &str = "pod-2-1";

/// A cluster whose only backend is [`BACKEND`].
fn one_backend(setup: &Setup) -> Cluster {
    let cluster = Cluster::start(setup).expect("a cluster");
    for pod in cluster.world.pods().filter(|pod| pod.name() != BACKEND) {
        cluster.world.remove_pod(pod).expect("removed");
    }
    cluster.wait(2).expect("the Service");
    cluster
}

fn assert_answered(from: &Place, to: SocketAddr) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let answer = Call::new(transport, to).run_one(from).expect("a run");
        assert_eq!(answer.reached().unwrap_or_else(|error| panic!("{transport:?} to {to}: {error}")).0, BACKEND);
    }
}

fn assert_silent(from: &Place, to: SocketAddr) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let call = Call::new(transport, to).timeout(Duration::from_millis(300));
        let answer = call.run_one(from).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{transport:?} to {to}: {answer:?}");
    }
}

fn attach(node: &Namespace, device: &str, at: (TcxHook, Position), what: Matching, fate: Fate) -> ForeignProgram {
    ForeignProgram::attach(node, device, at, what, fate).expect("a foreign program")
}

/// Traffic of `from` to `to`, which enters node 1 by `device`.
fn a_program_behind_ours_rules(node: &Namespace, device: &str, backend: IpAddr, from: &Place, to: SocketAddr) {
    let behind = (TcxHook::Ingress, Position::Last);
    let frontend = attach(node, device, behind, Matching::Destination(to.ip()), Fate::Drop);
    let seen = attach(node, device, behind, Matching::Destination(backend), Fate::Next);
    assert_answered(from, to);
    assert!(seen.packets().expect("a count") >= 2, "it must see the backend's address");
    assert_eq!(frontend.packets().expect("a count"), 0, "nobody behind us sees {to}");
    assert_eq!(tcx_chain(node, device, TcxHook::Ingress).expect("a chain"), ["lb_ingress", "foreign", "foreign"]);
    drop(frontend);
    let wall = attach(node, device, behind, Matching::Destination(backend), Fate::Drop);
    assert_silent(from, to);
    assert!(wall.packets().expect("a count") >= 2);
    drop(wall);
    assert_answered(from, to);
}

#[test]
fn a_foreign_program_after_ours_sees_the_backend_and_may_drop() {
    needs_root!();
    for setup in SETUPS {
        let cluster = one_backend(&setup(false));
        let (node, pod) = (cluster.world.node(0), cluster.world.node(0).pod(0));
        let backend = cluster.pod(BACKEND).expect("the backend").place();
        for to in cluster.node_ports() {
            let addr = backend.ip_like(to.ip());
            a_program_behind_ours_rules(node.namespace(), "eth0", addr, cluster.world.client(), to);
        }
        for to in cluster.vips(2).expect("cluster IPs") {
            a_program_behind_ours_rules(node.namespace(), pod.interface(), backend.ip_like(to.ip()), pod, to);
        }
    }
}

#[test]
fn a_foreign_program_before_ours_at_egress_sees_the_backend_and_may_drop() {
    needs_root!();
    let cluster = one_backend(&Setup::tcx(false));
    let (node, client) = (cluster.world.node(0).namespace(), cluster.world.client());
    let backend = cluster.pod(BACKEND).expect("the backend").place();
    let (before, behind) = ((TcxHook::Egress, Position::First), (TcxHook::Egress, Position::Last));
    for to in cluster.vips(2).expect("cluster IPs") {
        let addr = backend.ip_like(to.ip());
        let count = |at, what| attach(node, "eth0", at, what, Fate::Next);
        let (answer, early) = (count(before, Matching::Source(addr)), count(before, Matching::Source(to.ip())));
        let (late, left) = (count(behind, Matching::Source(to.ip())), count(behind, Matching::Source(addr)));
        assert_answered(client, to);
        let packets = [&answer, &early, &late, &left].map(|program| program.packets().expect("a count"));
        assert!(packets[0] >= 2 && packets[2] == packets[0], "{packets:?}");
        assert_eq!((packets[1], packets[3]), (0, 0), "the source becomes the Service's at our hook, not elsewhere");
        drop((answer, early, late, left));
        let wall = attach(node, "eth0", before, Matching::Source(addr), Fate::Drop);
        assert_silent(client, to);
        assert!(wall.packets().expect("a count") >= 2);
        drop(wall);
        assert_answered(client, to);
    }
}

#[test]
fn ours_come_first_in_and_last_out_whoever_was_there_before() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::tcx(false)).expect("a cluster");
    let node = cluster.world.node(0).place().clone();
    let chain = |hook| tcx_chain(node.namespace(), "eth0", hook).expect("a chain");
    cluster.agents[0].stop().expect("stopped");
    cluster.agents[0].cleanup().expect("a cleanup");
    let nobody = Matching::Source(IpAddr::from([0, 0, 0, 0]));
    let _foreign = [(TcxHook::Ingress, Position::First), (TcxHook::Egress, Position::Last)]
        .map(|at| attach(node.namespace(), "eth0", at, nobody, Fate::Next));
    assert_eq!((chain(TcxHook::Ingress), chain(TcxHook::Egress)), (vec!["foreign".into()], vec!["foreign".into()]));
    for round in ["a new agent", "one that adopts"] {
        cluster.agents[0].launch().expect("launched");
        assert_eq!(chain(TcxHook::Ingress), ["lb_ingress", "foreign"], "{round}");
        assert_eq!(chain(TcxHook::Egress), ["foreign", "lb_egress"], "{round}");
        cluster.agents[0].kill().expect("killed");
    }
}

#[test]
fn a_flow_of_one_cpu_answered_on_the_other_is_one_flow() {
    needs_root!();
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("SKIP a_flow_of_one_cpu_answered_on_the_other_is_one_flow: needs two CPUs");
        return;
    }
    for setup in SETUPS {
        let cluster = one_backend(&setup(false));
        let client = cluster.world.client();
        let index = cluster.world.pods().position(|pod| pod.name() == BACKEND).expect("the backend");
        let seen = || {
            let status = cluster.agents[0].status().expect("a status");
            let count = |name| status.counters.get(name).copied().unwrap_or(0);
            let entries: u64 = ["LB4_CONNTRACK", "LB6_CONNTRACK"].iter().map(|map| status.maps[*map].used).sum();
            [status.flows, entries, count("NewFlow"), count("FlowReplaced")]
        };
        for (port, server, clients) in [(41_000, 1, [0, 0]), (41_001, 0, [1, 1]), (41_002, 1, [0, 1])] {
            // What veths carry is worked on by the CPU that sent it: questions on one, answers on the other.
            cluster.servers[index].pin(server).expect("pinned");
            for to in cluster.node_ports() {
                let [flows, entries, made, replaced] = seen();
                let source = SocketAddr::new(client.ip_like(to.ip()), port);
                for cpu in clients.repeat(4) {
                    let answer = Call::udp(to).source(source).cpu(cpu).run_one(client).expect("a run");
                    assert_eq!(answer.reached().expect("an answer").0, BACKEND);
                }
                // A masqueraded flow has four entries: two as the client sees it, two as the backend does.
                assert_eq!(
                    seen(),
                    [flows + 1, entries + 4, made + 1, replaced],
                    "{to}: flows, entries, made, replaced"
                );
                let answers = Call::tcp(to).cpu(clients[1]).count(10).run(client).expect("a run");
                let reached: BTreeSet<_> =
                    answers.iter().map(|answer| answer.reached().expect("an answer").0).collect();
                assert_eq!(reached, BTreeSet::from([BACKEND]));
                assert_eq!(seen()[2], made + 11, "{to}: a connection is one flow");
            }
        }
    }
}
