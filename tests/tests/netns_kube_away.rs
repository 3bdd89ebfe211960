//! Agents that start while their API server is away: what the node tells load balancers, people and its service manager.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Echo, NODE_PORT, Node, Setup, TARGET, World,
    api_server::ApiServer,
    client::Call,
    kube, needs_root, scoreboard, wait_until,
    web::{get, value},
};
use serde_json::{Value, json};

const VIP: &str = "10.96.0.10";
const PROBED: u16 = 30_999;
const METRICS: &str = "127.0.0.1:10249";
const HEALTH: &str = "127.0.0.1:10256";

/// A world with an API server and Service `web`, which load balancers probe; one endpoint is on each node.
struct Kube {
    api: ApiServer,
    _servers: Vec<Echo>,
    world: World,
}

impl Kube {
    fn new() -> Self {
        let world = World::builder().rp_filter(1).build().expect("a world");
        let api = ApiServer::of_world(&world).expect("an API server");
        let pods = [world.node(0).pod(0), world.node(1).pod(0)];
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"},
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PROBED,
                "clusterIP": VIP, "clusterIPs": [VIP], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": NODE_PORT}],
            },
        }));
        api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": pods.map(|pod| json!({"addresses": [pod.ipv4()], "nodeName": pod.node(), "conditions": {}})),
        }));
        let servers = pods.map(|pod| Echo::start(pod.place(), &[TARGET], &[]).expect("a server")).into();
        Self { api, _servers: servers, world }
    }

    fn agent(&self) -> Agent {
        Agent::start_on(&self.world, self.node(), &Setup::tcx(true), ["--master", &self.api.url()]).expect("an agent")
    }

    fn node(&self) -> &Node {
        self.world.node(0)
    }

    /// Its Service by this node's nodePort, from outside.
    fn call(&self) -> anyhow::Result<String> {
        let to = SocketAddr::new(self.node().ipv4().into(), NODE_PORT);
        let answer = Call::tcp(to).timeout(Duration::from_secs(2)).run_one(self.world.client())?;
        Ok(answer.reached()?.0.to_owned())
    }

    fn served(&self) {
        let wanted = self.node().pod(0).name();
        wait_until("the nodePort", Duration::from_secs(10), || match self.call() {
            Ok(name) if name == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .expect("served");
    }

    /// What a load balancer's probe of this address finds: status and local endpoints.
    fn probed(&self, ip: IpAddr, wanted: (u16, u64)) {
        wait_until(&format!("{wanted:?} at {ip}"), Duration::from_secs(10), || {
            let (status, body) = get(self.world.client(), &SocketAddr::new(ip, PROBED).to_string(), "/")?;
            let body: Value = serde_json::from_str(&body).map_err(|error| format!("{body}: {error}"))?;
            if (Some(wanted.0), Some(wanted.1)) == (Some(status), body["localEndpoints"].as_u64()) {
                Ok(())
            } else {
                Err(format!("{status}: {body}"))
            }
        })
        .expect("the answer");
    }

    /// `/healthz`: its status, and whether the node is eligible.
    fn healthz(&self, wanted: (u16, bool)) {
        wait_until(&format!("{wanted:?} of /healthz"), Duration::from_secs(10), || {
            let (status, body) = get(self.node(), HEALTH, "/healthz")?;
            let body: Value = serde_json::from_str(&body).map_err(|error| format!("{body}: {error}"))?;
            let found = (status, body["nodeEligible"] == json!(true));
            if found == wanted { Ok(()) } else { Err(format!("{status}: {body}")) }
        })
        .expect("the answer");
    }

    /// Whether what is served is told to be stale, by `status` and by the metrics.
    fn stale(&self, agent: &Agent, wanted: bool) {
        wait_until(&format!("stale: {wanted}"), Duration::from_secs(20), || {
            let status = agent.status().map_err(|error| format!("{error:#}"))?;
            let (_, page) = get(self.node(), METRICS, "/metrics")?;
            let told = (status.stale_seconds.is_some(), value(&page, "ballast_config_stale") > 0.0);
            if told == (wanted, wanted) { Ok(()) } else { Err(format!("{told:?}: {:?}", status.watches)) }
        })
        .expect("told");
    }

    /// The Node, with the autoscaler's taint or without.
    fn put_node(&self, going: bool) {
        let mut node = kube::node_document(self.node());
        if going {
            node["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
        }
        self.api.put(node);
    }
}

#[test]
fn rule_2_6_1_load_balancers_are_told_what_was_last_known() {
    needs_root!();
    let kube = Kube::new();
    let mut agent = kube.agent();
    let node = kube.node();
    kube.served();
    kube.probed(node.ipv4().into(), (200, 1));
    agent.stop().expect("stopped");
    kube.api.away(true);
    agent.launch().expect("launched");
    kube.served();
    for ip in node.ips() {
        kube.probed(ip, (200, 1));
    }
    kube.healthz((200, true));
    // At the addresses that there are now.
    node.namespace().ip("address add 192.0.2.77/32 dev eth0\n").expect("an address");
    kube.world.router().ip(&format!("route add 192.0.2.77/32 via {}\n", node.ipv4())).expect("a route");
    kube.probed("192.0.2.77".parse().expect("an address"), (200, 1));
    // A node that was going away when it was last heard of still is.
    kube.api.away(false);
    kube.put_node(true);
    kube.healthz((503, false));
    agent.stop().expect("stopped");
    kube.api.away(true);
    agent.launch().expect("launched");
    kube.healthz((503, false));
    kube.probed(node.ipv4().into(), (200, 1));
    kube.put_node(false);
    kube.api.away(false);
    kube.healthz((200, true));
}

#[test]
fn r4_what_may_be_stale_is_told_with_its_age() {
    needs_root!();
    let kube = Kube::new();
    let mut agent = kube.agent();
    kube.served();
    kube.stale(&agent, false);
    // Away while the agent runs.
    kube.api.away(true);
    kube.stale(&agent, true);
    // And when it starts again on what is pinned, on a machine without certificates of authorities: HTTP needs none.
    agent.stop().expect("stopped");
    agent.set_variable("SSL_CERT_FILE", "/nonexistent");
    agent.launch().expect("launched");
    kube.stale(&agent, true);
    kube.served();
    kube.healthz((200, true));
    let text = agent.query(&["status"]).expect("a status");
    assert!(text.lines().any(|line| line.starts_with("Stale: ")), "{text}");
    let begin = Instant::now();
    kube.api.away(false);
    kube.stale(&agent, false);
    scoreboard(
        "R4",
        &format!(
            "the API server away and the agent restarted: a LoadBalancer Service is served and its health check answers 200, \
             stale is told, and no more {} s after the server is back",
            begin.elapsed().as_secs()
        ),
    );
    // Without a snapshot the age is at least that of the agent.
    agent.stop().expect("stopped");
    for name in ["snapshot", "snapshot.previous"] {
        let path = kube.node().state_dir().join(name);
        assert!(std::fs::remove_file(&path).is_ok() || !path.exists(), "{}", path.display());
    }
    kube.api.away(true);
    agent.launch().expect("launched");
    kube.stale(&agent, true);
}

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The agent tells this one from its next start on.
    fn of(kube: &Kube, agent: &mut Agent) -> Self {
        let path = kube.world.directory().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        agent.set_variable("NOTIFY_SOCKET", path);
        Self { socket }
    }

    /// What is told, up to what begins with `wanted`.
    fn until(&self, wanted: &str) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(30);
        let mut heard = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).expect("a socket");
            let mut buffer = [0; 256];
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                // Any thread may be told of the end of a child that another one started.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{wanted}: {error}: {heard:?}"),
            };
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            let found = text.starts_with(wanted);
            heard.push(text);
            if found {
                return heard;
            }
        }
    }
}

const AS_LEFT: &str = "STATUS=forwarding as an earlier agent left it, until the cluster's objects are listed";

#[test]
fn a_service_manager_never_waits_for_the_api_server() {
    needs_root!();
    let kube = Kube::new();
    let mut agent = kube.agent();
    kube.served();
    agent.stop().expect("stopped");
    let manager = Manager::of(&kube, &mut agent);
    // On what is pinned.
    kube.api.away(true);
    agent.launch().expect("launched");
    assert_eq!(manager.until("STATUS="), ["READY=1", AS_LEFT]);
    kube.api.away(false);
    assert_eq!(manager.until("STATUS="), ["STATUS=serving"]);
    agent.stop().expect("stopped");
    assert_eq!(manager.until("STOPPING="), ["STOPPING=1"]);
    // On nothing: a node's first start, before its kubelet, which starts the API server.
    agent.cleanup().expect("cleaned");
    kube.api.away(true);
    agent.launch().expect("launched");
    let nothing = "STATUS=nothing to serve yet: the cluster's objects have not all been listed";
    assert_eq!(manager.until("STATUS="), ["READY=1", nothing]);
    kube.api.away(false);
    assert_eq!(manager.until("STATUS="), ["STATUS=serving"]);
    kube.served();
}
