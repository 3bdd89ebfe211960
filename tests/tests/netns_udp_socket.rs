//! UDP of a node's own processes: the socket hooks choose the backend, and the application sees what it asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Cluster, Echo, NODE_PORT, Place, Setup, TARGET, World,
    kube::{PodSpec, Service},
    needs_root,
    talk::Talk,
    wait_until,
};
use serde_json::json;

/// A second after the change, the issue says.
const SOON: Duration = Duration::from_secs(1);

struct Site {
    agents: Vec<Agent>,
    _servers: Vec<Echo>,
    /// One server outside of the cluster, too.
    world: World,
}

impl Site {
    /// Services `web` and `other` are all pods; `single` is one, by its cluster IP and a load balancer's address.
    fn start() -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
        world.apply_nodes().expect("nodes");
        for pod in world.pods() {
            let spec = PodSpec::labelled("app", "web");
            let spec = if pod.name() == "pod-2-1" { spec.label("single", "yes") } else { spec };
            world.apply_pod(pod, &spec).expect("a pod");
        }
        for service in [
            Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT)).fields(json!({"type": "NodePort"})),
            Service::new("other", "app", "web").port(80, TARGET, None),
            Service::new("single", "single", "yes")
                .port(80, TARGET, None)
                .load_balancer(&["203.0.113.10", "fd00:203:0:113::10"]),
        ] {
            world.apply_service(&service).expect("a Service");
        }
        let places = world.pods().map(lb_tests::Pod::place).chain([world.client()]);
        let servers = places.map(|place| Echo::start(place, &[], &[TARGET]).expect("a server")).collect();
        let agents = Agent::start_all(&world, &Setup::tcx(true)).expect("agents");
        let site = Self { agents, _servers: servers, world };
        for (service, backends) in [("web", 8), ("other", 8), ("single", 2)] {
            site.agents.iter().for_each(|agent| drop(agent.wait_service(service, backends).expect("the Service")));
        }
        site
    }

    fn host(&self) -> &Place {
        self.world.node(0).place()
    }

    fn vip(&self, service: &str, backends: u64, like: IpAddr) -> SocketAddr {
        let ips = self.agents[0].cluster_ips(service, backends).expect("cluster IPs");
        SocketAddr::new(ips.into_iter().find(|ip| ip.is_ipv4() == like.is_ipv4()).expect("an address"), 80)
    }

    fn counter(&self, name: &str) -> u64 {
        self.agents[0].status().expect("a status").counters.get(name).copied().unwrap_or(0)
    }
}

/// The kinds of sockets that reach an address of a family: an IPv6 socket speaks IPv4 as well.
fn kinds(any: IpAddr) -> &'static [&'static str] {
    if any.is_ipv4() { &["udp4", "udp6"] } else { &["udp6"] }
}

fn families() -> [IpAddr; 2] {
    [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8])]
}

type Asked = BTreeMap<SocketAddr, BTreeSet<String>>;

/// Asks all before it hears the first answer, three times; each answer must come from an address that was asked, by a
/// backend of it.
fn ask_all(talk: &mut Talk, asked: &Asked, kind: &str) {
    for round in 0..3 {
        for to in asked.keys() {
            let met = talk.send(*to).expect("a step");
            assert_eq!(met.error, None, "{kind} to {to}, round {round}");
        }
        let mut seen = BTreeSet::new();
        for _ in asked {
            let met = talk.receive().expect("a step");
            let (from, backend) = (met.peer.expect("an answer"), met.backend.expect("a greeting"));
            assert!(asked.get(&from).is_some_and(|names| names.contains(&backend)), "{kind}: {backend} as {from}");
            seen.insert(from);
        }
        assert_eq!(seen, asked.keys().copied().collect(), "{kind}, round {round}");
    }
}

impl Site {
    /// Whom a socket may speak to at once at the hook: Services of the same pods, the node's own nodePort, a plain address.
    fn asked(&self, any: IpAddr) -> Asked {
        let pods = || self.world.pods().map(|pod| pod.name().to_owned()).collect::<BTreeSet<_>>();
        BTreeMap::from([
            (self.vip("web", 8, any), pods()),
            (self.vip("other", 8, any), pods()),
            (SocketAddr::new(self.host().ip_like(any), NODE_PORT), pods()),
            (SocketAddr::new(self.world.client().ip_like(any), TARGET), BTreeSet::from(["client".to_owned()])),
        ])
    }
}

#[test]
fn one_socket_sees_each_address_it_sent_to() {
    needs_root!();
    let site = Site::start();
    let mut talk = Talk::start(site.host()).expect("a peer");
    for any in families() {
        let asked = site.asked(any);
        for kind in kinds(any).iter().cycle().take(8) {
            talk.new_socket(kind, None).expect("a socket");
            ask_all(&mut talk, &asked, kind);
        }
    }
    let counters = site.agents[0].status().expect("a status").counters;
    assert!(counters["SocketSend"] > 0 && counters["SocketReceive"] > 0, "{counters:?}");
    assert_eq!(counters.get("SocketAmbiguous"), None, "four pods are enough for three frontends");
}

/// Two frontends of one pod: only ports tell their answers apart.
#[test]
fn what_cannot_be_told_apart_by_backend_is_told_apart_by_packets() {
    needs_root!();
    let site = Site::start();
    let mut talk = Talk::start(site.host()).expect("a peer");
    for any in families() {
        let node_port = SocketAddr::new(site.host().ip_like(any), NODE_PORT);
        let balancer = if any.is_ipv4() { "203.0.113.10:80" } else { "[fd00:203:0:113::10]:80" };
        let single = [site.vip("single", 2, any), balancer.parse().expect("an address")];
        let mut asked = site.asked(any);
        asked.remove(&node_port);
        asked.extend(single.map(|to| (to, BTreeSet::from(["pod-2-1".to_owned()]))));
        for kind in kinds(any).iter().cycle().take(8) {
            talk.new_socket(kind, None).expect("a socket");
            // One at a time first: an answer that is under way when the socket goes over to the packet path may be taken for
            // another's (docs/decisions/0004).
            for to in asked.keys() {
                let met = talk.exchange(*to).expect("a step");
                assert_eq!((met.error, met.peer), (None, Some(*to)), "{kind}");
            }
            ask_all(&mut talk, &asked, kind);
            // The packet path does not serve the node's own nodePorts.
            assert_eq!(talk.send(node_port).expect("a step").error.as_deref(), Some("ECONNREFUSED"), "{kind}");
            // The other way round: a socket of such a nodePort is not given up.
            talk.new_socket(kind, None).expect("a socket");
            assert_eq!(talk.exchange(node_port).expect("a step").peer, Some(node_port));
            let errors = single.map(|to| talk.exchange(to).expect("a step").error);
            assert!(errors.contains(&Some("ECONNREFUSED".to_owned())), "{kind}: {errors:?}");
            assert_eq!(talk.exchange(node_port).expect("a step").peer, Some(node_port));
        }
    }
    assert!(site.counter("SocketAmbiguous") > 0);
}

#[test]
fn rule_2_8_2_an_unconnected_socket_keeps_its_backend_until_that_is_gone() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let host = cluster.world.node(0).place();
    let mut backends = 8;
    let mut sockets = Vec::new();
    for to in cluster.vips(8).expect("cluster IPs") {
        for kind in kinds(to.ip()) {
            let mut talk = Talk::start(host).expect("a peer");
            talk.new_socket(kind, None).expect("a socket");
            sockets.push((talk, to, kind));
        }
    }
    let ask = |talk: &mut Talk, to, kind: &str| {
        let met = talk.exchange(to).expect("a step");
        assert_eq!((&met.error, met.peer), (&None, Some(to)), "{kind}");
        met.backend.expect("a greeting")
    };
    // One pod after the other goes, and each socket moves exactly when its own does.
    let mut last: Vec<String> = sockets.iter_mut().map(|(talk, to, kind)| ask(talk, *to, kind)).collect();
    for pod in cluster.world.pods().take(3) {
        cluster.world.remove_pod(pod).expect("removed");
        backends -= 2;
        cluster.wait(backends).expect("the Service");
        for ((talk, to, kind), last) in sockets.iter_mut().zip(&mut last) {
            let now = ask(talk, *to, kind);
            assert_eq!(now == *last, *last != pod.name(), "{kind}: {last}, then {now}, without {}", pod.name());
            *last = now;
        }
    }
    // Scaled to zero: refused at once, and counted.
    let pod = cluster.world.pods().nth(3).expect("four pods");
    cluster.world.remove_pod(pod).expect("removed");
    cluster.wait(0).expect("the Service");
    for (talk, to, kind) in &mut sockets {
        let met = talk.send(*to).expect("a step");
        assert_eq!(met.error.as_deref(), Some("ECONNREFUSED"), "rule 2.3.1, {kind}");
    }
    let counters = cluster.agents[0].status().expect("a status").counters;
    assert!(counters["SocketNoEndpoint"] >= sockets.len() as u64, "{counters:?}");
    cluster.world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    cluster.wait(2).expect("the Service");
    for (talk, to, kind) in &mut sockets {
        assert_eq!(ask(talk, *to, kind), pod.name());
    }
}

/// Sockets that are connected and only write: nothing but their end tells them that nobody listens.
struct Writers(Vec<(Talk, String)>);

impl Writers {
    fn connect(place: &Place, to: SocketAddr, kinds: &[&str], then: Option<SocketAddr>) -> Self {
        let writer = |kind: &&str| {
            let mut talk = Talk::start(place).expect("a peer");
            talk.new_socket(kind, None).expect("a socket");
            for to in [Some(to), then].into_iter().flatten() {
                let met = talk.connect(to).expect("a step");
                assert_eq!((met.error, met.peer), (None, Some(to)), "{kind} at {}", place.name());
            }
            assert_eq!(talk.write().expect("a step").error, None);
            (talk, format!("{kind} to {to} at {}, then {then:?}", place.name()))
        };
        Self(kinds.iter().map(writer).collect())
    }

    fn join(groups: impl IntoIterator<Item = Self>) -> Self {
        Self(groups.into_iter().flat_map(|group| group.0).collect())
    }

    /// Each is ended before `until`: it has no peer any more to write to, and whoever reads or polls hears why.
    fn are_ended(&mut self, until: Instant) {
        for (talk, what) in &mut self.0 {
            let limit = until.saturating_duration_since(Instant::now());
            wait_until(what, limit, || match talk.write().map_err(|error| format!("{error:#}"))?.error {
                Some(error) if error == "EDESTADDRREQ" => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .expect("its end");
            assert_eq!(talk.receive().expect("a step").error.as_deref(), Some("ECONNABORTED"), "{what}");
        }
    }

    fn live(&mut self) {
        for (talk, what) in &mut self.0 {
            // The packet path refuses what a pod writes to nobody: the socket lives to hear it.
            let error = talk.write().expect("a step").error;
            assert!(error.is_none() || error.as_deref() == Some("ECONNREFUSED"), "{what}: {error:?}");
        }
    }
}

#[test]
fn connected_sockets_of_a_gone_backend_are_ended_and_no_others() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let world = &cluster.world;
    let (host, pod) = (world.node(0).place(), world.node(0).pod(0).place());
    let vips = cluster.vips(8).expect("cluster IPs");
    let targets = [vips.clone(), cluster.node_ports().to_vec()].concat();
    // To a pod that stays up, though no Service has it any more.
    let gone: Vec<_> = world.pods().skip(1).collect();
    let direct = |kind: &[&str], to: IpAddr, first: Option<SocketAddr>| {
        let at = SocketAddr::new(gone[0].place().ip_like(to), TARGET);
        Writers::connect(host, first.unwrap_or(at), kind, first.map(|_| at))
    };
    let mut others = Writers::join(vips.iter().flat_map(|vip| {
        let kinds = kinds(vip.ip());
        [
            direct(kinds, vip.ip(), None),
            // By the Service first, then by the pod's own address: not ours any more.
            direct(kinds, vip.ip(), Some(*vip)),
            // A pod's socket follows its Service on the packet path.
            Writers::connect(pod, *vip, kinds, None),
        ]
    }));
    // Of the Service, until it is one pod of four: most sockets lose their backend.
    let connect =
        |place: &Place| Writers::join(targets.iter().map(|to| Writers::connect(place, *to, kinds(to.ip()), None)));
    let mut ours = connect(host);
    let count = ours.0.len() as u64;
    let changed = Instant::now();
    world.pods().for_each(|pod| world.remove_pod(pod).expect("removed"));
    ours.are_ended(changed + SOON);
    println!("{count} sockets ended {} ms after the change", changed.elapsed().as_millis());
    others.live();
    cluster.wait(0).expect("the Service");
    let status = cluster.agents[0].status().expect("a status");
    assert_eq!(status.counters["SocketDestroyed"], count);
    let said = cluster.agents[0].stderr();
    let lines = said.lines().filter(|line| line.contains("ended the UDP socket") && line.contains("is gone"));
    assert_eq!(lines.count() as u64, count, "{said}");
    // Now nobody is there to connect to.
    let mut talk = Talk::start(host).expect("a peer");
    talk.new_socket("udp6", None).expect("a socket");
    for to in &targets {
        assert_eq!(talk.connect(*to).expect("a step").error.as_deref(), Some("ECONNREFUSED"), "rule 2.3.1, {to}");
    }
    // A backend may go while nobody runs.
    world.apply_pod(gone[0], &PodSpec::labelled("app", "web")).expect("a pod");
    cluster.wait(2).expect("the Service");
    let mut ours = connect(host);
    cluster.agents[0].kill().expect("killed");
    cluster.world.remove_pod(gone[0]).expect("removed");
    ours.live();
    cluster.agents[0].launch().expect("launched");
    ours.are_ended(Instant::now() + SOON);
    others.live();
}

#[test]
fn a_disconnected_socket_is_left_alone() {
    needs_root!();
    let cluster = Cluster::start(&Setup::tcx(true)).expect("a cluster");
    let host = cluster.world.node(0).place();
    for to in cluster.vips(8).expect("cluster IPs") {
        for kind in kinds(to.ip()) {
            let mut talk = Talk::start(host).expect("a peer");
            talk.new_socket(kind, None).expect("a socket");
            assert_eq!(talk.connect(to).expect("a step").peer, Some(to));
            assert_eq!(talk.write().expect("a step").error, None);
            let backend = talk.receive().expect("a step").backend.expect("an answer");
            assert_eq!(talk.disconnect().expect("a step").error, None);
            // The pod by its own address is not the Service any more.
            let pod = cluster.pod(&backend).expect("the pod").place();
            let at = SocketAddr::new(pod.ip_like(to.ip()), TARGET);
            assert_eq!(talk.exchange(at).expect("a step").peer, Some(at), "{kind}");
        }
    }
}
