//! Kubernetes' wire types, cut down to the fields Ballast reads, and the API server that sends them (`source`).
//!
//! Everything else of a document (`status`, `managedFields`, fields of newer API versions) is ignored. The types are as
//! lenient as the API's own decoder: a missing list is an empty one, and so is `null`. What the values may be is decided in
//! `convert`, so that a refusal can name its field.

mod endpoints;
mod network;
mod node;
mod null;
mod pod;
mod service;
pub mod source;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use self::{
    endpoints::{
        AddressRef, Conditions, EndpointAddress, EndpointPort, EndpointSlice, EndpointSubset, Endpoints, SliceEndpoint,
        SlicePort,
    },
    network::{ServiceCidr, ServiceCidrSpec},
    node::{Namespace, Node, NodeAddress, NodeSpec, NodeStatus, Taint},
    pod::{Condition, Container, ContainerPort, Pod, PodIp, PodSpec, PodStatus},
    service::{
        ClientIpConfig, IntOrString, LoadBalancerIngress, LoadBalancerStatus, Service, ServiceCondition, ServicePort,
        ServiceSpec, ServiceStatus, SessionAffinityConfig,
    },
};

/// Label that names the Service of an `EndpointSlice`.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who writes an `EndpointSlice`.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value for whoever makes slices of the Pods that Services select.
pub const ENDPOINT_SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// Label that gives a Service to another proxy (semantics.md 2.1.2).
pub const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label that keeps an Endpoints object from being mirrored.
pub const LABEL_SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Label that a slice of a headless Service has.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Taint of a Node that the autoscaler is about to remove (semantics.md 2.6.5).
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Condition in status.conditions of a Service: whether it has its load balancer addresses, which are then ours, or why
/// not.
pub const CONDITION_ADDRESSES: &str = "ballast.dev/LoadBalancerAddresses";
/// Annotation of an `EndpointSlice`: when what led to its last change happened.
pub const ANNOTATION_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation of Endpoints that are a leader lock, never mirrored.
pub const ANNOTATION_LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Name.
    #[serde(deserialize_with = "null::is_left_out")]
    pub name: String,
    /// Namespace; empty when left out.
    #[serde(deserialize_with = "null::is_left_out")]
    pub namespace: String,
    /// Labels.
    #[serde(deserialize_with = "null::is_left_out")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null::is_left_out")]
    pub annotations: BTreeMap<String, String>,
    /// Version of the object; empty in a document.
    #[serde(deserialize_with = "null::is_left_out")]
    pub resource_version: String,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_not_used_are_ignored() {
        let json = r#"{"metadata":{"name":"a","managedFields":[{"x":1}],"uid":"1"},"spec":{"ports":[{"port":80,"targetPort":"http"}]},
            "status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4","ipMode":"VIP"}]},"conditions":[]}}"#;
        let service: Service = serde_json::from_str(json).unwrap();
        assert_eq!(service.metadata.name, "a");
        assert_eq!(service.spec.ports[0].target_port, Some(IntOrString::String("http".into())));
        assert_eq!(service.status.load_balancer.ingress[0].ip.as_deref(), Some("1.2.3.4"));
    }

    #[test]
    fn null_is_left_out() {
        let json = r#"{"metadata":{"name":"a","labels":null},"addressType":"IPv4","ports":null,"endpoints":[{"addresses":null,"conditions":null}]}"#;
        let slice: EndpointSlice = serde_json::from_str(json).unwrap();
        assert_eq!((slice.ports.len(), slice.endpoints.len()), (0, 1));
        let json = r#"{"metadata":{"name":"a"},"spec":{"ports":null,"selector":null,"type":null},"status":null}"#;
        let service: Service = serde_json::from_str(json).unwrap();
        assert!(service.spec.ports.is_empty());
    }
}
