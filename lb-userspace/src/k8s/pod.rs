//! core/v1 Pod.

use serde::Deserialize;

use super::{ObjectMeta, null};

/// Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Pod {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// spec.
    #[serde(deserialize_with = "null::is_left_out")]
    pub spec: PodSpec,
    /// status; none in a document written by hand.
    pub status: Option<PodStatus>,
}

/// Pod spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// nodeName.
    pub node_name: Option<String>,
    /// hostNetwork.
    #[serde(deserialize_with = "null::is_left_out")]
    pub host_network: bool,
    /// hostname.
    pub hostname: Option<String>,
    /// subdomain.
    pub subdomain: Option<String>,
    /// containers.
    #[serde(deserialize_with = "null::is_left_out")]
    pub containers: Vec<Container>,
    /// initContainers; those with restartPolicy Always are sidecars, whose ports count.
    #[serde(deserialize_with = "null::is_left_out")]
    pub init_containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// ports.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ports: Vec<ContainerPort>,
    /// restartPolicy.
    pub restart_policy: Option<String>,
}

/// A container port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// name.
    #[serde(deserialize_with = "null::is_left_out")]
    pub name: String,
    /// protocol.
    pub protocol: Option<String>,
    /// containerPort.
    pub container_port: Option<i64>,
}

/// Pod status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// phase.
    pub phase: Option<String>,
    /// podIP.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// podIPs.
    #[serde(rename = "podIPs", deserialize_with = "null::is_left_out")]
    pub pod_ips: Vec<PodIp>,
    /// conditions; none at all in a status written by hand.
    pub conditions: Option<Vec<Condition>>,
}

/// status.podIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// ip.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ip: String,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// type.
    #[serde(rename = "type", deserialize_with = "null::is_left_out")]
    pub condition_type: String,
    /// status.
    #[serde(deserialize_with = "null::is_left_out")]
    pub status: String,
}
