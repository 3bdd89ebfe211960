//! What the datapath should hold, in datapath words: the change from "endpoint" to "backend" happens here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use lb_common::{
    frontend::{ClientRule, FrontendFlags, Scope},
    ring::WhenEmpty,
};
use serde::{Deserialize, Serialize};

use crate::{
    model::{IpFamily, ObjectName, Protocol},
    report::Problem,
};

mod compute;
pub mod foreign;
mod rules;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use self::compute::{Endpoints, desired, endpoints};
pub(crate) use self::rules::Rules;

/// One service port of one family: what gets a `ServiceId`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The Service.
    pub service: ObjectName,
    /// Name of the port.
    pub port_name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Family.
    pub family: IpFamily,
}

/// Where a backend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendAddr {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: NonZeroU16,
}

impl BackendAddr {
    /// The first one in their order.
    pub(crate) const FIRST: Self = Self { addr: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port: NonZeroU16::MIN };
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr, self.port.get()).fmt(f)
    }
}

/// What a frontend is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// A port of a node address.
    NodePort,
    /// A load balancer address.
    LoadBalancer,
    /// An external IP.
    ExternalIp,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
        })
    }
}

/// A frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DesiredFrontend {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: NonZeroU16,
    /// Kind.
    pub kind: FrontendKind,
    /// Rule for pods.
    pub pod: ClientRule,
    /// Rule for processes of this node.
    pub host: ClientRule,
    /// Rule for everyone else.
    pub outside: ClientRule,
    /// Flags.
    pub flags: FrontendFlags,
}

/// A service port with its backends and frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// Every endpoint that flows may keep using: ready, or serving while terminating (semantics.md 2.8.1).
    pub backends: BTreeSet<BackendAddr>,
    /// The Cluster set, a subset of `backends`.
    pub cluster: BTreeSet<BackendAddr>,
    /// What an empty Cluster set means.
    pub cluster_empty: WhenEmpty,
    /// The Local set, a subset of `backends`.
    pub local: BTreeSet<BackendAddr>,
    /// What an empty Local set means.
    pub local_empty: WhenEmpty,
    /// Frontends.
    pub frontends: Vec<DesiredFrontend>,
    /// Whose connections the frontends with [`FrontendFlags::SOURCE_RANGES`] take (semantics.md 2.7).
    pub sources: BTreeSet<IpNet>,
    /// Seconds that clients are remembered (semantics.md 2.5).
    pub affinity: Option<u32>,
}

impl DesiredService {
    /// Whether any frontend sends any client to the set of `scope`. A set that nobody uses has no ring.
    pub fn uses(&self, scope: Scope) -> bool {
        let rules = |frontend: &DesiredFrontend| [frontend.pod, frontend.host, frontend.outside];
        self.frontends.iter().flat_map(rules).any(|rule| rule.scope() == scope)
    }
}

/// What probes of load balancers are told of a Service on this node (semantics.md 2.6.1, 2.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// healthCheckNodePort.
    pub port: NonZeroU16,
    /// Addresses of this node's ready endpoints, whatever their ports; of the family that has more of them.
    pub local: usize,
}

/// Everything the datapath should hold.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Service ports.
    pub services: BTreeMap<ServiceKey, DesiredService>,
    /// Addresses we own: a port of them without a frontend is rejected (semantics.md 2.3.6).
    pub vips: BTreeSet<IpAddr>,
    /// Service CIDRs (semantics.md 2.3.7).
    pub service_cidrs: Vec<IpNet>,
    /// Pod CIDRs of this node, from which nobody else sends.
    pub local_pod_cidrs: Vec<IpNet>,
    /// Who sends from there is a pod (the detector); empty: no detector.
    pub detected: Vec<IpNet>,
    /// Of Services whose load balancers probe each node.
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// Services left out or cut, with the reason.
    pub problems: Vec<Problem>,
    /// What may not be as meant in a Service, though it is programmed as asked.
    pub warnings: Vec<Problem>,
}

impl Desired {
    /// The ports of a Service.
    pub fn of_service(&self, name: &ObjectName) -> impl Iterator<Item = (&ServiceKey, &DesiredService)> {
        let first = ServiceKey {
            service: name.clone(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
            family: IpFamily::V4,
        };
        self.services.range(first..).take_while(|(key, _)| key.service == *name)
    }
}

/// Which externalIPs are served. Whoever may write a Service can write them, and takes the address's traffic on every node
/// (CVE-2020-8554): off unless configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// None.
    #[default]
    Off,
    /// Those in these ranges.
    Within(Vec<IpNet>),
    /// All.
    All,
}

impl ExternalIps {
    fn allow(&self, addr: IpAddr) -> bool {
        match self {
            Self::Off => false,
            Self::Within(nets) => nets.iter().any(|net| net.contains(&addr)),
            Self::All => true,
        }
    }
}

/// Which sources are pods, as far as that is not in the model (semantics.md 2.3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// Those in the own Node's podCIDRs.
    NodeCidr,
    /// These; none: nobody is known to be a pod.
    Ranges(Vec<IpNet>),
}

impl Default for Detector {
    fn default() -> Self {
        Self::Ranges(Vec::new())
    }
}

/// What `desired` must know of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// Our node name.
    pub name: String,
    /// Addresses nodePorts are served on (semantics.md 2.9).
    pub node_port_addrs: Vec<IpAddr>,
    /// All addresses of this node: never taken as VIPs.
    pub local_addrs: BTreeSet<IpAddr>,
    /// Service CIDRs.
    pub service_cidrs: Vec<IpNet>,
    /// The detector.
    pub detector: Detector,
    /// Cluster IPs rewrite the source of pods too.
    pub masquerade_all: bool,
    /// Which externalIPs are served.
    pub external_ips: ExternalIps,
    /// The node's own address of its family, whatever the own Node says.
    pub bind_address: Option<IpAddr>,
}
