//! Health and metrics of the running agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Agent, RunOptions, SourceOptions};
use crate::{
    config::{Bind, HEALTHZ_PORT, METRICS_PORT},
    convert::Severity,
    model::{Changes, EndpointSlice, IpFamily, Model, ObjectName, Touched},
    numbers,
    report::Problem,
    web::{
        Answer, Listening, answer,
        health::Health,
        local::without_local,
        metrics::{self, Metrics, Now},
        not_found,
        probes::Probes,
    },
};

const TEXT: &str = "text/plain; charset=utf-8";

/// Whoever asks for metrics.
pub(super) type Asked = oneshot::Sender<String>;

/// The servers and what they tell.
pub(super) struct Web {
    pub(super) health: Arc<Health>,
    pub(super) metrics: Metrics,
    /// At healthCheckNodePorts.
    pub(super) probes: Probes,
    servers: Vec<Listening>,
    /// When it started: changes that are older were another's to program. Microseconds since 1970.
    started: i64,
    /// What the slices' last changes were triggered by, of those already told.
    triggers: BTreeMap<ObjectName, i64>,
    synced: bool,
    /// The changes that are in the maps.
    applied: Changes,
}

impl Web {
    /// Listens where the options say; an error if it must and cannot. Questions for metrics come by the receiver.
    pub(super) fn start(options: &RunOptions) -> anyhow::Result<(Self, mpsc::Receiver<Asked>)> {
        let health = Arc::new(Health::default());
        let (sender, receiver) = mpsc::channel(4);
        let everywhere = match options.source {
            SourceOptions::Cluster { .. } => Ipv4Addr::UNSPECIFIED,
            // Without a cluster there is no prober elsewhere.
            SourceOptions::Documents(_) => Ipv4Addr::LOCALHOST,
        };
        let at = |bind: Option<Bind>, ip: Ipv4Addr, port| match bind {
            None => Some(SocketAddr::new(IpAddr::V4(ip), port)),
            Some(Bind::At(at)) => Some(at),
            Some(Bind::Off) => None,
        };
        let hard = options.config.bind_hard_fail;
        let mut servers = Vec::new();
        if let Some(at) = at(options.config.healthz_bind, everywhere, HEALTHZ_PORT) {
            let health = Arc::clone(&health);
            let site = move |request: Request<Incoming>| {
                let answer = health.answer(request.uri().path());
                async { answer }
            };
            servers.push(listen(at, "health", "healthzBindAddress", hard, site)?);
        }
        if let Some(at) = at(options.config.metrics_bind, Ipv4Addr::LOCALHOST, METRICS_PORT) {
            let site = move |request: Request<Incoming>| metrics_site(request.uri().path().to_owned(), sender.clone());
            servers.push(listen(at, "metrics", "metricsBindAddress", hard, site)?);
        }
        let metrics = Metrics::default();
        let web = Self {
            probes: Probes::new(Arc::clone(&health)),
            health,
            metrics,
            servers,
            started: micros(),
            triggers: BTreeMap::new(),
            synced: false,
            applied: Changes::default(),
        };
        Ok((web, receiver))
    }

    /// Servers that do not listen.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.servers.iter().filter_map(Listening::problem).chain(self.probes.problems())
    }

    /// There is something to write, maybe.
    pub(super) fn queued(&self) {
        self.health.queued();
        self.metrics.queued();
    }

    /// A sync that began at `begin` made the maps what they should be, after no more than `touched` had changed.
    pub(super) fn synced(&mut self, begin: Instant, model: &Model, touched: &Touched, changes: Changes) {
        self.health.updated();
        self.applied = changes;
        let now = micros();
        let mut programmed = Vec::new();
        let tell = |(name, slice): (&ObjectName, &EndpointSlice)| {
            let Some(trigger) = slice.triggered.filter(|trigger| *trigger >= self.started) else { return };
            if self.triggers.insert(name.clone(), trigger) != Some(trigger) {
                let age = Duration::from_micros(u64::try_from(now - trigger).unwrap_or(0));
                programmed.push((slice.family, age));
            }
        };
        match touched {
            Touched::Endpoints(names) => names.iter().flat_map(|name| model.slices_of(name)).for_each(tell),
            Touched::All => model.slices.iter().for_each(tell),
        }
        if self.triggers.len() > model.slices.len() || *touched == Touched::All {
            self.triggers.retain(|name, _| model.slices.contains_key(name));
        }
        let full = !std::mem::replace(&mut self.synced, true);
        self.metrics.synced(full, begin.elapsed(), &programmed);
    }
}

/// `hard`: it must listen at once, as `bindAddressHardFail` wants it.
fn listen<S, F>(at: SocketAddr, object: &str, field: &str, hard: bool, site: S) -> anyhow::Result<Listening>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let fix = format!("end what listens there, or set {field} to another address or to off");
    if !hard {
        return Ok(Listening::start(at, object, &fix, site));
    }
    Listening::start_or_fail(at, object, &fix, site)
        .map_err(|error| anyhow!("{object}: cannot listen at {at}: {error}, and bindAddressHardFail is true; {fix}"))
}

fn micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

async fn metrics_site(path: String, sender: mpsc::Sender<Asked>) -> Answer {
    match path.as_str() {
        "/metrics" => {
            let (asked, page) = oneshot::channel();
            let sent = sender.send(asked).await.is_ok();
            match page.await {
                Ok(page) if sent => answer(StatusCode::OK, metrics::CONTENT_TYPE, page),
                _ => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the agent is stopping\n".to_owned()),
            }
        }
        // What kube-proxy would call this way of working: users look for the word.
        "/proxyMode" => answer(StatusCode::OK, TEXT, "ebpf".to_owned()),
        "/healthz" => answer(StatusCode::OK, TEXT, "ok".to_owned()),
        _ => not_found(),
    }
}

impl Agent {
    /// The page of metrics.
    pub(super) async fn metrics(&self) -> String {
        // What the last collection saw is at most seconds old: a scrape lists no flows.
        let seen = self.collection.surveys.as_ref();
        let surveys = seen.map_or_else(|| numbers::surveys(&self.datapath.maps), Clone::clone);
        let changes = self.input.changes();
        let applied = self.web.applied;
        let now = Now {
            status: &self.status_with(&surveys).await,
            health: &self.web.health,
            without_local: without_local(&self.model, &self.options.node),
            surveys: &surveys,
            pending: Changes {
                services: changes.services.saturating_sub(applied.services),
                slices: changes.slices.saturating_sub(applied.slices),
            },
            changes,
            calls: &self.input.calls(),
            events: self.events.counts(),
            skipped: self.skipped(),
            ops: &self.verification.ops,
        };
        let mut more = Registry::default();
        if let Some(dns) = &self.dns {
            dns.register(more.sub_registry_with_prefix("ballast"));
        }
        self.web.metrics.page(&now, &more).unwrap_or_default()
    }

    /// Services that are not served, or not whole, by why.
    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        let services = |problems: &[Problem]| {
            let objects: BTreeSet<&str> = problems.iter().map(|problem| &*problem.object).collect();
            objects.iter().filter(|object| object.starts_with("Service ") && object.contains('/')).count() as u64
        };
        let desired = &self.engine.desired;
        [
            ("Invalid", services(&self.input.problems(Severity::Error))),
            ("NotServed", services(&desired.problems)),
            ("PartlyServed", services(&desired.warnings)),
            ("NoRoom", services(&self.engine.refused)),
        ]
        .into()
    }

    /// How many conntrack entries of a family a round removed.
    pub(super) fn collected(&self, family: IpFamily, removed: u64, took: Duration) {
        self.web.metrics.collected(family, removed, took);
    }
}
