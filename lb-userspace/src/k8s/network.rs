//! networking.k8s.io/v1 `ServiceCIDR`.

use serde::Deserialize;

use super::{ObjectMeta, null};

/// `ServiceCIDR`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// metadata.
    #[serde(deserialize_with = "null::is_left_out")]
    pub metadata: ObjectMeta,
    /// spec.
    #[serde(deserialize_with = "null::is_left_out")]
    pub spec: ServiceCidrSpec,
}

/// spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// cidrs: at most one of each family.
    #[serde(deserialize_with = "null::is_left_out")]
    pub cidrs: Vec<String>,
}
