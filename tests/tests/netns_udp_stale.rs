//! R12: UDP whose endpoint goes, from one who sends and never receives: the flow is at another endpoint, or refused, within a
//! second; with unchanged Services it stays where it is over a restart of the agent.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Cluster, NODE_PORT, Namespace, Pod, Setup, TARGET, World,
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use serde_json::json;

/// Between two datagrams.
const EVERY: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(1);

fn socket(namespace: &Namespace, at: SocketAddr) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(at)).expect("the namespace").expect("a socket");
    socket.set_nonblocking(true).expect("set");
    socket
}

/// Pods that only receive, both families. Their sockets stay for the whole of a test: a child that another thread is about
/// to start has a copy of them until it is that program, so a port given back is not free at once.
fn receivers(world: &World) -> Vec<(&Pod, UdpSocket)> {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), TARGET);
    world.pods().map(|pod| (pod, socket(pod.place().namespace(), any))).collect()
}

/// A client that only sends.
struct OneWay<'a> {
    sender: UdpSocket,
    receivers: &'a [(&'a Pod, UdpSocket)],
}

impl<'a> OneWay<'a> {
    fn start(world: &World, receivers: &'a [(&'a Pod, UdpSocket)], to: SocketAddr) -> Self {
        let sender = socket(world.client().namespace(), SocketAddr::new(world.client().ip_like(to.ip()), 0));
        sender.connect(to).expect("connected");
        Self { sender, receivers }
    }

    /// Sends one datagram and tells who has received any since, and whether an error came back.
    fn send(&self) -> (Vec<&'a str>, bool) {
        let refused = match self.sender.send(b"one way") {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => true,
            Err(error) => panic!("sending: {error}"),
        };
        std::thread::sleep(EVERY);
        let mut names = Vec::new();
        for (pod, receiver) in self.receivers {
            let mut buffer = [0; 16];
            while receiver.recv(&mut buffer).is_ok() {
                names.push(pod.name());
            }
        }
        (names, refused)
    }

    /// Sends until `done`, which sees each datagram's fate; how long after `since` that was.
    fn until(&self, what: &str, since: Instant, mut done: impl FnMut(&[&'a str], bool) -> bool) -> Duration {
        wait_until(what, Duration::from_secs(10), || {
            let (names, refused) = self.send();
            if done(&names, refused) { Ok(since.elapsed()) } else { Err(format!("{names:?}, refused: {refused}")) }
        })
        .expect("in the end")
    }

    /// Where the flow goes now: ten datagrams in a row at one pod.
    fn settled(&self) -> &'a str {
        let mut last = (None, 0);
        self.until("a flow", Instant::now(), |names, _| {
            for name in names {
                last = if last.0 == Some(*name) { (last.0, last.1 + 1) } else { (Some(*name), 1) };
            }
            last.1 >= 10
        });
        last.0.expect("a pod")
    }
}

fn udp_stale(setup: &Setup) {
    let world = World::builder().drop_invalid(true).rp_filter(1).build().expect("a world");
    if setup.xdp == "on" {
        world.set_tx_checksum(false).expect("offloads");
    }
    world.apply_nodes().expect("nodes");
    let web = PodSpec::labelled("app", "web");
    let apply = |pod: &Pod| world.apply_pod(pod, &web).expect("a pod");
    world.pods().for_each(apply);
    let ports = json!([{"protocol": "UDP", "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT}]);
    let service = Service::new("web", "app", "web").fields(json!({"type": "NodePort", "ports": ports}));
    world.apply_service(&service).expect("a Service");
    let mut agents = Agent::start_all(&world, setup).expect("agents");
    let wait = |agents: &[Agent], count| {
        for agent in agents {
            agent.wait_service("web", count).expect("the Service");
        }
    };
    wait(&agents, 8);
    let mut slowest = [Duration::ZERO; 3];
    let receivers = receivers(&world);
    for to in Cluster::node_ports_of(world.node(0)) {
        let flow = OneWay::start(&world, &receivers, to);
        let first = flow.settled();

        // Killed and started again with everything as it was: not one datagram elsewhere.
        agents[0].kill().expect("killed");
        let mut elsewhere = 0;
        flow.until("a while without an agent", Instant::now(), |names, _| {
            elsewhere += names.iter().filter(|name| **name != first).count();
            names.len() + elsewhere > 0
        });
        agents[0].launch().expect("launched");
        wait(&agents, 8);
        for _ in 0..50 {
            let (names, refused) = flow.send();
            elsewhere += names.iter().filter(|name| **name != first).count() + usize::from(refused);
        }
        assert_eq!(elsewhere, 0, "{to}: the flow moved over a restart");

        // Its endpoint goes: the pod itself would still take what comes.
        let pod = world.pods().find(|pod| pod.name() == first).expect("the pod");
        world.remove_pod(pod).expect("removed");
        let took = flow.until("another endpoint", Instant::now(), |names, _| names.iter().any(|name| *name != first));
        slowest[0] = slowest[0].max(took);
        let second = flow.settled();
        assert_ne!(second, first, "{to}");

        // All of them go.
        world.pods().filter(|pod| pod.name() != first).for_each(|pod| world.remove_pod(pod).expect("removed"));
        let took = flow.until("a refusal", Instant::now(), |_, refused| refused);
        slowest[1] = slowest[1].max(took);
        wait(&agents, 0);
        // What was on the way.
        flow.until("silence", Instant::now(), |names, _| names.is_empty());
        for _ in 0..20 {
            let (names, _) = flow.send();
            assert_eq!(names, [""; 0], "{to}: scaled to zero");
        }

        // One comes.
        apply(pod);
        let took = flow.until("the new endpoint", Instant::now(), |names, _| names.contains(&first));
        slowest[2] = slowest[2].max(took);
        world.pods().for_each(apply);
        wait(&agents, 8);
    }
    let [moved, refused, back] = slowest.map(|took| took.as_millis());
    scoreboard(
        "R12",
        &format!(
            "udp_stale ({}), a sender that never receives, both families: at another endpoint after at most {moved} ms, \
             scaled to zero refused after {refused} ms, a new endpoint reached after {back} ms; over a kill and a start of \
             the agent 0 datagrams elsewhere",
            if setup.xdp == "on" { "XDP" } else { "tcx" },
        ),
    );
    assert!(slowest.iter().all(|took| *took < LIMIT), "{slowest:?}");
}

#[test]
fn r12_udp_stale_at_tcx() {
    needs_root!();
    udp_stale(&Setup::tcx(false));
}

#[test]
fn r12_udp_stale_at_xdp() {
    needs_root!();
    udp_stale(&Setup::xdp(false));
}
