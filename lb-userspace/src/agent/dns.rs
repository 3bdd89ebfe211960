//! DNS inside the agent (`run --dns`).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hickory_server::Server;
use prometheus_client::registry::Registry;

use super::RunOptions;
use crate::{
    dns::{
        self, Clients,
        server::{Handler, Zones},
        zone::{self, Zone},
    },
    model::Model,
};

/// Port of DNS.
const PORT: u16 = 53;

/// What `run --dns` was asked for.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Where to listen; loopback and the own Node's `InternalIP` addresses when empty.
    pub listen: Vec<SocketAddr>,
    /// Zone and TTL.
    pub zone: zone::Options,
    /// Who may ask what.
    pub clients: Clients,
}

/// The server; it ends when it is dropped.
pub(super) struct Dns {
    zones: Arc<Zones>,
    zone: zone::Options,
    handler: Handler,
    _server: Server<Handler>,
}

impl Dns {
    /// Listens, if asked for. Questions get SERVFAIL until the first [`Self::set`].
    pub(super) async fn start(options: &RunOptions, model: &Model) -> anyhow::Result<Option<Self>> {
        let Some(DnsOptions { listen, zone, clients }) = &options.dns else { return Ok(None) };
        let listen = if listen.is_empty() { own(model, &options.node) } else { listen.clone() };
        let zones = Arc::new(Zones::default());
        let handler = Handler::new(Arc::clone(&zones), clients.rules(&listen)?);
        let server = dns::listen(&listen, handler.clone(), "--dns-listen").await?;
        tracing::info!("answering for {} on {}", zone.zone, dns::words(&listen));
        Ok(Some(Self { zones, zone: zone.clone(), handler, _server: server }))
    }

    /// Answers from this state from here on.
    pub(super) fn set(&self, model: &Model) {
        if !self.zones.follow(model) {
            self.zones.set(Zone::new(model, self.zone.clone()));
        }
    }

    /// Adds its metrics to a page.
    pub(super) fn register(&self, registry: &mut Registry) {
        self.handler.register(registry);
    }
}

fn own(model: &Model, node: &str) -> Vec<SocketAddr> {
    let node = model.nodes.get(node).into_iter().flat_map(|node| node.internal_ips.iter().copied());
    let all = [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter().chain(node);
    all.map(|address| SocketAddr::new(address, PORT)).collect()
}
