//! The cluster as Ballast understands it: validated, defaulted values, free of Kubernetes' wire shapes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::NonZeroU16,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod touched;

pub use self::touched::Touched;

/// How often objects changed, each counted by itself, as kube-proxy counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// `EndpointSlice`s.
    pub slices: u64,
}

impl Changes {
    /// What makes `new` of `old`.
    pub fn between(old: &Model, new: &Model) -> Self {
        Self { services: differing(&old.services, &new.services), slices: differing(&old.slices, &new.slices) }
    }
}

/// Entries that only one of two maps has, or that differ.
fn differing<K: Ord, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> u64 {
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).count();
    let gone = old.keys().filter(|key| !new.contains_key(*key)).count();
    (changed + gone) as u64
}

/// Everything the source knows. The value is complete: what is not in it does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Services, with defaults filled and addresses allocated.
    pub services: BTreeMap<ObjectName, Service>,
    /// Endpoint slices, written by hand, mirrored from Endpoints, or made from Pods.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Pods, for tools that show or start them; the datapath only reads slices.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Namespaces that have a document or any object.
    pub namespaces: BTreeSet<String>,
    /// Labels of the namespaces that have some.
    pub namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Ranges of the cluster's `ServiceCIDR` objects, by name.
    pub service_cidrs: BTreeMap<String, Vec<IpNet>>,
}

impl Model {
    /// The slices of a Service.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = (&ObjectName, &EndpointSlice)> {
        let begin = ObjectName { namespace: service.namespace.clone(), name: String::new() };
        let of_namespace = self.slices.range(begin..).take_while(|(name, _)| name.namespace == service.namespace);
        of_namespace.filter(|(_, slice)| slice.service == service.name)
    }
}

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// IP family. Serialised as Kubernetes writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// `IPv4`
    #[serde(rename = "IPv4")]
    V4,
    /// `IPv6`
    #[serde(rename = "IPv6")]
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub const fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Type of a Service. ExternalName Services have no datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reached by its cluster IPs only.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// And by a port of every node.
    NodePort,
    /// And by load balancer addresses.
    LoadBalancer,
    /// A DNS alias.
    ExternalName,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        })
    }
}

/// Traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint.
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Type.
    pub service_type: ServiceType,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Cluster IPs in the order of `ip_families`; empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// Families.
    pub ip_families: Vec<IpFamily>,
    /// Ports in spec order.
    pub ports: Vec<ServicePort>,
    /// Selector; empty when there is none.
    pub selector: BTreeMap<String, String>,
    /// externalTrafficPolicy.
    pub external_policy: TrafficPolicy,
    /// internalTrafficPolicy.
    pub internal_policy: TrafficPolicy,
    /// Ingress addresses with ipMode VIP (semantics.md 2.1.3).
    pub load_balancer_ips: Vec<IpAddr>,
    /// externalIPs (not programmed until they can be allowed by configuration).
    pub external_ips: Vec<IpAddr>,
    /// loadBalancerSourceRanges.
    pub source_ranges: Vec<IpNet>,
    /// sessionAffinity `ClientIP`: its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// externalName.
    pub external_name: Option<String>,
    /// publishNotReadyAddresses.
    pub publish_not_ready: bool,
    /// healthCheckNodePort: see [`Self::health_check_port`].
    #[serde(default)]
    pub health_check_node_port: Option<NonZeroU16>,
    /// Labels and annotations, for `describe`.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The service-proxy-name label is set: not ours (semantics.md 2.1.2).
    pub foreign_proxy: bool,
    /// What it says about its load balancer addresses; none if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<Box<Balancer>>,
}

/// What of a Service only those read who give load balancer addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    /// loadBalancerClass.
    pub class: Option<String>,
    /// loadBalancerIP, as it is written.
    pub ip: Option<String>,
    /// ipFamilyPolicy `RequireDualStack`.
    pub both_families: bool,
    /// Ingress entries that are no address of ours to give: host names, and addresses with ipMode Proxy.
    pub other_ingress: bool,
    /// Our condition in status.conditions.
    pub condition: Option<BalancerCondition>,
}

/// What we said last about a Service's addresses, in its status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerCondition {
    /// `True`: the ingress is ours.
    pub is_true: bool,
    /// reason.
    pub reason: String,
    /// message.
    pub message: String,
}

impl Service {
    /// Whether load balancers probe each node for it (semantics.md 2.6.1).
    pub fn is_probed(&self) -> bool {
        self.service_type == ServiceType::LoadBalancer && self.external_policy == TrafficPolicy::Local
    }

    /// Where they do.
    pub fn health_check_port(&self) -> Option<NonZeroU16> {
        self.health_check_node_port.filter(|_| self.is_probed())
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; empty for an unnamed port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: NonZeroU16,
    /// targetPort.
    pub target: TargetPort,
    /// nodePort, for NodePort and LoadBalancer Services.
    pub node_port: Option<NonZeroU16>,
}

/// targetPort of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPort {
    /// A number.
    Number(NonZeroU16),
    /// The name of a container port.
    Name(String),
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Name of the Service in the same namespace (label `kubernetes.io/service-name`).
    pub service: String,
    /// addressType; FQDN slices never enter the model.
    pub family: IpFamily,
    /// Ports; ones without a number never enter the model.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When what led to its last change happened, as the endpoint controller tells it; microseconds since 1970.
    pub triggered: Option<i64>,
    /// It says that the endpoint slice controller made it, of the Pods that a Service selects.
    #[serde(default)]
    pub of_controller: bool,
}

impl EndpointSlice {
    /// The Service of the slice of this name.
    pub fn of(&self, name: &ObjectName) -> ObjectName {
        ObjectName { namespace: name.namespace.clone(), name: self.service.clone() }
    }
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Joins with the Service port of the same name and protocol.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port the pods listen on.
    pub port: NonZeroU16,
}

/// An endpoint: the first address of the API's endpoint, conditions resolved (semantics.md 2.1.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the API's three independent conditions")]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Ready.
    pub ready: bool,
    /// Serving.
    pub serving: bool,
    /// Terminating.
    pub terminating: bool,
    /// nodeName.
    pub node: Option<String>,
    /// Name of the Pod behind it.
    pub pod: Option<String>,
    /// hostname.
    pub hostname: Option<String>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// `InternalIP` addresses of status.addresses.
    pub internal_ips: Vec<IpAddr>,
    /// It is being deleted, or the autoscaler says it will be: no balancer should send here (semantics.md 2.6.5).
    pub going: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the API's independent conditions")]
pub struct Pod {
    /// spec.nodeName.
    pub node: Option<String>,
    /// status.podIPs.
    pub ips: Vec<IpAddr>,
    /// spec.hostNetwork.
    pub host_network: bool,
    /// Container ports: name (may be empty), protocol, number.
    pub ports: Vec<(String, Protocol, NonZeroU16)>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Condition Ready is True.
    pub ready: bool,
    /// deletionTimestamp is set.
    pub terminating: bool,
    /// phase Succeeded or Failed.
    pub finished: bool,
    /// spec.hostname.
    pub hostname: Option<String>,
    /// spec.subdomain.
    pub subdomain: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_that_came_went_or_changed_is_a_change() {
        let name = |name: &str| ObjectName { namespace: "default".to_owned(), name: name.to_owned() };
        let slice = |service: &str| EndpointSlice {
            service: service.to_owned(),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered: None,
            of_controller: false,
        };
        let model = |slices: &[(&str, &str)]| Model {
            slices: slices.iter().map(|(of, service)| (name(of), slice(service))).collect(),
            ..Model::default()
        };
        let (old, new) = (
            model(&[("stays", "a"), ("changes", "a"), ("goes", "a")]),
            model(&[("stays", "a"), ("changes", "b"), ("comes", "a")]),
        );
        assert_eq!(Changes::between(&old, &new), Changes { services: 0, slices: 3 });
        assert_eq!(Changes::between(&new, &new), Changes::default());
    }
}
