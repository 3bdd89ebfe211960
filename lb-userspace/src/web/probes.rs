//! The servers at healthCheckNodePorts: whether a node has ready endpoints of a Service, for the probes of its load balancer
//! (semantics.md 2.6.1 to 2.6.4; kube-proxy `pkg/proxy/healthcheck/service_health.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;

use super::{Answer, Listening, answer, health::Health};
use crate::{desired::HealthCheck, model::ObjectName, report::Problem};

/// How many ready endpoints are here, in words of load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What Services tell of which some have no room in the tables: those have no endpoints here, and no traffic is to come.
pub fn with_room(checks: &BTreeMap<ObjectName, HealthCheck>, refused: &[Problem]) -> BTreeMap<ObjectName, HealthCheck> {
    let refused: BTreeSet<&str> = refused.iter().map(|problem| &*problem.object).collect();
    let has_room = |name: &ObjectName| refused.is_empty() || !refused.contains(&*format!("Service {name}"));
    let told = |(name, check): (&ObjectName, &HealthCheck)| {
        let local = if has_room(name) { check.local } else { 0 };
        (name.clone(), HealthCheck { local, ..*check })
    };
    checks.iter().map(told).collect()
}

/// A Service's answer.
#[derive(Debug)]
struct Probed {
    name: ObjectName,
    local: AtomicUsize,
}

impl Probed {
    /// Whatever path and method are asked for.
    fn answer(&self, healthy: bool) -> Answer {
        let local = self.local.load(Ordering::Relaxed);
        let status = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::json!({
            "service": {"namespace": self.name.namespace, "name": self.name.name},
            "localEndpoints": local,
            "serviceProxyHealthy": healthy,
        });
        let mut response = answer(status, "application/json", body.to_string());
        response.headers_mut().insert(WEIGHT, HeaderValue::from(local));
        response
    }
}

/// The servers, each with its Service's name and address.
#[derive(Debug)]
pub struct Probes {
    health: Arc<Health>,
    services: BTreeMap<ObjectName, Arc<Probed>>,
    servers: BTreeMap<(ObjectName, SocketAddr), Listening>,
}

impl Probes {
    /// None. Whether this node is `health`y stands in every answer.
    pub fn new(health: Arc<Health>) -> Self {
        Self { health, services: BTreeMap::new(), servers: BTreeMap::new() }
    }

    /// Serves these, at these addresses of the node. What goes closes before what comes listens.
    pub fn set(&mut self, wanted: &BTreeMap<ObjectName, HealthCheck>, at: &[IpAddr]) {
        let sockets = |(name, check): (&ObjectName, &HealthCheck)| {
            let port = check.port.get();
            let name = name.clone();
            at.iter().map(move |ip| (name.clone(), SocketAddr::new(*ip, port))).collect::<Vec<_>>()
        };
        let sockets: BTreeSet<(ObjectName, SocketAddr)> = wanted.iter().flat_map(sockets).collect();
        self.servers.retain(|socket, _| sockets.contains(socket));
        self.services.retain(|name, _| wanted.contains_key(name));
        for (name, check) in wanted {
            let probed = self
                .services
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Probed { name: name.clone(), local: AtomicUsize::new(0) }));
            probed.local.store(check.local, Ordering::Relaxed);
        }
        for socket in sockets {
            let Some(probed) = self.services.get(&socket.0) else { continue };
            let (probed, health) = (Arc::clone(probed), Arc::clone(&self.health));
            self.servers.entry(socket).or_insert_with_key(|(name, at)| {
                let site = move |_: Request<Incoming>| {
                    let answer = probed.answer(health.is_healthy());
                    async { answer }
                };
                let fix = "end what listens there, or give the Service another healthCheckNodePort";
                Listening::start(*at, &format!("Service {name}"), fix, site)
            });
        }
    }

    /// Servers that do not listen.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.servers.values().filter_map(Listening::problem)
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU16, time::Duration};

    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::{Instant, sleep},
    };

    use super::{super::RETRY, *};

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    async fn told(probed: &Probed, healthy: bool) -> (u16, String, serde_json::Value) {
        let response = probed.answer(healthy);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let weight = response.headers()["x-load-balancing-endpoint-weight"].to_str().expect("text").to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, weight, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn rule_2_6_1_well_is_who_has_a_ready_endpoint_and_is_healthy() {
        for (local, healthy, status) in
            [(0, true, 503), (1, true, 200), (12, true, 200), (3, false, 503), (0, false, 503)]
        {
            let probed = Probed { name: name("web"), local: AtomicUsize::new(local) };
            let body = serde_json::json!({
                "service": {"namespace": "shop", "name": "web"}, "localEndpoints": local, "serviceProxyHealthy": healthy,
            });
            assert_eq!(told(&probed, healthy).await, (status, local.to_string(), body), "rule 2.6.2");
        }
    }

    #[test]
    fn rule_2_6_1_who_has_no_room_in_the_tables_has_no_endpoints() {
        let port = NonZeroU16::new(30_999).expect("not zero");
        let checks = ["one", "two"].map(|it| (name(it), HealthCheck { port, local: 3 })).into();
        let refused =
            [Problem { object: "Service shop/two".to_owned(), cause: "no room".to_owned(), fix: String::new() }];
        let told: Vec<usize> = with_room(&checks, &refused).values().map(|check| check.local).collect();
        assert_eq!(told, [3, 0]);
    }

    /// A port that nobody had a moment ago.
    async fn free_port() -> NonZeroU16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        NonZeroU16::new(listener.local_addr().expect("an address").port()).expect("not zero")
    }

    /// The first line of an answer; none where nobody listens.
    async fn ask(ip: &str, port: NonZeroU16) -> Option<String> {
        let mut stream = TcpStream::connect((ip, port.get())).await.ok()?;
        stream.write_all(b"POST /anything HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        text.lines().next().map(str::to_owned)
    }

    async fn until(ip: &str, port: NonZeroU16, wanted: Option<&str>) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let found = ask(ip, port).await;
            if found.as_deref() == wanted {
                return;
            }
            assert!(Instant::now() < end, "{ip}:{port}: {found:?} instead of {wanted:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    const OK: Option<&str> = Some("HTTP/1.1 200 OK");
    const NOT: Option<&str> = Some("HTTP/1.1 503 Service Unavailable");

    #[tokio::test]
    async fn rule_2_6_4_servers_come_change_and_go() {
        let mut probes = Probes::new(Arc::new(Health::default()));
        let (first, second) = (free_port().await, free_port().await);
        let of = |port, local| BTreeMap::from([(name("web"), HealthCheck { port, local })]);
        let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
        probes.set(&of(first, 1), &[one]);
        until("127.0.0.1", first, OK).await;
        until("127.0.0.2", first, None).await;
        probes.set(&of(first, 0), &[one, two]);
        until("127.0.0.2", first, NOT).await;
        assert_eq!(ask("127.0.0.1", first).await.as_deref(), NOT, "the same server tells another number");
        // The port changes: the old one closes.
        probes.set(&of(second, 2), &[two]);
        until("127.0.0.2", second, OK).await;
        until("127.0.0.1", first, None).await;
        until("127.0.0.2", first, None).await;
        // And another Service may have it, at once: what went has closed by then.
        let start = Instant::now();
        probes.set(&BTreeMap::from([(name("other"), HealthCheck { port: second, local: 0 })]), &[two]);
        until("127.0.0.2", second, NOT).await;
        assert!(start.elapsed() < RETRY, "found it taken");
        assert_eq!(probes.problems().next(), None);
        probes.set(&BTreeMap::new(), &[one, two]);
        until("127.0.0.2", second, None).await;
    }

    #[tokio::test]
    async fn rule_2_6_4_a_port_that_is_taken_is_told_by_its_service() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = NonZeroU16::new(taken.local_addr().expect("an address").port()).expect("not zero");
        let mut probes = Probes::new(Arc::new(Health::default()));
        let wanted = BTreeMap::from([(name("web"), HealthCheck { port, local: 1 })]);
        probes.set(&wanted, &[[127, 0, 0, 1].into()]);
        let end = Instant::now() + Duration::from_secs(5);
        while probes.problems().next().is_none() {
            assert!(Instant::now() < end, "not told");
            sleep(Duration::from_millis(5)).await;
        }
        let problem = probes.problems().next().expect("told");
        assert_eq!(problem.object, "Service shop/web");
        assert!(problem.cause.contains(&format!("127.0.0.1:{port}")), "{problem:?}");
        drop(taken);
        until("127.0.0.1", port, OK).await;
        assert_eq!(probes.problems().next(), None);
    }
}
