//! Events on Services and slices that are not served as they ask: what `status` tells of objects, told to the cluster.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::Agent;
use crate::{
    config::DetectLocal,
    convert::Severity,
    desired::foreign::Known,
    events::{Counts, Event, Outbox},
    k8s::source::Recorder,
    model::Touched,
    report::Problem,
};

/// What is told to the cluster; nothing without one.
pub(super) struct Events {
    outbox: Option<Outbox>,
    pub(super) looks: Looks,
}

impl Events {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Self { outbox: recorder.map(Outbox::new), looks: Looks::new(Instant::now()) }
    }

    /// Why not all is told.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.outbox.iter().flat_map(Outbox::problems)
    }

    pub(super) fn counts(&self) -> Counts {
        self.outbox.as_ref().map(Outbox::counts).unwrap_or_default()
    }
}

/// Between two looks at what is to be told: so many times as long as the last one took, so that no stream of changes takes more
/// than an eleventh of a core for them.
const REST: u32 = 10;
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// When it is looked what is to be told: behind the changes, for none of it decides what is forwarded, and one look for all
/// that came meanwhile.
#[derive(Debug)]
pub(super) struct Looks {
    /// What is another one than at the last look, if anything came.
    wanted: Option<Touched>,
    next: Instant,
}

impl Looks {
    pub(super) const fn new(now: Instant) -> Self {
        Self { wanted: None, next: now }
    }

    /// There may be something else to tell, and no more than `touched` is another one.
    pub(super) fn want(&mut self, touched: &Touched) {
        match &mut self.wanted {
            Some(wanted) => wanted.add(touched.clone()),
            None => self.wanted = Some(touched.clone()),
        }
    }

    /// Waits until it is time to look: for ever while nothing came.
    pub(super) async fn due(&self) {
        match self.at() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn at(&self) -> Option<Instant> {
        self.wanted.as_ref().map(|_| self.next)
    }

    /// What to look at, now.
    fn take(&mut self) -> Option<Touched> {
        self.wanted.take()
    }

    /// A look took so long, until now.
    fn looked(&mut self, took: Duration, now: Instant) {
        self.next = now + (took * REST).clamp(SHORTEST_REST, LONGEST_REST);
    }
}

/// So many slices that lead where no pods are have Events: where others than Kubernetes' controllers write all slices, nobody
/// is told of each of thousands again and again.
const FOREIGN: usize = 100;

impl Agent {
    /// Looks what is to be told, if anything came since the last time.
    pub(super) fn look(&mut self) {
        let Some(touched) = self.events.looks.take() else { return };
        let begin = Instant::now();
        self.look_for_foreign(&touched);
        self.tell_events();
        self.events.looks.looked(begin.elapsed(), Instant::now());
    }

    /// Looks for endpoints where no pods are, in no more than `touched`.
    fn look_for_foreign(&mut self, touched: &Touched) {
        let cluster = match &self.options.config.detect_local {
            DetectLocal::ClusterCidr(ranges) => ranges.as_slice(),
            _ => &[],
        };
        let known = Known { all_nodes: !self.input.has_cluster(), cluster };
        self.foreign.look(&self.model, known, touched);
    }

    /// Tells the cluster what is wrong with its objects. While they are not all listed it is told nothing: what is wrong
    /// with a snapshot may be mended by now.
    fn tell_events(&mut self) {
        if !self.input.is_of_cluster() {
            return;
        }
        let Some(outbox) = &mut self.events.outbox else { return };
        let of = |problems: &[Problem], reason, of_node| -> Vec<Event> {
            problems.iter().filter_map(|problem| Event::of(problem, reason, of_node)).collect()
        };
        let desired = &self.engine.desired;
        let mut found: BTreeSet<Event> = BTreeSet::new();
        found.extend(of(&self.input.problems(Severity::Error), "Invalid", false));
        found.extend(of(&self.input.problems(Severity::Warning), "PartlyIgnored", false));
        found.extend(of(&desired.problems, "NotServed", false));
        found.extend(of(&desired.warnings, "PartlyServed", false));
        let foreign: Vec<Problem> = self.foreign.problems().take(FOREIGN).collect();
        found.extend(of(&foreign, "ForeignEndpoints", false));
        // How large the maps are is this node's configuration; what room is left changes with every Service.
        let refused = of(&self.engine.refused, "NoRoom", true).into_iter();
        found.extend(refused.map(|event| Event { varies: true, ..event }));
        // kube-proxy's word for it (semantics.md 2.6.4).
        let probes: Vec<Problem> = self.web.probes.problems().collect();
        found.extend(of(&probes, "FailedToStartServiceHealthcheck", true));
        outbox.tell(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixture::name;

    fn touched(service: &str) -> Touched {
        Touched::Endpoints([name(service)].into())
    }

    #[test]
    fn many_changes_make_few_looks_and_each_is_looked_at() {
        let start = Instant::now();
        let mut looks = Looks::new(start);
        assert_eq!(looks.at(), None, "nothing came");
        // A change each millisecond for ten seconds; a look takes 50 ms.
        let took = Duration::from_millis(50);
        let mut seen = Vec::new();
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            looks.want(&touched(if millisecond == 5_000 { "seldom" } else { "often" }));
            if looks.at().is_some_and(|due| due <= now) {
                seen.extend(looks.take());
                looks.looked(took, now + took);
            }
        }
        assert_eq!(seen.len(), 19, "10 s / (50 ms + 500 ms)");
        assert_eq!(seen[0], touched("often"), "at once, where nothing was told a while ago");
        let both = Touched::Endpoints([name("often"), name("seldom")].into());
        assert_eq!(seen.iter().filter(|seen| **seen == both).count(), 1);
        // The last ones are looked at though nothing comes after them.
        assert!(looks.at().is_some());
        assert_eq!(looks.take(), Some(touched("often")));
        assert_eq!((looks.take(), looks.at()), (None, None));
    }

    #[test]
    fn looks_come_soon_and_rest_for_a_bounded_time() {
        let start = Instant::now();
        for (took, rest) in [(0, 100), (20, 200), (60_000, 10_000)] {
            let mut looks = Looks::new(start);
            looks.looked(Duration::from_millis(took), start);
            looks.want(&Touched::NOTHING);
            assert_eq!(looks.at(), Some(start + Duration::from_millis(rest)), "{took}");
            looks.want(&Touched::All);
            assert_eq!(looks.take(), Some(Touched::All));
        }
    }
}
