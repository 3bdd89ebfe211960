//! discovery.k8s.io/v1 `EndpointSlice` and core/v1 Endpoints.

use serde::Deserialize;

use super::{ObjectMeta, null};

/// `EndpointSlice`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// addressType.
    pub address_type: Option<String>,
    /// ports.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ports: Vec<SlicePort>,
    /// endpoints.
    #[serde(deserialize_with = "null::is_left_out")]
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of a slice; every field may be left out (semantics.md 2.1.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// name.
    pub name: Option<String>,
    /// protocol.
    pub protocol: Option<String>,
    /// port.
    pub port: Option<i64>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// addresses; only the first is used.
    #[serde(deserialize_with = "null::is_left_out")]
    pub addresses: Vec<String>,
    /// conditions.
    #[serde(deserialize_with = "null::is_left_out")]
    pub conditions: Conditions,
    /// hostname.
    pub hostname: Option<String>,
    /// nodeName.
    pub node_name: Option<String>,
    /// targetRef.
    pub target_ref: Option<AddressRef>,
}

/// Conditions of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// ready.
    pub ready: Option<bool>,
    /// serving.
    pub serving: Option<bool>,
    /// terminating.
    pub terminating: Option<bool>,
}

/// targetRef.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AddressRef {
    /// kind.
    #[serde(deserialize_with = "null::is_left_out")]
    pub kind: String,
    /// name.
    #[serde(deserialize_with = "null::is_left_out")]
    pub name: String,
}

/// Endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// subsets.
    #[serde(deserialize_with = "null::is_left_out")]
    pub subsets: Vec<EndpointSubset>,
}

/// A subset: every address listens on every port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSubset {
    /// addresses.
    #[serde(deserialize_with = "null::is_left_out")]
    pub addresses: Vec<EndpointAddress>,
    /// notReadyAddresses.
    #[serde(deserialize_with = "null::is_left_out")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// ports.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ports: Vec<EndpointPort>,
}

/// An address of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointAddress {
    /// ip.
    #[serde(deserialize_with = "null::is_left_out")]
    pub ip: String,
    /// hostname.
    pub hostname: Option<String>,
    /// nodeName.
    pub node_name: Option<String>,
    /// targetRef.
    pub target_ref: Option<AddressRef>,
}

/// A port of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// name.
    #[serde(deserialize_with = "null::is_left_out")]
    pub name: String,
    /// protocol.
    pub protocol: Option<String>,
    /// port.
    pub port: Option<i64>,
}
