//! What is read when somebody asks for metrics.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    health::{Health, PATHS},
    local::{Local, WithoutLocal},
    metrics::{FAMILIES, family_name, process},
};
use crate::{
    events::{Backlog, Counts},
    gc::Survey,
    image::Table,
    k8s::source::Calls,
    model::Changes,
    report::{Status, VerifyStatus},
    verify::Ops,
};

/// What there is now.
#[derive(Debug)]
pub struct Now<'a> {
    /// As `ballast status` tells it.
    pub status: &'a Status,
    /// Answers given by the health server.
    pub health: &'a Health,
    /// Services whose policy is Local and that have no endpoint here.
    pub without_local: WithoutLocal,
    /// What the conntrack maps held when they were last listed, IPv4 and IPv6.
    pub surveys: &'a [Survey; 2],
    /// Changes of objects so far.
    pub changes: Changes,
    /// Those of them that are not in the maps yet.
    pub pending: Changes,
    /// What was asked of API servers.
    pub calls: &'a Calls,
    /// What became of the Events.
    pub events: Counts,
    /// Services that are not served, or not whole, by why.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Writes to the maps.
    pub ops: &'a BTreeMap<Table, Ops>,
}

type Labels = Vec<(&'static str, String)>;

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn counter(value: u64) -> Counter {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    counter
}

fn gauges(values: impl IntoIterator<Item = (Labels, u64)>) -> Family<Labels, Gauge> {
    let family = Family::<Labels, Gauge>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    family
}

fn counters(values: impl IntoIterator<Item = (Labels, u64)>) -> Family<Labels, Counter> {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    family
}

impl Now<'_> {
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        self.proxy(registry.sub_registry_with_prefix("kubeproxy"));
        self.calls.register(&mut registry);
        let ours = registry.sub_registry_with_prefix("ballast");
        own(ours, self.status);
        self.conntrack(ours);
        self.told(ours);
        if let Some(verified) = &self.status.verified {
            self.verified(ours, verified);
        }
        process(registry.sub_registry_with_prefix("process"));
        registry
    }

    fn proxy(&self, proxy: &mut Registry) {
        let mut local = Vec::new();
        for family in FAMILIES {
            for (policy, name) in [(Local::Internal, "internal"), (Local::External, "external")] {
                let labels = vec![("ip_family", family_name(family).to_owned()), ("traffic_policy", name.to_owned())];
                local.push((labels, self.without_local.get(&(family, policy)).copied().unwrap_or(0)));
            }
        }
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Ports of Services with a Local policy that have endpoints, but none here",
            gauges(local),
        );
        for path in PATHS {
            let given = self.health.given().into_iter().filter(|((of, _), _)| *of == path);
            let answers = given.map(|((_, code), count)| (vec![("code", code.to_string())], count));
            proxy.register(format!("proxy_{path}"), format!("Answers of /{path} by code"), counters(answers));
        }
        for (what, total, pending) in [
            ("endpoint", self.changes.slices, self.pending.slices),
            ("service", self.changes.services, self.pending.services),
        ] {
            let name = format!("sync_proxy_rules_{what}_changes");
            proxy.register(name.clone(), format!("Changes of {what}s so far"), counter(total));
            let help = format!("Changes of {what}s that are not in the maps yet");
            proxy.register(format!("{name}_pending"), help, gauge(pending));
        }
    }

    fn conntrack(&self, registry: &mut Registry) {
        let mut flows = Vec::new();
        for (family, survey) in FAMILIES.into_iter().zip(self.surveys) {
            for phase in ["opening", "open", "closing", "closed"] {
                let labels = vec![("ip_family", family_name(family).to_owned()), ("phase", phase.to_owned())];
                flows.push((labels, survey.phases.get(phase).copied().unwrap_or(0)));
            }
        }
        registry.register(
            "conntrack_flows",
            "Flows in conntrack by phase, when they were last collected",
            gauges(flows),
        );
    }

    /// What is told to people.
    fn told(&self, registry: &mut Registry) {
        let skipped = self.skipped.iter().map(|(reason, count)| (vec![("reason", (*reason).to_owned())], *count));
        registry.register("skipped_services", "Services that are not served, or not whole, by why", gauges(skipped));
        let Counts { sent, dropped, backlog: Backlog { waiting, untold, delayed } } = self.events;
        let events = [("sent", sent), ("dropped", dropped), ("delayed", delayed)];
        let events = events.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count));
        registry.register("events", "Events by what became of them", counters(events));
        registry.register("events_waiting", "Events that are due and could not be sent yet", gauge(waiting));
        registry.register("events_untold", "Problems of objects that have no Event for want of room", gauge(untold));
        let stale = u64::from(self.status.stale_seconds.is_some());
        registry.register(
            "config_stale",
            "1 while what is served may be older than what the API server has",
            gauge(stale),
        );
        let (synced, all) =
            self.status.watches.iter().fold((0, 0), |(synced, all), watch| (synced + u64::from(watch.synced), all + 1));
        registry.register("watches", "Watches at the API server", gauge(all));
        registry.register("watches_synced", "Watches that are listed and followed", gauge(synced));
    }

    fn verified(&self, registry: &mut Registry, verified: &VerifyStatus) {
        let VerifyStatus { entries, passes, last_pass_at, drift, repaired, .. } = verified;
        registry.register("map_verified_entries", "Entries of the maps read back and compared", counter(*entries));
        registry.register("map_verify_passes", "Passes of reading back over all maps", counter(*passes));
        registry.register_with_unit(
            "map_verify_last_pass_timestamp",
            "When the last one ended",
            Unit::Seconds,
            gauge(last_pass_at.unwrap_or(0)),
        );
        let of = |table: &Table| drift.get(table.map_name()).copied().unwrap_or(0);
        let label = |table: &Table| vec![("map", table.map_name().to_owned())];
        let drift = Table::ALL.iter().map(|table| (label(table), of(table)));
        registry.register("map_drift_entries", "Entries that were not as programmed", counters(drift));
        registry.register("map_repairs", "Writes that mended them", counter(*repaired));
        let mut ops = Vec::new();
        for (table, Ops { updates, deletes, failures }) in self.ops {
            for (op, outcome, count) in
                [("update", "success", updates), ("delete", "success", deletes), ("any", "failure", failures)]
            {
                let mut labels = label(table);
                labels.extend([("op", op.to_owned()), ("outcome", outcome.to_owned())]);
                ops.push((labels, *count));
            }
        }
        registry.register("map_ops", "Writes of syncs to the maps", counters(ops));
    }
}

fn own(registry: &mut Registry, status: &Status) {
    registry.register("services", "Services programmed", gauge(status.services));
    registry.register("frontends", "Frontends programmed", gauge(status.frontends));
    registry.register("backends", "Backends programmed", gauge(status.backends));
    registry.register("problems", "Problems that status tells", gauge(status.problems.len() as u64));
    registry.register("warnings", "Warnings that status tells", gauge(status.warnings.len() as u64));
    registry.register_with_unit("map_memory", "Kernel memory of the maps", Unit::Bytes, gauge(status.bpf_memory_bytes));
    let label = |name: &String| vec![("map", name.clone())];
    let entries = status.maps.iter().map(|(name, map)| (label(name), map.used));
    registry.register("map_entries", "Entries of a map", gauges(entries));
    let capacity = status.maps.iter().map(|(name, map)| (label(name), map.capacity));
    registry.register("map_capacity", "Entries a map has room for", gauges(capacity));
    let pressure = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (name, map) in &status.maps {
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        pressure.get_or_create(&label(name)).set(map.used as f64 / map.capacity.max(1) as f64);
    }
    registry.register_with_unit("map_pressure", "How full a map is: 1 is full", Unit::Ratios, pressure);
    let packets = lb_common::verdict::Counter::ALL.iter().map(|counter| {
        let name = format!("{counter:?}");
        let count = status.counters.get(&name).copied().unwrap_or(0);
        (vec![("verdict", name)], count)
    });
    let help = "What became of packets and socket calls, by counter (docs/counters.md)";
    registry.register("packets", help, counters(packets));
    let devices = status.devices.iter().map(|device| {
        let labels = vec![
            ("device", device.name.clone()),
            ("role", device.role.clone()),
            ("hooks", device.hooks.clone()),
            ("degraded", device.degraded.is_some().to_string()),
        ];
        (labels, 1)
    });
    registry.register("device", "A device with its role and hooks", gauges(devices));
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    registry.register("build_info", "This version", gauges([(build, 1)]));
}
