//! R14: routes, addresses and interfaces change under the agent; new connections work again within a second.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Echo, Namespace, Network, Place, Setup, TcxHook, World,
    client::{Call, Hold, Transport},
    kube::{PodSpec, Service},
    needs_root, scoreboard, tcx_chain, wait_until,
};
use serde_json::json;

const TARGET: u16 = 9376;
const NODE_PORT: u16 = 30080;
/// From the change to connections that work, as the issue says.
const SOON: Duration = Duration::from_secs(1);

struct Changing {
    agent: Agent,
    _server: Echo,
    world: World,
    /// The longest that new connections failed after a change.
    slowest: Cell<Duration>,
}

impl Changing {
    /// The backend is the pod of the last node; only node 1 has an agent.
    fn start(network: Network, nodes: u8) -> Self {
        let world = World::builder().nodes(nodes).pods(1).uplinks(2).network(network).rp_filter(1).drop_invalid(true);
        let world = world.build().expect("a world");
        world.apply_nodes().expect("nodes");
        let backend = world.node(usize::from(nodes) - 1).pod(0);
        world.apply_pod(backend, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let server = Echo::start(backend, &[TARGET], &[TARGET]).expect("a server");
        let agent = Agent::start(&world, world.node(0), &Setup::tcx(false)).expect("an agent");
        agent.wait_service("web", 2).expect("the Service");
        Self { agent, _server: server, world, slowest: Cell::default() }
    }

    fn node(&self) -> &Namespace {
        self.world.node(0).namespace()
    }

    fn node_ports(&self) -> [SocketAddr; 2] {
        self.world.node(0).ips().map(|ip| SocketAddr::new(ip, NODE_PORT))
    }

    /// Connections of both families and transports from the client to node 1.
    fn assert_nodeports_show(&self, what: &str, since: Instant, sources: [&str; 2]) {
        for (to, source) in self.node_ports().into_iter().zip(sources) {
            let source: IpAddr = source.parse().expect("an address");
            for transport in [Transport::Tcp, Transport::Udp] {
                let failing = soon(what, since, self.world.client(), transport, to, source);
                self.slowest.set(self.slowest.get().max(failing));
            }
        }
    }

    fn shown(&self, what: &str) {
        let slowest = self.slowest.get().as_millis();
        scoreboard("R14", &format!("{what}: new connections work after at most {slowest} ms"));
    }
}

/// New connections reach the backend soon after `since`, and from then on each does; it sees `source`. How long they failed.
fn soon(what: &str, since: Instant, from: &Place, transport: Transport, to: SocketAddr, source: IpAddr) -> Duration {
    let call = || Call::new(transport, to).timeout(Duration::from_millis(200)).run_one(from).expect("a run");
    let mut last = None;
    let row = format!("{what}: {transport:?} to {to}");
    wait_until(&row, Duration::from_secs(5), || match call().reached() {
        Ok((_, seen)) if seen == source => Ok(()),
        other => {
            last = Some(since.elapsed());
            Err(format!("{other:?} instead of {source}"))
        }
    })
    .expect("an answer");
    println!("{row}: failing until {:.0} ms after", last.unwrap_or_default().as_secs_f64() * 1e3);
    assert!(last.is_none_or(|last| last < SOON), "{row}: still failing after {last:?}");
    for _ in 0..5 {
        let answer = call();
        assert_eq!(answer.reached().expect(&row).1, source, "{row}: {answer:?}");
    }
    last.unwrap_or_default()
}

/// What the loss of a device takes with it, to be given back: addresses and routes of both families.
fn snapshot(namespace: &Namespace, device: &str) -> String {
    let mut batch = String::new();
    let lines = |args: &[&str]| namespace.ip_output(args).expect("ip");
    for line in lines(&["-o", "-6", "addr", "show", "dev", device, "scope", "global"]).lines() {
        let address = line.split_whitespace().nth(3).expect("an address");
        batch.push_str(&format!("addr replace {address} dev {device} nodad\n"));
    }
    for family in ["-4", "-6"] {
        for line in
            lines(&[family, "route", "show", "dev", device]).lines().filter(|line| !line.contains("proto kernel"))
        {
            let route = line.split(" pref ").next().unwrap_or(line);
            batch.push_str(&format!("route replace {route} dev {device}\n"));
        }
    }
    batch
}

#[test]
fn r14_a_backend_moves_to_another_uplink_and_back() {
    needs_root!();
    let changing = Changing::start(Network::Routed, 2);
    let sources = |segment: u8| [format!("192.168.{segment}.2"), format!("fd00:192:168:{segment}::2")];
    let [first, second] = [sources(1), sources(11)];
    changing.assert_nodeports_show("at first", Instant::now(), [&first[0], &first[1]]);
    let since = Instant::now();
    changing
        .node()
        .ip("route add 10.244.2.0/24 via 192.168.11.1 dev eth1\n\
             route add fd00:10:244:2::/64 via fd00:192:168:11::1 dev eth1\n")
        .expect("ip");
    changing.assert_nodeports_show("over eth1", since, [&second[0], &second[1]]);
    let since = Instant::now();
    changing.node().ip("route del 10.244.2.0/24\nroute del fd00:10:244:2::/64\n").expect("ip");
    changing.assert_nodeports_show("over eth0 again", since, [&first[0], &first[1]]);
    changing.shown("a backend moves to another uplink and back");
}

#[test]
fn r14_the_source_of_a_route_changes_and_its_address_goes() {
    needs_root!();
    let changing = Changing::start(Network::Routed, 2);
    let since = Instant::now();
    changing
        .node()
        .ip("addr add 192.168.1.77/24 dev eth0\n\
             addr add fd00:192:168:1::77/64 dev eth0 nodad\n\
             route add 10.244.2.0/24 via 192.168.1.1 dev eth0 src 192.168.1.77\n\
             route add fd00:10:244:2::/64 via fd00:192:168:1::1 dev eth0 src fd00:192:168:1::77\n")
        .expect("ip");
    changing.assert_nodeports_show("another source", since, ["192.168.1.77", "fd00:192:168:1::77"]);
    let since = Instant::now();
    // IPv4 routes go with the address they name.
    changing
        .node()
        .ip("addr del 192.168.1.77/24 dev eth0\n\
             addr del fd00:192:168:1::77/64 dev eth0\n\
             route del fd00:10:244:2::/64\n")
        .expect("ip");
    changing.assert_nodeports_show("the address is gone", since, ["192.168.1.2", "fd00:192:168:1::2"]);
    changing.shown("the source of a route changes and its address goes");
}

#[test]
fn r14_an_uplink_flaps() {
    needs_root!();
    let changing = Changing::start(Network::Routed, 2);
    // Not our work, and as long as the limit: who asked for a neighbour while the link was down asks again a second later.
    for (namespace, device) in [(changing.node(), "eth0"), (changing.world.router(), "node1")] {
        for family in ["ipv4", "ipv6"] {
            namespace.sysctl(&format!("{family}/neigh/{device}/retrans_time_ms"), "50").expect("a sysctl");
        }
    }
    let hold = |to| Hold::start(changing.world.client(), to).expect("a held connection");
    let held: Vec<_> = changing.node_ports().into_iter().map(hold).collect();
    for round in 1..=3 {
        let lost = snapshot(changing.node(), "eth0");
        changing.node().ip("link set eth0 down\n").expect("ip");
        let down = || {
            let status = changing.agent.status().map_err(|error| format!("{error:#}"))?;
            let device = status.devices.into_iter().find(|device| device.name == "eth0");
            let told = device.as_ref().is_some_and(|device| device.role == "ignored" && device.why.starts_with("down"));
            if told { Ok(()) } else { Err(format!("{device:?}")) }
        };
        wait_until("the agent knows that it is down", Duration::from_secs(5), down).expect("down");
        // What arrives first when it is up again belongs to a connection, which the node itself would reset.
        assert_eq!(tcx_chain(changing.node(), "eth0", TcxHook::Ingress).expect("a chain"), ["lb_ingress"]);
        changing.node().ip("link set eth0 up\n").expect("ip");
        changing.node().ip(&lost).expect("ip");
        let since = Instant::now();
        let what = format!("after flap {round}");
        changing.assert_nodeports_show(&what, since, ["192.168.1.2", "fd00:192:168:1::2"]);
    }
    // Faster than anybody looks.
    let lost = snapshot(changing.node(), "eth0");
    let storm = "link set eth0 down\nlink set eth0 up\n".repeat(20);
    changing.node().ip(&format!("{storm}{lost}")).expect("ip");
    changing.assert_nodeports_show("after a storm", Instant::now(), ["192.168.1.2", "fd00:192:168:1::2"]);
    for hold in held {
        let report = hold.stop().expect("a report");
        assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
    }
    changing.shown("an uplink flaps, 3 times and 20 times at once; open connections go on");
}

#[test]
fn r14_a_pods_interface_goes_and_comes_back_under_its_name() {
    needs_root!();
    for network in [Network::Routed, Network::Bridge] {
        let changing = Changing::start(network, 1);
        let (world, node) = (&changing.world, changing.world.node(0));
        let sources = node.ips().map(|ip| world.source_towards(node, node.pod(0).name(), ip).to_string());
        changing.assert_nodeports_show("at first", Instant::now(), [&sources[0], &sources[1]]);
        for round in 1..=2 {
            let what = format!("{network:?}: plugged in again, {round}");
            changing.node().ip(&format!("link del {}\n", node.pod(0).interface())).expect("ip");
            world.plug(node.pod(0)).expect("a pair");
            changing.assert_nodeports_show(&what, Instant::now(), [&sources[0], &sources[1]]);
        }
        changing.shown(&format!("a pod's interface goes and comes back under its name ({network:?})"));
    }
}

#[test]
fn r14_a_tunnel_goes_and_comes_back() {
    needs_root!();
    let changing = Changing::start(Network::Vxlan, 2);
    let [first, second] = ["10.244.1.0", "fd00:10:244:1::"];
    changing.assert_nodeports_show("at first", Instant::now(), [first, second]);
    changing.node().ip("link del vxlan0\n").expect("ip");
    // The default route leads there too.
    changing.assert_nodeports_show("without", Instant::now(), ["192.168.1.2", "fd00:192:168:1::2"]);
    changing.world.tunnel(changing.world.node(0)).expect("a tunnel");
    changing.assert_nodeports_show("after", Instant::now(), [first, second]);
    changing.shown("a tunnel goes and comes back");
}

#[test]
fn r14_policy_routing_and_next_hop_objects_lead_elsewhere() {
    needs_root!();
    let changing = Changing::start(Network::Routed, 2);
    let [first, second] = [["192.168.1.2", "fd00:192:168:1::2"], ["192.168.11.2", "fd00:192:168:11::2"]];
    changing
        .node()
        .ip("route add default via 192.168.11.1 dev eth1 table 100\n\
             route add default via fd00:192:168:11::1 dev eth1 table 100\n\
             nexthop add id 4 via 192.168.1.1 dev eth0\n\
             nexthop add id 6 via fd00:192:168:1::1 dev eth0\n\
             route add 10.244.2.0/24 nhid 4\n\
             route add fd00:10:244:2::/64 nhid 6\n")
        .expect("ip");
    changing.assert_nodeports_show("before", Instant::now(), first);
    let rules = |verb: &str| {
        for (family, net) in [("-4", "10.244.2.0/24"), ("-6", "fd00:10:244:2::/64")] {
            changing.node().ip_output(&[family, "rule", verb, "to", net, "lookup", "100"]).expect("ip");
        }
    };
    rules("add");
    changing.assert_nodeports_show("a rule comes", Instant::now(), second);
    rules("del");
    changing.assert_nodeports_show("the rule goes", Instant::now(), first);
    changing
        .node()
        .ip("nexthop replace id 4 via 192.168.11.1 dev eth1\nnexthop replace id 6 via fd00:192:168:11::1 dev eth1\n")
        .expect("ip");
    changing.assert_nodeports_show("a next hop changes", Instant::now(), second);
    changing.shown("policy routing and next hop objects lead elsewhere");
}
