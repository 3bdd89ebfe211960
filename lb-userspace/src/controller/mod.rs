//! `ballast controller`: gives Services of a cluster their load balancer addresses, where no cloud does.
//!
//! ```text
//! Lease -> Leadership --+
//! Services, Namespaces -+-> decide (pure) -> statuses, Events
//! address pools --------+
//! ```
//! The statuses are its memory: whoever leads next lists the Services and goes on. It leads only while its Lease is sure to
//! hold, and asks so before each write.

mod decide;
mod election;
mod leadership;
mod pool_source;
mod site;
mod underway;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

pub use self::{
    decide::{Decision, Wanted, decide, wait},
    election::{Candidate, Record, Terms},
    leadership::LeaseOptions,
    pool_source::PoolSource,
    underway::Underway,
};
use self::{
    leadership::{Campaign, Leadership},
    pool_source::Reader,
    site::Site,
};
use crate::{
    convert::Severity,
    events::{Event, Outbox, Regarding},
    k8s::source::{Access, Api, Kind, Source, Timing, Written},
    model::{Model, ObjectName, Touched},
    pools::Pools,
    report::Problem,
};

/// Statuses that are written at the same time.
const AT_ONCE: usize = 8;
/// Before another try after a write that failed.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// What `ballast controller` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The API server.
    pub access: Access,
    /// The pools.
    pub pools: PoolSource,
    /// The Lease; none: this is the only controller.
    pub lease: Option<LeaseOptions>,
    /// Where `/health` and `/ready` are.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics: Option<SocketAddr>,
}

/// Runs until SIGTERM or SIGINT; then gives its Lease back.
///
/// # Errors
/// The credentials cannot be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let api = Api::open(options.access).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let identity = options.lease.as_ref().map_or_else(|| "controller".to_owned(), |lease| lease.identity.clone());
    let (end, ended) = watch::channel(false);
    let (leadership, campaign, _alone) = if let Some(lease) = options.lease {
        let (campaign, leadership) = Campaign::new(api.clone(), lease);
        (leadership, Some(tokio::spawn(campaign.run(ended))), None)
    } else {
        let (leadership, alone) = Leadership::alone();
        (leadership, None, Some(alone))
    };
    let site = Site::new(api.calls(), leadership.clone());
    let _pages = site.listen(options.health, options.metrics);
    let controller =
        Controller { api, leadership, site: Arc::clone(&site), identity, reader: Reader::new(options.pools) };
    tokio::select! {
        () = controller.run() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    site.change(|shown| shown.ending = true);
    // Nothing is written any more from here on: the controller is dropped.
    end.send_replace(true);
    if let Some(campaign) = campaign {
        campaign.await?;
    }
    Ok(())
}

struct Controller {
    api: Api,
    leadership: Leadership,
    site: Arc<Site>,
    identity: String,
    reader: Reader,
}

impl Controller {
    async fn run(mut self) {
        loop {
            self.wait().await;
            let mut leadership = self.leadership.clone();
            // What is under way when the Lease is lost is dropped where it stands.
            tokio::select! {
                () = self.lead() => {}
                () = leadership.lost() => {}
            }
            self.site.change(|shown| {
                shown.listed = false;
                shown.assigned = 0;
                shown.pending = 0;
                shown.in_use.clear();
            });
        }
    }

    /// Until it leads; the pools are read meanwhile, so that what is wrong with them is told before they are needed.
    async fn wait(&mut self) {
        let mut leadership = self.leadership.clone();
        loop {
            self.read_pools().await;
            tokio::select! {
                () = leadership.won() => return,
                () = sleep(pool_source::EVERY) => {}
            }
        }
    }

    async fn read_pools(&mut self) -> bool {
        let changed = self.reader.read(&self.api).await;
        let (has_pools, is_stale) = (self.reader.pools.is_some(), self.reader.problem.is_some());
        self.site.change(|shown| {
            shown.has_pools = has_pools;
            shown.is_stale = is_stale;
        });
        changed
    }

    /// What a leader does. The Services are listed after the Lease was had: nothing the leader before wrote is missed.
    async fn lead(&mut self) {
        let mut source = Source::start_balancers(&self.api, Timing::default());
        let mut outbox = Outbox::new(source.recorder(&self.identity));
        let mut told: Vec<Problem> = Vec::new();
        let (mut model, mut underway) = (Model::default(), Underway::default());
        let mut looks = interval(pool_source::EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_due, mut again) = (false, Again::default());
        let mut listed = false;
        let mut refused = BTreeSet::new();
        loop {
            tokio::select! {
                touched = source.changed(&mut model) => is_due |= touched != Touched::NOTHING,
                _ = looks.tick() => is_due |= self.read_pools().await,
                () = again.due() => is_due = true,
            }
            is_due |= underway.doubt(&source.told());
            tell(&mut told, source.watch_problems(Severity::Error));
            self.send(&mut outbox, &refused);
            if !source.is_complete() || !is_due {
                continue;
            }
            is_due = false;
            if !std::mem::replace(&mut listed, true) {
                tracing::info!("{} Services of {}", model.services.len(), source.words());
            }
            underway.settle(&model);
            let decision = match (&self.reader.pools, &self.reader.problem) {
                (Some(pools), _) => decide(&model, pools, &underway, &source.kept().collect::<Vec<_>>()),
                (None, Some(problem)) => wait(&model, problem),
                (None, None) => continue,
            };
            let failed = self.write(&model, &decision, &mut underway).await;
            again.after(failed, Instant::now());
            refused = events(&decision);
            self.send(&mut outbox, &refused);
            self.site.change(|shown| {
                shown.listed = true;
                shown.assigned = decision.assigned;
                shown.pending = decision.refusals.len() as u64;
                let pools = self.reader.pools.iter().flat_map(Pools::iter);
                shown.in_use = pools
                    .map(|pool| (pool.name.clone(), decision.in_use.get(&pool.name).copied().unwrap_or(0)))
                    .collect();
            });
        }
    }

    /// What is due of these and of the pools.
    fn send(&self, outbox: &mut Outbox, refused: &BTreeSet<Event>) {
        outbox.tell(refused.iter().cloned().chain(self.reader.event()).collect());
        self.site.change(|shown| shown.events = outbox.counts());
    }

    /// Writes what differs, several at a time; whether some failed.
    async fn write(&self, model: &Model, decision: &Decision, underway: &mut Underway) -> bool {
        let all = decision.writes.iter().filter_map(|(name, wanted)| Some((name, model.services.get(name)?, wanted)));
        let all = all.filter(|(name, _, wanted)| !underway.has(name, wanted));
        let write = |(name, service, wanted)| async move {
            // In front of each: a Lease may end while others are written.
            let written =
                if self.leadership.leads() { Some(self.api.write_status(name, service, wanted).await) } else { None };
            (name, service, wanted, written)
        };
        let all: Vec<_> = all.collect();
        let mut answers = stream::iter(all).map(write).buffer_unordered(AT_ONCE);
        let mut failed = false;
        while let Some((name, service, wanted, written)) = answers.next().await {
            match written {
                Some(Ok(Written::Done)) => {
                    let ips = wanted.ingress.as_ref().unwrap_or(&service.load_balancer_ips);
                    say(name, &service.load_balancer_ips, ips);
                    underway.sent(name, service, wanted);
                    self.site.change(|shown| shown.written += 1);
                }
                Some(Ok(Written::Newer)) => {
                    self.site.change(|shown| shown.outdated += 1);
                    failed = true;
                }
                Some(Err(problem)) => {
                    tracing::warn!("{}: {} ({})", problem.object, problem.cause, problem.fix);
                    self.site.change(|shown| shown.failed += 1);
                    failed = true;
                }
                None => failed = true,
            }
        }
        failed
    }
}

/// When what failed is tried again.
#[derive(Debug, Default)]
struct Again {
    pause: Duration,
    at: Option<Instant>,
}

impl Again {
    /// After a round that failed, or did not.
    fn after(&mut self, failed: bool, now: Instant) {
        self.pause = match (failed, self.pause) {
            (false, _) => Duration::ZERO,
            (true, Duration::ZERO) => AGAIN,
            (true, before) => (before * 2).min(LONGEST),
        };
        self.at = failed.then(|| now + self.pause);
    }

    /// Waits for that; whoever is interrupted meanwhile waits no longer for it. It is over when it was once waited for.
    async fn due(&mut self) {
        match self.at {
            Some(at) => sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
        self.at = None;
    }
}

fn say(name: &ObjectName, before: &[std::net::IpAddr], after: &[std::net::IpAddr]) {
    let words = |ips: &[std::net::IpAddr]| match ips {
        [] => "no address".to_owned(),
        ips => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    if before != after {
        tracing::info!("Service {name}: {} instead of {}", words(after), words(before));
    }
}

/// Problems that are new, and once that one is over.
fn tell(told: &mut Vec<Problem>, now: Vec<Problem>) {
    for problem in now.iter().filter(|problem| !told.contains(problem)) {
        tracing::warn!("{}: {} ({})", problem.object, problem.cause, problem.fix);
    }
    for problem in told.iter().filter(|problem| !now.contains(problem)) {
        tracing::info!("{}: well again", problem.object);
    }
    *told = now;
}

fn events(decision: &Decision) -> BTreeSet<Event> {
    let of = |(name, refusals): (&ObjectName, &Vec<crate::pools::Refusal>)| {
        let regarding = Regarding { kind: Kind::Service, name: name.clone() };
        let event = |refusal: &crate::pools::Refusal| Event {
            regarding: regarding.clone(),
            reason: refusal.reason.word(),
            note: refusal.to_string(),
            of_node: false,
            varies: false,
        };
        refusals.iter().map(event).collect::<Vec<_>>()
    };
    decision.refusals.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at the pools come more often than the longest pause is.
    #[tokio::test]
    async fn what_failed_is_tried_again_though_something_else_comes_all_the_time() {
        let (mut again, mut due) = (Again::default(), false);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            let now = Instant::now();
            again.after(true, now);
            assert_eq!(again.at, Some(now + Duration::from_secs(pause)));
        }
        again.at = Some(Instant::now() + Duration::from_millis(100));
        for _ in 0..50 {
            tokio::select! {
                () = again.due() => due = true,
                () = sleep(Duration::from_millis(10)) => {}
            }
            if due {
                break;
            }
        }
        assert!(due && again.at.is_none());
        again.after(false, Instant::now());
        assert_eq!((again.pause, again.at), (Duration::ZERO, None));
    }
}
