//! core/v1 Node and Namespace.

use serde::Deserialize;

use super::ObjectMeta;

/// Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    /// metadata.
    pub metadata: ObjectMeta,
    /// spec.
    pub spec: NodeSpec,
    /// status.
    pub status: NodeStatus,
}

/// Node spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    /// podCIDR.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// podCIDRs.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// Node status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// addresses.
    pub addresses: Vec<NodeAddress>,
}

/// status.addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// type.
    #[serde(rename = "type")]
    pub address_type: String,
    /// address.
    pub address: String,
}

/// Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// metadata.
    pub metadata: ObjectMeta,
}
