//! The container of deploy/ on a node, in both flavours, and with less than it needs.

use std::{fs, net::SocketAddr, time::Duration};

use lb_tests::{
    Agent, Echo, Manifest, NODE_PORT, PodSetup, TARGET, World, api_server::ApiServer, client::Call, needs_root,
    scoreboard, wait_until,
};
use serde_json::json;

const VIP: &str = "10.96.0.10";
const TOKEN: &str = "a-token-of-the-service-account";

/// A world with an API server that wants the token of a service account.
struct Kube {
    api: ApiServer,
    setup: PodSetup,
    _server: Echo,
    world: World,
}

impl Kube {
    fn new() -> anyhow::Result<Self> {
        let world = World::builder().rp_filter(1).build()?;
        let api = ApiServer::of_world(&world)?;
        api.require_token(TOKEN);
        let port = json!({"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT});
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "NodePort", "clusterIP": VIP, "clusterIPs": [VIP], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
                "sessionAffinity": "None", "ports": [port],
            },
            "status": {"loadBalancer": {}},
        }));
        let pod = world.node(1).pod(0);
        api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": [{"addresses": [pod.ipv4()], "nodeName": pod.node(), "conditions": {"ready": true}}],
        }));
        let server = Echo::start(pod.place(), &[TARGET], &[TARGET])?;
        let service_account = world.directory().join("service-account");
        fs::create_dir(&service_account)?;
        fs::write(service_account.join("token"), TOKEN)?;
        fs::write(service_account.join("ca.crt"), AUTHORITY)?;
        // This server speaks no TLS, which the variables of a pod cannot say.
        let arguments = vec!["--master".to_owned(), api.url()];
        let setup = PodSetup { service_account, arguments, ..PodSetup::default() };
        Ok(Self { api, setup, _server: server, world })
    }

    fn wait_call(&self, from: &lb_tests::Place, to: SocketAddr) {
        let wanted = self.world.node(1).pod(0).name();
        wait_until(&format!("{wanted} behind {to}, asked by {}", from.name()), Duration::from_secs(10), || {
            let answer = Call::tcp(to).timeout(Duration::from_secs(2)).run_one(from);
            let name = answer.and_then(|answer| Ok(answer.reached()?.0.to_owned()));
            match name {
                Ok(name) if name == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .expect("served");
    }
}

/// Nobody's: it is read, and has to be one.
const AUTHORITY: &str = include_str!("authority.pem");

#[test]
fn both_flavours_serve_with_what_their_manifest_gives() {
    needs_root!();
    for manifest in Manifest::all().expect("manifests") {
        let kube = Kube::new().expect("a world");
        let node = kube.world.node(0);
        let mut agent = Agent::start_in_pod(&kube.world, node, &manifest, &kube.setup).expect("an agent");
        let vip = SocketAddr::new(VIP.parse().expect("an address"), 80);
        kube.wait_call(node.pod(0).place(), vip);
        kube.wait_call(node.place(), vip);
        kube.wait_call(kube.world.client(), SocketAddr::new(node.ipv4().into(), NODE_PORT));
        // By the socket hooks alone: they are at the node's cgroup and not at the container's.
        kube.wait_call(node.place(), SocketAddr::new(node.ipv4().into(), NODE_PORT));
        let status = agent.status().expect("a status");
        assert_eq!(status.problems, [], "{}", manifest.flavour);
        assert!(status.socket_hooks.attached, "{:?}", status.socket_hooks);
        let rights = status.warnings.iter().any(|warning| warning.object == "rights");
        assert_eq!(rights, manifest.flavour == "least", "{:?}", status.warnings);
        let reserved = node.namespace().run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports"));
        let reserved = reserved.expect("a thread").expect("a setting");
        assert!(!reserved.trim().is_empty(), "the ports of masqueraded flows");
        // A new container takes over what the last one left.
        agent.kill().expect("killed");
        agent.launch().expect("launched");
        kube.wait_call(node.pod(0).place(), vip);
        assert_eq!(agent.status().expect("a status").problems, []);
        assert!(kube.api.requests().iter().any(|request| request == "watch services"));
    }
    scoreboard(
        "R20",
        "the container of deploy/, least: 3 capabilities, no new privileges, read-only root, 4 folders of the node",
    );
}

#[test]
fn without_one_of_the_three_capabilities_the_message_says_so() {
    needs_root!();
    let kube = Kube::new().expect("a world");
    let least = Manifest::least().expect("a manifest");
    let all = least.capabilities().expect("capabilities");
    for name in &all {
        let setup = PodSetup { without: Some(name.clone()), ..kube.setup.clone() };
        let error = match Agent::start_in_pod(&kube.world, kube.world.node(0), &least, &setup) {
            Err(error) => format!("{error:#}"),
            Ok(agent) => agent.status().expect("a status").problems.iter().map(|it| format!("{it:?}\n")).collect(),
        };
        assert!(error.contains(&format!("CAP_{name} is missing")), "without {name}: {error}");
    }
    scoreboard("R20", &format!("without one of {all:?} the message names it"));
}
