//! DNS inside the agent (`run --dns`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use prometheus_client::registry::Registry;

use super::RunOptions;
use crate::{
    dns::{
        self, Clients, Follower, Server, Zones,
        server::Handler,
        zone::{self, Zone},
    },
    k8s::source::Access,
    model::{Model, Touched},
    report::Problem,
};

/// Port of DNS.
const PORT: u16 = 53;
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
const FLAG: &str = "--dns-listen";

/// What `run --dns` was asked for.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Where to listen; loopback and the own Node's `InternalIP` addresses when empty.
    pub listen: Vec<SocketAddr>,
    /// Zone and TTL.
    pub zone: zone::Options,
    /// Who may ask what.
    pub clients: Clients,
    /// The cluster whose names they are; none if they are those of the agent's documents.
    pub cluster: Option<Access>,
}

/// The servers; they end when this is dropped.
pub(super) struct Dns {
    zones: Arc<Zones>,
    zone: zone::Options,
    handler: Handler,
    follower: Option<Follower>,
    _server: Server,
    /// None where it was said where to listen.
    node: Option<AtNode>,
}

/// The servers at the own Node's addresses, as these come and go.
struct AtNode {
    name: String,
    servers: BTreeMap<SocketAddr, Server>,
    /// Why not, until it is tried again.
    failed: BTreeMap<SocketAddr, String>,
    /// It was said that there is no such address.
    missing: bool,
}

impl Dns {
    /// Listens, if asked for. Questions get SERVFAIL until the first [`Self::set`].
    pub(super) fn start(options: &RunOptions, model: &Model) -> anyhow::Result<Option<Self>> {
        let Some(DnsOptions { listen, zone, clients, cluster }) = &options.dns else { return Ok(None) };
        let (at, node) = match listen.as_slice() {
            [] => (vec![LOOPBACK], Some(AtNode::new(&options.node))),
            _ => (listen.clone(), None),
        };
        let zones = Arc::new(Zones::default());
        let handler = Handler::new(Arc::clone(&zones), clients.rules(&at)?);
        let server = dns::listen(&at, &handler, FLAG)?;
        let words = format!("answering for {} on {}", zone.zone, dns::words(&at));
        let follow = |access: &Access| Follower::start(access.clone(), Arc::clone(&zones), zone.clone(), words.clone());
        let follower = cluster.as_ref().map(follow).transpose()?;
        if follower.is_none() {
            tracing::info!("{words}");
        }
        let mut dns = Self { zones, zone: zone.clone(), handler, follower, _server: server, node };
        if cluster.is_none() {
            dns.listen_at_node(model);
        }
        Ok(Some(dns))
    }

    /// Answers from this state from here on, at the Node's addresses too, unless the names are a cluster's: of that the agent
    /// knows only what a datapath needs, and where its Node is. No more than `touched` is another one.
    pub(super) fn set(&mut self, model: &Model, touched: &Touched) {
        self.listen_at_node(model);
        if self.follower.is_none() && !self.zones.follow(model, touched) {
            self.zones.set(Zone::new(model, self.zone.clone()));
        }
    }

    /// Tries the addresses again that could not be listened on: an interface may have them now.
    pub(super) fn again(&mut self, model: &Model) {
        if self.node.as_ref().is_some_and(|node| !node.failed.is_empty()) {
            self.listen_at_node(model);
        }
    }

    fn listen_at_node(&mut self, model: &Model) {
        if let Some(node) = &mut self.node {
            node.follow(&own(model, &node.name), &self.handler, &self.zone.zone);
        }
    }

    /// What is wrong.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.follower.as_ref().map_or_else(Vec::new, Follower::problems);
        problems.extend(self.node.iter().flat_map(AtNode::problems));
        problems
    }

    /// Adds its metrics to a page.
    pub(super) fn register(&self, registry: &mut Registry) {
        self.handler.register(registry);
    }
}

impl AtNode {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), servers: BTreeMap::new(), failed: BTreeMap::new(), missing: false }
    }

    /// Listens there and nowhere else; a Node that is gone keeps its servers until it is there again.
    fn follow(&mut self, at: &[SocketAddr], handler: &Handler, zone: &str) {
        if at.is_empty() {
            if !self.missing && self.servers.is_empty() {
                tracing::warn!("DNS: Node {} has no InternalIP yet: {zone} is answered on {LOOPBACK} alone", self.name);
            }
            self.missing = true;
            return;
        }
        self.missing = false;
        self.servers.retain(|address, _| at.contains(address));
        self.failed.retain(|address, _| at.contains(address));
        for address in at {
            if self.servers.contains_key(address) {
                continue;
            }
            match dns::listen(&[*address], handler, FLAG) {
                Ok(server) => {
                    tracing::info!("answering for {zone} on {address} too");
                    self.failed.remove(address);
                    self.servers.insert(*address, server);
                }
                Err(error) => {
                    let cause = format!("{error:#}");
                    let told = self.failed.insert(*address, cause.clone());
                    if told.as_ref() != Some(&cause) {
                        tracing::error!("DNS: {cause}");
                    }
                }
            }
        }
    }

    fn problems(&self) -> impl Iterator<Item = Problem> {
        let fix = format!("free the address, which is tried again, or say where to listen with {FLAG}");
        self.failed.values().map(move |cause| Problem {
            object: "DNS".to_owned(),
            cause: cause.clone(),
            fix: fix.clone(),
        })
    }
}

fn own(model: &Model, node: &str) -> Vec<SocketAddr> {
    let node = model.nodes.get(node).into_iter().flat_map(|node| node.internal_ips.iter().copied());
    node.map(|address| SocketAddr::new(address, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{dns::server::Rules, testing::soon};

    /// A port that nobody has at either address.
    fn free() -> [SocketAddr; 2] {
        loop {
            let port = UdpSocket::bind("127.0.0.5:0").expect("a socket").local_addr().expect("an address").port();
            let both = ["127.0.0.5", "127.0.0.6"].map(|address| SocketAddr::new(address.parse().expect("one"), port));
            if both.iter().all(|at| UdpSocket::bind(at).is_ok() && std::net::TcpListener::bind(at).is_ok()) {
                return both;
            }
        }
    }

    #[tokio::test]
    async fn the_nodes_addresses_are_followed_and_what_failed_is_tried_again() {
        let handler = Handler::new(Arc::new(Zones::default()), Rules::default());
        let mut node = AtNode::new("node-0");
        let [first, second] = free();
        let taken = UdpSocket::bind(second).expect("a socket");
        node.follow(&[], &handler, "cluster.local");
        assert!(node.servers.is_empty() && node.problems().next().is_none());
        node.follow(&[first, second], &handler, "cluster.local");
        assert!(node.servers.keys().eq([&first]));
        let told: Vec<_> = node.problems().map(|problem| problem.cause).collect();
        assert!(matches!(told.as_slice(), [told] if told.contains(&second.to_string())), "{told:?}");
        drop(taken);
        soon(|| {
            node.follow(&[first, second], &handler, "cluster.local");
            node.problems().next().map_or(Ok(()), Err)
        });
        assert!(node.servers.keys().eq([&first, &second]));
        node.follow(&[second], &handler, "cluster.local");
        assert!(node.servers.keys().eq([&second]));
        soon(|| UdpSocket::bind(first));
        node.follow(&[], &handler, "cluster.local");
        assert!(node.servers.keys().eq([&second]), "a Node that is gone for a moment");
    }
}
