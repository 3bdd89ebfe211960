//! `/health`, `/ready` and `/metrics` of the controller.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::leadership::Leadership;
use crate::{
    events::{Backlog, Counts},
    k8s::source::Calls,
    web::{Listening, pages},
};

/// What the pages are made of.
pub(super) struct Site {
    calls: Calls,
    leadership: Leadership,
    shown: Mutex<Shown>,
}

/// What the controller tells of itself.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is told by itself")]
pub(super) struct Shown {
    pub(super) ending: bool,
    /// The Services have all been listed; of a leader.
    pub(super) listed: bool,
    /// The pools were read once.
    pub(super) has_pools: bool,
    /// They cannot be read, or are wrong.
    pub(super) is_stale: bool,
    pub(super) assigned: u64,
    pub(super) pending: u64,
    /// Addresses in use by pool.
    pub(super) in_use: Vec<(String, u64)>,
    pub(super) written: u64,
    pub(super) outdated: u64,
    pub(super) failed: u64,
    pub(super) events: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labelled {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

impl Site {
    pub(super) fn new(calls: Calls, leadership: Leadership) -> Arc<Self> {
        Arc::new(Self { calls, leadership, shown: Mutex::default() })
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves health and metrics where they are asked for.
    pub(super) fn listen(self: &Arc<Self>, health: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Vec<Listening> {
        pages::serve(self, health, metrics)
    }

    fn register_own(&self, registry: &mut Registry) {
        let shown = self.shown();
        let gauge = |value: u64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        registry.register("leader", "Whether this replica holds the Lease", gauge(self.leadership.leads().into()));
        let help = "Whether the address pools cannot be read or are wrong: the last good ones are in use";
        registry.register("pools_stale", help, gauge(shown.is_stale.into()));
        let services = Family::<State, Gauge>::default();
        for (state, value) in [("assigned", shown.assigned), ("pending", shown.pending)] {
            services.get_or_create(&State { state }).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let help = "Services of type LoadBalancer that have addresses of ours, or are refused some";
        registry.register("services", help, services);
        let in_use = Family::<Labelled, Gauge>::default();
        for (pool, count) in shown.in_use {
            in_use.get_or_create(&Labelled { pool }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        registry.register(
            "pool_addresses_in_use",
            "Addresses that Services have, by pool; a shared one counts for each",
            in_use,
        );
        let statuses = registry.sub_registry_with_prefix("status_writes");
        statuses.register("done", "Statuses written", ConstCounter::new(shown.written));
        statuses.register(
            "outdated",
            "Not written, for the Service was another one by then",
            ConstCounter::new(shown.outdated),
        );
        statuses.register("failed", "Not written: the API server did not take them", ConstCounter::new(shown.failed));
        let events = registry.sub_registry_with_prefix("events");
        events.register("sent", "Events the API server has", ConstCounter::new(shown.events.sent));
        events.register("dropped", "Events nobody wanted any more", ConstCounter::new(shown.events.dropped));
        let Backlog { waiting, untold, .. } = shown.events.backlog;
        events.register("waiting", "Events that are due and could not be sent yet", gauge(waiting));
        events.register("untold", "Problems of objects that have no Event for want of room", gauge(untold));
    }
}

impl pages::Site for Site {
    const NAME: &'static str = "the controller";

    fn is_ending(&self) -> bool {
        self.shown().ending
    }

    /// Ready is a leader that has listed the Services, or a replica that knows who leads.
    fn waits(&self) -> Option<&'static str> {
        let Shown { listed, has_pools, .. } = self.shown();
        match self.leadership.leads() {
            _ if !has_pools => Some("the address pools have not been read yet"),
            true if !listed => Some("the Services have not all been listed yet"),
            false if !self.leadership.is_heard() => Some("the Lease has not been read yet"),
            _ => None,
        }
    }

    fn register(&self, registry: &mut Registry) {
        self.calls.register(registry);
        self.register_own(registry.sub_registry_with_prefix("ballast_controller"));
    }
}
