//! Names as pods find them: the resolver file of `ballast resolv`, the system's own resolver, `dig`, `getent` and `curl`,
//! and the kube-dns Service at its cluster IP.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use lb_tests::{
    Agent, Pod, Setup, World,
    api_server::{ApiServer, Fault},
    binary,
    kube::{PodSpec, Service},
    needs_root, wait_until,
    web::Named,
};
use serde_json::{Value, json};

const PORT: u16 = 8080;
const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const ZONE: &str = "svc.cluster.local";

struct Names {
    _agents: Vec<Agent>,
    _servers: Vec<Named>,
    world: World,
}

impl Names {
    /// `my-service` of both families in two namespaces, and a headless `db` over the first two pods.
    fn start(setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
        world.apply_nodes().expect("nodes");
        world.apply_documents("kube-dns.yaml", &kube_dns(&world)).expect("kube-dns");
        for pod in world.node(0).pods() {
            world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        }
        world.apply_service(&Service::new("my-service", "app", "web").port(80, PORT, None)).expect("a Service");
        world
            .apply_service(&Service::new("db", "app", "web").port(80, PORT, None).fields(json!({"clusterIP": "None"})))
            .expect("a headless Service");
        world.apply_documents("other.yaml", &other(world.node(1).pod(0))).expect("the other namespace");
        let servers = world.pods().map(|pod| Named::start(pod.place(), PORT).expect("a server")).collect();
        let allocations = world.directory().join("allocations.json");
        let start = |node| {
            let manifests = world.manifests();
            let source = [
                "-f".as_ref(),
                manifests.as_os_str(),
                "--allocations".as_ref(),
                allocations.as_os_str(),
                "--dns".as_ref(),
            ];
            Agent::start_on(&world, node, setup, source).expect("an agent")
        };
        let agents: Vec<_> = world.nodes().iter().map(start).collect();
        for agent in &agents {
            agent.wait_service("my-service", 4).expect("the Service");
        }
        Self { _agents: agents, _servers: servers, world }
    }

    /// The file of a pod of this namespace, as `ballast resolv` prints it.
    fn resolver(&self, namespace: &str, nameserver: &str) -> PathBuf {
        let mut command = Command::new(binary("ballast").expect("ballast"));
        let printed = command.args(["resolv", namespace, "--nameserver", nameserver]).output().expect("run");
        assert!(printed.status.success(), "{printed:?}");
        let path = self.world.directory().join(format!("resolv-{namespace}.conf"));
        std::fs::write(&path, printed.stdout).expect("written");
        path
    }
}

/// The Service as clusters have it; its endpoints are the nodes.
fn kube_dns(world: &World) -> Vec<Value> {
    let ports =
        ["UDP", "TCP"].map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 53}));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": DNS[0], "clusterIPs": DNS, "ipFamilyPolicy": "RequireDualStack", "ports": ports},
    });
    let slices = [0, 1].map(|family: usize| {
        let endpoint = |address: IpAddr| json!({"addresses": [address]});
        let endpoints: Vec<_> = world.nodes().iter().map(|node| endpoint(node.ips()[family])).collect();
        slice("kube-system", "kube-dns", family, &json!(ports), &json!(endpoints))
    });
    [vec![service], slices.to_vec()].concat()
}

fn slice(namespace: &str, service: &str, family: usize, ports: &Value, endpoints: &Value) -> Value {
    let address_type = ["IPv4", "IPv6"][family];
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{family}"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    })
}

/// The same name in namespace `other`, with another pod behind it.
fn other(pod: &Pod) -> Vec<Value> {
    let ports = json!([{"name": "http", "protocol": "TCP", "port": 80, "targetPort": PORT}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "my-service", "namespace": "other"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": ports},
    });
    let slices = [0, 1].map(|family: usize| {
        let ports = json!([{"name": "http", "protocol": "TCP", "port": PORT}]);
        let address = pod.ips()[family];
        slice("other", "my-service", family, &ports, &json!([{"addresses": [address]}]))
    });
    [vec![service], slices.to_vec()].concat()
}

fn addresses(text: &str) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The system's resolver and what uses it, and dig, in a pod whose name server is each address of kube-dns.
fn assert_resolves(names: &Names) {
    let place = names.world.node(0).pod(0).place();
    let second = names.world.node(1).pod(0).name();
    for server in DNS {
        let file = names.resolver("default", server);
        let run = |words: &[&str]| place.resolving(&file, words).expect("an answer");
        for (database, all) in [("ahostsv4", 0), ("ahostsv6", 1)] {
            let found = addresses(&run(&["getent", database, "my-service"]));
            let [short, long] = [found, addresses(&run(&["getent", database, &format!("my-service.default.{ZONE}")]))];
            assert_eq!(short, long, "{database} by {server}");
            assert!(short.len() == 1 && short[0].is_ipv6() == (all == 1), "{database} by {server}: {short:?}");
            let elsewhere = addresses(&run(&["getent", database, "my-service.other"]));
            assert!(elsewhere.len() == 1 && elsewhere != short, "{database} by {server}: {elsewhere:?}");
        }
        assert!(place.resolving(&file, &["getent", "ahosts", "nobody"]).is_err(), "a name that is not");
        for family in ["-4", "-6"] {
            let curl = |host: &str| run(&["curl", "-sS", family, "--max-time", "5", &format!("http://{host}/")]);
            assert!(curl("my-service").starts_with("pod-1-"), "curl {family} by {server}");
            assert_eq!(curl("my-service.other"), second, "curl {family} by {server}");
        }
        for transport in ["+notcp", "+tcp"] {
            let text = run(&["dig", "+short", "+search", transport, "AAAA", "db"]);
            let pods: Vec<IpAddr> = names.world.node(0).pods().iter().map(|pod| pod.ipv6().into()).collect();
            assert_eq!(addresses(&text), pods, "dig {transport} by {server}");
        }
        let text = run(&["dig", "+short", "SRV", &format!("_tcp-80._tcp.my-service.default.{ZONE}")]);
        assert_eq!(text.trim(), format!("0 100 80 my-service.default.{ZONE}."), "by {server}");
        let text = run(&["dig", "+short", "-x", server]);
        assert_eq!(text.trim(), format!("kube-dns.kube-system.{ZONE}."), "by {server}");
    }
}

#[test]
fn pods_find_services_by_name_through_the_cluster_ip() {
    needs_root!();
    for hooks in [false, true] {
        assert_resolves(&Names::start(&Setup::tcx(hooks)));
    }
}

/// A question for the headless Service over UDP; how many addresses came.
fn count(socket: &UdpSocket, kind: u16) -> Result<u16, String> {
    let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in format!("db.default.{ZONE}").split('.') {
        question.push(u8::try_from(label.len()).map_err(|error| error.to_string())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.push(0);
    question.extend_from_slice(&kind.to_be_bytes());
    question.extend_from_slice(&[0, 1]);
    let mut answer = [0; 512];
    socket.send(&question).and_then(|_| socket.recv(&mut answer)).map_err(|error| error.to_string())?;
    Ok(u16::from_be_bytes([answer[6], answer[7]]))
}

/// Every change is followed, by both families. How soon is a measurement, and no test's: `cargo xtask bench dns` shows the
/// time from a change of readiness to the first answer that has it, as p50 and p99 of many changes.
#[test]
fn headless_answers_follow_readiness() {
    needs_root!();
    let names = Names::start(&Setup::tcx(false));
    let (world, asking) = (&names.world, names.world.node(1).pod(0));
    let pod = world.node(0).pod(1);
    for (server, kind) in DNS.into_iter().zip([1, 28]) {
        let at: SocketAddr = SocketAddr::new(server.parse().expect("an address"), 53);
        let any = SocketAddr::new(if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }, 0);
        let socket = asking.namespace().run(|| UdpSocket::bind(any)).expect("a namespace").expect("a socket");
        socket.connect(at).expect("connected");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a limit");
        for (ready, expected) in [(false, 1), (true, 2), (false, 1), (true, 2)] {
            world.pod_ready(pod, ready).expect("written");
            let what = format!("{expected} addresses of type {kind} by {server}");
            wait_until(&what, Duration::from_secs(20), || match count(&socket, kind) {
                Ok(count) if count == expected => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .expect("followed");
        }
    }
}

/// The Node's document may be written after the agent has started.
#[test]
fn a_node_that_comes_later_is_listened_on() {
    needs_root!();
    let world = World::builder().rp_filter(1).build().expect("a world");
    world.apply_service(&Service::new("my-service", "app", "web").port(80, PORT, None)).expect("a Service");
    let (node, manifests) = (world.node(0), world.manifests());
    let allocations = world.directory().join("allocations.json");
    let source =
        ["-f".as_ref(), manifests.as_os_str(), "--allocations".as_ref(), allocations.as_os_str(), "--dns".as_ref()];
    let agent = Agent::start_on(&world, node, &Setup::tcx(false), source).expect("an agent");
    world.apply_nodes().expect("nodes");
    for server in node.ips() {
        wait_until(&format!("an answer by {server}"), Duration::from_secs(20), || {
            let mut command = world.node(1).pod(0).place().command("dig").expect("a command");
            command.args(["+time=1", "+tries=1", "A", &format!("my-service.default.{ZONE}"), &format!("@{server}")]);
            let output = command.output().map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains("ANSWER: 1,") { Ok(()) } else { Err(format!("{text}\n{}", agent.stderr())) }
        })
        .expect("answered");
    }
}

/// What the datapath does not watch has names too: a headless Service, and a Namespace that is empty.
#[test]
fn in_a_cluster_the_agent_answers_at_its_nodes_addresses() {
    needs_root!();
    let world = World::builder().rp_filter(1).build().expect("a world");
    let api = ApiServer::of_world(&world).expect("an API server");
    let labels = json!({"service.kubernetes.io/headless": "", "kubernetes.io/service-name": "db"});
    api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "shop", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]},
    }));
    let slice = |pods: usize| {
        let endpoint = |pod: &Pod| json!({"addresses": [pod.ipv4()], "conditions": {"ready": true}});
        let endpoints: Vec<_> = world.node(0).pods().iter().take(pods).map(endpoint).collect();
        let mut slice = slice("shop", "db", 0, &json!([]), &json!(endpoints));
        slice["metadata"]["labels"] = labels.clone();
        slice
    };
    api.put(slice(1));
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "empty"}}));
    let node = world.node(0);
    let agent = Agent::start_on(&world, node, &Setup::tcx(false), ["--master", &api.url(), "--dns"]).expect("an agent");
    let dig = |server: IpAddr, name: &str| {
        let mut command = world.node(1).pod(0).place().command("dig").expect("a command");
        command.args(["+time=1", "+tries=1", "A", &format!("{name}.{ZONE}"), &format!("@{server}")]);
        let output = command.output().map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let wait = |server: IpAddr, name: &str, expected: &str| {
        wait_until(&format!("{expected} for {name} by {server}"), Duration::from_secs(10), || {
            let text = dig(server, name)?;
            if text.contains(expected) { Ok(()) } else { Err(text) }
        })
        .expect("answered");
    };
    for server in node.ips() {
        wait(server, "db.shop", "ANSWER: 1,");
        wait(server, "empty", "status: NOERROR");
        wait(server, "nobody", "status: NXDOMAIN");
    }
    api.put(slice(2));
    wait(node.ips()[0], "db.shop", "ANSWER: 2,");
    // A watch that fails is told, and the names that are known stay.
    api.refuse("list", "namespaces", Some(Fault::Answer(403, None)));
    api.refuse("watch", "namespaces", Some(Fault::Answer(403, None)));
    api.cut("namespaces", false);
    wait_until("a problem with Namespaces", Duration::from_secs(20), || {
        let problems = agent.status().map_err(|error| error.to_string())?.problems;
        let told = problems.iter().any(|problem| problem.cause.contains("namespaces"));
        if told { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .expect("told");
    wait(node.ips()[0], "db.shop", "ANSWER: 2,");
}
