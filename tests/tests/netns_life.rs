//! What lives on: connections over changes and restarts; what takes effect: changes, other programs, firewalls.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Cluster, Echo, NODE_PORT, Pod, Setup, TARGET, World,
    client::{self, Call, Hold, Transport},
    kube::{PodSpec, Service},
    needs_root,
};
use serde_json::json;

const SETUPS: [fn(bool) -> Setup; 2] = [Setup::tcx, Setup::xdp];

#[test]
fn rule_2_8_1_connections_survive_changes_kill_and_restart() {
    needs_root!();
    for setup in SETUPS {
        for hooks in [true, false] {
            let mut cluster = Cluster::start(&setup(hooks)).expect("a cluster");
            let pod = cluster.world.node(0).pod(0).place().clone();
            let from = [pod, cluster.world.node(0).place().clone(), cluster.world.client().clone()];
            let mut holds = Vec::new();
            for (place, to) in from
                .iter()
                .flat_map(|place| cluster.vips(8).expect("cluster IPs").into_iter().map(move |to| (place, to)))
            {
                let hold = Hold::start(place, to).unwrap_or_else(|error| panic!("{}: {error:#}", place.name()));
                let what = format!("{} to {to}, {:?}", place.name(), hold.answer());
                holds.push((hold, what));
            }
            for to in cluster.node_ports() {
                let hold = Hold::start(cluster.world.client(), to).expect("a held connection");
                let what = format!("client to {to}, {:?}", hold.answer());
                holds.push((hold, what));
            }
            let used: BTreeSet<String> =
                holds.iter().map(|(hold, _)| hold.answer().backend.clone().expect("a backend")).collect();
            // Another backend leaves and comes back.
            if let Some(unused) = cluster.world.pods().find(|pod| !used.contains(pod.place().name())) {
                cluster.world.remove_pod(unused).expect("removed");
                cluster.wait(6).expect("the Service");
                cluster.world.apply_pod(unused, &PodSpec::labelled("app", "web")).expect("a pod");
                cluster.wait(8).expect("the Service");
            }
            // So does one that is in use: its connections go on (semantics.md 2.8.1).
            let name = used.first().expect("a backend").clone();
            cluster.world.remove_pod(cluster.pod(&name).expect("the pod")).expect("removed");
            cluster.wait(6).expect("the Service");
            for agent in &mut cluster.agents {
                agent.kill().expect("killed");
            }
            // Nobody runs, and new connections still work.
            for to in cluster.node_ports() {
                assert!(!cluster.answers(Transport::Tcp, to, 4).expect("answers").is_empty());
            }
            for agent in &mut cluster.agents {
                agent.launch().expect("launched");
                agent.wait_service("web", 6).expect("the Service");
            }
            let counters: Vec<_> =
                cluster.agents.iter().map(|agent| agent.status().expect("a status").counters).collect();
            for (hold, what) in holds {
                let report = hold.stop().expect("a report");
                assert!(report.error.is_none() && report.rounds > 0, "hooks {hooks}, {what}: {report:?}; {counters:?}");
                assert!(report.max_gap_ms < 1000.0, "{report:?}");
            }
        }
    }
}

#[test]
fn a_removed_backend_gets_nothing_new_and_a_new_one_its_share() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let gone = "pod-1-1";
    for transport in [Transport::Tcp, Transport::UdpUnconnected] {
        for to in cluster.node_ports() {
            let all = cluster.answers(transport, to, 60).expect("answers");
            assert_eq!(all.len(), 4, "{transport:?} to {to}: {all:?}");
        }
    }
    cluster.world.remove_pod(cluster.pod(gone).expect("the pod")).expect("removed");
    cluster.wait(6).expect("the Service");
    for transport in [Transport::Tcp, Transport::UdpUnconnected] {
        for to in cluster.node_ports().into_iter().chain(cluster.vips(6).expect("cluster IPs")) {
            let rest = cluster.answers(transport, to, 60).expect("answers");
            assert!(rest.len() == 3 && !rest.contains(gone), "{transport:?} to {to}: {rest:?}");
        }
    }
}

#[test]
fn rule_2_8_2_a_udp_flow_leaves_a_backend_that_is_gone() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(false)).expect("a cluster");
    for (index, to) in cluster.node_ports().into_iter().enumerate() {
        let port = 40_000 + u16::try_from(index).expect("small");
        let source = SocketAddr::new(cluster.world.client().ip_like(to.ip()), port);
        let call = Call::udp(to).source(source);
        let ask = || {
            let answer = call.run_one(cluster.world.client()).expect("a run");
            answer.reached().unwrap_or_else(|error| panic!("{to}: {error}")).0.to_owned()
        };
        let first = ask();
        assert_eq!(ask(), first, "one flow keeps its backend");
        let pod = cluster.pod(&first).expect("the pod");
        cluster.world.remove_pod(pod).expect("removed");
        cluster.wait(6).expect("the Service");
        assert_ne!(ask(), first, "the same flow must not go to a backend that is gone");
        cluster.world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        cluster.wait(8).expect("the Service");
    }
}

/// Backends in the smallest map there is; number 0 is never given out.
const SLOTS: u16 = 15;

/// A `web` of one protocol, with one pod, in a map that another Service has filled but for one slot.
fn one_free_slot(world: &World, protocol: &str) -> Vec<Agent> {
    world.apply_nodes().expect("nodes");
    let [first, _, filler] = [(0, 0), (0, 1), (1, 0)].map(|(node, pod)| world.node(node).pod(pod));
    world.apply_pod(first, &PodSpec::labelled("app", "web")).expect("a pod");
    world.apply_pod(filler, &PodSpec::labelled("app", "filler")).expect("a pod");
    let ports = json!([{"protocol": protocol, "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT}]);
    let web = Service::new("web", "app", "web").fields(json!({"type": "NodePort", "ports": ports}));
    world.apply_service(&web).expect("a Service");
    let filler = (1..=(SLOTS - 1) / 2).fold(Service::new("filler", "app", "filler"), |service, port| {
        // TCP and UDP: two backends.
        service.port(port, TARGET, None)
    });
    world.apply_service(&filler).expect("a Service");
    let setup = Setup { more: format!("maps: {{backends: {}}}\n", SLOTS + 1), ..Setup::tcx(false) };
    Agent::start_all(world, &setup).expect("agents")
}

fn wait_with_all_slots(agents: &[Agent], backends: u64) {
    for agent in agents {
        agent.wait_service("web", backends).expect("the Service");
        let used = agent.status().expect("a status").maps["LB4_BACKENDS"].used;
        // A slot without an owner keeps its generation in the map.
        assert_eq!(used, u64::from(SLOTS), "no other slot must be left");
    }
}

#[test]
fn rule_2_8_2_a_udp_flow_does_not_stay_when_its_slot_has_a_new_owner() {
    needs_root!();
    let world = World::new().expect("a world");
    let agents = one_free_slot(&world, "UDP");
    let (old, new) = (world.node(0).pod(0), world.node(0).pod(1));
    // The old one answers as long as it is asked: only the agent knows that it left.
    let _servers = [old, new].map(|pod| Echo::start(pod, &[], &[TARGET]).expect("a server"));
    wait_with_all_slots(&agents, 2);
    let paths = [world.client().clone(), world.node(1).pod(1).place().clone(), world.node(1).place().clone()];
    let vips = agents[0].cluster_ips("web", 2).expect("cluster IPs");
    let calls: Vec<_> = paths
        .iter()
        .flat_map(|place| vips.iter().map(move |&vip| (place, vip)))
        .map(|(place, vip)| {
            let source = SocketAddr::new(place.ip_like(vip), 40_010);
            (place, Call::udp(SocketAddr::new(vip, 80)).source(source))
        })
        .collect();
    let ask = |expected: &Pod| {
        for (place, call) in &calls {
            let answer = call.run_one(place).expect("a run");
            let reached = answer.reached().unwrap_or_else(|error| panic!("{}: {error}: {answer:?}", place.name()));
            assert_eq!(reached.0, expected.name(), "from {}: {answer:?}", place.name());
        }
    };
    ask(old);
    world.remove_pod(old).expect("removed");
    wait_with_all_slots(&agents, 0);
    world.apply_pod(new, &PodSpec::labelled("app", "web")).expect("a pod");
    wait_with_all_slots(&agents, 2);
    // The flows' entries still name the slot, and its service is the same.
    ask(new);
}

#[test]
fn rule_2_8_1_a_connection_stays_when_its_slot_has_a_new_owner() {
    needs_root!();
    let world = World::new().expect("a world");
    let agents = one_free_slot(&world, "TCP");
    let (old, new) = (world.node(0).pod(0), world.node(0).pod(1));
    let _servers = [old, new].map(|pod| Echo::start(pod, &[TARGET], &[]).expect("a server"));
    wait_with_all_slots(&agents, 2);
    let to: Vec<_> =
        Cluster::node_ports_of(world.node(0)).into_iter().chain(Cluster::node_ports_of(world.node(1))).collect();
    let held: Vec<_> = to.iter().map(|to| Hold::start(world.client(), *to).expect("a held connection")).collect();
    world.remove_pod(old).expect("removed");
    wait_with_all_slots(&agents, 0);
    world.apply_pod(new, &PodSpec::labelled("app", "web")).expect("a pod");
    wait_with_all_slots(&agents, 2);
    for to in &to {
        let answer = Call::tcp(*to).run_one(world.client()).expect("a run");
        assert_eq!(answer.reached().expect("an answer").0, new.name());
    }
    for hold in held {
        let report = hold.stop().expect("a report");
        assert_eq!((report.error.as_deref(), report.backend.as_deref()), (None, Some(old.name())), "{report:?}");
    }
}

#[test]
fn two_hundred_megabytes_each_way_arrive_intact() {
    needs_root!();
    for setup in SETUPS {
        let cluster = Cluster::start(&setup(false)).expect("a cluster");
        for to in cluster.node_ports() {
            let report =
                client::bulk(cluster.world.client(), to, 200 << 20, Duration::from_mins(2)).expect("a transfer");
            assert!(report.is_intact() && report.sent == 200 << 20, "{to}: {report:?}");
        }
    }
}

#[test]
fn a_firewall_between_client_and_pods_takes_effect() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(false)).expect("a cluster");
    for (to, rule) in cluster.node_ports().into_iter().zip([
        "ip saddr 192.168.100.0/24 ip daddr 10.244.0.0/16",
        "ip6 saddr fd00:192:168:100::/64 ip6 daddr fd00:10:244::/48",
    ]) {
        cluster.answers(Transport::Tcp, to, 4).expect("answers");
        cluster.world
            .node(0)
            .place()
            .namespace()
            .nft(&format!("add table inet wall\nadd chain inet wall f {{ type filter hook forward priority 0; }}\nadd rule inet wall f {rule} drop\n"))
            .expect("nft");
        let call = Call::tcp(to).timeout(Duration::from_millis(300));
        let answer = call.run_one(cluster.world.client()).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{to}: {answer:?}");
    }
}

#[test]
fn processes_of_another_node_on_this_kernel_are_not_captured() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let connects =
        |agent: &Agent| agent.status().expect("a status").counters.get("SocketConnect").copied().unwrap_or(0);
    let before: Vec<u64> = cluster.agents.iter().map(connects).collect();
    for to in cluster.vips(8).expect("cluster IPs") {
        let answers = Call::tcp(to).count(5).run(cluster.world.node(0).place()).expect("a run");
        assert!(answers.iter().all(|answer| answer.error.is_none()), "{answers:?}");
    }
    let after: Vec<u64> = cluster.agents.iter().map(connects).collect();
    assert_eq!((after[0] - before[0], after[1] - before[1]), (10, 0));
}

#[test]
fn cleanup_leaves_nothing_and_a_second_agent_is_refused() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let node = cluster.world.node(0).place().clone();
    let listing = |what: &[&str]| node.namespace().ip_output(what).expect("ip");
    let error = cluster.agents[0].query(&["cleanup"]).expect_err("an agent runs").to_string();
    assert!(error.contains("another agent"), "{error}");
    assert!(listing(&["route"]).contains("ballast0"));
    for agent in &mut cluster.agents {
        agent.stop().expect("stopped");
    }
    let said = cluster.agents[0].query(&["cleanup", "--dry-run"]).expect("a dry run");
    assert!(said.contains("would remove") && listing(&["link"]).contains("ballast0"), "{said}");
    let removed = cluster.agents[0].cleanup().expect("a cleanup");
    assert!(removed.contains("removed"), "{removed}");
    for (what, text) in [("links", listing(&["link"])), ("routes", listing(&["route"]) + &listing(&["-6", "route"]))] {
        assert!(!text.contains("ballast"), "{what}: {text}");
    }
    let again = cluster.agents[0].cleanup().expect("a second cleanup");
    assert!(again.contains("nothing of Ballast"), "{again}");
    // The path is the plain one again: nobody answers a VIP.
    let to = SocketAddr::from(([10, 96, 0, 99], 80));
    let answer = Call::tcp(to).timeout(Duration::from_millis(300)).run_one(&node).expect("a run");
    assert!(answer.error.is_some(), "{answer:?}");
}
