//! DNS inside the agent (`run --dns`).

use std::{
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
    /// Of a cluster's Node the addresses are known later.
    node: Node,
}

/// The server at the own Node's addresses.
enum Node {
    /// None, or that of all addresses has them.
    None,
    /// Until the Node with this name is known.
    Awaited(String),
    Listening(#[expect(dead_code, reason = "it ends when it is dropped")] Server),
    Failed(Problem),
}

impl Dns {
    /// Listens, if asked for. Questions get SERVFAIL until the first [`Self::set`].
    pub(super) fn start(options: &RunOptions, model: &Model) -> anyhow::Result<Option<Self>> {
        let Some(DnsOptions { listen, zone, clients, cluster }) = &options.dns else { return Ok(None) };
        let (at, node) = match (listen.as_slice(), cluster) {
            ([], Some(_)) => (vec![LOOPBACK], Node::Awaited(options.node.clone())),
            ([], None) => ([vec![LOOPBACK], own(model, &options.node)].concat(), Node::None),
            _ => (listen.clone(), Node::None),
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
        Ok(Some(Self { zones, zone: zone.clone(), handler, follower, _server: server, node }))
    }

    /// Answers from this state from here on, unless the names are a cluster's: of that the agent knows only what a datapath
    /// needs, and where its Node is. No more than `touched` is another one.
    pub(super) fn set(&mut self, model: &Model, touched: &Touched) {
        if self.follower.is_some() {
            self.listen_at_node(model);
        } else if !self.zones.follow(model, touched) {
            self.zones.set(Zone::new(model, self.zone.clone()));
        }
    }

    fn listen_at_node(&mut self, model: &Model) {
        let Node::Awaited(name) = &self.node else { return };
        let at = own(model, name);
        if at.is_empty() {
            return;
        }
        self.node = match dns::listen(&at, &self.handler, FLAG) {
            Ok(server) => {
                tracing::info!("answering for {} on {} too", self.zone.zone, dns::words(&at));
                Node::Listening(server)
            }
            Err(error) => {
                tracing::error!("DNS: {error:#}");
                let fix = format!("free the address, or say where to listen with {FLAG}; then start again");
                Node::Failed(Problem { object: "DNS".to_owned(), cause: format!("{error:#}"), fix })
            }
        };
    }

    /// What is wrong.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.follower.as_ref().map_or_else(Vec::new, Follower::problems);
        if let Node::Failed(problem) = &self.node {
            problems.push(problem.clone());
        }
        problems
    }

    /// Adds its metrics to a page.
    pub(super) fn register(&self, registry: &mut Registry) {
        self.handler.register(registry);
    }
}

fn own(model: &Model, node: &str) -> Vec<SocketAddr> {
    let node = model.nodes.get(node).into_iter().flat_map(|node| node.internal_ips.iter().copied());
    node.map(|address| SocketAddr::new(address, PORT)).collect()
}
