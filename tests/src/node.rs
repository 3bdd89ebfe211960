//! Nodes and pods of a world.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::{Place, cgroup::Cgroup, wiring};

/// A node: the host namespace of its own cgroup, BPF file system and state directory. Derefs to its [`Place`].
#[derive(Debug)]
pub struct Node {
    pub(crate) number: u8,
    pub(crate) place: Place,
    pub(crate) pods: Vec<Pod>,
    pub(crate) directory: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) uplinks: u8,
}

impl Node {
    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Pod `index`, counted from 0.
    ///
    /// # Panics
    /// If there is no such pod.
    pub fn pod(&self, index: usize) -> &Pod {
        assert!(index < self.pods.len(), "{} has {} pods, not {index}", self.name(), self.pods.len());
        &self.pods[index]
    }

    /// Its addresses on all uplinks.
    pub fn addresses(&self) -> Vec<IpAddr> {
        (0..self.uplinks)
            .flat_map(|uplink| {
                let (ipv4, ipv6) = wiring::node_ips(self.number, uplink);
                [IpAddr::from(ipv4), IpAddr::from(ipv6)]
            })
            .collect()
    }

    /// Its podCIDRs, IPv4 first.
    pub fn pod_cidrs(&self) -> [String; 2] {
        wiring::pod_cidrs(self.number)
    }

    /// Its uplink devices.
    pub fn uplinks(&self) -> Vec<String> {
        (0..self.uplinks).map(|uplink| format!("eth{uplink}")).collect()
    }

    /// The router's end of its first uplink.
    pub fn router_interface(&self) -> String {
        wiring::router_interface(self.number, 0)
    }

    /// Its cgroup: all processes of the node and of its pods are in it.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Its BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// The state directory of its agent.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Packets that netfilter found INVALID in FORWARD; see [`WorldBuilder::drop_invalid`].
    pub fn invalid_packets(&self) -> anyhow::Result<u64> {
        let json = self.namespace().nft_json(&["list", "counter", "inet", "world", "invalid"])?;
        json.get("nftables")
            .and_then(|items| items.as_array())
            .and_then(|items| items.iter().find_map(|item| item.get("counter")?.get("packets")?.as_u64()))
            .with_context(|| format!("{}: no counter in nft's answer {json}", self.name()))
    }
}

impl std::ops::Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// A pod: a namespace behind a routed veth, in its node's cgroup. Derefs to its [`Place`].
#[derive(Debug)]
pub struct Pod {
    pub(crate) place: Place,
    pub(crate) node: String,
    pub(crate) interface: String,
}

impl Pod {
    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The node's end of its veth; its own is `eth0`.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl std::ops::Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
