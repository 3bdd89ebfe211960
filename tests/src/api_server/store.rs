//! What the server knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::Fault;

/// Resource, namespace, name.
type Key = (String, String, String);

/// Objects with their history.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) version: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Entry>,
    /// Versions before this are forgotten.
    compacted: u64,
    /// What is left of lists in pages, by token.
    pages: BTreeMap<String, (u64, Vec<Value>)>,
    pub(super) page: usize,
    pub(super) duplicated: bool,
    pub(super) reordered: bool,
    held: BTreeSet<String>,
    /// Number of cuts, and whether the last was in a line.
    cuts: BTreeMap<String, (u64, bool)>,
    pub(super) bookmarks: u64,
    faults: BTreeMap<String, VecDeque<Fault>>,
    refused: BTreeMap<(String, String), Fault>,
    /// How many patches are undone yet, by resource and name.
    undone: BTreeMap<(String, String), usize>,
    pub(super) away: bool,
    pub(super) departures: u64,
    pub(super) token: Option<String>,
    pub(super) requests: Vec<String>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 1,
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            pages: BTreeMap::new(),
            page: usize::MAX,
            duplicated: false,
            reordered: false,
            held: BTreeSet::new(),
            cuts: BTreeMap::new(),
            bookmarks: 0,
            faults: BTreeMap::new(),
            refused: BTreeMap::new(),
            undone: BTreeMap::new(),
            away: false,
            departures: 0,
            token: None,
            requests: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    resource: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// Label and field selectors of a request, as far as the agent uses them.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    pub(super) absent_labels: Vec<String>,
    pub(super) name: Option<String>,
    /// Absent: of all namespaces.
    pub(super) namespace: Option<String>,
}

impl Selector {
    fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.absent_labels.iter().all(|label| metadata["labels"].get(label).is_none())
            && self.name.as_ref().is_none_or(|name| metadata["name"] == **name)
            && self.namespace.as_ref().is_none_or(|namespace| metadata["namespace"] == **namespace)
    }
}

/// A request that cannot be answered as asked.
pub(super) struct Gone;

impl Store {
    pub(super) fn put(&mut self, mut object: Value) {
        self.version += 1;
        let resource = resource(object["kind"].as_str().unwrap_or_default());
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (resource.clone(), text("namespace"), text("name"));
        let before = self.objects.insert(key, object.clone());
        self.log.push(Entry { version: self.version, resource, before, after: Some(object) });
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn all(&self, resource: &str) -> Vec<Value> {
        let of = self.objects.iter().filter(|((of, ..), _)| of == resource);
        of.map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut before) = self.objects.remove(&key) {
            self.version += 1;
            // The last state carries the version of the deletion.
            before["metadata"]["resourceVersion"] = self.version.to_string().into();
            let resource = resource.to_owned();
            self.log.push(Entry { version: self.version, resource, before: Some(before), after: None });
        }
    }

    pub(super) fn bookmark(&mut self) {
        self.bookmarks += 1;
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.log.clear();
        self.pages.clear();
    }

    pub(super) fn cut(&mut self, resource: &str, in_a_line: bool) {
        let cut = self.cuts.entry(resource.to_owned()).or_default();
        *cut = (cut.0 + 1, in_a_line);
    }

    pub(super) fn cuts(&self, resource: &str) -> (u64, bool) {
        self.cuts.get(resource).copied().unwrap_or_default()
    }

    pub(super) fn hold(&mut self, resource: &str, held: bool) {
        if held {
            self.held.insert(resource.to_owned());
        } else {
            self.held.remove(resource);
        }
    }

    pub(super) fn is_held(&self, resource: &str) -> bool {
        self.held.contains(resource)
    }

    pub(super) fn fail(&mut self, resource: &str, faults: impl IntoIterator<Item = Fault>) {
        self.faults.entry(resource.to_owned()).or_default().extend(faults);
    }

    pub(super) fn refuse(&mut self, verb: &str, resource: &str, fault: Option<Fault>) {
        let key = (verb.to_owned(), resource.to_owned());
        match fault {
            Some(fault) => self.refused.insert(key, fault),
            None => self.refused.remove(&key),
        };
    }

    pub(super) fn undo_patches(&mut self, resource: &str, name: &str, times: usize) {
        self.undone.insert((resource.to_owned(), name.to_owned()), times);
    }

    /// What was patched is deleted and made again as it was `before`, if that is asked for.
    pub(super) fn undo(&mut self, resource: &str, before: &Value) {
        let text = |field: &str| before["metadata"][field].as_str().unwrap_or_default().to_owned();
        let Some(left) = self.undone.get_mut(&(resource.to_owned(), text("name"))).filter(|left| **left > 0) else {
            return;
        };
        *left -= 1;
        self.delete(resource, &text("namespace"), &text("name"));
        let mut again = before.clone();
        again["metadata"]["uid"] = format!("{}-again", text("uid")).into();
        self.put(again);
    }

    pub(super) fn set_away(&mut self, away: bool) {
        if away && !self.away {
            self.departures += 1;
        }
        self.away = away;
    }

    /// What goes wrong with this request.
    pub(super) fn fault(&mut self, verb: &str, resource: &str) -> Fault {
        self.requests.push(format!("{verb} {resource}"));
        let lasting = self.refused.get(&(verb.to_owned(), resource.to_owned())).cloned();
        lasting.or_else(|| self.faults.get_mut(resource)?.pop_front()).unwrap_or(Fault::None)
    }

    /// A page: objects, version, continuation.
    pub(super) fn list(
        &mut self,
        resource: &str,
        selector: &Selector,
        limit: usize,
        token: Option<&str>,
    ) -> Result<(Vec<Value>, u64, String), Gone> {
        let (version, mut all) = if let Some(token) = token {
            self.pages.remove(token).ok_or(Gone)?
        } else {
            let of = self.objects.iter().filter(|((of, _, _), object)| of == resource && selector.matches(object));
            (self.version, of.map(|(_, object)| object.clone()).collect())
        };
        let size = limit.min(self.page);
        if limit == usize::MAX || all.len() <= size {
            return Ok((all, version, String::new()));
        }
        let rest = all.split_off(size);
        let token = format!("{resource}/{version}/{}", rest.len());
        self.pages.insert(token.clone(), (version, rest));
        Ok((all, version, token))
    }

    /// Events after a version, each with its own.
    pub(super) fn events(&self, resource: &str, selector: &Selector, after: u64) -> Result<Vec<(u64, Value)>, Gone> {
        if after < self.compacted {
            return Err(Gone);
        }
        let entries = self.log.iter().filter(|entry| entry.version > after && entry.resource == resource);
        let event = |entry: &Entry| {
            let matching = |object: &Option<Value>| object.clone().filter(|object| selector.matches(object));
            let (kind, mut object) = match (matching(&entry.before), matching(&entry.after)) {
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(before), None) => ("DELETED", before),
                (None, None) => return None,
            };
            object["metadata"]["resourceVersion"] = entry.version.to_string().into();
            Some((entry.version, json!({"type": kind, "object": object})))
        };
        Ok(entries.filter_map(event).collect())
    }
}

/// `Service` to `services`, as these kinds form it.
fn resource(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

/// `services` to `Service`, as a list of them is called.
pub(super) fn kind(resource: &str) -> &str {
    match resource {
        "services" => "Service",
        "endpointslices" => "EndpointSlice",
        "namespaces" => "Namespace",
        "nodes" => "Node",
        "pods" => "Pod",
        "servicecidrs" => "ServiceCIDR",
        other => other,
    }
}
