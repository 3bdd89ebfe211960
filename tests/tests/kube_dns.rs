//! `ballast dns` on an API server: no answers before everything is listed, then those of the cluster, and all changes.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process::Command,
    time::Duration,
};

use lb_tests::{
    Process,
    api_server::{ApiServer, Fault},
    binary, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_NAME: u8 = 3;

struct Dns {
    process: Process,
    socket: UdpSocket,
    health: SocketAddr,
}

/// Free for TCP and UDP a moment ago.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

impl Dns {
    fn start(api: &ApiServer, more: &[&str]) -> Self {
        let (at, health) = (free(), free());
        let mut command = Command::new(binary("ballast").expect("ballast"));
        command.args(["dns", "--master", &api.url(), "--listen", &at.to_string()]).args(more);
        command.args(["--healthz-bind-address", &health.to_string()]);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(at).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
        Self { process: Process::spawn("ballast dns", command).expect("started"), socket, health }
    }

    /// Code and number of answers to a question for addresses.
    fn ask(&self, name: &str) -> Result<(u8, u8), String> {
        let mut question = vec![9, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).map_err(|error| error.to_string())?);
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 1, 0, 1]);
        let mut answer = [0; 512];
        self.socket.send(&question).and_then(|_| self.socket.recv(&mut answer)).map_err(|error| error.to_string())?;
        Ok((answer[3] & 15, answer[7]))
    }

    #[track_caller]
    fn wait(&self, name: &str, expected: (u8, u8)) {
        wait_until(&format!("{expected:?} for {name}"), Duration::from_secs(20), || match self.ask(name)? {
            found if found == expected => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.process.stderr()));
    }

    /// Of `/health` and `/ready`.
    #[track_caller]
    fn wait_pages(&self, expected: [&str; 2]) {
        wait_until(&format!("pages of {expected:?}"), Duration::from_secs(5), || {
            let found = [self.get("/health"), self.get("/ready")];
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .expect("pages");
    }

    fn get(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.health);
        let output = Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    }
}

fn service(namespace: &str, name: &str, fields: &Value) -> Value {
    let mut spec = json!({"ports": [{"name": "http", "protocol": "TCP", "port": 80}]});
    spec.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn address(ip: &str) -> Value {
    json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"]})
}

/// As the endpoint controller labels the slices of a headless Service.
fn slice(ready: [bool; 2]) -> Value {
    let labels = json!({"kubernetes.io/service-name": "db", "service.kubernetes.io/headless": ""});
    let endpoint = |(index, ready): (usize, bool)| {
        let ip = format!("10.244.1.{}", index + 1);
        json!({"addresses": [ip], "conditions": {"ready": ready}})
    };
    let endpoints: Vec<_> = ready.into_iter().enumerate().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-1", "namespace": "shop", "labels": labels},
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
    })
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn cluster() -> ApiServer {
    let api = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("a listener")).expect("a server");
    api.put(service("default", "kubernetes", &address("10.96.0.1")));
    api.put(namespace("default"));
    api.put(namespace("empty"));
    let mut db = service("shop", "db", &json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}));
    db["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    api.put(db);
    let mut foreign = service("shop", "foreign", &address("10.96.0.9"));
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
    api.put(foreign);
    api.put(slice([true, true]));
    api
}

#[test]
fn d14_answers_begin_with_the_whole_cluster_and_follow_it() {
    let api = cluster();
    api.refuse("list", "namespaces", Some(Fault::Answer(500, None)));
    let mut dns = Dns::start(&api, &["--lameduck", "3"]);
    dns.wait("kubernetes.default.svc.cluster.local", (SERVER_FAILURE, 0));
    // Its questions are answered by a thread of their own, which may begin before its pages do.
    dns.wait_pages(["200", "503"]);
    api.refuse("list", "namespaces", None);
    dns.wait("kubernetes.default.svc.cluster.local", (NO_ERROR, 1));
    dns.wait_pages(["200", "200"]);
    // What kube-proxy does not ask for has names: headless Services, and those of other proxies.
    assert_eq!(dns.ask("db.shop.svc.cluster.local"), Ok((NO_ERROR, 2)));
    assert_eq!(dns.ask("foreign.shop.svc.cluster.local"), Ok((NO_ERROR, 1)));
    assert_eq!(dns.ask("empty.svc.cluster.local"), Ok((NO_ERROR, 0)));
    assert_eq!(dns.ask("gone.svc.cluster.local"), Ok((NO_NAME, 0)));
    assert!(api.requests().iter().all(|request| !request.contains("nodes") && !request.contains("pods")));

    api.put(slice([true, false]));
    dns.wait("db.shop.svc.cluster.local", (NO_ERROR, 1));
    api.put(slice([false, false]));
    dns.wait("db.shop.svc.cluster.local", (NO_NAME, 0));
    api.put(namespace("new"));
    dns.wait("new.svc.cluster.local", (NO_ERROR, 0));
    api.delete("namespaces", "", "empty");
    dns.wait("empty.svc.cluster.local", (NO_NAME, 0));
    api.delete("services", "shop", "foreign");
    dns.wait("foreign.shop.svc.cluster.local", (NO_NAME, 0));

    // The API server goes away: what was last known is answered.
    api.away(true);
    assert_eq!(dns.ask("kubernetes.default.svc.cluster.local"), Ok((NO_ERROR, 1)));

    // It is told to end: no longer ready, and still answering.
    dns.process.signal(Signal::TERM).expect("told");
    wait_until("not ready", Duration::from_secs(2), || match dns.get("/ready") {
        code if code == "503" => Ok(()),
        code => Err(code),
    })
    .expect("not ready");
    assert_eq!(dns.ask("kubernetes.default.svc.cluster.local"), Ok((NO_ERROR, 1)));
    assert!(dns.process.wait(Duration::from_secs(10)).expect("ended").success());
}

fn pod(namespace: &str, ip: &str) -> Value {
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "status": status})
}

#[test]
fn d13_a_namespace_of_pods_alone_goes_with_its_namespace() {
    let api = cluster();
    api.put(namespace("crowd"));
    api.put(pod("crowd", "10.244.1.8"));
    let dns = Dns::start(&api, &["--pods", "verified"]);
    dns.wait("10-244-1-8.crowd.pod.cluster.local", (NO_ERROR, 1));
    let names = ["crowd.svc.cluster.local", "crowd.pod.cluster.local"];
    for name in names {
        assert_eq!(dns.ask(name), Ok((NO_ERROR, 0)), "{name}");
    }
    assert_eq!(dns.ask("p.crowd.svc.cluster.local"), Ok((NO_NAME, 0)));
    api.delete("pods", "crowd", "p");
    dns.wait("10-244-1-8.crowd.pod.cluster.local", (NO_NAME, 0));
    for name in names {
        assert_eq!(dns.ask(name), Ok((NO_ERROR, 0)), "{name}, which is empty");
    }
    api.delete("namespaces", "", "crowd");
    for name in names {
        dns.wait(name, (NO_NAME, 0));
    }
}

#[test]
fn d16_verified_names_are_those_of_pods() {
    let api = cluster();
    api.put(pod("shop", "10.244.1.7"));
    let dns = Dns::start(&api, &["--pods", "verified"]);
    dns.wait("10-244-1-7.shop.pod.cluster.local", (NO_ERROR, 1));
    assert_eq!(dns.ask("10-244-1-7.default.pod.cluster.local"), Ok((NO_NAME, 0)));
    api.delete("pods", "shop", "p");
    dns.wait("10-244-1-7.shop.pod.cluster.local", (NO_NAME, 0));
}
