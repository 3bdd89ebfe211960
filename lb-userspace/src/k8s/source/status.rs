//! How the watches are, for `status` and the log.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    failure::{Cause, Failure},
    kind::Kind,
};
use crate::{
    convert::Severity,
    report::{Problem, WatchStatus},
};

/// Causes of one trouble that are remembered: servers that are asked in turn may each have their own.
const CAUSES: usize = 16;

/// The watches by kind.
#[derive(Debug)]
pub(super) struct Watches {
    watches: BTreeMap<Kind, State>,
    server: Option<String>,
}

#[derive(Debug)]
struct State {
    synced: bool,
    since: Instant,
    heard: Option<Instant>,
    problem: Option<Told>,
    last_error: Option<(String, Instant)>,
    /// Since when each try was answered with 403.
    refused: Option<Instant>,
}

#[derive(Debug)]
struct Told {
    problem: Problem,
    /// Its causes so far, each of which has its line in the log.
    causes: Vec<Failure>,
    severity: Severity,
    since: Instant,
}

impl Watches {
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let now = Instant::now();
        let state = || State { synced: false, since: now, heard: None, problem: None, last_error: None, refused: None };
        Self { watches: kinds.into_iter().map(|kind| (kind, state())).collect(), server: None }
    }

    /// The server that answered last.
    pub(super) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    pub(super) fn listed(&mut self, kind: Kind, server: String) {
        self.server = Some(server);
        // Well only when it is followed: whoever may list but not watch is told so once.
        if let Some(state) = self.watches.get_mut(&kind) {
            state.heard = Some(Instant::now());
        }
    }

    pub(super) fn following(&mut self, kind: Kind, server: String) {
        self.server = Some(server);
        self.well(kind);
    }

    pub(super) fn heard(&mut self, kind: Kind) {
        self.well(kind);
    }

    fn well(&mut self, kind: Kind) {
        let Some(state) = self.watches.get_mut(&kind) else { return };
        let now = Instant::now();
        state.refused = None;
        state.heard = Some(now);
        if !state.synced {
            state.synced = true;
            state.since = now;
        }
        if let Some(told) = state.problem.take() {
            let seconds = told.since.elapsed().as_secs();
            tracing::info!("{}: well again after {seconds} s", told.problem.object);
        }
    }

    /// For how long each try has been answered with 403; nothing for any other failure.
    pub(super) fn refused(&mut self, kind: Kind, failure: &Failure) -> Duration {
        let Some(state) = self.watches.get_mut(&kind) else { return Duration::ZERO };
        if !matches!(failure.cause, Cause::Forbidden(_)) {
            state.refused = None;
            return Duration::ZERO;
        }
        state.refused.get_or_insert_with(Instant::now).elapsed()
    }

    /// `harmless`: nothing is degraded by it.
    pub(super) fn failed(&mut self, kind: Kind, failure: &Failure, problem: Problem, harmless: bool) {
        let Some(state) = self.watches.get_mut(&kind) else { return };
        let now = Instant::now();
        if state.synced {
            state.synced = false;
            state.since = now;
        }
        state.last_error = Some((problem.cause.clone(), now));
        let severity = if harmless { Severity::Warning } else { Severity::Error };
        let told = state.problem.get_or_insert_with(|| Told {
            problem: problem.clone(),
            causes: Vec::new(),
            severity,
            since: now,
        });
        if !told.causes.iter().any(|cause| cause.is_like(failure)) {
            tracing::warn!("{}: {} ({})", problem.object, problem.cause, problem.fix);
            if told.causes.len() == CAUSES {
                told.causes.remove(0);
            }
            told.causes.push(failure.clone());
        }
        told.problem = problem;
        told.severity = severity;
    }

    pub(super) fn problems(&self, severity: Severity) -> impl Iterator<Item = Problem> {
        let told = self.watches.values().filter_map(|state| state.problem.as_ref());
        told.filter(move |told| told.severity == severity).map(|told| told.problem.clone())
    }

    pub(super) fn status(&self) -> Vec<WatchStatus> {
        let row = |(kind, state): (&Kind, &State)| WatchStatus {
            resource: kind.resource().to_owned(),
            synced: state.synced,
            since_seconds: state.since.elapsed().as_secs(),
            last_event_seconds: state.heard.map(|heard| heard.elapsed().as_secs()),
            last_error: state.last_error.as_ref().map(|(error, _)| error.clone()),
            last_error_seconds: state.last_error.as_ref().map(|(_, at)| at.elapsed().as_secs()),
        };
        self.watches.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(watches: &mut Watches, cause: Cause, server: &str) -> usize {
        let failure = Failure::of(cause);
        let problem = failure.problem(Kind::Service, "list", server);
        watches.failed(Kind::Service, &failure, problem.clone(), false);
        assert_eq!(watches.problems(Severity::Error).collect::<Vec<_>>(), [problem], "the newest words are shown");
        watches.watches.values().filter_map(|state| state.problem.as_ref()).map(|told| told.causes.len()).sum()
    }

    #[test]
    fn a_trouble_is_told_once_however_its_words_change() {
        let mut watches = Watches::new([Kind::Service]);
        assert_eq!(told(&mut watches, Cause::Busy(500, "request 1".to_owned()), "a"), 1);
        assert_eq!(told(&mut watches, Cause::Busy(500, "request 2".to_owned()), "a"), 1);
        assert_eq!(told(&mut watches, Cause::Busy(503, "request 3".to_owned()), "a"), 2);
        // Two servers in turn.
        for _ in 0..3 {
            assert_eq!(told(&mut watches, Cause::Unreachable("refused".to_owned()), "b"), 3);
            assert_eq!(told(&mut watches, Cause::Silent, "b"), 3);
            assert_eq!(told(&mut watches, Cause::Busy(500, "request 4".to_owned()), "a"), 3);
        }
        assert_eq!(told(&mut watches, Cause::Setup("no file".to_owned()), "a"), 4);
        assert_eq!(told(&mut watches, Cause::Setup("no context".to_owned()), "a"), 5);
        for code in 400..440 {
            assert!(told(&mut watches, Cause::Refused(code, String::new()), "a") <= CAUSES);
        }
        watches.heard(Kind::Service);
        assert_eq!(watches.problems(Severity::Error).count(), 0);
        assert_eq!(told(&mut watches, Cause::Busy(500, "request 5".to_owned()), "a"), 1, "it is another trouble");
    }
}
