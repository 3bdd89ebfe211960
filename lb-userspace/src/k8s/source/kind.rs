//! What is watched, and how it becomes model values.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use k8s_openapi::{
    Resource,
    api::{
        core::v1::{
            ConfigMap as ConfigMapApi, Namespace as NamespaceApi, Node as NodeApi, Pod as PodApi, Service as ServiceApi,
        },
        discovery::v1::EndpointSlice as EndpointSliceApi,
        networking::v1::ServiceCIDR as ServiceCidrApi,
    },
};
use serde::de::DeserializeOwned;

use super::cluster::{Change, Delta};
use crate::{
    convert::{self, Issue, Origin},
    k8s::{EndpointSlice, LABEL_HEADLESS, LABEL_PROXY_NAME, Namespace, Node, ObjectMeta, Pod, Service, ServiceCidr},
    model::{self, ObjectName},
};

/// A kind of objects that is watched, or told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Service.
    Service,
    /// `EndpointSlice`.
    EndpointSlice,
    /// The own Node.
    Node,
    /// `ServiceCIDR`.
    ServiceCidr,
    /// Namespace.
    Namespace,
    /// Pod.
    Pod,
    /// `ConfigMap`: read one at a time, never watched.
    ConfigMap,
}

impl Kind {
    /// All that can be watched.
    pub(super) const ALL: [Self; 6] =
        [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr, Self::Namespace, Self::Pod];

    /// As the API's paths and RBAC rules write it.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Service => ServiceApi::URL_PATH_SEGMENT,
            Self::EndpointSlice => EndpointSliceApi::URL_PATH_SEGMENT,
            Self::Node => NodeApi::URL_PATH_SEGMENT,
            Self::ServiceCidr => ServiceCidrApi::URL_PATH_SEGMENT,
            Self::Namespace => NamespaceApi::URL_PATH_SEGMENT,
            Self::Pod => PodApi::URL_PATH_SEGMENT,
            Self::ConfigMap => ConfigMapApi::URL_PATH_SEGMENT,
        }
    }

    /// API group; empty for the core one.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Service => ServiceApi::GROUP,
            Self::EndpointSlice => EndpointSliceApi::GROUP,
            Self::Node => NodeApi::GROUP,
            Self::ServiceCidr => ServiceCidrApi::GROUP,
            Self::Namespace => NamespaceApi::GROUP,
            Self::Pod => PodApi::GROUP,
            Self::ConfigMap => ConfigMapApi::GROUP,
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Service => ServiceApi::VERSION,
            Self::EndpointSlice => EndpointSliceApi::VERSION,
            Self::Node => NodeApi::VERSION,
            Self::ServiceCidr => ServiceCidrApi::VERSION,
            Self::Namespace => NamespaceApi::VERSION,
            Self::Pod => PodApi::VERSION,
            Self::ConfigMap => ConfigMapApi::VERSION,
        }
    }

    /// Path of the collection, over all namespaces.
    pub(super) fn path(self) -> String {
        match self.group() {
            "" => format!("/api/{}/{}", self.version(), self.resource()),
            group => format!("/apis/{group}/{}/{}", self.version(), self.resource()),
        }
    }

    /// Path of its objects in a namespace; of the cluster-wide ones without.
    pub(super) fn path_in(self, namespace: &str) -> String {
        match self.group() {
            _ if namespace.is_empty() => self.path(),
            "" => format!("/api/{}/namespaces/{namespace}/{}", self.version(), self.resource()),
            group => format!("/apis/{group}/{}/namespaces/{namespace}/{}", self.version(), self.resource()),
        }
    }

    /// `apiVersion` of its objects.
    pub(super) fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// Whether its objects have a namespace.
    pub(crate) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::ServiceCidr | Self::Namespace)
    }

    /// Whether Services can be served without it: older clusters have no `ServiceCIDR`, older roles do not allow it.
    pub(super) const fn is_optional(self) -> bool {
        matches!(self, Self::ServiceCidr)
    }

    /// Whether a cluster always has some: Service `default/kubernetes` and its slice are made by the API server itself.
    /// An empty list of these is most likely that of a server that has not read its own store yet.
    pub(super) const fn is_never_empty(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => ServiceApi::KIND,
            Self::EndpointSlice => EndpointSliceApi::KIND,
            Self::Node => NodeApi::KIND,
            Self::ServiceCidr => ServiceCidrApi::KIND,
            Self::Namespace => NamespaceApi::KIND,
            Self::Pod => PodApi::KIND,
            Self::ConfigMap => ConfigMapApi::KIND,
        })
    }
}

/// Which objects of each kind are asked for: selectors as the API's query parameters take them, empty for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// Label selector of Services.
    pub services: String,
    /// Label selector of `EndpointSlice`s.
    pub slices: String,
    /// Field selector of Nodes.
    pub nodes: String,
    /// Field selector of Pods.
    pub pods: String,
}

impl Selectors {
    /// What kube-proxy asks for: neither what another proxy serves nor what is headless, and one Node.
    pub fn datapath(node: &str) -> Self {
        let ours = format!("!{LABEL_PROXY_NAME},!{LABEL_HEADLESS}");
        Self { services: ours.clone(), slices: ours, nodes: format!("metadata.name={node}"), ..Self::default() }
    }

    /// What a name service asks for: whatever has a name, whoever serves it, and the Pods that still have an address.
    pub fn names() -> Self {
        Self { pods: "status.phase!=Succeeded,status.phase!=Failed".to_owned(), ..Self::default() }
    }

    /// Query parameters of a kind.
    pub(super) fn of(&self, kind: Kind) -> Option<(&'static str, &str)> {
        let (parameter, selector) = match kind {
            Kind::Service => ("labelSelector", &*self.services),
            Kind::EndpointSlice => ("labelSelector", &*self.slices),
            Kind::Node => ("fieldSelector", &*self.nodes),
            Kind::Pod => ("fieldSelector", &*self.pods),
            Kind::ServiceCidr | Kind::Namespace | Kind::ConfigMap => return None,
        };
        (!selector.is_empty()).then_some((parameter, selector))
    }
}

/// An object as converted, with what of it was left out; or why it cannot be used at all.
type Converted<T> = Result<(T, Vec<Issue>), Issue>;

/// A wire type that is watched.
pub(super) trait Watched: DeserializeOwned + Send + 'static {
    type Value: Send + 'static;
    const KIND: Kind;

    fn meta(&self) -> &ObjectMeta;
    fn convert(&self) -> Converted<Self::Value>;
    fn change(delta: Delta<Self::Value>) -> Change;
}

impl Watched for Service {
    type Value = model::Service;
    const KIND: Kind = Kind::Service;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<model::Service> {
        convert::service(self, Origin::Server).map(|(draft, issues)| (draft.service, issues))
    }

    fn change(delta: Delta<model::Service>) -> Change {
        Change::Services(delta)
    }
}

impl Watched for EndpointSlice {
    type Value = Option<model::EndpointSlice>;
    const KIND: Kind = Kind::EndpointSlice;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<Option<model::EndpointSlice>> {
        convert::slice(self)
    }

    fn change(delta: Delta<Option<model::EndpointSlice>>) -> Change {
        Change::Slices(delta)
    }
}

impl Watched for Node {
    type Value = model::Node;
    const KIND: Kind = Kind::Node;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<model::Node> {
        convert::node(self).map(|node| (node, Vec::new()))
    }

    fn change(delta: Delta<model::Node>) -> Change {
        Change::Nodes(delta)
    }
}

impl Watched for ServiceCidr {
    type Value = Vec<IpNet>;
    const KIND: Kind = Kind::ServiceCidr;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<Vec<IpNet>> {
        convert::service_cidr(self).map(|cidrs| (cidrs, Vec::new()))
    }

    fn change(delta: Delta<Vec<IpNet>>) -> Change {
        Change::ServiceCidrs(delta)
    }
}

impl Watched for Namespace {
    type Value = BTreeMap<String, String>;
    const KIND: Kind = Kind::Namespace;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<Self::Value> {
        Ok((self.metadata.labels.clone(), Vec::new()))
    }

    fn change(delta: Delta<Self::Value>) -> Change {
        Change::Namespaces(delta)
    }
}

impl Watched for Pod {
    type Value = model::Pod;
    const KIND: Kind = Kind::Pod;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self) -> Converted<model::Pod> {
        convert::pod(self)
    }

    fn change(delta: Delta<model::Pod>) -> Change {
        Change::Pods(delta)
    }
}

/// Name of an object; the namespace of a cluster-wide one is empty.
pub(super) fn name(meta: &ObjectMeta) -> ObjectName {
    ObjectName { namespace: meta.namespace.clone(), name: meta.name.clone() }
}
