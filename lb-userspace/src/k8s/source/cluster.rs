//! Changes of the API's objects into the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::kind::Kind;
use crate::{
    convert::{Issue, Severity},
    model::{Changes, EndpointSlice, Model, Node, ObjectName, Pod, Service, Touched},
    report::Problem,
};

/// An object as read.
pub(super) type Found<T> = Result<(T, Vec<Issue>), Refused>;

/// Why an object cannot be used.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) issue: Issue,
    /// Load balancer addresses that a Service's status says it has all the same.
    pub(super) holds: Vec<IpAddr>,
}

/// A change of the objects of one kind.
#[derive(Debug)]
pub(super) enum Delta<T> {
    /// All there are: what is not in it is gone.
    Whole(Vec<(ObjectName, Found<T>)>),
    /// One was added or changed.
    Set(ObjectName, Found<T>),
    /// One was deleted.
    Gone(ObjectName),
}

impl<T> Delta<T> {
    /// How many objects it is about.
    const fn objects(&self) -> u64 {
        match self {
            Self::Whole(all) => all.len() as u64,
            Self::Set(..) | Self::Gone(_) => 1,
        }
    }
}

/// A change of any kind.
#[derive(Debug)]
pub(super) enum Change {
    Services(Delta<Service>),
    Slices(Delta<Option<EndpointSlice>>),
    Nodes(Delta<Node>),
    ServiceCidrs(Delta<Vec<IpNet>>),
    Namespaces(Delta<BTreeMap<String, String>>),
    Pods(Delta<Pod>),
}

impl Change {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Services(_) => Kind::Service,
            Self::Slices(_) => Kind::EndpointSlice,
            Self::Nodes(_) => Kind::Node,
            Self::ServiceCidrs(_) => Kind::ServiceCidr,
            Self::Namespaces(_) => Kind::Namespace,
            Self::Pods(_) => Kind::Pod,
        }
    }
}

/// What is known of the cluster beside the model.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// Collects until every kind is complete; then it is the model, whole.
    pending: Model,
    complete: bool,
    settled: BTreeSet<Kind>,
    wrong: BTreeMap<(Kind, ObjectName), Wrong>,
    changes: Changes,
    /// Services the server told of, where that is asked for.
    told: Option<BTreeSet<ObjectName>>,
}

impl Cluster {
    /// Starts with what need not be waited for.
    pub(super) fn new(settled: impl IntoIterator<Item = Kind>) -> Self {
        Self { settled: settled.into_iter().collect(), ..Self::default() }
    }

    /// Keeps in mind from now on of which Services the server told.
    pub(super) fn keep_told(&mut self) {
        self.told = Some(BTreeSet::new());
    }

    /// The Services the server told of since this was asked last, be they as they were before or not.
    pub(super) fn told(&mut self) -> BTreeSet<ObjectName> {
        self.told.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether all kinds have been listed once.
    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Objects told by the server so far.
    pub(super) const fn changes(&self) -> Changes {
        self.changes
    }

    /// Applies a change; what of `live` is another one now. Until every kind is complete it stays untouched.
    pub(super) fn apply(&mut self, live: &mut Model, change: Change) -> Touched {
        match &change {
            Change::Services(delta) => self.changes.services += delta.objects(),
            Change::Slices(delta) => self.changes.slices += delta.objects(),
            Change::Nodes(_) | Change::ServiceCidrs(_) | Change::Namespaces(_) | Change::Pods(_) => {}
        }
        if let (Some(told), Change::Services(delta)) = (&mut self.told, &change) {
            match delta {
                Delta::Whole(all) => told.extend(all.iter().map(|(name, _)| name.clone())),
                Delta::Set(name, _) | Delta::Gone(name) => {
                    told.insert(name.clone());
                }
            }
        }
        let Self { pending, complete, settled, wrong, .. } = self;
        let model = if *complete { &mut *live } else { pending };
        let mut places = Places { wrong, touched: Touched::NOTHING };
        let kind = match change {
            Change::Services(delta) => places.apply(Kind::Service, &mut model.services, delta, ObjectName::clone, Some),
            Change::Slices(delta) => {
                places.apply(Kind::EndpointSlice, &mut model.slices, delta, ObjectName::clone, |slice| slice)
            }
            Change::Nodes(delta) => places.apply(Kind::Node, &mut model.nodes, delta, |name| name.name.clone(), Some),
            Change::ServiceCidrs(delta) => {
                places.apply(Kind::ServiceCidr, &mut model.service_cidrs, delta, |name| name.name.clone(), Some)
            }
            Change::Namespaces(delta) => places.namespaces(model, delta),
            Change::Pods(delta) => places.apply(Kind::Pod, &mut model.pods, delta, ObjectName::clone, Some),
        };
        let touched = if *complete { places.touched } else { Touched::NOTHING };
        settled.extend(kind);
        if self.complete_if_all(live) { Touched::All } else { touched }
    }

    /// A kind that cannot be had and is not needed: nothing of it exists. What of `live` is another one now.
    pub(super) fn settle(&mut self, live: &mut Model, kind: Kind) -> Touched {
        self.settled.insert(kind);
        if self.complete_if_all(live) { Touched::All } else { Touched::NOTHING }
    }

    /// A kind that may not be had: what is known of it from before stays.
    pub(super) fn settle_as_known(&mut self, live: &mut Model, kind: Kind) -> Touched {
        if kind == Kind::ServiceCidr && !self.complete && self.pending.service_cidrs.is_empty() {
            self.pending.service_cidrs.clone_from(&live.service_cidrs);
        }
        self.settle(live, kind)
    }

    fn complete_if_all(&mut self, live: &mut Model) -> bool {
        if self.complete || !Kind::ALL.iter().all(|kind| self.settled.contains(kind)) {
            return false;
        }
        self.complete = true;
        *live = std::mem::take(&mut self.pending);
        true
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self, severity: Severity) -> impl Iterator<Item = Problem> {
        let of = move |((kind, name), wrong): (&(Kind, ObjectName), &Wrong)| {
            let object = object(*kind, name);
            let issues: Vec<Issue> = wrong.issues.iter().filter(|issue| issue.severity == severity).cloned().collect();
            issues.into_iter().map(move |issue| Problem {
                object: object.clone(),
                cause: issue.cause(),
                fix: issue.fix,
            })
        };
        self.wrong.iter().flat_map(of)
    }

    /// Load balancer addresses of Services that are refused, as their statuses say.
    pub(super) fn kept(&self) -> impl Iterator<Item = (IpAddr, &ObjectName)> {
        self.wrong.iter().flat_map(|((_, name), wrong)| wrong.holds.iter().map(move |ip| (*ip, name)))
    }
}

/// What is wrong with an object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    issues: Vec<Issue>,
    /// Load balancer addresses of a refused Service.
    holds: Vec<IpAddr>,
}

fn object(kind: Kind, name: &ObjectName) -> String {
    if name.namespace.is_empty() { format!("{kind} {}", name.name) } else { format!("{kind} {name}") }
}

/// What the model holds of an object.
trait Kept {
    /// What another one touches, under this name.
    fn touches(&self, _name: &ObjectName) -> Touched {
        Touched::All
    }
}

impl Kept for Service {}
impl Kept for Node {}
impl Kept for Pod {}
impl Kept for Vec<IpNet> {}
impl Kept for BTreeMap<String, String> {}
impl Kept for EndpointSlice {
    fn touches(&self, name: &ObjectName) -> Touched {
        Touched::Endpoints([self.of(name)].into())
    }
}

struct Places<'a> {
    wrong: &'a mut BTreeMap<(Kind, ObjectName), Wrong>,
    touched: Touched,
}

impl Places<'_> {
    /// Of a Namespace its name is kept, and its labels.
    fn namespaces(&mut self, model: &mut Model, delta: Delta<BTreeMap<String, String>>) -> Option<Kind> {
        match &delta {
            Delta::Set(name, _) => self.touch_all_if(model.namespaces.insert(name.name.clone())),
            Delta::Gone(name) => self.touch_all_if(model.namespaces.remove(&name.name)),
            Delta::Whole(found) => {
                let whole: BTreeSet<String> = found.iter().map(|(name, _)| name.name.clone()).collect();
                self.touch_all_if(model.namespaces != whole);
                model.namespaces = whole;
            }
        }
        let keep = |labels: BTreeMap<String, String>| Some(labels).filter(|labels| !labels.is_empty());
        self.apply(Kind::Namespace, &mut model.namespace_labels, delta, |name| name.name.clone(), keep)
    }

    fn touch_all_if(&mut self, changed: bool) {
        if changed {
            self.touched = Touched::All;
        }
    }

    /// Applies a delta to one of the model's maps; the kind if it is complete by that. `keep` is what the model holds of a
    /// value, if anything.
    fn apply<K: Ord, T, V: PartialEq + Kept>(
        &mut self,
        kind: Kind,
        objects: &mut BTreeMap<K, V>,
        delta: Delta<T>,
        key: impl Fn(&ObjectName) -> K,
        keep: impl Fn(T) -> Option<V>,
    ) -> Option<Kind> {
        match delta {
            Delta::Set(name, found) => {
                self.set(kind, objects, name, found, &key, &keep);
                None
            }
            Delta::Gone(name) => {
                self.put(objects, &name, &key, None);
                self.note((kind, name), Wrong::default());
                None
            }
            Delta::Whole(found) => {
                let present: BTreeSet<K> = found.iter().map(|(name, _)| key(name)).collect();
                let before = objects.len();
                objects.retain(|key, _| present.contains(key));
                // Which of them went is not worth to be known: it is rare, and whoever follows looks at all once.
                self.touch_all_if(objects.len() != before);
                let gone = |(of, name): &&(Kind, ObjectName)| *of == kind && !present.contains(&key(name));
                let gone: Vec<_> = self.wrong.keys().filter(gone).cloned().collect();
                for place in gone {
                    self.note(place, Wrong::default());
                }
                for (name, found) in found {
                    self.set(kind, objects, name, found, &key, &keep);
                }
                Some(kind)
            }
        }
    }

    /// Replaces what is held of an object.
    fn put<K: Ord, V: PartialEq + Kept>(
        &mut self,
        objects: &mut BTreeMap<K, V>,
        name: &ObjectName,
        key: &impl Fn(&ObjectName) -> K,
        value: Option<V>,
    ) {
        let at = key(name);
        if objects.get(&at) == value.as_ref() {
            return;
        }
        let new = value.as_ref().map(|value| value.touches(name));
        let old = match value {
            Some(value) => objects.insert(at, value),
            None => objects.remove(&at),
        };
        for touched in new.into_iter().chain(old.map(|old| old.touches(name))) {
            self.touched.add(touched);
        }
    }

    fn set<K: Ord, T, V: PartialEq + Kept>(
        &mut self,
        kind: Kind,
        objects: &mut BTreeMap<K, V>,
        name: ObjectName,
        found: Found<T>,
        key: &impl Fn(&ObjectName) -> K,
        keep: &impl Fn(T) -> Option<V>,
    ) {
        let wrong = match found {
            Ok((value, issues)) => {
                self.put(objects, &name, key, keep(value));
                Wrong { issues, holds: Vec::new() }
            }
            Err(Refused { mut issue, holds }) => {
                issue.reason.push_str(if objects.contains_key(&key(&name)) {
                    ": its last good version stays in use"
                } else {
                    ": refused"
                });
                if !holds.is_empty() {
                    let ips: Vec<String> = holds.iter().map(ToString::to_string).collect();
                    issue.reason.push_str(&format!(", and what its status has is kept for it: {}", ips.join(", ")));
                }
                Wrong { issues: vec![issue], holds }
            }
        };
        self.note((kind, name), wrong);
    }

    /// Keeps in mind what is wrong with an object now, and says it once.
    fn note(&mut self, place: (Kind, ObjectName), wrong: Wrong) {
        let (is_new, holds) = match self.wrong.get(&place) {
            Some(old) => (*old != wrong, old.holds != wrong.holds),
            None => (true, !wrong.holds.is_empty()),
        };
        self.touch_all_if(holds);
        if is_new {
            for issue in &wrong.issues {
                tracing::warn!("{}: {} ({})", object(place.0, &place.1), issue.cause(), issue.fix);
            }
        }
        if wrong == Wrong::default() {
            self.wrong.remove(&place);
        } else {
            self.wrong.insert(place, wrong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn refused(ip: Option<&str>) -> Found<Service> {
        let holds = ip.map(|ip| ip.parse().expect("an address")).into_iter().collect();
        Err(Refused { issue: Issue::error("spec.ports", "none", "add one"), holds })
    }

    #[test]
    fn what_refused_services_hold_follows_them() {
        let mut cluster = Cluster::new(Kind::ALL.into_iter().filter(|kind| *kind != Kind::Service));
        let mut model = Model::default();
        let mut apply = |delta: Delta<Service>| {
            let touched = cluster.apply(&mut model, Change::Services(delta));
            let kept: Vec<_> = cluster.kept().map(|(ip, name)| format!("{} {ip}", name.name)).collect();
            (kept.join(", "), touched)
        };
        let told = |kept: &str, touched| (kept.to_owned(), touched);
        let (first, second) = (|| refused(Some("198.51.100.1")), || refused(Some("198.51.100.2")));
        let whole = Delta::Whole(vec![(named("a"), first()), (named("b"), second())]);
        assert_eq!(apply(whole), told("a 198.51.100.1, b 198.51.100.2", Touched::All));
        assert_eq!(
            apply(Delta::Set(named("a"), first())),
            told("a 198.51.100.1, b 198.51.100.2", Touched::NOTHING),
            "as it was"
        );
        assert_eq!(apply(Delta::Set(named("a"), second())), told("a 198.51.100.2, b 198.51.100.2", Touched::All));
        assert_eq!(apply(Delta::Gone(named("b"))), told("a 198.51.100.2", Touched::All));
        assert_eq!(apply(Delta::Set(named("a"), refused(None))), told("", Touched::All));
        assert_eq!(apply(Delta::Set(named("a"), first())), told("a 198.51.100.1", Touched::All));
        assert_eq!(apply(Delta::Whole(Vec::new())), told("", Touched::All), "a list without it");
    }
}
