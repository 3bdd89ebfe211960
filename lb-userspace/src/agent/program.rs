//! From what source and network say to the maps.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::time::Instant;

use super::Agent;
use crate::{desired::NodeContext, model::Touched, web::probes::with_room};

/// Which ways to backends are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Those to new backends.
    New,
    /// All: they may lead elsewhere now.
    All,
}

impl Agent {
    /// Links, addresses or routes may have changed; `heard`: the kernel says so.
    pub(super) async fn network_changed(&mut self, heard: bool) {
        self.network.list(&self.options).await;
        if let Some(dns) = &mut self.dns {
            dns.again(&self.model);
        }
        // A new interface first: what it carries until then passes untranslated, and the tables are there already.
        if self.attached {
            self.network.attach(&mut self.datapath);
        }
        let doubtful = heard || !self.network.is_resolved();
        let ways = if doubtful || self.network.have_ways_changed().await { Ask::All } else { Ask::New };
        self.program_by(&Touched::NOTHING, ways).await;
        if self.input.is_ready() && ways == Ask::New {
            self.network.forget_gone(&self.engine);
            self.network.route(&self.engine.desired).await;
        }
    }

    /// Makes the maps and routes what source and network ask for, where no more than `touched` is another one.
    pub(super) async fn program(&mut self, touched: &Touched) {
        self.program_by(touched, Ask::New).await;
    }

    /// The same by these ways to backends. Until the source is whole, what an earlier agent left follows the network alone.
    async fn program_by(&mut self, touched: &Touched, ways: Ask) {
        if !self.input.is_ready() {
            if self.attached {
                self.reroute().await;
                self.serve_shown();
            }
            return;
        }
        let begin = Instant::now();
        self.web.queued();
        self.heed_own_node();
        let node = self.node();
        let mut backends = self.engine.compute(&self.model, &node, touched);
        if ways == Ask::All && !backends.whole {
            backends = self.engine.backends();
        }
        let ways_changed = self.network.resolve(&backends).await;
        if ways_changed && backends.whole {
            self.engine.forget_next_hops();
        }
        match self.sync_verified() {
            Ok(writes) => {
                self.sync_error = None;
                self.serve_probes(&node.node_port_addrs);
                if self.verification.problem().is_some() {
                    self.tell_health();
                } else {
                    self.web.synced(begin, &self.model, touched, self.input.changes());
                }
                if writes > 0 {
                    tracing::debug!("{writes} map writes; {} frontends", self.frontends());
                    self.end_orphans();
                }
            }
            Err(error) => self.not_synced(&error),
        }
        if backends.whole || ways_changed {
            self.network.route(&self.engine.desired).await;
        }
    }

    /// Load balancers that are told nothing send nothing: until the objects are here they are told what was last known, at
    /// the addresses there are now.
    fn serve_shown(&mut self) {
        self.heed_own_node();
        if !self.engine.desired.health_checks.is_empty() {
            let node = self.node();
            self.serve_probes(&node.node_port_addrs);
        }
    }

    fn heed_own_node(&self) {
        let own = self.model.nodes.get(&self.options.node);
        self.web.health.set_eligible(own.is_none_or(|node| !node.going));
    }

    /// What load balancers are told follows the tables. A Service that has no room in them has no endpoints here.
    fn serve_probes(&mut self, at: &[IpAddr]) {
        let checks = with_room(&self.engine.desired.health_checks, &self.engine.refused);
        self.web.probes.set(&checks, at);
    }

    pub(super) fn node(&mut self) -> NodeContext {
        NodeContext {
            name: self.options.node.clone(),
            node_port_addrs: self.network.node_port_addresses(&self.options, self.model.nodes.get(&self.options.node)),
            local_addrs: self.network.local_addresses(),
            service_cidrs: self.service_cidrs(),
            detector: self.network.detector(&self.options.config.detect_local),
            masquerade_all: self.options.config.masquerade_all,
            external_ips: self.options.config.external_ips.clone(),
            bind_address: self.options.config.bind_address,
        }
    }

    /// What was given; else what the cluster says, which may be nothing.
    pub(super) fn service_cidrs(&self) -> Vec<IpNet> {
        match self.options.source.service_cidrs() {
            Some(given) => given.to_vec(),
            None => self.model.service_cidrs.values().flatten().copied().collect(),
        }
    }
}
