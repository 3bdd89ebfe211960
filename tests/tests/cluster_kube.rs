//! An agent on a real API server: Services and pods made through the API are served, whatever happens to the server.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_tests::{
    Agent, ControlPlane, Echo, Place, Setup, TARGET, World,
    client::{Call, Hold},
    kube::{PodSpec, Service},
    needs_control_plane, wait_until,
    web::{get, value},
};
use serde_json::{Value, json};

/// A nodePort that is asked for.
const PORT: u16 = 30_456;

struct Running {
    agent: Agent,
    _servers: Vec<Echo>,
    plane: ControlPlane,
    world: World,
}

fn start() -> anyhow::Result<Running> {
    let world = World::builder().rp_filter(1).build()?;
    let plane = ControlPlane::start(&world)?;
    plane.apply_nodes(&world)?;
    for pod in world.pods() {
        plane.apply_pod(pod, &PodSpec::labelled("app", "web"))?;
    }
    plane.apply_service(&Service::new("web", "app", "web").port(80, TARGET, None))?;
    let servers = world.pods().map(|pod| Echo::start(pod.place(), &[TARGET], &[TARGET]));
    let servers = servers.collect::<anyhow::Result<_>>()?;
    let source = [OsStr::new("--kubeconfig"), plane.agent_kubeconfig().as_os_str()];
    let agent = Agent::start_on(&world, world.node(0), &Setup::tcx(true), source)?;
    Ok(Running { agent, _servers: servers, plane, world })
}

impl Running {
    fn answers(&self, to: SocketAddr) -> anyhow::Result<Vec<String>> {
        let place = self.world.node(0).pod(0).place();
        let answers = Call::tcp(to).count(20).timeout(Duration::from_secs(2)).run(place)?;
        let mut names = answers.iter().map(|it| Ok(it.reached()?.0.to_owned())).collect::<anyhow::Result<Vec<_>>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn wait_answers(&self, to: SocketAddr, count: usize) {
        wait_until(&format!("{count} pods behind {to}"), Duration::from_secs(20), || match self.answers(to) {
            Ok(names) if names.len() == count => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .expect("served");
    }
}

#[test]
fn services_of_a_real_cluster_are_served_and_stay_so_without_it() {
    needs_control_plane!();
    let mut running = start().expect("a cluster");
    let mut ips = running.agent.cluster_ips("web", 8).expect("cluster IPs");
    ips.sort();
    let vips: Vec<SocketAddr> = ips.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect();
    assert_eq!(vips.len(), 2);
    for vip in &vips {
        running.wait_answers(*vip, 4);
    }
    let status = running.agent.status().expect("a status");
    assert_eq!(status.problems, []);
    // Its ServiceCIDRs are known.
    assert_eq!(status.warnings, []);
    wait_until("every watch to be in step", Duration::from_secs(10), || {
        let watches = running.agent.status().map_err(|error| format!("{error:#}"))?.watches;
        if watches.iter().all(|watch| watch.synced) { Ok(()) } else { Err(format!("{watches:?}")) }
    })
    .expect("in step");
    running.agent.wait_service("kubernetes", 1).expect("listed");

    // Kubelets tell of whole seconds: the change must not seem older than the agent.
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let started = seconds();
    wait_until("the next second", Duration::from_secs(3), || {
        if seconds() > started { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .expect("time goes on");
    let pod = running.world.pods().nth(3).expect("a pod");
    running.plane.pod_ready(pod, false).expect("patched");
    running.wait_answers(vips[0], 3);
    // What the endpoint controller tells of the moment it was about; and health is asked for from everywhere.
    let node = running.world.node(0);
    for family in ["IPv4", "IPv6"] {
        // Each family has a slice of its own, and one comes after the other.
        wait_until(&format!("a programmed change of {family}"), Duration::from_secs(10), || {
            let (_, page) = get(node, "127.0.0.1:10249", "/metrics")?;
            let series = format!("kubeproxy_network_programming_duration_seconds_count{{ip_family=\"{family}\"}}");
            let programmed = value(&page, &series);
            if programmed >= 1.0 { Ok(()) } else { Err(format!("{programmed}")) }
        })
        .expect("counted");
    }
    let healthz = format!("{}:10256", node.ipv4());
    assert_eq!(get(running.world.client(), &healthz, "/healthz").expect("an answer").0, 200);

    let hold = Hold::start(running.world.node(0).pod(0).place(), vips[0]).expect("a held connection");
    running.plane.kill_server().expect("killed");
    wait_until("the watches to be told broken", Duration::from_secs(30), || {
        let status = running.agent.status().map_err(|error| format!("{error:#}"))?;
        let broken = status.problems.iter().filter(|problem| problem.object.starts_with("watch of ")).count();
        if broken == 4 { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .expect("told");
    assert_eq!(
        get(running.world.client(), &healthz, "/healthz").expect("an answer").0,
        200,
        "health is the node's own"
    );
    running.agent.kill().expect("killed");
    running.agent.launch().expect("launched");
    running.wait_answers(vips[1], 3);
    running.plane.launch_server().expect("launched");
    running.plane.pod_ready(running.world.pods().nth(3).expect("a pod"), true).expect("patched");
    running.wait_answers(vips[0], 4);
    wait_until("all to be well", Duration::from_secs(20), || {
        let status = running.agent.status().map_err(|error| format!("{error:#}"))?;
        if status.problems.is_empty() { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .expect("well");
    let report = hold.stop().expect("a report");
    assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
    an_event_is_what_kubectl_describe_shows(&running.plane);
}

/// A Service with an external IP, which is not served unless it is allowed.
fn an_event_is_what_kubectl_describe_shows(plane: &ControlPlane) {
    let service = Service::new("external", "app", "web").port(80, TARGET, None);
    let made = plane.apply_service(&service.fields(json!({"externalIPs": ["198.51.100.7"]}))).expect("a Service");
    let uid = made["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let event = wait_until("the Event", Duration::from_secs(10), || {
        // As kubectl asks.
        let path = format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}");
        let list = plane.with_client(|client| async move {
            Ok(client.request::<Value>(http::Request::get(path).body(Vec::new())?).await?)
        });
        let list = list.map_err(|error| format!("{error:#}"))?;
        list["items"].as_array().and_then(|items| items.first().cloned()).ok_or_else(|| "none".to_owned())
    })
    .expect("an Event");
    assert_eq!((&event["reason"], &event["type"]), (&"PartlyServed".into(), &"Warning".into()), "{event}");
    let message = event["message"].as_str().expect("a message");
    assert!(message.contains("198.51.100.7") && message.contains("BallastConfiguration"), "{event}");
}

/// Who answered, and from which addresses they saw the calls come.
type Heard = Result<(BTreeSet<String>, BTreeSet<IpAddr>), String>;

/// 20 new calls.
fn heard(calls: &Call, from: &Place) -> Heard {
    let answers = calls.clone().count(20).timeout(Duration::from_millis(500)).run(from);
    let answers = answers.map_err(|error| format!("{error:#}"))?;
    let mut heard = (BTreeSet::new(), BTreeSet::new());
    for answer in &answers {
        let (name, seen) = answer.reached().map_err(|error| format!("{error:#}"))?;
        heard.0.insert(name.to_owned());
        heard.1.insert(seen);
    }
    Ok(heard)
}

#[test]
fn rules_of_types_policies_and_affinity_hold_as_a_service_changes_in_place() {
    needs_control_plane!();
    let running = start().expect("a cluster");
    let world = &running.world;
    let (node, pod, client) = (world.node(0), world.node(0).pod(0).place(), world.client());
    let all: BTreeSet<String> = world.pods().map(|pod| pod.name().to_owned()).collect();
    let here: BTreeSet<String> = node.pods().iter().map(|pod| pod.name().to_owned()).collect();
    let vips = running.agent.cluster_ips("web", 8).expect("cluster IPs");
    let change =
        |spec: Value| running.plane.patch("services", "default", "web", json!({"spec": spec})).expect("patched");
    let ports = |node_port: Option<u16>| -> Value {
        let port = |protocol: &str| {
            let name = format!("{}-80", protocol.to_lowercase());
            json!({"name": name, "protocol": protocol, "port": 80, "targetPort": TARGET, "nodePort": node_port})
        };
        json!([port("TCP"), port("UDP")])
    };
    let wait = |what: &str, calls: &Call, from: &Place, right: &dyn Fn(&Heard) -> bool| {
        wait_until(what, Duration::from_secs(20), || {
            let found = heard(calls, from);
            if right(&found) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    };
    for vip in &vips {
        let to = |ip: IpAddr, port: u16| [Call::tcp(SocketAddr::new(ip, port)), Call::udp(SocketAddr::new(ip, port))];
        let node_ip = if vip.is_ipv4() { node.ipv4().into() } else { node.ipv6().into() };
        let client_ip = client.ip_like(*vip);
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        change(
            json!({"type": "ClusterIP", "externalTrafficPolicy": null, "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "ports": ports(None)}),
        );
        for calls in to(*vip, 80) {
            wait(&format!("2.1.1 a cluster IP, {family}"), &calls, pod, &|found| {
                found.as_ref().is_ok_and(|(names, sources)| *names == all && sources.contains(&pod.ip_like(*vip)))
            });
        }
        // One port for both protocols, with the type changed in place.
        change(json!({"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": ports(Some(PORT))}));
        for calls in to(node_ip, PORT) {
            wait(&format!("2.3.5 a nodePort, {family}"), &calls, client, &|found| {
                found.as_ref().is_ok_and(|(names, sources)| *names == all && !sources.contains(&client_ip))
            });
        }
        change(json!({"externalTrafficPolicy": "Local"}));
        for calls in to(node_ip, PORT) {
            wait(&format!("2.4.3 externalTrafficPolicy Local, {family}"), &calls, client, &|found| {
                found.as_ref().is_ok_and(|(names, sources)| *names == here && *sources == [client_ip].into())
            });
        }
        change(json!({"internalTrafficPolicy": "Local"}));
        for calls in to(*vip, 80) {
            wait(&format!("internalTrafficPolicy Local, {family}"), &calls, pod, &|found| {
                found.as_ref().is_ok_and(|(names, _)| *names == here)
            });
        }
        change(json!({"internalTrafficPolicy": "Cluster", "sessionAffinity": "ClientIP"}));
        for calls in to(*vip, 80) {
            wait(&format!("2.5 affinity, {family}"), &calls, pod, &|found| {
                found.as_ref().is_ok_and(|(names, _)| names.len() == 1)
            });
        }
        change(json!({"sessionAffinity": "None"}));
        for calls in to(*vip, 80) {
            wait(&format!("2.5 no affinity, {family}"), &calls, pod, &|found| {
                found.as_ref().is_ok_and(|(names, _)| *names == all)
            });
        }
        change(json!({"type": "ClusterIP", "externalTrafficPolicy": null, "ports": ports(None)}));
        for calls in to(node_ip, PORT) {
            wait(&format!("no nodePort any more, {family}"), &calls, client, &Result::is_err);
        }
    }
    // Another kind of Service altogether.
    change(
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": "", "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null}),
    );
    for vip in vips {
        wait("an ExternalName has no address", &Call::tcp(SocketAddr::new(vip, 80)), pod, &Result::is_err);
    }
}
