//! healthCheckNodePorts, probed as a load balancer in front of the nodes probes them (semantics.md 2.6.1 to 2.6.4).

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use lb_tests::{
    Agent, NODE_PORT, Node, Place, Setup, TARGET, World,
    api_server::ApiServer,
    kube::{PodSpec, Service},
    needs_root, wait_until,
    web::get,
};
use serde_json::{Value, json};

const PROBED: u16 = 30_999;

fn world() -> World {
    let world = World::builder().pods(2).build().expect("a world");
    world.apply_nodes().expect("nodes");
    world
}

fn web(fields: Value) -> Service {
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    service.load_balancer(&["203.0.113.80"]).fields(json!({"externalTrafficPolicy": "Local"})).fields(fields)
}

/// Status and the number of local endpoints.
fn probe(from: &Place, ip: IpAddr, port: u16) -> Result<(u16, u64), String> {
    let (status, body) = get(from, &SocketAddr::new(ip, port).to_string(), "/whatever")?;
    let body: Value = serde_json::from_str(&body).map_err(|error| format!("{body}: {error}"))?;
    assert_eq!(body["service"], json!({"namespace": "default", "name": "web"}));
    assert_eq!(body["serviceProxyHealthy"], json!(true));
    Ok((status, body["localEndpoints"].as_u64().ok_or_else(|| format!("{body}"))?))
}

/// What probes of the node find, by both of its addresses.
fn told(world: &World, node: &Node, port: u16, wanted: Option<(u16, u64)>) {
    for ip in node.ips() {
        wait_until(&format!("{wanted:?} at {ip}"), Duration::from_secs(15), || {
            let found = probe(world.client(), ip, port).ok();
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .expect("the answer");
    }
}

#[test]
fn rule_2_6_1_probes_find_the_nodes_with_ready_endpoints() {
    needs_root!();
    let world = world();
    let [one, two] = [world.node(0), world.node(1)];
    let spec = PodSpec::labelled("app", "web");
    world.apply_pod(one.pod(0), &spec).expect("a pod");
    world.apply_service(&web(json!({"healthCheckNodePort": PROBED}))).expect("a Service");
    let agents = Agent::start_all(&world, &Setup::tcx(true)).expect("agents");
    for agent in &agents {
        agent.wait_service("web", 2).expect("the Service");
    }
    told(&world, one, PROBED, Some((200, 1)));
    told(&world, two, PROBED, Some((503, 0)));
    // Pods come and go, are not ready, or leave while they still serve.
    world.apply_pod(two.pod(0), &spec).expect("a pod");
    world.apply_pod(two.pod(1), &spec).expect("a pod");
    told(&world, two, PROBED, Some((200, 2)));
    world.apply_pod(one.pod(0), &spec.clone().terminating()).expect("a pod");
    told(&world, one, PROBED, Some((503, 0)));
    world.apply_pod(two.pod(1), &spec.clone().ready(false)).expect("a pod");
    told(&world, two, PROBED, Some((200, 1)));
    let described = agents[0].query(&["service", "describe", "default/web"]).expect("an answer");
    assert!(described.contains(&format!("HealthCheck NodePort:    {PROBED}")), "{described}");
    // Who is not probed any more does not answer, and its port is free.
    world.apply_service(&web(json!({"externalTrafficPolicy": "Cluster"}))).expect("a Service");
    told(&world, two, PROBED, None);
    // Another port, given by the file source: the same on all nodes.
    world.apply_service(&web(json!({}))).expect("a Service");
    let given = || {
        let text = agents[1]
            .query(&["service", "describe", "default/web", "-o", "json"])
            .map_err(|error| format!("{error:#}"))?;
        let detail: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let port = detail["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| format!("no port: {detail}"))
    };
    let given = wait_until("a port", Duration::from_secs(10), given).expect("given");
    told(&world, two, given, Some((200, 1)));
    told(&world, one, given, Some((503, 0)));
}

#[test]
fn rule_2_6_4_a_port_that_is_taken_is_told_and_served_once_it_is_free() {
    needs_root!();
    let world = world();
    let node = world.node(0);
    world.apply_pod(node.pod(0), &PodSpec::labelled("app", "web")).expect("a pod");
    world.apply_service(&web(json!({"healthCheckNodePort": PROBED}))).expect("a Service");
    let at = SocketAddr::new(node.ipv4().into(), PROBED);
    let taken = node.namespace().run(|| TcpListener::bind(at)).expect("the node").expect("a port");
    let agent = Agent::start(&world, node, &Setup::tcx(false)).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let problem = || {
        let problems = agent.status().map_err(|error| format!("{error:#}"))?.problems;
        Ok::<_, String>(problems.into_iter().find(|problem| problem.cause.contains(&at.to_string())))
    };
    let told_of = wait_until("the problem", Duration::from_secs(5), || problem()?.ok_or_else(|| "not told".to_owned()));
    let told_of = told_of.expect("told");
    assert!(told_of.object == "Service default/web" && told_of.fix.contains("healthCheckNodePort"), "{told_of:?}");
    // The other family is served all the same.
    assert_eq!(probe(world.client(), node.ipv6().into(), PROBED), Ok((200, 1)));
    drop(taken);
    told(&world, node, PROBED, Some((200, 1)));
    assert_eq!(problem(), Ok(None));
}

#[test]
fn rule_2_6_4_through_an_api_server_a_port_that_is_taken_is_a_warning_event() {
    needs_root!();
    let world = world();
    let api = ApiServer::of_world(&world).expect("an API server");
    let node = world.node(0);
    let pods = [node.pod(0), node.pod(1)];
    api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PROBED,
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": NODE_PORT}],
        },
    }));
    api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
        "endpoints": pods.map(|pod| json!({"addresses": [pod.ipv4()], "nodeName": pod.node(), "conditions": {}})),
    }));
    let at = SocketAddr::new(node.ipv4().into(), PROBED);
    let taken = node.namespace().run(|| TcpListener::bind(at)).expect("the node").expect("a port");
    let agent = Agent::start_on(&world, node, &Setup::tcx(false), ["--master", &api.url()]).expect("an agent");
    agent.wait_service("web", 2).expect("the Service");
    let event = || {
        // Any change makes the agent look at what there is to tell.
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "other", "namespace": "default", "uid": "other"},
            "spec": {"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "ports": [{"port": 80}]},
        }));
        api.objects("events").into_iter().next().ok_or_else(|| "no Event".to_owned())
    };
    let event = wait_until("the Event", Duration::from_secs(20), event).expect("told");
    assert_eq!(
        (&event["reason"], &event["type"], &event["regarding"]["uid"]),
        (&json!("FailedToStartServiceHealthcheck"), &json!("Warning"), &json!("uid-of-web"))
    );
    let note = event["note"].as_str().expect("a note");
    assert!(note.contains(&at.to_string()), "{note}");
    drop(taken);
    told(&world, node, PROBED, Some((200, 2)));
}
