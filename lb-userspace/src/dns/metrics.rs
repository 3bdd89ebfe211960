//! What the server counts, under the names `CoreDNS` has (`plugin/metrics/vars`), with our prefix.

use std::{net::IpAddr, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{
    server::Transport,
    wire::{Code, Type},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    proto: &'static str,
    family: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    rcode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of questions and answers.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Asked, Counter>,
    responses: Family<Answered, Counter>,
    duration: Histogram,
    upstream: Family<Outcome, Counter>,
    limited: Family<Outcome, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // CoreDNS's buckets: from 0.25 ms on, each twice the one before.
        let duration = Histogram::new((0..16).map(|power| 0.000_25 * f64::from(1 << power)));
        let metrics = Self {
            requests: Family::default(),
            responses: Family::default(),
            duration,
            upstream: Family::default(),
            limited: Family::default(),
        };
        // From the start on, at zero: a rate needs a first value.
        for outcome in ["answered", "failed", "refused"] {
            drop(metrics.upstream.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["truncated", "dropped"] {
            drop(metrics.limited.get_or_create(&Outcome { outcome }));
        }
        metrics
    }
}

/// What the zone is, when metrics are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Services with names.
    pub services: usize,
    /// Ready endpoints.
    pub endpoints: usize,
    /// Serial of the SOA.
    pub serial: u32,
}

impl Metrics {
    pub(super) fn asked(&self, over: Transport, client: IpAddr, kind: Option<Type>) {
        let proto = if over == Transport::Udp { "udp" } else { "tcp" };
        let family = if client.to_canonical().is_ipv4() { "1" } else { "2" };
        self.requests.get_or_create(&Asked { proto, family, r#type: kind.map_or("other", type_name) }).inc();
    }

    pub(super) fn answered(&self, code: Option<Code>, took: Duration) {
        self.responses.get_or_create(&Answered { rcode: code.map_or("other", Code::name) }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// `answered`, `failed`, or `refused` for want of room.
    pub(super) fn passed_on(&self, outcome: &'static str) {
        self.upstream.get_or_create(&Outcome { outcome }).inc();
    }

    /// `truncated` or `dropped`.
    pub(super) fn limited(&self, outcome: &'static str) {
        self.limited.get_or_create(&Outcome { outcome }).inc();
    }

    /// All under `registry`, with what the zone is now.
    pub fn register(&self, registry: &mut Registry, sizes: Sizes) {
        let dns = registry.sub_registry_with_prefix("dns");
        dns.register("requests", "Questions, by protocol, family (1 is IPv4, 2 IPv6) and type", self.requests.clone());
        dns.register("responses", "Answers, by code", self.responses.clone());
        let help = "Time from a question to its answer";
        dns.register_with_unit("request_duration", help, Unit::Seconds, self.duration.clone());
        dns.register("upstream_requests", "Questions passed on to --upstream, by outcome", self.upstream.clone());
        dns.register("rate_limited", "Questions over the rate limit of their client", self.limited.clone());
        let gauge = |value: i64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(value);
            gauge
        };
        let count = |count: usize| gauge(i64::try_from(count).unwrap_or(i64::MAX));
        dns.register("services", "Services that have names", count(sizes.services));
        dns.register("endpoints", "Ready endpoints that have names", count(sizes.endpoints));
        dns.register("zone_serial", "Serial of the zone", gauge(sizes.serial.into()));
    }
}

/// Types as `CoreDNS` tells them apart; what a client makes up must not make a new series.
const fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::A => "A",
        Type::AAAA => "AAAA",
        Type::SRV => "SRV",
        Type::PTR => "PTR",
        Type::CNAME => "CNAME",
        Type::TXT => "TXT",
        Type::SOA => "SOA",
        Type::NS => "NS",
        Type::MX => "MX",
        Type::HTTPS => "HTTPS",
        Type::ANY => "ANY",
        _ => "other",
    }
}
