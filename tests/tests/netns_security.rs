//! R22: what strangers on the network cannot do to Services, both families, tcx and XDP (reliability.md section 7).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lb_common::verdict::Counter;
use lb_tests::{
    Agent, Capture, Echo, NODE_PORT, Setup, TARGET, World,
    api_server::ApiServer,
    client::{self, Hold},
    inject::{self, ACK, FIN, Injector, RST, SYN},
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use lb_userspace::report::{FlowList, FlowRow};
use serde_json::{Value, json};

/// Who writes the slices of Services with selectors.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// A port of node 1 that listens on its loopback addresses only.
const PRIVATE: u16 = 7777;
/// Longer than a flow that was reset lives without a packet.
const IDLE: Duration = Duration::from_secs(12);

fn shown(setup: &Setup, what: &str) {
    scoreboard("R22", &format!("{what} ({})", if setup.xdp == "on" { "XDP" } else { "tcx" }));
}

struct Attacked {
    agents: Vec<Agent>,
    _server: Echo,
    /// From the router to node 1.
    outside: Injector,
    world: World,
}

impl Attacked {
    /// The backend is on node 2; clients and strangers come by node 1.
    fn new(setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).pods(1).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        let far = world.node(1).pod(0);
        world.apply_pod(far, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let server = Echo::start(far, &[TARGET], &[TARGET]).expect("a server");
        let agents = Agent::start_all(&world, setup).expect("agents");
        for agent in &agents {
            agent.wait_service("web", 2).expect("the Service");
        }
        let outside = Injector::open(world.router(), "node1", world.node(0).namespace(), "eth0").expect("an injector");
        Self { agents, _server: server, outside, world }
    }

    fn node_ports(&self) -> [SocketAddr; 2] {
        self.world.node(0).ips().map(|ip| SocketAddr::new(ip, NODE_PORT))
    }

    fn count(&self, counter: Counter) -> u64 {
        let counters = self.agents[0].status().expect("a status").counters;
        counters.get(&format!("{counter:?}")).copied().unwrap_or(0)
    }

    fn wait_count(&self, counter: Counter, at_least: u64) {
        wait_until(&format!("{counter:?}"), Duration::from_secs(5), || match self.count(counter) {
            count if count >= at_least => Ok(()),
            count => Err(format!("{count} instead of {at_least}")),
        })
        .expect("counted");
    }

    fn flow(&self, client: SocketAddr) -> FlowRow {
        let text = self.agents[0].query(&["conntrack", "list", "-o", "json"]).expect("an answer");
        let list: FlowList = serde_json::from_str(&text).expect("flows");
        list.flows.into_iter().find(|flow| flow.client == client).expect("the flow")
    }
}

/// Sources that nobody can have.
fn martians(ipv4: bool) -> Vec<IpAddr> {
    if ipv4 {
        let all = [[127, 0, 0, 1], [127, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3], [224, 0, 0, 1], [255, 255, 255, 255]];
        all.map(|octets| Ipv4Addr::from(octets).into()).into()
    } else {
        let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, multicast].map(IpAddr::from).into()
    }
}

fn sources_nobody_has(setup: &Setup) {
    let attacked = Attacked::new(setup);
    let (martian, new) = (attacked.count(Counter::Martian), attacked.count(Counter::NewFlow));
    let mut sent = 0;
    for to in attacked.node_ports() {
        for ip in martians(to.is_ipv4()) {
            let from = SocketAddr::new(ip, 4000);
            for packet in [inject::tcp(from, to, SYN, 1, 0), inject::udp(from, to)] {
                attacked.outside.send(&packet).expect("sent");
                sent += 1;
            }
        }
    }
    attacked.wait_count(Counter::Martian, martian + sent);
    assert_eq!(attacked.count(Counter::NewFlow), new, "a flow of a martian");
    shown(setup, &format!("martians: {sent} packets dropped and counted, 0 flows"));
}

#[test]
fn r22_sources_nobody_has_open_no_flow() {
    needs_root!();
    sources_nobody_has(&Setup::tcx(true));
    sources_nobody_has(&Setup::xdp(false));
}

/// CVE-2020-8558: a neighbour sends to the node's MAC, but to its loopback addresses.
fn loopback_from_outside(setup: &Setup) {
    let attacked = Attacked::new(setup);
    let node = attacked.world.node(0);
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let _private = Echo::start_on(node, &[PRIVATE], &[PRIVATE], &loopback).expect("a server");
    let new = attacked.count(Counter::NewFlow);
    let capture = Capture::start(attacked.world.router(), "node1").expect("a capture");
    for (ip, client) in loopback.into_iter().zip(attacked.world.client().ips()) {
        for port in [PRIVATE, NODE_PORT, 80] {
            let (from, to) = (SocketAddr::new(client, 4001), SocketAddr::new(ip, port));
            for packet in [inject::tcp(from, to, SYN, 1, 0), inject::udp(from, to)] {
                attacked.outside.send(&packet).expect("sent");
            }
        }
    }
    // What came after them has arrived, so they have.
    for to in attacked.node_ports() {
        let from = SocketAddr::new(attacked.world.client().ip_like(to.ip()), 4002);
        attacked.outside.send(&inject::udp(from, to)).expect("sent");
    }
    attacked.wait_count(Counter::NewFlow, new + 2);
    let seen = capture.stop().expect("a capture");
    assert!(seen.iter().all(|seen| !loopback.contains(&seen.source)), "a loopback address answers: {seen:?}");
    assert_eq!(attacked.count(Counter::NewFlow), new + 2, "a flow to a loopback address");
    shown(
        setup,
        "loopback from outside (CVE-2020-8558): 12 packets to a private, a node and a Service port, 0 answers",
    );
}

#[test]
fn r22_loopback_addresses_are_not_served_to_neighbours() {
    needs_root!();
    loopback_from_outside(&Setup::tcx(true));
    loopback_from_outside(&Setup::xdp(true));
}

/// Numbers a stranger guesses, all over the range. One of them may be near those of a connection, by an accident of one in a
/// hundred; that ends it no more than the others.
fn guesses() -> impl Iterator<Item = u32> {
    (0..32_u32).map(|round| round.wrapping_mul(0x0800_0000).wrapping_add(0x0123_4567))
}

fn resets_of_strangers(setup: &Setup) {
    let attacked = Attacked::new(setup);
    let world = &attacked.world;
    let hold = |to| {
        let busy = Hold::start(world.client(), to).expect("a held connection");
        let idle = Hold::start_every(world.client(), to, IDLE).expect("a held connection");
        [(to, busy), (to, idle)]
    };
    let held: Vec<(SocketAddr, Hold)> = attacked.node_ports().into_iter().flat_map(hold).collect();
    let mut sent = 0;
    let to_client = Injector::open(world.router(), "client", world.client().namespace(), "eth0").expect("an injector");
    for (to, hold) in &held {
        let client = hold.answer().local.expect("an address");
        let flow = attacked.flow(client);
        assert_eq!(flow.phase, "open", "{flow:?}");
        let inner = flow.source.expect("a masqueraded flow");
        for sequence in guesses() {
            for flags in [RST, RST | ACK, FIN | ACK] {
                let acknowledgment = sequence.rotate_left(7);
                let segment = |from, to| inject::tcp(from, to, flags, sequence, acknowledgment);
                // As the client, as the backend, and to the client as the Service.
                attacked.outside.send(&segment(client, *to)).expect("sent");
                attacked.outside.send(&segment(flow.backend, inner)).expect("sent");
                to_client.send(&segment(*to, client)).expect("sent");
                sent += 3;
            }
        }
    }
    for (to, hold) in held {
        let client = hold.answer().local.expect("an address");
        let before = attacked.flow(client);
        // The last echo comes after all that was sent, and after the pause.
        let report = hold.stop().expect("a report");
        assert_eq!((report.error.as_deref(), before.phase.as_str()), (None, "open"), "{to}: {report:?}");
        assert!(report.rounds >= 2, "{to}: {report:?}");
    }
    shown(setup, &format!("RST and FIN injection: {sent} guessed segments, 4 busy and idle connections, 0 ended"));
}

#[test]
fn r22_a_stranger_who_guesses_ends_no_connection_at_tcx() {
    needs_root!();
    resets_of_strangers(&Setup::tcx(false));
}

#[test]
fn r22_a_stranger_who_guesses_ends_no_connection_at_xdp() {
    needs_root!();
    resets_of_strangers(&Setup::xdp(false));
}

/// Errors about packets that nobody sent: of another flow, and to somebody else than who sent them.
fn forged_errors(setup: &Setup) {
    let attacked = Attacked::new(setup);
    let world = &attacked.world;
    for (to, router) in attacked.node_ports().into_iter().zip(["192.168.1.1", "fd00:192:168:1::1"]) {
        let router: IpAddr = router.parse().expect("an address");
        let hold = Hold::start(world.client(), to).expect("a held connection");
        let flow = attacked.flow(hold.answer().local.expect("an address"));
        let inner = flow.source.expect("a masqueraded flow");
        let (translated, passed) = (attacked.count(Counter::IcmpError), attacked.count(Counter::Icmp));
        let other_port = SocketAddr::new(inner.ip(), inner.port() ^ 1);
        let other_backend = SocketAddr::new(flow.backend.ip(), flow.backend.port() ^ 1);
        let stranger = world.client().ip_like(to.ip());
        for (quoted, whose) in [
            (inject::tcp(other_port, flow.backend, ACK, 1, 1), inner.ip()),
            (inject::tcp(inner, other_backend, ACK, 1, 1), inner.ip()),
            (inject::udp(inner, flow.backend), inner.ip()),
            (inject::tcp(inner, flow.backend, ACK, 1, 1), stranger),
        ] {
            attacked.outside.send(&inject::too_big(router, whose, 600, &quoted)).expect("sent");
        }
        attacked.wait_count(Counter::Icmp, passed + 4);
        assert_eq!(attacked.count(Counter::IcmpError), translated, "{to}: an error about nobody's packet");
        let report = client::path(world.client(), to).expect("a path");
        assert_eq!((report.error.clone(), report.mtu), (None, 1500), "{to}: {report:?}");
        let report = hold.stop().expect("a report");
        assert!(report.error.is_none() && report.rounds >= 2, "{report:?}");
    }
    shown(setup, "forged ICMP: 8 errors about packets nobody sent, 0 translated, no path MTU changed");
}

#[test]
fn r22_forged_errors_change_nothing() {
    needs_root!();
    forged_errors(&Setup::tcx(false));
    forged_errors(&Setup::xdp(false));
}

/// CVE-2021-25740: whoever may write an EndpointSlice leads a Service's traffic to where they like.
struct Written {
    api: ApiServer,
    world: World,
}

impl Written {
    fn new() -> Self {
        let world = World::builder().build().expect("a world");
        let api = ApiServer::of_world(&world).expect("an API server");
        let written = Self { api, world };
        written.service("web", "10.96.0.10", &json!({"app": "web"}));
        written.service("lent", "10.96.0.11", &Value::Null);
        written
    }

    fn service(&self, name: &str, vip: &str, selector: &Value) {
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
            "spec": {"clusterIP": vip, "clusterIPs": [vip], "ports": [{"name": "http", "port": 80}], "selector": selector},
        }));
    }

    /// A slice of a Service with one endpoint; who wrote it, as it says itself.
    fn slice(&self, name: &str, service: &str, by: &str, address: IpAddr, node: Option<&str>) {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        self.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
                "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": by},
            },
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {}}],
        }));
    }
}

#[test]
fn r22_endpoints_where_no_pods_are_are_told_with_their_slice() {
    needs_root!();
    let written = Written::new();
    let [one, two] = [written.world.node(0), written.world.node(1)];
    let mut wanted = BTreeSet::new();
    for (family, stranger) in [("4", "203.0.113.66"), ("6", "2001:db8::66")] {
        let stranger: IpAddr = stranger.parse().expect("an address");
        // By hand, of a Service without Pods and of one with: of no node, of one nobody knows, of the agent's own.
        for (service, node, by) in [
            ("web", None, "me"),
            ("web", Some("no-such-node"), "me"),
            ("web", Some(one.name()), "me"),
            ("lent", None, CONTROLLER),
        ] {
            let name = format!("{service}-{}-{family}", node.unwrap_or("nowhere"));
            written.slice(&name, service, by, stranger, node);
            wanted.insert(name);
        }
        // Pods, as the controller tells of them, and as somebody else does who is right.
        for pod in [one.pod(0), two.pod(0)] {
            let address = pod.ip_like(stranger);
            written.slice(&format!("pods-{}-{family}", pod.node()), "web", CONTROLLER, address, Some(pod.node()));
            written.slice(&format!("same-{}-{family}", pod.node()), "lent", "me", address, None);
        }
    }
    let agent = Agent::start_on(&written.world, one, &Setup::tcx(false), ["--master", &written.api.url()]);
    let agent = agent.expect("an agent");
    let warned = || -> anyhow::Result<BTreeSet<String>> {
        let of = |object: &str| object.strip_prefix("EndpointSlice default/").map(str::to_owned);
        Ok(agent.status()?.warnings.iter().filter_map(|warning| of(&warning.object)).collect())
    };
    let told = || -> BTreeSet<String> {
        let events = written.api.objects("events");
        let foreign = events.iter().filter(|event| event["reason"] == "ForeignEndpoints");
        foreign.map(|event| event["regarding"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    wait_until("the Events", Duration::from_secs(30), || {
        let found = (warned().map_err(|error| format!("{error:#}"))?, told());
        if found == (wanted.clone(), wanted.clone()) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .expect("told");
    let events = written.api.objects("events");
    let event = events.iter().find(|event| event["regarding"]["name"] == "web-nowhere-4").expect("an Event");
    assert_eq!((&event["type"], &event["regarding"]["uid"]), (&json!("Warning"), &json!("uid-of-web-nowhere-4")));
    let note = event["note"].as_str().expect("a note");
    assert!(note.contains("203.0.113.66") && note.contains("default/web"), "{note}");
    // They are served all the same, as kube-proxy does: one address, and two pods.
    agent.wait_service("web", 3).expect("served");
    // One that comes later is told soon, one that goes is no more.
    written.slice("late", "web", "me", "203.0.113.99".parse().expect("an address"), None);
    written.api.delete("endpointslices", "default", "web-nowhere-4");
    wanted.remove("web-nowhere-4");
    wanted.insert("late".to_owned());
    wait_until("the warnings", Duration::from_secs(30), || {
        let found = warned().map_err(|error| format!("{error:#}"))?;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .expect("told");
    scoreboard(
        "R22",
        "hand-made slices (CVE-2021-25740): endpoints outside of the pods' ranges, of no node, of one nobody knows and of the \
         own one, IPv4 and IPv6: each told by a warning and an Event on its slice, those of pods are not",
    );
}
