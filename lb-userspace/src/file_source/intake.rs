//! Documents into objects, by kind; an object that became invalid keeps its last good version.

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
    let mut seen: BTreeMap<(String, ObjectName), Arc<str>> = BTreeMap::new();
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
        if let Some(earlier) = seen.insert((kind.clone(), name.clone()), document.file.clone()) {
            let reason = format!("it is also in {earlier}: the later document is used");
            findings.push(finding(&document, Some(label.clone()), Issue::warning("metadata.name", reason, "keep one")));
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
        let issues = objects.add(&kind, &name, checked, &document, last, options);
        findings.extend(issues.into_iter().map(|issue| finding(&document, Some(label.clone()), issue)));
        if !cluster_wide {
            objects.namespaces.insert(name.namespace);
        }
    }
    objects
}

impl Objects {
    fn add(
        &mut self,
        kind: &str,
        name: &ObjectName,
        checked: Result<(), Issue>,
        document: &Document,
        last: &Self,
        options: &Options,
    ) -> Vec<Issue> {
        match kind {
            "Service" => {
                self.service_documents.insert(name.clone(), document.clone());
                let found = checked
                    .and_then(|()| typed::<k8s::Service>(document))
                    .and_then(|raw| convert::service(&raw, Origin::Document { service_cidrs: &options.service_cidrs }));
                keep(&mut self.services, &last.services, name, found)
            }
            "EndpointSlice" => {
                let labels = document.value.get("metadata").and_then(|meta| meta.get("labels"));
                if let Some(service) = labels.and_then(|labels| labels.get(LABEL_SERVICE_NAME)).and_then(Value::as_str)
                {
                    let namespace = name.namespace.clone();
                    self.with_slices.insert(ObjectName { namespace, name: service.to_owned() });
                }
                let found = checked.and_then(|()| typed(document)).and_then(|raw| convert::slice(&raw));
                keep(&mut self.slices, &last.slices, name, found)
            }
            "Endpoints" => {
                let found = checked.and_then(|()| typed(document)).and_then(|raw| convert::mirrored(&raw));
                keep(&mut self.endpoints, &last.endpoints, name, found)
            }
            "Pod" => {
                let found = checked.and_then(|()| typed(document)).and_then(|raw| convert::pod(&raw));
                keep(&mut self.pods, &last.pods, name, found)
            }
            "Node" => {
                let found = checked.and_then(|()| typed(document)).and_then(|raw| convert::node(&raw));
                keep(&mut self.nodes, &last.nodes, &name.name, found.map(|node| (node, Vec::new())))
            }
            _ => match checked.and_then(|()| typed::<k8s::Namespace>(document)) {
                Ok(namespace) => {
                    self.namespaces.insert(namespace.metadata.name);
                    Vec::new()
                }
                Err(issue) => vec![issue],
            },
        }
    }
}

fn typed<T: DeserializeOwned>(document: &Document) -> Result<T, Issue> {
    serde_path_to_error::deserialize(&*document.value).map_err(|error| {
        let field = error.path().to_string();
        Issue::error(field, error.into_inner().to_string(), "write the type the field has in the Kubernetes API")
    })
}

fn keep<K: Ord + Clone, T: Clone>(
    objects: &mut BTreeMap<K, T>,
    last: &BTreeMap<K, T>,
    name: &K,
    found: Result<(T, Vec<Issue>), Issue>,
) -> Vec<Issue> {
    match found {
        Ok((object, issues)) => {
            objects.insert(name.clone(), object);
            issues
        }
        Err(mut issue) => {
            if let Some(object) = last.get(name) {
                objects.insert(name.clone(), object.clone());
                issue.reason.push_str(": its last good version stays in use");
            } else {
                objects.remove(name);
                issue.reason.push_str(": refused");
            }
            vec![issue]
        }
    }
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
