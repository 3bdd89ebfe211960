//! Load balancer addresses of pools: given by the agents of a folder of documents, reached with curl, kept over restarts.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    Agent, Echo, Setup, TARGET, World,
    client::Call,
    kube::{PodSpec, Service},
    needs_root, wait_until,
    web::Named,
};
use lb_userspace::report::ServiceRow;
use serde_json::json;

/// In the ranges that the world's router sends to node 1.
const POOLS: &str =
    "addressPools: [{name: home, addresses: [203.0.113.64/31, 'fd00:203:0:113::40-fd00:203:0:113::41']}]\n";

/// Where the pod listens for curl.
const HTTP: u16 = 8000;

struct Town {
    agents: Vec<Agent>,
    _servers: (Echo, Named),
    world: World,
}

impl Town {
    fn start(setup: &Setup) -> Self {
        let world = World::builder().rp_filter(1).drop_invalid(true).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        let pod = world.node(1).pod(0);
        world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        world.apply_service(&balanced("web")).expect("a Service");
        let servers = (
            Echo::start(pod, &[TARGET], &[TARGET]).expect("a server"),
            Named::start(pod.place(), HTTP).expect("a server"),
        );
        let agents = Agent::start_all(&world, &Setup { more: POOLS.to_owned(), ..setup.clone() }).expect("agents");
        Self { agents, _servers: servers, world }
    }

    /// What curl gets, outside.
    fn curl(&self, ip: IpAddr) -> String {
        let mut command = self.world.client().command("curl").expect("a command");
        command.args(["-sS", "--max-time", "5", &format!("http://{}/", SocketAddr::new(ip, 8080))]);
        let output = command.output().expect("curl");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All agents list the same addresses.
    fn addresses(&self, name: &str, count: usize) -> Vec<IpAddr> {
        let of = |agent: &Agent| {
            wait_until(&format!("{count} addresses of {name}"), std::time::Duration::from_secs(10), || {
                let rows: Vec<ServiceRow> = agent.services().map_err(|error| format!("{error:#}"))?;
                let row = rows.into_iter().find(|row| row.name == name).ok_or("not listed")?;
                if row.load_balancer_ips.len() == count { Ok(row.load_balancer_ips) } else { Err(format!("{row:?}")) }
            })
        };
        let mut all = self.agents.iter().map(|agent| of(agent).expect("addresses"));
        let first = all.next().expect("an agent");
        assert!(all.all(|other| other == first));
        first
    }
}

fn balanced(name: &str) -> Service {
    Service::new(name, "app", "web")
        .port(80, TARGET, None)
        .port(8080, HTTP, None)
        .fields(json!({"type": "LoadBalancer"}))
}

fn served(setup: &Setup) {
    let mut town = Town::start(setup);
    let ips = town.addresses("web", 2);
    let text = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&ips), ["203.0.113.64", "fd00:203:0:113::40"]);
    let pod = town.world.node(1).pod(0).name().to_owned();
    for ip in &ips {
        let to = SocketAddr::new(*ip, 80);
        for call in [Call::tcp(to), Call::udp(to)] {
            let answer = call.run_one(town.world.client()).expect("an answer");
            assert_eq!(answer.reached().expect("reached").0, pod, "{to}");
        }
        assert_eq!(town.curl(*ip), pod, "{ip}");
    }
    // Kept over a restart, though another Service comes before it in order.
    town.agents[0].kill().expect("killed");
    town.world.apply_service(&balanced("aaa")).expect("a Service");
    town.agents[0].launch().expect("launched");
    assert_eq!(town.addresses("web", 2), ips);
    assert_eq!(text(&town.addresses("aaa", 2)), ["203.0.113.65", "fd00:203:0:113::41"]);
    // The third finds none: it says so, and the others keep theirs.
    town.world.apply_service(&balanced("bbb")).expect("a Service");
    for agent in &town.agents {
        agent.wait_service("bbb", 2).expect("listed");
        let list = agent.query(&["service", "list"]).expect("a list");
        let line = list.lines().find(|line| line.contains(" bbb ")).expect("a line");
        assert!(line.contains("<pending>"), "{list}");
        let detail = agent.query(&["service", "describe", "default/bbb"]).expect("a description");
        assert!(detail.contains("no IPv4 address is left in home (203.0.113.64-203.0.113.65"), "{detail}");
    }
    assert_eq!(town.addresses("web", 2), ips);
    // Whoever waits has what is given back.
    town.world.remove("service-aaa.yaml").expect("removed");
    assert_eq!(text(&town.addresses("bbb", 2)), ["203.0.113.65", "fd00:203:0:113::41"]);
    for ip in town.addresses("bbb", 2) {
        assert_eq!(town.curl(ip), pod, "{ip}");
    }
}

#[test]
fn pool_addresses_are_served_kept_and_given_back_tcx() {
    needs_root!();
    served(&Setup::tcx(true));
}

#[test]
fn pool_addresses_are_served_kept_and_given_back_xdp() {
    needs_root!();
    served(&Setup::xdp(false));
}
