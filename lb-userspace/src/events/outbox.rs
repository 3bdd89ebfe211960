//! What is to be told, with whoever sends it.

use std::{cmp::Ordering, collections::BTreeSet, time::Instant};

use super::{Backlog, Event, Ledger};
use crate::{
    k8s::source::{Recorder, Sent},
    report::Problem,
};

/// What became of the Events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The server has them.
    pub sent: u64,
    /// The object was gone, or the server would not have them.
    pub dropped: u64,
    /// What is not told yet.
    pub backlog: Backlog,
}

/// A [`Ledger`] and the [`Recorder`] of what is due in it.
#[derive(Debug)]
pub struct Outbox {
    recorder: Recorder,
    ledger: Ledger,
}

impl Outbox {
    /// Nothing was told yet.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, ledger: Ledger::default() }
    }

    /// Sends what is due of `found`, which is all there is to tell now. Never waits: what does not fit comes with a later call.
    pub fn tell(&mut self, found: BTreeSet<Event>) {
        let before = self.ledger.backlog();
        self.ledger.observe(found, Instant::now(), |due| self.recorder.send(due));
        let now = self.ledger.backlog();
        match severity(now).cmp(&severity(before)) {
            Ordering::Greater => {
                if let Some(problem) = now.problem() {
                    tracing::warn!("{}: {} ({})", problem.object, problem.cause, problem.fix);
                }
            }
            Ordering::Less if now.problem().is_none() => tracing::info!("events: all are told"),
            Ordering::Less | Ordering::Equal => {}
        }
    }

    /// Why not all is told.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.recorder.sent().problem.into_iter().chain(self.ledger.backlog().problem())
    }

    /// What became of the Events so far.
    pub fn counts(&self) -> Counts {
        let Sent { sent, dropped, .. } = self.recorder.sent();
        Counts { sent, dropped, backlog: self.ledger.backlog() }
    }
}

/// What is worse is told again, what changes in number is not.
const fn severity(backlog: Backlog) -> (bool, bool) {
    (backlog.untold > 0, backlog.waiting > 0)
}
