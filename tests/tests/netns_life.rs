//! What lives on: connections over changes and restarts; what takes effect: changes, other programs, firewalls.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Echo, Pod, Setup, World,
    client::{self, Call, Hold, Transport},
    kube::{PodSpec, Service},
    needs_root, wait_until,
};

const TARGET: u16 = 9376;
const SETUPS: [fn(bool) -> Setup; 2] = [Setup::tcx, Setup::xdp];

struct Life {
    world: World,
    agents: Vec<Agent>,
    _servers: Vec<Echo>,
}

impl Life {
    /// Two nodes with two pods each, all of them behind `web`.
    fn new(setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        for pod in world.pods() {
            world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        }
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(30080));
        world.apply_service(&service.fields(serde_json::json!({"type": "NodePort"}))).expect("a Service");
        let servers =
            world.pods().map(|pod| Echo::start(pod.place(), &[TARGET], &[TARGET]).expect("a server")).collect();
        let agents = Agent::start_all(&world, setup).expect("agents");
        let life = Self { world, agents, _servers: servers };
        life.wait(8);
        life
    }

    fn wait(&self, backends: u64) {
        for agent in &self.agents {
            agent.wait_service("web", backends).expect("the Service");
        }
    }

    /// Cluster IPs, IPv4 first.
    fn vips(&self, backends: u64) -> Vec<SocketAddr> {
        let mut ips = self.agents[0].cluster_ips("web", backends).expect("cluster IPs");
        ips.sort();
        ips.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect()
    }

    /// The nodePort of node 1, both families.
    fn node_ports(&self) -> [SocketAddr; 2] {
        self.world.node(0).place().ips().map(|ip| SocketAddr::new(ip, 30080))
    }

    fn pod(&self, name: &str) -> &Pod {
        self.world.pods().find(|pod| pod.place().name() == name).expect("the pod")
    }

    /// Who answers `count` new connections from outside.
    fn answers(&self, transport: Transport, to: SocketAddr, count: u32) -> BTreeSet<String> {
        let answers = Call::new(transport, to).count(count).run(self.world.client()).expect("a run");
        answers
            .iter()
            .map(|answer| answer.reached().unwrap_or_else(|error| panic!("{to}: {error}")).0.to_owned())
            .collect()
    }
}

#[test]
fn rule_2_8_1_connections_survive_changes_kill_and_restart() {
    needs_root!();
    for setup in SETUPS {
        for hooks in [true, false] {
            let mut life = Life::new(&setup(hooks));
            let pod = life.world.node(0).pod(0).place().clone();
            let from = [pod, life.world.node(0).place().clone(), life.world.client().clone()];
            let mut holds = Vec::new();
            for (place, to) in from.iter().flat_map(|place| life.vips(8).into_iter().map(move |to| (place, to))) {
                let hold = Hold::start(place, to).unwrap_or_else(|error| panic!("{}: {error:#}", place.name()));
                let what = format!("{} to {to}, {:?}", place.name(), hold.answer());
                holds.push((hold, what));
            }
            for to in life.node_ports() {
                let hold = Hold::start(life.world.client(), to).expect("a held connection");
                let what = format!("client to {to}, {:?}", hold.answer());
                holds.push((hold, what));
            }
            let used: BTreeSet<String> =
                holds.iter().map(|(hold, _)| hold.answer().backend.clone().expect("a backend")).collect();
            // Another backend leaves and comes back.
            if let Some(unused) = life.world.pods().find(|pod| !used.contains(pod.place().name())) {
                life.world.remove_pod(unused).expect("removed");
                life.wait(6);
                life.world.apply_pod(unused, &PodSpec::labelled("app", "web")).expect("a pod");
                life.wait(8);
            }
            // So does one that is in use: its connections go on (semantics.md 2.8.1).
            let name = used.first().expect("a backend").clone();
            life.world.remove_pod(life.pod(&name)).expect("removed");
            life.wait(6);
            for agent in &mut life.agents {
                agent.kill().expect("killed");
            }
            // Nobody runs, and new connections still work.
            for to in life.node_ports() {
                assert!(!life.answers(Transport::Tcp, to, 4).is_empty());
            }
            for agent in &mut life.agents {
                agent.launch().expect("launched");
                agent.wait_service("web", 6).expect("the Service");
            }
            let counters: Vec<_> = life.agents.iter().map(|agent| agent.status().expect("a status").counters).collect();
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
    let life = Life::new(&Setup::tcx(true));
    let gone = "pod-1-1";
    for transport in [Transport::Tcp, Transport::UdpUnconnected] {
        for to in life.node_ports() {
            let all = life.answers(transport, to, 60);
            assert_eq!(all.len(), 4, "{transport:?} to {to}: {all:?}");
        }
    }
    life.world.remove_pod(life.pod(gone)).expect("removed");
    life.wait(6);
    for transport in [Transport::Tcp, Transport::UdpUnconnected] {
        for to in life.node_ports().into_iter().chain(life.vips(6)) {
            let rest = life.answers(transport, to, 60);
            assert!(rest.len() == 3 && !rest.contains(gone), "{transport:?} to {to}: {rest:?}");
        }
    }
}

#[test]
fn rule_2_8_2_a_udp_flow_leaves_a_backend_that_is_gone() {
    needs_root!();
    let life = Life::new(&Setup::tcx(false));
    for (index, to) in life.node_ports().into_iter().enumerate() {
        let port = 40_000 + u16::try_from(index).expect("small");
        let source = SocketAddr::new(life.world.client().ip_like(to.ip()), port);
        let call = Call::udp(to).source(source);
        let ask = || {
            let answer = call.run_one(life.world.client()).expect("a run");
            answer.reached().unwrap_or_else(|error| panic!("{to}: {error}")).0.to_owned()
        };
        let first = ask();
        assert_eq!(ask(), first, "one flow keeps its backend");
        let pod = life.pod(&first);
        life.world.remove_pod(pod).expect("removed");
        life.wait(6);
        assert_ne!(ask(), first, "the same flow must not go to a backend that is gone");
        life.world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        life.wait(8);
    }
}

#[test]
fn two_hundred_megabytes_each_way_arrive_intact() {
    needs_root!();
    for setup in SETUPS {
        let life = Life::new(&setup(false));
        for to in life.node_ports() {
            let report = client::bulk(life.world.client(), to, 200 << 20, Duration::from_mins(2)).expect("a transfer");
            assert!(report.is_intact() && report.sent == 200 << 20, "{to}: {report:?}");
        }
    }
}

#[test]
fn a_firewall_between_client_and_pods_takes_effect() {
    needs_root!();
    let life = Life::new(&Setup::tcx(false));
    for (to, rule) in life.node_ports().into_iter().zip([
        "ip saddr 192.168.100.0/24 ip daddr 10.244.0.0/16",
        "ip6 saddr fd00:192:168:100::/64 ip6 daddr fd00:10:244::/48",
    ]) {
        life.answers(Transport::Tcp, to, 4);
        life.world
            .node(0)
            .place()
            .namespace()
            .nft(&format!("add table inet wall\nadd chain inet wall f {{ type filter hook forward priority 0; }}\nadd rule inet wall f {rule} drop\n"))
            .expect("nft");
        let call = Call::tcp(to).timeout(Duration::from_millis(300));
        let answer = call.run_one(life.world.client()).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{to}: {answer:?}");
    }
}

#[test]
fn processes_of_another_node_on_this_kernel_are_not_captured() {
    needs_root!();
    let life = Life::new(&Setup::tcx(true));
    let connects =
        |agent: &Agent| agent.status().expect("a status").counters.get("SocketConnect").copied().unwrap_or(0);
    let before: Vec<u64> = life.agents.iter().map(connects).collect();
    for to in life.vips(8) {
        let answers = Call::tcp(to).count(5).run(life.world.node(0).place()).expect("a run");
        assert!(answers.iter().all(|answer| answer.error.is_none()), "{answers:?}");
    }
    let after: Vec<u64> = life.agents.iter().map(connects).collect();
    assert_eq!((after[0] - before[0], after[1] - before[1]), (10, 0));
}

#[test]
fn a_flow_of_one_cpu_is_known_on_the_other() {
    needs_root!();
    let life = Life::new(&Setup::tcx(false));
    for to in life.node_ports() {
        for cpu in [0, 1] {
            let answers = Call::tcp(to).cpu(cpu).count(10).run(life.world.client()).expect("a run");
            assert!(answers.iter().all(|answer| answer.error.is_none()), "{answers:?}");
        }
        // One UDP flow, sent from either CPU in turn.
        let source = SocketAddr::new(life.world.client().ip_like(to.ip()), 41_000);
        let backends: BTreeSet<String> = [0, 1, 0, 1]
            .into_iter()
            .map(|cpu| {
                let answer = Call::udp(to).source(source).cpu(cpu).run_one(life.world.client()).expect("a run");
                answer.reached().expect("an answer").0.to_owned()
            })
            .collect();
        assert_eq!(backends.len(), 1, "{backends:?}");
    }
}

#[test]
fn a_new_interface_is_attached_and_its_pod_served() {
    needs_root!();
    let mut life = Life::new(&Setup::tcx(true));
    let seen = Instant::now();
    let interface = {
        let pod = life.world.add_pod(0, "late", None).expect("a pod");
        pod.interface().to_owned()
    };
    life.world.settle().expect("settled");
    let agent = &life.agents[0];
    wait_until("the new device carries our hooks", Duration::from_secs(2), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let device = status.devices.into_iter().find(|device| device.name == interface);
        match device {
            Some(device) if device.hooks == "tcx" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .expect("attached");
    println!("seen after {:?}, the pod's making included", seen.elapsed());
    let late = life.world.pods().find(|pod| pod.place().name() == "late").expect("the pod").place().clone();
    for to in life.vips(8) {
        for transport in [Transport::Tcp, Transport::Udp] {
            Call::new(transport, to).run_one(&late).expect("a run").reached().expect("an answer");
        }
    }
}

#[test]
fn cleanup_leaves_nothing_and_a_second_agent_is_refused() {
    needs_root!();
    let mut life = Life::new(&Setup::tcx(true));
    let node = life.world.node(0).place().clone();
    let listing = |what: &[&str]| node.namespace().ip_output(what).expect("ip");
    let error = life.agents[0].query(&["cleanup"]).expect_err("an agent runs").to_string();
    assert!(error.contains("another agent"), "{error}");
    assert!(listing(&["route"]).contains("ballast0"));
    for agent in &mut life.agents {
        agent.stop().expect("stopped");
    }
    let said = life.agents[0].query(&["cleanup", "--dry-run"]).expect("a dry run");
    assert!(said.contains("would remove") && listing(&["link"]).contains("ballast0"), "{said}");
    let removed = life.agents[0].cleanup().expect("a cleanup");
    assert!(removed.contains("removed"), "{removed}");
    for (what, text) in [("links", listing(&["link"])), ("routes", listing(&["route"]) + &listing(&["-6", "route"]))] {
        assert!(!text.contains("ballast"), "{what}: {text}");
    }
    let again = life.agents[0].cleanup().expect("a second cleanup");
    assert!(again.contains("nothing of Ballast"), "{again}");
    // The path is the plain one again: nobody answers a VIP.
    let to = SocketAddr::from(([10, 96, 0, 99], 80));
    let answer = Call::tcp(to).timeout(Duration::from_millis(300)).run_one(&node).expect("a run");
    assert!(answer.error.is_some(), "{answer:?}");
}
