//! How a world is asked for.

use anyhow::Context;

use crate::{Network, World, leftovers};

/// How a world is built.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) nodes: u8,
    pub(crate) names: Vec<String>,
    pub(crate) pods: u8,
    pub(crate) uplinks: u8,
    pub(crate) rp_filter: u8,
    pub(crate) drop_invalid: bool,
    pub(crate) network: Network,
    pub(crate) segment: bool,
    pub(crate) bridge_netfilter: bool,
}

/// Builds a [`World`].
#[derive(Clone, Debug)]
pub struct WorldBuilder {
    options: Options,
}

impl WorldBuilder {
    /// Number of nodes, at most 9; 2 by default.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.options.nodes = nodes.min(9);
        self
    }

    /// What the nodes are called instead of `node1`, `node2`, ...
    #[must_use]
    pub fn names(mut self, names: &[String]) -> Self {
        names.clone_into(&mut self.options.names);
        self
    }

    /// Pods on each node, called `pod-NODE-INDEX`, at most 200; 2 by default.
    #[must_use]
    pub fn pods(mut self, pods: u8) -> Self {
        self.options.pods = pods.min(200);
        self
    }

    /// Uplink devices (`eth0`, `eth1`, ...) of each node, at most 9; 1 by default.
    #[must_use]
    pub fn uplinks(mut self, uplinks: u8) -> Self {
        self.options.uplinks = uplinks.clamp(1, 9);
        self
    }

    /// Reverse path filtering of the nodes; 1 (strict) by default.
    #[must_use]
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.options.rp_filter = mode;
        self
    }

    /// Whether nodes drop what netfilter calls INVALID in FORWARD; true by default. See [`Node::invalid_packets`].
    #[must_use]
    pub fn drop_invalid(mut self, on: bool) -> Self {
        self.options.drop_invalid = on;
        self
    }

    /// The network of the pods; routed by default.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.options.network = network;
        self
    }

    /// Whether the first uplinks of all nodes and the router are on one bridged segment, where nodes reach each other
    /// without the router; false by default: a wire each.
    #[must_use]
    pub fn segment(mut self, on: bool) -> Self {
        self.options.segment = on;
        self
    }

    /// Whether netfilter sees what a node's bridge forwards (`net.bridge.bridge-nf-call-iptables` and its IPv6 twin); true
    /// by default, as the kernel has it once `br_netfilter` is there.
    #[must_use]
    pub fn bridge_netfilter(mut self, on: bool) -> Self {
        self.options.bridge_netfilter = on;
        self
    }

    /// Builds it; whatever exists already is removed again on failure.
    pub fn build(self) -> anyhow::Result<World> {
        leftovers::sweep();
        World::build(self.options).context("cannot build the test world (it needs root)")
    }
}

impl Default for WorldBuilder {
    fn default() -> Self {
        let options = Options {
            nodes: 2,
            names: Vec::new(),
            pods: 2,
            uplinks: 1,
            rp_filter: 1,
            drop_invalid: true,
            network: Network::Routed,
            segment: false,
            bridge_netfilter: true,
        };
        Self { options }
    }
}
