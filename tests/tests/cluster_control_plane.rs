//! A real control plane in a world: it starts, hands out addresses and makes EndpointSlices of the world's pods.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use lb_tests::{
    ControlPlane, Endpoint, Pod, World,
    kube::{PodSpec, Service},
    needs_control_plane, traces, wait_until,
};
use serde_json::{Value, json};

/// A world with a control plane that knows its nodes, and its pods with the label `app=web`.
fn start() -> anyhow::Result<(ControlPlane, World)> {
    let world = World::new()?;
    let plane = ControlPlane::start(&world)?;
    plane.apply_nodes(&world)?;
    for pod in world.pods() {
        plane.apply_pod(pod, &web())?;
    }
    Ok((plane, world))
}

fn web() -> PodSpec {
    PodSpec::labelled("app", "web")
}

#[test]
fn a_control_plane_starts_in_30_s() {
    needs_control_plane!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let begin = Instant::now();
    let plane = ControlPlane::start(&world).expect("a control plane");
    let took = begin.elapsed();
    println!("NOTE control plane up in {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(!plane.address().ip().is_loopback(), "{}", plane.address());
    let id = world.id().to_owned();
    assert!(traces(&id).iter().any(|trace| trace.contains("control")), "{:?}", traces(&id));
    drop((plane, world));
    assert_eq!(traces(&id), Vec::<String>::new(), "what is left of it");
}

#[test]
fn a_control_plane_ends_with_its_world_though_the_test_panics() {
    needs_control_plane!();
    let (sender, ids) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let world = World::builder().nodes(1).pods(0).build().expect("a world");
        sender.send(world.id().to_owned()).expect("a listener");
        let _plane = ControlPlane::start(&world).expect("a control plane");
        panic!("as a failing test does");
    });
    assert!(test.join().is_err());
    let id = ids.recv().expect("the id of the world");
    assert_eq!(traces(&id), Vec::<String>::new(), "what is left of it");
}

#[test]
fn real_controllers_make_slices_of_both_families() {
    needs_control_plane!();
    slices().expect("EndpointSlices");
}

fn slices() -> anyhow::Result<()> {
    let (plane, world) = start()?;
    let made = plane.apply_service(&Service::new("web", "app", "web").port(80, 9376, None))?;
    addresses_of_both_ranges(&made)?;
    let pods: Vec<&Pod> = world.pods().collect();
    let all = endpoints_of(&pods);
    plane.wait_endpoints("web", |endpoints| same(endpoints, &all))?;

    // Readiness, both ways.
    plane.pod_ready(pods[0], false)?;
    let mut changed = all.clone();
    changed.iter_mut().filter(|endpoint| endpoint.pod == pods[0].name()).for_each(|endpoint| {
        endpoint.ready = Some(false);
        endpoint.serving = Some(false);
    });
    plane.wait_endpoints("web", |endpoints| same(endpoints, &changed))?;
    plane.pod_ready(pods[0], true)?;
    plane.wait_endpoints("web", |endpoints| same(endpoints, &all))?;

    // A Pod that ends is terminating until its kubelet has removed it.
    plane.delete("pods", "default", pods[1].name())?;
    let mut changed = all.clone();
    changed.iter_mut().filter(|endpoint| endpoint.pod == pods[1].name()).for_each(|endpoint| {
        endpoint.ready = Some(false);
        endpoint.terminating = Some(true);
    });
    plane.wait_endpoints("web", |endpoints| same(endpoints, &changed))?;
    plane.remove("pods", "default", pods[1].name())?;
    let rest: Vec<_> = all.iter().filter(|endpoint| endpoint.pod != pods[1].name()).cloned().collect();
    plane.wait_endpoints("web", |endpoints| same(endpoints, &rest))?;

    // The label is what selects.
    plane.apply_pod(pods[2], &PodSpec::labelled("app", "other"))?;
    let rest: Vec<_> = rest.into_iter().filter(|endpoint| endpoint.pod != pods[2].name()).collect();
    plane.wait_endpoints("web", |endpoints| same(endpoints, &rest))?;
    Ok(())
}

/// The ClusterIPs of a Service are one of each range.
fn addresses_of_both_ranges(service: &Value) -> anyhow::Result<()> {
    let listed = service.pointer("/spec/clusterIPs").and_then(Value::as_array).context("no clusterIPs")?;
    let ips: Vec<IpAddr> = listed.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let ranges: [IpNet; 2] = ["10.96.0.0/16".parse()?, "fd00:10:96::/112".parse()?];
    ensure!(ips.len() == 2 && ranges.iter().zip(&ips).all(|(range, ip)| range.contains(ip)), "{ips:?}");
    Ok(())
}

/// What the controllers make of ready pods.
fn endpoints_of(pods: &[&Pod]) -> Vec<Endpoint> {
    let mut endpoints: Vec<_> = pods
        .iter()
        .flat_map(|pod| pod.ips().map(|ip| (pod, ip)))
        .map(|(pod, ip)| Endpoint {
            family: if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
            address: ip.to_string(),
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
            pod: pod.name().to_owned(),
            node: pod.node().to_owned(),
        })
        .collect();
    endpoints.sort();
    endpoints
}

fn same(found: &[Endpoint], wanted: &[Endpoint]) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:#?}\ninstead of {wanted:#?}")) }
}

#[test]
fn an_agent_may_read_what_it_needs_and_nothing_else() {
    needs_control_plane!();
    rights().expect("rights of the agent");
}

fn rights() -> anyhow::Result<()> {
    let world = World::builder().nodes(1).pods(0).build()?;
    let plane = ControlPlane::start(&world)?;
    let may = |verb: &str, group: &str, resource: &str| -> anyhow::Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": "ballast", "resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
        });
        let answer = plane.create(review)?;
        answer.pointer("/status/allowed").and_then(Value::as_bool).context("no answer")
    };
    for (group, resource) in
        [("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices"), ("networking.k8s.io", "servicecidrs")]
    {
        for verb in ["list", "watch"] {
            ensure!(may(verb, group, resource)?, "{verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            ensure!(!may(verb, group, resource)?, "{verb} {resource}");
        }
    }
    ensure!(may("create", "events.k8s.io", "events")?, "Events");
    ensure!(!may("list", "", "secrets")?, "Secrets");
    Ok(())
}

#[test]
fn nodes_and_pods_reach_the_api_and_it_comes_back() {
    needs_control_plane!();
    for segment in [false, true] {
        reach(segment).unwrap_or_else(|error| panic!("segment {segment}: {error:#}"));
    }
}

fn reach(segment: bool) -> anyhow::Result<()> {
    let world = World::builder().pods(1).segment(segment).build()?;
    let mut plane = ControlPlane::start(&world)?;
    plane.apply_nodes(&world)?;
    let connects = |place: &lb_tests::Place, ip: IpAddr, port: u16| -> anyhow::Result<bool> {
        place
            .namespace()
            .run(|| std::net::TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(5)).is_ok())
    };
    let port = plane.address().port();
    for place in [world.node(0).place(), world.node(1).place(), world.node(1).pod(0).place(), world.client()] {
        for ip in plane.place().ips() {
            ensure!(connects(place, ip, port)?, "{} to {ip}", place.name());
        }
    }
    plane.kill_server()?;
    let ip = plane.address().ip();
    wait_until("a closed port", Duration::from_secs(5), || match connects(world.node(0), ip, port) {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(plane.get("nodes", "", "node1").is_err(), "who answers?");
    plane.launch_server()?;
    let names: BTreeSet<_> = plane
        .list("nodes", "", "")?
        .iter()
        .filter_map(|node| Some(node.pointer("/metadata/name")?.as_str()?.to_owned()))
        .collect();
    ensure!(names == BTreeSet::from(["node1".to_owned(), "node2".to_owned()]), "{names:?}");
    Ok(())
}
