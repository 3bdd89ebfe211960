//! What deploy/ installs, as the tests read it: its documents, and the container of its `DaemonSet`.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;

/// An install file.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// How it is called in messages.
    pub flavour: &'static str,
    /// Its documents, in order.
    pub documents: Vec<Value>,
}

impl Manifest {
    /// The one for every node.
    pub fn privileged() -> anyhow::Result<Self> {
        Self::read("privileged", include_str!("../../deploy/install.yaml"))
    }

    /// The one with no more rights than it needs.
    pub fn least() -> anyhow::Result<Self> {
        Self::read("least", include_str!("../../deploy/install-least.yaml"))
    }

    /// Both.
    pub fn all() -> anyhow::Result<[Self; 2]> {
        Ok([Self::privileged()?, Self::least()?])
    }

    /// The name service.
    pub fn dns() -> anyhow::Result<Self> {
        Self::read("dns", include_str!("../../deploy/install-dns.yaml"))
    }

    /// What gives load balancer addresses.
    pub fn controller() -> anyhow::Result<Self> {
        Self::read("controller", include_str!("../../deploy/install-controller.yaml"))
    }

    fn read(flavour: &'static str, text: &str) -> anyhow::Result<Self> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
        Ok(Self { flavour, documents: documents.into_iter().filter(|document| !document.is_null()).collect() })
    }

    /// The document of a kind, of which there is one.
    pub fn one(&self, kind: &str) -> anyhow::Result<&Value> {
        let mut found = self.documents.iter().filter(|document| text(document, "/kind") == Some(kind));
        let first = found.next().with_context(|| format!("{}: no {kind}", self.flavour))?;
        anyhow::ensure!(found.next().is_none(), "{}: several of {kind}", self.flavour);
        Ok(first)
    }

    /// The spec of the `DaemonSet`'s pods, or of the Deployment's.
    pub fn pod(&self) -> anyhow::Result<&Value> {
        let workload = self.one("DaemonSet").or_else(|_| self.one("Deployment"))?;
        workload.pointer("/spec/template/spec").with_context(|| format!("{}: no pods", self.flavour))
    }

    /// Its container.
    pub fn container(&self) -> anyhow::Result<&Value> {
        self.pod()?.pointer("/containers/0").context("a pod without containers")
    }

    /// The command line: `command` and `args`.
    pub fn command(&self) -> anyhow::Result<Vec<String>> {
        let container = self.container()?;
        Ok(["/command", "/args"].into_iter().flat_map(|field| words(container, field)).collect())
    }

    /// The configuration file that the `ConfigMap` makes.
    pub fn config(&self) -> anyhow::Result<&str> {
        text(self.one("ConfigMap")?, "/data/config.yaml").context("no config.yaml")
    }

    /// Whether it may do everything.
    pub fn is_privileged(&self) -> anyhow::Result<bool> {
        Ok(self.container()?.pointer("/securityContext/privileged") == Some(&Value::Bool(true)))
    }

    /// Whether the image's files can be changed.
    pub fn has_read_only_root(&self) -> anyhow::Result<bool> {
        Ok(self.container()?.pointer("/securityContext/readOnlyRootFilesystem") == Some(&Value::Bool(true)))
    }

    /// The capabilities that are added to none.
    pub fn capabilities(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(words(self.container()?, "/securityContext/capabilities/add").into_iter().collect())
    }

    /// Folders of the node in the container.
    pub fn host_mounts(&self) -> anyhow::Result<Vec<HostMount>> {
        let (pod, container) = (self.pod()?, self.container()?);
        let items = |of: &'_ Value, at: &str| of.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
        let mounts = items(container, "/volumeMounts");
        let mut found = Vec::new();
        for volume in items(pod, "/volumes") {
            let Some(host) = text(&volume, "/hostPath/path") else { continue };
            for mount in mounts.iter().filter(|mount| mount.get("name") == volume.get("name")) {
                found.push(HostMount {
                    host: host.to_owned(),
                    container: text(mount, "/mountPath").context("a mount without a place")?.to_owned(),
                    read_only: mount.get("readOnly") == Some(&Value::Bool(true)),
                });
            }
        }
        Ok(found)
    }
}

/// A folder of the node in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// On the node.
    pub host: String,
    /// In the container.
    pub container: String,
    /// Nothing can be written by it.
    pub read_only: bool,
}

fn text<'a>(value: &'a Value, at: &str) -> Option<&'a str> {
    value.pointer(at).and_then(Value::as_str)
}

fn words(value: &Value, at: &str) -> Vec<String> {
    let items = value.pointer(at).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| Some(item.as_str()?.to_owned())).collect()
}
