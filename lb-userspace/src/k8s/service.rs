//! core/v1 Service.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use super::{ObjectMeta, null};

/// Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// spec.
    #[serde(deserialize_with = "null::is_left_out")]
    pub spec: ServiceSpec,
    /// status.
    #[serde(deserialize_with = "null::is_left_out")]
    pub status: ServiceStatus,
}

/// Service spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// type.
    #[serde(rename = "type")]
    pub service_type: Option<String>,
    /// selector.
    #[serde(deserialize_with = "null::is_left_out")]
    pub selector: BTreeMap<String, String>,
    /// clusterIP.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// clusterIPs.
    #[serde(rename = "clusterIPs", deserialize_with = "null::is_left_out")]
    pub cluster_ips: Vec<String>,
    /// ipFamilies.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ip_families: Vec<String>,
    /// ipFamilyPolicy.
    pub ip_family_policy: Option<String>,
    /// ports.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ports: Vec<ServicePort>,
    /// externalName.
    pub external_name: Option<String>,
    /// externalIPs.
    #[serde(rename = "externalIPs", deserialize_with = "null::is_left_out")]
    pub external_ips: Vec<String>,
    /// externalTrafficPolicy.
    pub external_traffic_policy: Option<String>,
    /// internalTrafficPolicy.
    pub internal_traffic_policy: Option<String>,
    /// healthCheckNodePort.
    pub health_check_node_port: Option<i64>,
    /// loadBalancerSourceRanges.
    #[serde(deserialize_with = "null::is_left_out")]
    pub load_balancer_source_ranges: Vec<String>,
    /// loadBalancerClass.
    pub load_balancer_class: Option<String>,
    /// loadBalancerIP.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
    /// allocateLoadBalancerNodePorts.
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// sessionAffinity.
    pub session_affinity: Option<String>,
    /// sessionAffinityConfig.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// publishNotReadyAddresses.
    #[serde(deserialize_with = "null::is_left_out")]
    pub publish_not_ready_addresses: bool,
}

/// sessionAffinityConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// clientIP.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// sessionAffinityConfig.clientIP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// timeoutSeconds.
    pub timeout_seconds: Option<i64>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// name.
    #[serde(deserialize_with = "null::is_left_out")]
    pub name: String,
    /// protocol.
    pub protocol: Option<String>,
    /// port.
    pub port: Option<i64>,
    /// targetPort.
    pub target_port: Option<IntOrString>,
    /// nodePort.
    pub node_port: Option<i64>,
}

/// A number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a number or a name")]
pub enum IntOrString {
    /// Number.
    Int(i64),
    /// Name.
    String(String),
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::String(name) => name.fmt(f),
        }
    }
}

/// Service status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// loadBalancer.
    #[serde(deserialize_with = "null::is_left_out")]
    pub load_balancer: LoadBalancerStatus,
    /// conditions.
    #[serde(deserialize_with = "null::is_left_out")]
    pub conditions: Vec<ServiceCondition>,
}

/// status.conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceCondition {
    /// type.
    #[serde(rename = "type", deserialize_with = "null::is_left_out")]
    pub condition_type: String,
    /// status.
    #[serde(deserialize_with = "null::is_left_out")]
    pub status: String,
    /// reason.
    #[serde(deserialize_with = "null::is_left_out")]
    pub reason: String,
    /// message.
    #[serde(deserialize_with = "null::is_left_out")]
    pub message: String,
}

/// status.loadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerStatus {
    /// ingress.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// status.loadBalancer.ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// ip.
    pub ip: Option<String>,
    /// ipMode: `VIP` or `Proxy`.
    pub ip_mode: Option<String>,
}
