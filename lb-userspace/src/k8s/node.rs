//! core/v1 Node and Namespace.

use serde::Deserialize;

use super::{ObjectMeta, null};

/// Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// spec.
    #[serde(deserialize_with = "null::is_left_out")]
    pub spec: NodeSpec,
    /// status.
    #[serde(deserialize_with = "null::is_left_out")]
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
    #[serde(rename = "podCIDRs", deserialize_with = "null::is_left_out")]
    pub pod_cidrs: Vec<String>,
    /// taints.
    #[serde(deserialize_with = "null::is_left_out")]
    pub taints: Vec<Taint>,
}

/// spec.taints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// key.
    #[serde(deserialize_with = "null::is_left_out")]
    pub key: String,
}

/// Node status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// addresses.
    #[serde(deserialize_with = "null::is_left_out")]
    pub addresses: Vec<NodeAddress>,
}

/// status.addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// type.
    #[serde(rename = "type", deserialize_with = "null::is_left_out")]
    pub address_type: String,
    /// address.
    #[serde(deserialize_with = "null::is_left_out")]
    pub address: String,
}

/// Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
}
