//! Events on Services and slices that are not served as they ask: what `status` tells of objects, told to the cluster.

use std::{collections::BTreeSet, time::Instant};

use super::Agent;
use crate::{
    config::DetectLocal,
    convert::Severity,
    desired::foreign::Known,
    events::{Event, Ledger},
    k8s::source::{Recorder, Sent},
    model::Touched,
    report::Problem,
    web::metrics::EventCounts,
};

/// What is told to the cluster; nothing without one.
pub(super) struct Events {
    recorder: Option<Recorder>,
    ledger: Ledger,
    /// Did not fit into the queue; they are tried again.
    delayed: u64,
}

impl Events {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Self { recorder, ledger: Ledger::default(), delayed: 0 }
    }

    /// Why none can be sent.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.sent().problem
    }

    pub(super) fn counts(&self) -> EventCounts {
        let Sent { sent, dropped, .. } = self.sent();
        EventCounts { sent, dropped, delayed: self.delayed }
    }

    fn sent(&self) -> Sent {
        self.recorder.as_ref().map(Recorder::sent).unwrap_or_default()
    }

    /// Sends what is due of `found`, which is all there is to tell.
    fn observe(&mut self, found: BTreeSet<Event>) {
        let Some(recorder) = &self.recorder else { return };
        for due in self.ledger.observe(found, Instant::now()) {
            let event = due.event.clone();
            if !recorder.send(due) {
                self.delayed += 1;
                self.ledger.not_sent(&event);
            }
        }
    }
}

/// So many slices that lead where no pods are have Events: where others than Kubernetes' controllers write all slices, nobody
/// is told of each of thousands again and again.
const FOREIGN: usize = 100;

impl Agent {
    /// Looks for endpoints where no pods are, in no more than `touched`.
    pub(super) fn look_for_foreign(&mut self, touched: &Touched) {
        let cluster = match &self.options.config.detect_local {
            DetectLocal::ClusterCidr(ranges) => ranges.as_slice(),
            _ => &[],
        };
        let known = Known { all_nodes: !self.input.has_cluster(), cluster };
        self.foreign.look(&self.model, known, touched);
    }

    /// Tells the cluster what is wrong with its objects. While they are not all listed it is told nothing: what is wrong
    /// with a snapshot may be mended by now.
    pub(super) fn tell_events(&mut self) {
        if !self.input.is_of_cluster() {
            return;
        }
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
        self.events.observe(found);
    }
}
