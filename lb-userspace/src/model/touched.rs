//! Which part of a model a change is about.

use std::collections::BTreeSet;

use super::{Model, ObjectName};

/// What of a model is another one than it was, for whoever follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Endpoint slices of these Services alone; of none: nothing.
    Endpoints(BTreeSet<ObjectName>),
    /// Anything.
    All,
}

impl Touched {
    /// Nothing.
    pub const NOTHING: Self = Self::Endpoints(BTreeSet::new());

    /// What makes `new` of `old`.
    pub fn between(old: &Model, new: &Model) -> Self {
        let Model { services, slices, nodes, pods, namespaces, namespace_labels, service_cidrs } = new;
        let names = (&old.namespaces, &old.namespace_labels);
        let others = (&old.services, &old.nodes, &old.pods, names, &old.service_cidrs);
        if others != (services, nodes, pods, (namespaces, namespace_labels), service_cidrs) {
            return Self::All;
        }
        let names = old.slices.keys().chain(slices.keys()).filter(|name| old.slices.get(*name) != slices.get(*name));
        let of = |model: &Model, name: &ObjectName| model.slices.get(name).map(|slice| slice.of(name));
        Self::Endpoints(names.flat_map(|name| [of(old, name), of(new, name)]).flatten().collect())
    }

    /// This as well.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Endpoints(names), Self::Endpoints(more)) => names.extend(more),
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
        }
    }
}
