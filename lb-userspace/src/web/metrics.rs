//! `/metrics` and `/proxyMode`: kube-proxy's names, labels and buckets (kube-proxy `pkg/proxy/metrics/metrics.go`), and our own.

use std::{
    fmt, fs,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use rustix::process::{Resource, getrlimit};

pub use super::now::Now;
use crate::model::IpFamily;

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: &'static str,
}

impl From<IpFamily> for OfFamily {
    fn from(family: IpFamily) -> Self {
        Self { ip_family: family_name(family) }
    }
}

/// A family as kube-proxy's labels have it.
pub(super) const fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// What the agent counts and measures as it goes.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sync: Histograms,
    full: Histograms,
    partial: Histograms,
    programming: Histograms,
    synced_at: Family<OfFamily, Seconds>,
    queued_at: Family<OfFamily, Seconds>,
    collected: Family<OfFamily, Counter>,
    collecting: Histograms,
}

pub(super) const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

/// Buckets from 1 ms, each twice the one before.
fn short() -> Histogram {
    Histogram::new((0..15).map(|power| 0.001 * f64::from(1 << power)))
}

/// Buckets of the time from a change of endpoints to the rules.
fn programming() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        let new = |make: fn() -> Histogram| Family::new_with_constructor(make);
        let (sync, full, partial, collecting) = (new(short), new(short), new(short), new(short));
        let programming: Histograms = new(programming);
        let unit = || Unit::Seconds;
        proxy.register_with_unit("sync_proxy_rules_duration", "Time of a sync of the maps", unit(), sync.clone());
        proxy.register_with_unit(
            "sync_full_proxy_rules_duration",
            "Time of a sync that compared everything after a start",
            unit(),
            full.clone(),
        );
        proxy.register_with_unit(
            "sync_partial_proxy_rules_duration",
            "Time of a sync that followed changes",
            unit(),
            partial.clone(),
        );
        proxy.register_with_unit(
            "network_programming_duration",
            "Time from the change of a Pod or Service, as its EndpointSlice tells it, to the maps",
            unit(),
            programming.clone(),
        );
        proxy.register_with_unit(
            "conntrack_reconciler_sync_duration",
            "Time of a round over the conntrack table",
            unit(),
            collecting.clone(),
        );
        let synced_at = Family::default();
        proxy.register_with_unit(
            "sync_proxy_rules_last_timestamp",
            "When the maps were last synced",
            unit(),
            Family::clone(&synced_at),
        );
        let queued_at = Family::default();
        proxy.register_with_unit(
            "sync_proxy_rules_last_queued_timestamp",
            "When a sync of the maps was last asked for",
            unit(),
            Family::clone(&queued_at),
        );
        let collected = Family::<OfFamily, Counter>::default();
        proxy.register(
            "conntrack_reconciler_deleted_entries",
            "Entries of conntrack removed by rounds over it",
            collected.clone(),
        );
        // From the start on, at zero: a rate needs a first value.
        for family in FAMILIES {
            let label = OfFamily::from(family);
            for histograms in [&sync, &full, &partial, &programming, &collecting] {
                drop(histograms.get_or_create(&label));
            }
            drop(collected.get_or_create(&label));
        }
        Self { registry, sync, full, partial, programming, synced_at, queued_at, collected, collecting }
    }
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Metrics {
    /// A sync is asked for.
    pub fn queued(&self) {
        for label in FAMILIES.map(OfFamily::from) {
            self.queued_at.get_or_create(&label).set(seconds_now());
        }
    }

    /// A sync ended well. `full`: it compared everything after a start. `programmed`: how old the changes of endpoints were
    /// that came with it.
    pub fn synced(&self, full: bool, took: Duration, programmed: &[(IpFamily, Duration)]) {
        let kind = if full { &self.full } else { &self.partial };
        for label in FAMILIES.map(OfFamily::from) {
            for histograms in [&self.sync, kind] {
                histograms.get_or_create(&label).observe(took.as_secs_f64());
            }
            self.synced_at.get_or_create(&label).set(seconds_now());
        }
        for (family, age) in programmed {
            self.programming.get_or_create(&OfFamily::from(*family)).observe(age.as_secs_f64());
        }
    }

    /// A round over the conntrack table of a family removed so many entries.
    pub fn collected(&self, family: IpFamily, removed: u64, took: Duration) {
        let label = OfFamily::from(family);
        self.collected.get_or_create(&label).inc_by(removed);
        self.collecting.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// The page, with what is there now, and more.
    pub fn page(&self, now: &Now<'_>, more: &Registry) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.registry)?;
        text::encode_registry(&mut page, &now.registry())?;
        text::encode_registry(&mut page, more)?;
        text::encode_eof(&mut page)?;
        Ok(page)
    }
}

/// As every exporter tells of itself; what cannot be read is left out.
pub(crate) fn process(registry: &mut Registry) {
    let page = rustix::param::page_size() as u64;
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let of = |value: f64| {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        gauge
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // proc_pid_stat(5), from field 3 on: utime 14, stime 15, starttime 22, vsize 23, rss 24.
    let field = |number: usize| fields.get(number - 3).copied();
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        let seconds = Counter::<f64, AtomicU64>::default();
        seconds.inc_by((user + system) / ticks);
        registry.register_with_unit("cpu", "CPU time", Unit::Seconds, seconds);
    }
    if let (Some(start), Some(boot)) = (field(22), boot_seconds()) {
        registry.register_with_unit("start_time", "When it started", Unit::Seconds, of(boot + start / ticks));
    }
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    if let (Some(size), Some(resident)) = (field(23), field(24)) {
        registry.register_with_unit("virtual_memory", "Address space", Unit::Bytes, of(size));
        registry.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, of(resident * page as f64));
    }
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    let limit = |of: Resource| getrlimit(of).current.unwrap_or(u64::MAX) as f64;
    registry.register_with_unit(
        "virtual_memory_max",
        "Limit of the address space",
        Unit::Bytes,
        of(limit(Resource::As)),
    );
    registry.register("max_fds", "Limit of open descriptors", of(limit(Resource::Nofile)));
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        #[expect(clippy::cast_precision_loss, reason = "few")]
        registry.register("open_fds", "Open descriptors", of(descriptors.count() as f64));
    }
}

fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::{Backlog, Counts},
        gc::Survey,
        image::Table,
        k8s::source::Calls,
        model::Changes,
        report::{MapStatus, Status, VerifyStatus},
        verify::Ops,
        web::{
            health::Health,
            local::{Local, WithoutLocal},
        },
    };

    fn page(metrics: &Metrics) -> String {
        let mut status = Status { services: 3, ..Status::default() };
        status.maps.insert("LB_RINGS".to_owned(), MapStatus { used: 1, capacity: 4 });
        status.counters.insert("NewFlow".to_owned(), 7);
        let drift = [("LB_RINGS".to_owned(), 2)].into();
        status.verified = Some(VerifyStatus { entries: 10, drift, repaired: 2, ..VerifyStatus::default() });
        let health = Health::default();
        drop((health.answer("/healthz"), health.answer("/healthz"), health.answer("/livez")));
        let calls = Calls::default();
        calls.answered("GET", "192.0.2.1:6443", "200".to_owned(), Duration::from_millis(30));
        let now = Now {
            status: &status,
            health: &health,
            without_local: WithoutLocal::from([((IpFamily::V6, Local::External), 2)]),
            surveys: &[Survey { phases: [("open", 4)].into(), ..Survey::default() }, Survey::default()],
            changes: Changes { services: 9, slices: 8 },
            pending: Changes { services: 0, slices: 5 },
            calls: &calls,
            events: Counts { sent: 6, backlog: Backlog { waiting: 5, untold: 4, delayed: 7 }, ..Counts::default() },
            skipped: [("NoRoom", 1)].into(),
            ops: &[(Table::Rings, Ops { updates: 3, deletes: 0, failures: 1 })].into(),
        };
        metrics.page(&now, &Registry::default()).expect("a page")
    }

    #[track_caller]
    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }

    #[test]
    fn a_page_has_the_names_of_kube_proxy_and_ours() {
        let metrics = Metrics::default();
        metrics.synced(true, Duration::from_millis(3), &[(IpFamily::V4, Duration::from_millis(400))]);
        metrics.collected(IpFamily::V6, 9, Duration::from_millis(1));
        metrics.queued();
        let page = page(&metrics);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\",ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 2",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 2",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 9",
            "ballast_services 3",
            "ballast_map_pressure_ratios{map=\"LB_RINGS\"} 0.25",
            "ballast_packets_total{verdict=\"NewFlow\"} 7",
            "ballast_packets_total{verdict=\"Martian\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 8",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 5",
            "kubeproxy_sync_proxy_rules_service_changes_total 9",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"192.0.2.1:6443\"} 1",
            "rest_client_request_duration_seconds_bucket{le=\"0.025\",verb=\"GET\",host=\"192.0.2.1:6443\"} 0",
            "rest_client_request_duration_seconds_bucket{le=\"0.1\",verb=\"GET\",host=\"192.0.2.1:6443\"} 1",
            "ballast_conntrack_flows{ip_family=\"IPv4\",phase=\"open\"} 4",
            "ballast_conntrack_flows{ip_family=\"IPv6\",phase=\"open\"} 0",
            "ballast_skipped_services{reason=\"NoRoom\"} 1",
            "ballast_events_total{outcome=\"sent\"} 6",
            "ballast_events_total{outcome=\"delayed\"} 7",
            "ballast_events_waiting 5",
            "ballast_events_untold 4",
            "ballast_map_drift_entries_total{map=\"LB_RINGS\"} 2",
            "ballast_map_drift_entries_total{map=\"LB4_VIPS\"} 0",
            "ballast_map_repairs_total 2",
            "ballast_map_ops_total{map=\"LB_RINGS\",op=\"update\",outcome=\"success\"} 3",
            "ballast_map_ops_total{map=\"LB_RINGS\",op=\"any\",outcome=\"failure\"} 1",
        ] {
            has(&page, line);
        }
        for name in ["last_timestamp", "last_queued_timestamp"] {
            let start = format!("\nkubeproxy_sync_proxy_rules_{name}_seconds{{ip_family=\"IPv4\"}} 1");
            assert!(page.contains(&start), "{page}");
        }
        for name in [
            "cpu_seconds_total",
            "max_fds",
            "open_fds",
            "resident_memory_bytes",
            "start_time_seconds",
            "virtual_memory_bytes",
            "virtual_memory_max_bytes",
        ] {
            assert!(page.contains(&format!("\nprocess_{name} ")), "{name}: {page}");
        }
        assert!(page.ends_with("# EOF\n"));
        let names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len(), "a name twice");
    }

    #[test]
    fn buckets_are_those_of_kube_proxy() {
        let metrics = Metrics::default();
        let page = page(&metrics);
        let les = |name: &str| -> Vec<String> {
            let start = format!("{name}_bucket{{le=\"");
            let of = page.lines().filter(|line| line.contains("ip_family=\"IPv4\""));
            of.filter_map(|line| Some(line.strip_prefix(&start)?.split_once('"')?.0.to_owned())).collect()
        };
        let sync = les("kubeproxy_sync_proxy_rules_duration_seconds");
        assert_eq!(
            (sync.len(), sync[0].as_str(), sync[14].as_str(), sync[15].as_str()),
            (16, "0.001", "16.384", "+Inf")
        );
        let programming = les("kubeproxy_network_programming_duration_seconds");
        // Two, each second to 59, from 60 by 5 to 115, from 120 by 30 to 300.
        assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1, "{programming:?}");
    }
}
