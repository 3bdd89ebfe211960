//! Documents into objects, by kind. Of several valid documents of an object the last is used; an object without a valid
//! one keeps its last good version.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Options, document::Document, finding::Finding};
use crate::{
    convert::{self, Draft, Issue, Origin, Severity, is_label},
    k8s::{self, LABEL_SERVICE_NAME},
    model::{EndpointSlice, Node, ObjectName, Pod},
    suggest::almost,
};

/// The objects of all documents.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) services: BTreeMap<ObjectName, Draft>,
    pub(super) slices: BTreeMap<ObjectName, Option<EndpointSlice>>,
    pub(super) endpoints: BTreeMap<ObjectName, Vec<EndpointSlice>>,
    pub(super) pods: BTreeMap<ObjectName, Pod>,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) namespaces: BTreeSet<String>,
    /// Of those that have labels.
    pub(super) namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Services that have a slice document, valid or not.
    pub(super) with_slices: BTreeSet<ObjectName>,
    /// Every Service that has a document, with that document.
    pub(super) service_documents: BTreeMap<ObjectName, Document>,
    /// A document whose object could not even be named.
    pub(super) nameless: bool,
}

/// `last` are the objects of the load before.
pub(super) fn read(
    documents: Vec<Document>,
    last: &Objects,
    options: &Options,
    findings: &mut Vec<Finding>,
) -> Objects {
    const KINDS: [&str; 6] = ["Service", "Pod", "Node", "Namespace", "Endpoints", "EndpointSlice"];
    let mut objects = Objects::default();
    let mut unknown = BTreeSet::new();
    let mut seen: BTreeMap<(String, ObjectName), Seen> = BTreeMap::new();
    for document in documents {
        let text = |key: &str| document.value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (text("kind"), text("apiVersion"));
        let expected = match kind.as_str() {
            "Service" | "Pod" | "Node" | "Namespace" | "Endpoints" => "v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            "" => {
                objects.nameless = true;
                let issue = Issue::error("kind", "the document has no kind", "write apiVersion and kind");
                findings.push(finding(&document, None, issue));
                continue;
            }
            _ => {
                if let Some(meant) = almost(&kind, KINDS.into_iter()) {
                    // What it may have been before keeps what it owns.
                    objects.nameless = true;
                    let issue = Issue::error("kind", format!("no kind {kind}"), format!("did you mean {meant}?"));
                    findings.push(finding(&document, None, issue));
                } else if unknown.insert(kind.clone()) {
                    let issue = Issue::warning(
                        "kind",
                        format!("kind {kind} is not used here: ignored"),
                        "nothing, if that is meant",
                    );
                    findings.push(finding(&document, None, issue));
                }
                continue;
            }
        };
        // Another project's kind of the same name, such as a Knative Service.
        let (group, foreign) = (version.split_once('/').map(|(group, _)| group), |group: &str| {
            group.contains('.') && !group.ends_with(".k8s.io")
        });
        if group.is_some_and(foreign) {
            if unknown.insert(format!("{version} {kind}")) {
                let issue = Issue::warning(
                    "apiVersion",
                    format!("{version} {kind} is not used here: ignored"),
                    "nothing, if that is meant",
                );
                findings.push(finding(&document, None, issue));
            }
            continue;
        }
        let meta = |key: &str| {
            document.value.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_str).unwrap_or_default()
        };
        let cluster_wide = matches!(kind.as_str(), "Node" | "Namespace");
        let namespace = match meta("namespace") {
            _ if cluster_wide => "",
            "" => "default",
            namespace => namespace,
        };
        let name = ObjectName { namespace: namespace.to_owned(), name: meta("name").to_owned() };
        let label = if cluster_wide { format!("{kind} {}", name.name) } else { format!("{kind} {name}") };
        if name.name.is_empty() {
            objects.nameless = true;
            let issue = Issue::error("metadata.name", "the object has no name", "write metadata.name");
            findings.push(finding(&document, Some(kind), issue));
            continue;
        }
        let checked = if version != expected {
            Err(Issue::error("apiVersion", format!("{version:?} is not known for {kind}"), format!("write {expected}")))
        } else if !cluster_wide && !is_label(namespace) {
            Err(Issue::error(
                "metadata.namespace",
                format!("{namespace:?} is no namespace name"),
                "use lower-case letters, digits and -",
            ))
        } else {
            Ok(())
        };
        let added = objects.add(&kind, &name, checked, &document, options);
        if !cluster_wide {
            objects.namespaces.insert(name.namespace.clone());
        }
        let seen = seen.entry((kind, name)).or_default();
        match added {
            Ok(issues) => {
                if let Some(earlier) = seen.last.replace(document.file.clone()) {
                    let reason = format!("it is also in {earlier}: the later document is used");
                    let issue = Issue::warning("metadata.name", reason, "keep one");
                    findings.push(finding(&document, Some(label.clone()), issue));
                }
                seen.used = Some(document.file.clone());
                findings.extend(issues.into_iter().map(|issue| finding(&document, Some(label.clone()), issue)));
            }
            Err(issue) => {
                seen.last = Some(document.file.clone());
                seen.refused.push(findings.len());
                findings.push(finding(&document, Some(label), issue));
            }
        }
    }
    objects.settle(&seen, last, findings);
    objects
}

/// The documents of one object.
#[derive(Default)]
struct Seen {
    /// File of the last one.
    last: Option<Arc<str>>,
    /// File of the last valid one.
    used: Option<Arc<str>>,
    /// The findings about the invalid ones, by place.
    refused: Vec<usize>,
}

impl Objects {
    /// Adds the object of a document, with what is to be said about it; nothing of an invalid one.
    fn add(
        &mut self,
        kind: &str,
        name: &ObjectName,
        checked: Result<(), Issue>,
        document: &Document,
        options: &Options,
    ) -> Result<Vec<Issue>, Issue> {
        match kind {
            "Service" => {
                // Also of an invalid one: it keeps its addresses.
                self.service_documents.entry(name.clone()).or_insert_with(|| document.clone());
                let (draft, issues) = checked.and_then(|()| typed::<k8s::Service>(document)).and_then(|raw| {
                    convert::service(&raw, Origin::Document { service_cidrs: &options.service_cidrs })
                })?;
                self.service_documents.insert(name.clone(), document.clone());
                self.services.insert(name.clone(), draft);
                Ok(issues)
            }
            "EndpointSlice" => {
                let labels = document.value.get("metadata").and_then(|meta| meta.get("labels"));
                if let Some(service) = labels.and_then(|labels| labels.get(LABEL_SERVICE_NAME)).and_then(Value::as_str)
                {
                    let namespace = name.namespace.clone();
                    self.with_slices.insert(ObjectName { namespace, name: service.to_owned() });
                }
                let (slice, issues) = checked.and_then(|()| typed(document)).and_then(|raw| convert::slice(&raw))?;
                self.slices.insert(name.clone(), slice);
                Ok(issues)
            }
            "Endpoints" => {
                let (slices, issues) =
                    checked.and_then(|()| typed(document)).and_then(|raw| convert::mirrored(&raw))?;
                self.endpoints.insert(name.clone(), slices);
                Ok(issues)
            }
            "Pod" => {
                let (pod, issues) = checked.and_then(|()| typed(document)).and_then(|raw| convert::pod(&raw))?;
                self.pods.insert(name.clone(), pod);
                Ok(issues)
            }
            "Node" => {
                let node = checked.and_then(|()| typed(document)).and_then(|raw| convert::node(&raw))?;
                self.nodes.insert(name.name.clone(), node);
                Ok(Vec::new())
            }
            _ => {
                let namespace = checked.and_then(|()| typed::<k8s::Namespace>(document))?;
                let k8s::ObjectMeta { name, labels, .. } = namespace.metadata;
                self.namespace_labels.remove(&name);
                if !labels.is_empty() {
                    self.namespace_labels.insert(name.clone(), labels);
                }
                self.namespaces.insert(name);
                Ok(Vec::new())
            }
        }
    }

    /// Says of every invalid document what is used instead, which is known only once all were read.
    fn settle(&mut self, seen: &BTreeMap<(String, ObjectName), Seen>, last: &Self, findings: &mut [Finding]) {
        for ((kind, name), seen) in seen.iter().filter(|(_, seen)| !seen.refused.is_empty()) {
            let outcome = match &seen.used {
                Some(file) => format!("refused, its other document in {file} is used"),
                None if self.keep(kind, name, last) => "its last good version stays in use".to_owned(),
                None => "refused".to_owned(),
            };
            for place in &seen.refused {
                if let Some(finding) = findings.get_mut(*place) {
                    finding.reason = format!("{}: {outcome}", finding.reason);
                }
            }
        }
    }

    /// Takes over the last good version of an object, if there is one.
    fn keep(&mut self, kind: &str, name: &ObjectName, last: &Self) -> bool {
        match kind {
            "Service" => keep(&mut self.services, &last.services, name),
            "EndpointSlice" => keep(&mut self.slices, &last.slices, name),
            "Endpoints" => keep(&mut self.endpoints, &last.endpoints, name),
            "Pod" => keep(&mut self.pods, &last.pods, name),
            "Node" => keep(&mut self.nodes, &last.nodes, &name.name),
            _ => false,
        }
    }
}

fn typed<T: DeserializeOwned>(document: &Document) -> Result<T, Issue> {
    serde_path_to_error::deserialize(&*document.value).map_err(|error| {
        let field = error.path().to_string();
        Issue::error(field, error.into_inner().to_string(), "write the type the field has in the Kubernetes API")
    })
}

fn keep<K: Ord + Clone, T: Clone>(objects: &mut BTreeMap<K, T>, last: &BTreeMap<K, T>, name: &K) -> bool {
    let object = last.get(name);
    objects.extend(object.map(|object| (name.clone(), object.clone())));
    object.is_some()
}

pub(super) fn finding(document: &Document, object: Option<String>, issue: Issue) -> Finding {
    Finding {
        file: document.file.to_string(),
        // Finding a line parses the document once more; warnings about it are rare enough.
        line: document.line(&issue.field),
        object,
        field: Some(issue.field).filter(|field| !field.is_empty() && field != "."),
        reason: issue.reason,
        severity: issue.severity,
        fix: issue.fix,
    }
}

pub(super) fn broken(file: &str, line: Option<usize>, reason: String, kept: bool) -> Finding {
    let reason = if kept { format!("{reason}: what the file said before stays in use") } else { reason };
    Finding {
        file: file.to_owned(),
        line,
        object: None,
        field: None,
        reason,
        severity: Severity::Error,
        fix: "correct the document".into(),
    }
}
