//! Kubernetes documents for a world: its Nodes and Pods, and Services over them.
//!
//! [`World::apply`] writes text as a user would; the builders here save typing. Every file is replaced by a rename, so
//! an agent never reads half of one.

use std::{collections::BTreeMap, fs};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{Node, Pod, World};

/// What a Pod document says beyond its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    labels: BTreeMap<String, String>,
    ports: Vec<(String, u16, &'static str)>,
    ready: bool,
    terminating: bool,
}

impl PodSpec {
    /// A ready pod with one label.
    pub fn labelled(key: &str, value: &str) -> Self {
        let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        Self { labels, ports: Vec::new(), ready: true, terminating: false }
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A named container port; `protocol` is `TCP`, `UDP` or `SCTP`.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, protocol: &'static str) -> Self {
        self.ports.push((name.to_owned(), port, protocol));
        self
    }

    /// Whether it is ready.
    #[must_use]
    pub fn ready(mut self, ready: bool) -> Self {
        self.ready = ready;
        self
    }

    /// Being deleted (it has a deletion timestamp).
    #[must_use]
    pub fn terminating(mut self) -> Self {
        self.terminating = true;
        self
    }

    /// The document of `pod`.
    pub fn document(&self, pod: &Pod) -> Value {
        let status = if self.ready { "True" } else { "False" };
        let mut metadata = json!({"name": pod.name(), "namespace": "default", "labels": self.labels});
        if self.terminating
            && let Some(fields) = metadata.as_object_mut()
        {
            fields.insert("deletionTimestamp".to_owned(), json!("2026-01-01T00:00:00Z"));
            fields.insert("deletionGracePeriodSeconds".to_owned(), json!(30));
        }
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": pod.node(), "containers": [{"name": "echo", "image": "echo", "ports": ports}]},
            "status": {
                "phase": "Running",
                "podIP": pod.ipv4(),
                "podIPs": [{"ip": pod.ipv4()}, {"ip": pod.ipv6()}],
                "conditions": [{"type": "Ready", "status": status}, {"type": "ContainersReady", "status": status}],
            },
        })
    }
}

/// A Service document, dual-stack unless [`fields`](Self::fields) says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    name: String,
    spec: Value,
    ingress: Vec<Value>,
}

impl Service {
    /// A Service of type `ClusterIP` in namespace `default` that selects `key=value`.
    pub fn new(name: &str, key: &str, value: &str) -> Self {
        let spec = json!({"selector": {key: value}, "ipFamilyPolicy": "RequireDualStack", "ports": []});
        Self { name: name.to_owned(), spec, ingress: Vec::new() }
    }

    /// A port for TCP and the same one for UDP; `node_port` is for both.
    #[must_use]
    pub fn port(mut self, port: u16, target: u16, node_port: Option<u16>) -> Self {
        for protocol in ["TCP", "UDP"] {
            let name = format!("{}-{port}", protocol.to_lowercase());
            let mut item = json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
            if let (Some(node_port), Some(fields)) = (node_port, item.as_object_mut()) {
                fields.insert("nodePort".to_owned(), json!(node_port));
            }
            if let Some(ports) = self.spec.get_mut("ports").and_then(Value::as_array_mut) {
                ports.push(item);
            }
        }
        self
    }

    /// Further fields of the spec, for example `json!({"type": "NodePort"})`.
    #[must_use]
    pub fn fields(mut self, fields: Value) -> Self {
        if let (Some(spec), Value::Object(fields)) = (self.spec.as_object_mut(), fields) {
            spec.extend(fields);
        }
        self
    }

    /// Addresses a load balancer gave it; the type becomes `LoadBalancer`.
    #[must_use]
    pub fn load_balancer(mut self, addresses: &[&str]) -> Self {
        self.ingress.extend(addresses.iter().map(|ip| json!({"ip": ip})));
        self.fields(json!({"type": "LoadBalancer"}))
    }

    /// The document.
    pub fn document(&self) -> Value {
        let mut document = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": self.spec,
        });
        if let (false, Some(fields)) = (self.ingress.is_empty(), document.as_object_mut()) {
            fields.insert("status".to_owned(), json!({"loadBalancer": {"ingress": self.ingress}}));
        }
        document
    }
}

/// The Node document of a node.
pub fn node_document(node: &Node) -> Value {
    let addresses: Vec<_> =
        node.addresses().iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name(), "labels": {"kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": node.pod_cidrs()[0], "podCIDRs": node.pod_cidrs()},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A ready Pod `name` in its node's network, with one label.
pub fn host_network_pod(node: &Node, name: &str, (key, value): (&str, &str)) -> Value {
    let container = json!({"name": "echo", "image": "echo"});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {key: value}},
        "spec": {"nodeName": node.name(), "hostNetwork": true, "containers": [container]},
        "status": {
            "phase": "Running",
            "podIP": node.ipv4(),
            "podIPs": [{"ip": node.ipv4()}, {"ip": node.ipv6()}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
        },
    })
}

impl World {
    /// Writes `text` as file `name` of the manifest folder, at once.
    pub fn apply(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.manifests().join(name);
        // Beside the folder, not in it: a source may read every file that appears there.
        let temporary = self.directory().join(format!("{name}.tmp"));
        fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot replace {}", path.display()))
    }

    /// Writes documents as file `name` of the manifest folder, at once.
    pub fn apply_documents(&self, name: &str, documents: &[Value]) -> anyhow::Result<()> {
        let texts: Vec<_> = documents
            .iter()
            .map(|document| serde_saphyr::to_string(document).context("cannot write YAML"))
            .collect::<anyhow::Result<_>>()?;
        self.apply(name, &texts.join("---\n"))
    }

    /// Removes file `name` from the manifest folder.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.manifests().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Writes the Node documents of all nodes (`nodes.yaml`).
    pub fn apply_nodes(&self) -> anyhow::Result<()> {
        let documents: Vec<_> = self.nodes().iter().map(node_document).collect();
        self.apply_documents("nodes.yaml", &documents)
    }

    /// Writes (or overwrites) the document of a pod; [`remove_pod`](Self::remove_pod) takes it away.
    pub fn apply_pod(&self, pod: &Pod, spec: &PodSpec) -> anyhow::Result<()> {
        self.apply_documents(&format!("pod-{}.yaml", pod.name()), &[spec.document(pod)])?;
        self.pod_specs().insert(pod.name().to_owned(), spec.clone());
        Ok(())
    }

    /// Rewrites a pod's document with another readiness.
    pub fn pod_ready(&self, pod: &Pod, ready: bool) -> anyhow::Result<()> {
        let spec = self.pod_specs().get(pod.name()).cloned();
        let spec = spec.with_context(|| format!("pod {} has no document yet: apply_pod comes first", pod.name()))?;
        self.apply_pod(pod, &spec.ready(ready))
    }

    /// Removes a pod's document; its namespace and processes stay.
    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.remove(&format!("pod-{}.yaml", pod.name()))
    }

    /// Writes a Service's document.
    pub fn apply_service(&self, service: &Service) -> anyhow::Result<()> {
        self.apply_documents(&format!("service-{}.yaml", service.name), &[service.document()])
    }
}
