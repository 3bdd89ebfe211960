//! Objects of a control plane: what a user does with kubectl, and what the kubelets of a world would do.

use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ControlPlane;
use crate::{
    Pod, World,
    kube::{PodSpec, Service, node_document},
    wait_until,
};

/// How long controllers may take.
const LIMIT: Duration = Duration::from_secs(30);

impl ControlPlane {
    /// Server-side apply of the documents of a YAML text, as `kubectl apply --server-side` does; a `status` in them is
    /// patched too. What the server has then, in their order.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<Vec<Value>> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("not YAML")?;
        documents
            .into_iter()
            .filter(|document| !document.is_null())
            .map(|document| self.apply_document(document))
            .collect()
    }

    /// The same for one document.
    pub fn apply_document(&self, document: Value) -> anyhow::Result<Value> {
        self.api.apply(document)
    }

    /// Creates an object, as `kubectl create` does; the server's answer.
    pub fn create(&self, document: Value) -> anyhow::Result<Value> {
        self.api.create(document)
    }

    /// An object by its resource's plural name, for example `get("services", "default", "web")`; the namespace of what
    /// has none is not looked at. None where there is no such object.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        self.api.get(plural, namespace, name)
    }

    /// The objects that a label selector matches; an empty one matches all.
    pub fn list(&self, plural: &str, namespace: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        self.api.list(plural, namespace, selector)
    }

    /// A merge patch.
    pub fn patch(&self, plural: &str, namespace: &str, name: &str, patch: Value) -> anyhow::Result<Value> {
        self.api.patch((plural, namespace, name), patch, false)
    }

    /// A merge patch of the status subresource: `status` is what is below that key.
    pub fn patch_status(&self, plural: &str, namespace: &str, name: &str, status: &Value) -> anyhow::Result<Value> {
        self.api.patch((plural, namespace, name), json!({"status": status}), true)
    }

    /// Deletes an object. A Pod stays, terminating, until it is [removed](Self::remove).
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.api.delete((plural, namespace, name), None)
    }

    /// Deletes an object at once, as a kubelet does with a Pod whose containers have ended.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.api.delete((plural, namespace, name), Some(0))
    }

    /// Waits until an object is as `condition` wants it, which else says what is wrong.
    pub fn wait_for<T>(
        &self,
        (plural, namespace, name): (&str, &str, &str),
        mut condition: impl FnMut(&Value) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        wait_until(&format!("{plural}/{name}"), LIMIT, || match self.get(plural, namespace, name) {
            Ok(Some(object)) => condition(&object),
            Ok(None) => Err("not there".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        })
    }

    /// Waits until the endpoints of a Service in namespace `default` are as `condition` wants them. They are those of
    /// all its EndpointSlices, in the order of their addresses.
    pub fn wait_endpoints<T>(
        &self,
        service: &str,
        mut condition: impl FnMut(&[Endpoint]) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        wait_until(&format!("endpoints of {service}"), LIMIT, || {
            let endpoints = self.endpoints(service).map_err(|error| format!("{error:#}"))?;
            condition(&endpoints)
        })
    }

    /// The endpoints of a Service in namespace `default`, of all its EndpointSlices, in the order of their addresses.
    pub fn endpoints(&self, service: &str) -> anyhow::Result<Vec<Endpoint>> {
        let selector = format!("kubernetes.io/service-name={service}");
        let mut endpoints = Vec::new();
        for slice in self.list("endpointslices", "default", &selector)? {
            let family = slice.get("addressType").and_then(Value::as_str).unwrap_or_default().to_owned();
            let listed = slice.get("endpoints").filter(|endpoints| !endpoints.is_null()).cloned();
            let listed: Vec<Listed> =
                serde_json::from_value(listed.unwrap_or_else(|| json!([]))).context("endpoints")?;
            endpoints.extend(listed.into_iter().map(|listed| Endpoint {
                family: family.clone(),
                address: listed.addresses.into_iter().next().unwrap_or_default(),
                ready: listed.conditions.ready,
                serving: listed.conditions.serving,
                terminating: listed.conditions.terminating,
                pod: listed.target_ref.map(|target| target.name).unwrap_or_default(),
                node: listed.node_name.unwrap_or_default(),
            }));
        }
        endpoints.sort();
        Ok(endpoints)
    }

    /// Makes the Nodes of a world, ready.
    pub fn apply_nodes(&self, world: &World) -> anyhow::Result<()> {
        world.nodes().iter().try_for_each(|node| self.apply_document(node_document(node)).map(drop))
    }

    /// Makes (or changes) the Pod of a pod of the world, running on its node.
    pub fn apply_pod(&self, pod: &Pod, spec: &PodSpec) -> anyhow::Result<()> {
        self.apply_document(spec.document(pod)).map(drop)
    }

    /// Makes a Pod ready or not, as the kubelet does after a probe.
    pub fn pod_ready(&self, pod: &Pod, ready: bool) -> anyhow::Result<()> {
        let status = if ready { "True" } else { "False" };
        let conditions = json!([{"type": "Ready", "status": status}, {"type": "ContainersReady", "status": status}]);
        self.patch_status("pods", "default", pod.name(), &json!({"conditions": conditions})).map(drop)
    }

    /// Makes (or changes) a Service.
    pub fn apply_service(&self, service: &Service) -> anyhow::Result<Value> {
        self.apply_document(service.document())
    }
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its first address.
    pub address: String,
    /// Its conditions.
    pub ready: Option<bool>,
    /// Its conditions.
    pub serving: Option<bool>,
    /// Its conditions.
    pub terminating: Option<bool>,
    /// The Pod it stands for.
    pub pod: String,
    /// The Node it is on.
    pub node: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    target_ref: Option<Target>,
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
