//! The cluster most tests want: two nodes with two pods each, an agent on each node, and one Service over all pods.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Context;
use serde_json::json;

use crate::{
    Agent, Echo, Node, Pod, Setup, World,
    client::{Call, Transport},
    kube::{PodSpec, Service},
};

/// Where the pods of a [`Cluster`] listen, TCP and UDP.
pub const TARGET: u16 = 9376;
/// The nodePort of its Service.
pub const NODE_PORT: u16 = 30080;

/// A world whose four pods are behind the Service `web`: port 80, and [`NODE_PORT`], of TCP and UDP.
#[derive(Debug)]
pub struct Cluster {
    /// Agents of node 1 and node 2. Before the world: they end while their namespaces still exist.
    pub agents: Vec<Agent>,
    /// One in each pod, in their order.
    pub servers: Vec<Echo>,
    /// Nodes, pods and the client.
    pub world: World,
}

impl Cluster {
    /// Builds it, with strict reverse path filtering and INVALID packets dropped.
    ///
    /// With XDP the senders deliver as a wire does: XDP cannot tell a partial checksum from a whole one.
    pub fn start(setup: &Setup) -> anyhow::Result<Self> {
        let world = World::builder().rp_filter(1).drop_invalid(true).build()?;
        if setup.xdp == "on" {
            world.set_tx_checksum(false)?;
        }
        world.apply_nodes()?;
        for pod in world.pods() {
            world.apply_pod(pod, &PodSpec::labelled("app", "web"))?;
        }
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"})))?;
        let servers = world.pods().map(|pod| Echo::start(pod.place(), &[TARGET], &[TARGET]));
        let servers = servers.collect::<anyhow::Result<_>>()?;
        let agents = Agent::start_all(&world, setup)?;
        let cluster = Self { agents, servers, world };
        cluster.wait(8)?;
        Ok(cluster)
    }

    /// Waits until every agent lists `web` with this many backends: addresses, so two a pod.
    pub fn wait(&self, backends: u64) -> anyhow::Result<()> {
        self.agents.iter().try_for_each(|agent| agent.wait_service("web", backends).map(drop))
    }

    /// The ClusterIPs with their port, IPv4 first.
    pub fn vips(&self, backends: u64) -> anyhow::Result<Vec<SocketAddr>> {
        let mut ips = self.agents.first().context("no agent")?.cluster_ips("web", backends)?;
        ips.sort();
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect())
    }

    /// The nodePort of a node, IPv4 first.
    pub fn node_ports_of(node: &Node) -> [SocketAddr; 2] {
        node.ips().map(|ip| SocketAddr::new(ip, NODE_PORT))
    }

    /// The nodePort of node 1, IPv4 first.
    pub fn node_ports(&self) -> [SocketAddr; 2] {
        Self::node_ports_of(self.world.node(0))
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> anyhow::Result<&Pod> {
        self.world.pods().find(|pod| pod.name() == name).with_context(|| format!("no pod {name}"))
    }

    /// Who answers `count` new connections of the client; an error if one of them fails.
    pub fn answers(&self, transport: Transport, to: SocketAddr, count: u32) -> anyhow::Result<BTreeSet<String>> {
        let answers = Call::new(transport, to).count(count).run(self.world.client())?;
        let name = |answer: &crate::client::Answer| Ok(answer.reached()?.0.to_owned());
        answers.iter().map(name).collect::<anyhow::Result<_>>().with_context(|| format!("{transport:?} to {to}"))
    }
}
