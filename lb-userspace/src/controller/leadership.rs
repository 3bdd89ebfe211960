//! Holds a Lease, or waits for it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};

use super::election::{Candidate, Terms};
use crate::{
    k8s::source::{Api, lease_time},
    model::ObjectName,
    report::Problem,
};

/// What a replica is called, and which Lease it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseOptions {
    /// The Lease.
    pub name: ObjectName,
    /// Name of this replica; of no two the same.
    pub identity: String,
    /// How long things last.
    pub terms: Terms,
}

/// Whether this replica leads.
#[derive(Clone, Debug)]
pub(super) struct Leadership {
    /// Until when; it is prolonged before.
    until: watch::Receiver<Option<Instant>>,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    holder: Option<String>,
    problem: Option<Problem>,
    heard: bool,
}

impl Leadership {
    /// Always: of a controller that is alone.
    pub(super) fn alone() -> (Self, watch::Sender<Option<Instant>>) {
        let (sender, until) = watch::channel(Some(Instant::now() + Duration::from_secs(u32::MAX.into())));
        (Self { until, state: Arc::default() }, sender)
    }

    /// Whether it may write now.
    pub(super) fn leads(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until it leads.
    pub(super) async fn won(&mut self) {
        while !self.leads() {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it leads no more, be it that it could not renew in time.
    pub(super) async fn lost(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = sleep(until.saturating_duration_since(Instant::now())) => {}
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Who holds the Lease.
    pub(super) fn holder(&self) -> Option<String> {
        self.with(|state| state.holder.clone())
    }

    /// Whether the Lease was read or written once.
    pub(super) fn is_heard(&self) -> bool {
        self.with(|state| state.heard)
    }

    fn with<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        of(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is wrong with the Lease is told once, and once that it is well again.
    fn tell(&self, problem: Option<Problem>) {
        self.with(|state| {
            match (&state.problem, &problem) {
                (old, Some(new)) if old.as_ref() != Some(new) => {
                    tracing::warn!("{}: {} ({})", new.object, new.cause, new.fix);
                }
                (Some(old), None) => tracing::info!("{}: well again", old.object),
                _ => {}
            }
            state.problem = problem;
        });
    }
}

/// The one who does it.
pub(super) struct Campaign {
    api: Api,
    options: LeaseOptions,
    candidate: Candidate,
    until: watch::Sender<Option<Instant>>,
    shown: Leadership,
}

impl Campaign {
    /// Begins; nothing is done before [`Self::run`].
    pub(super) fn new(api: Api, options: LeaseOptions) -> (Self, Leadership) {
        let (sender, until) = watch::channel(None);
        let shown = Leadership { until, state: Arc::default() };
        let candidate = Candidate::new(options.identity.clone(), options.terms);
        (Self { api, options, candidate, until: sender, shown: shown.clone() }, shown)
    }

    /// Tries for ever, until it is told to end; then gives the Lease back.
    pub(super) async fn run(mut self, mut end: watch::Receiver<bool>) {
        loop {
            let retry = self.options.terms.retry;
            // As client-go: candidates spread over 1.2 periods more, a leader renews in time.
            let wait = if self.shown.leads() { retry } else { retry + jitter(retry.mul_f64(1.2)) };
            let begin = Instant::now();
            tokio::select! {
                () = self.step(begin) => {}
                _ = end.wait_for(|end| *end) => break,
            }
            tokio::select! {
                () = sleep(wait.saturating_sub(begin.elapsed())) => {}
                _ = end.wait_for(|end| *end) => break,
            }
        }
        self.give_back().await;
    }

    async fn step(&mut self, began: Instant) {
        // A request that hangs must not outlast the lease it is about.
        let patience = self.options.terms.renew;
        let tried = tokio::time::timeout(patience, self.attempt(began)).await;
        let problem = match tried {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_) => Some(Problem {
                object: format!("Lease {}", self.options.name),
                cause: format!("no answer in {patience:?}"),
                fix: "see the API server; it is tried again".to_owned(),
            }),
        };
        self.shown.tell(problem);
        self.publish();
    }

    async fn attempt(&mut self, began: Instant) -> Result<(), Problem> {
        let name = self.options.name.clone();
        let read = self.api.lease(&name).await?;
        if let Some(lease) = &read {
            self.candidate.observe(lease.record.clone(), Instant::now());
        }
        self.shown.with(|state| state.heard = true);
        if read.is_some() && !self.candidate.may_take(Instant::now()) {
            self.candidate.lost();
            return Ok(());
        }
        let record = self.candidate.claim(lease_time());
        if self.api.write_lease(&name, read, &record).await? {
            self.candidate.won(record, began);
        }
        Ok(())
    }

    fn publish(&self) {
        let until = self.candidate.leads_until().filter(|until| Instant::now() < *until);
        let holder = self.candidate.holder().map(str::to_owned);
        let led = self.until.borrow().is_some();
        let LeaseOptions { name, identity, .. } = &self.options;
        let other = holder.as_ref().filter(|holder| *holder != identity);
        match (led, until.is_some(), other) {
            (false, true, _) => tracing::info!("{identity} holds Lease {name}: it leads"),
            (true, false, None) => {
                tracing::warn!(
                    "{identity} lost Lease {name}, which it could not renew in time: it writes nothing any more"
                );
            }
            (true, false, Some(other)) => {
                tracing::warn!("{identity} lost Lease {name} to {other}: it writes nothing any more");
            }
            (false, false, Some(other)) if holder != self.shown.holder() => {
                tracing::info!("{other} holds Lease {name}");
            }
            _ => {}
        }
        self.shown.with(|state| state.holder = holder);
        self.until.send_replace(until);
    }

    /// So that the next one need not wait. Whoever reads this leads no more from here on.
    async fn give_back(mut self) {
        let led = self.candidate.leads_until().is_some();
        self.candidate.lost();
        self.until.send_replace(None);
        if !led {
            return;
        }
        let name = self.options.name.clone();
        let given = async {
            let Some(read) = self.api.lease(&name).await? else { return Ok(false) };
            self.candidate.observe(read.record.clone(), Instant::now());
            let Some(record) = self.candidate.release(lease_time()) else { return Ok(false) };
            self.api.write_lease(&name, Some(read), &record).await
        };
        match tokio::time::timeout(self.options.terms.retry, given).await {
            Ok(Ok(true)) => tracing::info!("gave back Lease {name}"),
            Ok(Ok(false)) => {}
            Ok(Err(problem)) => tracing::warn!("{}: {}; it ends by itself", problem.object, problem.cause),
            Err(_) => tracing::warn!("Lease {name}: no answer; it ends by itself"),
        }
    }
}

fn jitter(most: Duration) -> Duration {
    crate::k8s::source::spread(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody may have told it: the request that renews hangs.
    #[tokio::test]
    async fn it_leads_no_longer_than_its_lease_is_sure_to_hold() {
        let (sender, until) = watch::channel(Some(Instant::now() + Duration::from_millis(20)));
        let mut leadership = Leadership { until, state: Arc::default() };
        leadership.lost().await;
        assert!(!leadership.leads());
        sender.send_replace(Some(Instant::now() + Duration::from_hours(1)));
        leadership.won().await;
        assert!(leadership.leads());
        sender.send_replace(None);
        leadership.lost().await;
        assert!(!leadership.leads());
    }
}
