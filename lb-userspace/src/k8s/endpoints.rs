//! discovery.k8s.io/v1 `EndpointSlice` and core/v1 Endpoints.

use serde::Deserialize;

use super::ObjectMeta;

/// `EndpointSlice`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// metadata.
    pub metadata: ObjectMeta,
    /// addressType.
    pub address_type: Option<String>,
    /// ports.
    pub ports: Vec<SlicePort>,
    /// endpoints.
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
    pub addresses: Vec<String>,
    /// conditions.
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
    pub kind: String,
    /// name.
    pub name: String,
}

/// Endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// metadata.
    pub metadata: ObjectMeta,
    /// subsets.
    pub subsets: Vec<EndpointSubset>,
}

/// A subset: every address listens on every port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSubset {
    /// addresses.
    pub addresses: Vec<EndpointAddress>,
    /// notReadyAddresses.
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// ports.
    pub ports: Vec<EndpointPort>,
}

/// An address of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointAddress {
    /// ip.
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
    pub name: String,
    /// protocol.
    pub protocol: Option<String>,
    /// port.
    pub port: Option<i64>,
}
