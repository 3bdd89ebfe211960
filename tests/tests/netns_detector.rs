//! Who is a pod: the local-traffic detectors (semantics.md 2.3.4, 2.3.8, 2.3.9, 2.4.1).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    Agent, Echo, NODE_PORT, Network, Setup, TARGET, World,
    client::Call,
    kube::{PodSpec, Service},
    needs_root, wait_until,
};
use lb_userspace::report::{FlowList, FlowRow};
use serde_json::json;

/// Policy Local, and the one endpoint is a pod of node 1.
struct Told {
    agents: Vec<Agent>,
    _server: Echo,
    world: World,
}

impl Told {
    fn new(network: Network, socket_hooks: bool, config: &str) -> Self {
        let world = World::builder().network(network).pods(2).build().expect("a world");
        world.apply_nodes().expect("nodes");
        let backend = world.node(0).pod(0);
        world.apply_pod(backend, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        let fields =
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "clusterIPs": VIPS, "clusterIP": VIPS[0]});
        world.apply_service(&service.fields(fields)).expect("a Service");
        let server = Echo::start(backend, &[TARGET], &[TARGET]).expect("a server");
        let more = format!("---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{config}");
        let setup = Setup { more, ..Setup::tcx(socket_hooks) };
        let agents = Agent::start_all(&world, &setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
        }
        Self { agents, _server: server, world }
    }

    fn detector(&self, node: usize) -> String {
        self.agents[node].status().expect("a status").detector
    }

    fn dropped(&self, node: usize) -> u64 {
        let counters = self.agents[node].status().expect("a status").counters;
        counters.get("NoLocalEndpoint").copied().unwrap_or(0)
    }

    fn flow(&self, node: usize, client: IpAddr) -> Result<FlowRow, String> {
        let text =
            self.agents[node].query(&["conntrack", "list", "-o", "json"]).map_err(|error| format!("{error:#}"))?;
        let list: FlowList = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        list.flows.into_iter().find(|flow| flow.client.ip() == client).ok_or_else(|| "no flow".to_owned())
    }
}

const VIPS: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];
const SOON: Duration = Duration::from_millis(400);
/// All of the test world's podCIDRs.
const CLUSTER: &str = "detectLocalMode: ClusterCIDR\nclusterCIDR: 10.244.0.0/16,fd00:10:244::/48\n";

#[test]
fn rule_2_3_9_by_node_cidr_a_pod_is_an_outsider_at_another_nodes_node_port() {
    needs_root!();
    let told = Told::new(Network::Routed, false, "detectLocalMode: NodeCIDR\n");
    let pod = told.world.node(0).pod(1).place();
    for ip in told.world.node(1).ips() {
        let before = told.dropped(1);
        let answer = Call::tcp((ip, NODE_PORT)).timeout(SOON).run_one(pod).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{ip}: {answer:?}");
        assert!(told.dropped(1) > before, "{ip}: not by rule 2.3.3");
    }
    assert!(told.detector(1).starts_with("NodeCIDR "), "{}", told.detector(1));
}

/// As with kube-proxy the source is kept, so that the answer takes the short way and meets nobody who knows the nodePort.
#[test]
fn rule_2_3_9_by_cluster_cidr_it_is_a_pod_everywhere() {
    needs_root!();
    let told = Told::new(Network::Routed, false, CLUSTER);
    let pod = told.world.node(0).pod(1).place();
    for ip in told.world.node(1).ips() {
        let before = told.dropped(1);
        let answer = Call::tcp((ip, NODE_PORT)).timeout(SOON).run_one(pod).expect("a run");
        let flow = wait_until("the flow", Duration::from_secs(5), || told.flow(1, pod.ip_like(ip))).expect("at node 2");
        let backend = SocketAddr::new(told.world.node(0).pod(0).place().ip_like(ip), TARGET);
        assert_eq!((flow.backend, flow.source), (backend, None), "{ip}: {answer:?}");
        assert_eq!(told.dropped(1), before);
    }
    // Outsiders are what they were.
    for ip in told.world.node(1).ips() {
        let answer = Call::tcp((ip, NODE_PORT)).timeout(SOON).run_one(told.world.client()).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{ip}: {answer:?}");
    }
    assert_eq!(told.detector(1), "ClusterCIDR 10.244.0.0/16,fd00:10:244::/48");
}

/// At the nodePort of its own node a pod is served by the other node's endpoint, under its own address.
fn own_node_port(told: &Told, name: &str) {
    let pod = told.world.node(1).pod(1).place();
    for ip in told.world.node(1).ips() {
        let answer = Call::tcp((ip, NODE_PORT)).run_one(pod).expect("a run");
        let (_, source) = answer.reached().unwrap_or_else(|error| panic!("{name}, {ip}: {error}"));
        assert_eq!(source, pod.ip_like(ip), "{name}");
        let answer = Call::tcp((ip, NODE_PORT)).timeout(SOON).run_one(told.world.client()).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{name}, from outside: {answer:?}");
    }
}

#[test]
fn rule_2_3_4_a_pod_is_known_at_its_own_node_by_each_detector() {
    needs_root!();
    for config in ["", CLUSTER] {
        own_node_port(&Told::new(Network::Routed, false, config), config);
    }
}

#[test]
fn rule_2_3_8_pods_are_those_behind_interfaces_of_a_prefix() {
    needs_root!();
    let config = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: pod}\n";
    let told = Told::new(Network::Routed, false, config);
    own_node_port(&told, config);
    for pod in told.world.node(1).pods() {
        assert!(pod.interface().starts_with("pod"), "{}", pod.interface());
        for ip in pod.place().ips() {
            assert!(told.detector(1).contains(&ip.to_string()), "{} has no {ip}", told.detector(1));
        }
    }
    // A pod that comes later is known once it has a route.
    let late = told.world.node(1).pod(0);
    let ip = late.place().ips()[0];
    told.world.node(1).namespace().ip(&format!("link set {} down", late.interface())).expect("down");
    wait_until("it to be forgotten", Duration::from_secs(5), || {
        let detector = told.detector(1);
        if detector.contains(&format!("{ip}/")) { Err(detector) } else { Ok(()) }
    })
    .expect("forgotten");
}

#[test]
fn rule_2_3_8_pods_are_those_behind_a_bridge() {
    needs_root!();
    let config = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n";
    let told = Told::new(Network::Bridge, false, config);
    own_node_port(&told, config);
    assert!(told.detector(1).starts_with("BridgeInterface 10.244."), "{}", told.detector(1));
}

#[test]
fn rule_2_3_8_without_a_detector_only_host_processes_are_told_apart() {
    needs_root!();
    let told = Told::new(Network::Routed, false, "detectLocalMode: ClusterCIDR\n");
    let node = told.world.node(1);
    for ip in node.ips() {
        let answer = Call::tcp((ip, NODE_PORT)).timeout(SOON).run_one(node.pod(1).place()).expect("a run");
        assert_eq!(answer.error.as_deref(), Some("ETIMEDOUT"), "{ip}: {answer:?}");
    }
    assert_eq!(told.detector(1), "none");
}

#[test]
fn rule_2_4_1_masquerade_all_rewrites_the_source_of_pods_too() {
    needs_root!();
    for socket_hooks in [true, false] {
        let told = Told::new(Network::Routed, socket_hooks, "nftables: {masqueradeAll: true}\n");
        let node = told.world.node(1);
        for vip in VIPS {
            let vip: IpAddr = vip.parse().expect("an address");
            let answer = Call::tcp((vip, 80)).run_one(node.pod(1).place()).expect("a run");
            let (backend, source) = answer.reached().unwrap_or_else(|error| panic!("{vip}: {error}"));
            assert_eq!(source, told.world.source_towards(node, backend, vip), "socket hooks {socket_hooks}");
        }
    }
}
