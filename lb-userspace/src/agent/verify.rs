//! The tables are verified as the agent runs, and mended where somebody else wrote to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use lb_common::settings::Setting;
use tokio::time::Instant;

use super::Agent;
use crate::{
    engine::{Backends, Engine, SyncError},
    image::{NextHops, Table, reroute},
    report::{Problem, VerifyStatus},
    store::MapStore,
    verify::{self, Noting, Ops, Place, Verifier, VerifyError},
};

/// Between two rounds: a walk over what is programmed takes four minutes for the largest tables, one round for a
/// few thousand entries; one over all room of the arrays a quarter of an hour.
const PERIOD: Duration = Duration::from_secs(1);
/// For how long status tells of drift that was mended.
const TELL: Duration = Duration::from_mins(30);

/// What verification has found.
#[derive(Debug)]
pub(super) struct Verification {
    verifier: Verifier,
    next: Instant,
    /// What became of every write.
    pub(super) ops: BTreeMap<Table, Ops>,
    compared: u64,
    passes: u64,
    ended: Option<(Instant, SystemTime)>,
    drift: BTreeMap<Table, u64>,
    repaired: u64,
    /// What was not mended yet.
    broken: BTreeSet<Place>,
    /// The last drift that was mended.
    told: Option<(Problem, Instant)>,
    error: Option<Problem>,
}

impl Verification {
    pub(super) fn new() -> Self {
        Self {
            verifier: Verifier::default(),
            next: Instant::now() + PERIOD,
            ops: BTreeMap::new(),
            compared: 0,
            passes: 0,
            ended: None,
            drift: BTreeMap::new(),
            repaired: 0,
            broken: BTreeSet::new(),
            told: None,
            error: None,
        }
    }

    /// When [`Agent::verify`] has something to do.
    pub(super) const fn due(&self) -> Instant {
        self.next
    }

    /// Why the tables are not what was programmed, as far as that is known.
    pub(super) fn problem(&self) -> Option<&Problem> {
        self.error.as_ref()
    }

    /// Drift that was mended a while ago: somebody writes to our maps.
    pub(super) fn warning(&self) -> Option<Problem> {
        let (problem, at) = self.told.as_ref()?;
        let ago = at.elapsed();
        (ago < TELL)
            .then(|| Problem { cause: format!("{}, {} s ago", problem.cause, ago.as_secs()), ..problem.clone() })
    }

    pub(super) fn status(&self) -> VerifyStatus {
        let at = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        VerifyStatus {
            entries: self.compared,
            passes: self.passes,
            last_pass_seconds: self.ended.map(|(ended, _)| ended.elapsed().as_secs()),
            last_pass_at: self.ended.map(|(_, ended)| at(ended)),
            drift: self.drift.iter().map(|(table, count)| (table.map_name().to_owned(), *count)).collect(),
            repaired: self.repaired,
        }
    }

    fn failed(&mut self, error: VerifyError) {
        let problem = Problem {
            object: "maps".to_owned(),
            cause: error.to_string(),
            fix: "see what else writes to the pinned maps (`bpftool map`), and the kernel log; it is tried again every second"
                .to_owned(),
        };
        if self.error.as_ref() != Some(&problem) {
            tracing::error!("{}: {}; it is tried again every second", problem.object, problem.cause);
        }
        self.error = Some(problem);
        if let VerifyError::NotKept { places, .. } = error {
            self.broken.extend(places);
        }
    }

    fn found(&mut self, drift: &BTreeSet<Place>) {
        let mut tables: BTreeMap<Table, u64> = BTreeMap::new();
        for (table, _) in drift {
            *tables.entry(*table).or_default() += 1;
        }
        for (table, count) in &tables {
            *self.drift.entry(*table).or_default() += count;
        }
        let words: Vec<String> =
            tables.iter().map(|(table, count)| format!("{count} in {}", table.map_name())).collect();
        let problem = Problem {
            object: "maps".to_owned(),
            cause: format!("entries were not as programmed and were mended: {}", words.join(", ")),
            fix: "something else writes to the pinned maps: find it, two agents on one bpffs for example".to_owned(),
        };
        tracing::warn!("{}: {}", problem.object, problem.cause);
        self.told = Some((problem, Instant::now()));
    }
}

/// [`Engine::sync`] or [`Engine::reroute`].
type Write = fn(&mut Engine, &mut dyn MapStore, &dyn NextHops, &[(Setting, u64)]) -> Result<usize, SyncError>;

impl Agent {
    /// Writes what was computed, and reads it back; the number of writes.
    pub(super) fn sync_verified(&mut self) -> Result<usize, SyncError> {
        self.write_verified(Engine::sync)
    }

    /// While an earlier agent's tables are served and the objects are not known, they follow the network: ways to
    /// backends, this node's devices and addresses.
    pub(super) async fn reroute(&mut self) {
        let mirror = self.engine.mirror();
        let (backends, served) = (reroute::backends(mirror), reroute::served(mirror));
        self.network.resolve(&Backends::all(backends)).await;
        if !self.network.is_resolved() {
            // Not knowing the ways is no reason to take those away that are there.
            return;
        }
        match self.write_verified(Engine::reroute) {
            Ok(0) => self.sync_error = None,
            Ok(writes) => {
                self.sync_error = None;
                tracing::info!(
                    "{writes} map writes: the tables follow the network, the cluster's objects are not here yet"
                );
            }
            Err(error) => self.not_synced(&error),
        }
        self.network.route(&served).await;
    }

    /// The maps are not what they should be.
    pub(super) fn not_synced(&mut self, error: &SyncError) {
        tracing::error!("{error}");
        self.sync_error = Some(Problem {
            object: "maps".to_owned(),
            cause: error.to_string(),
            fix: "it is tried again with the next change".to_owned(),
        });
    }

    fn write_verified(&mut self, write: Write) -> Result<usize, SyncError> {
        let settings = self.settings();
        let mut noting = Noting::new(&mut self.datapath.maps, &mut self.verification.ops);
        let writes = write(&mut self.engine, &mut noting, &self.network.ways(), &settings)?;
        if let Err(error) = noting.confirm(self.engine.mirror()) {
            self.verification.failed(error);
        }
        Ok(writes)
    }

    /// A round of verification. Until the tables are what was programmed, a change counts as not written.
    pub(super) fn verify(&mut self) {
        let Self { verification, datapath, engine, .. } = self;
        verification.next = Instant::now() + PERIOD;
        let (maps, mirror) = (&mut datapath.maps, engine.mirror());
        let mended = verification.verifier.round(maps, mirror).and_then(|round| {
            verification.compared += round.compared;
            if round.ended {
                verification.passes += 1;
                verification.ended = Some((Instant::now(), SystemTime::now()));
            }
            let fresh = !round.drift.is_subset(&verification.broken);
            verification.broken.extend(round.drift);
            if verification.broken.is_empty() {
                return Ok(());
            }
            if fresh {
                let drift = verification.broken.clone();
                verification.found(&drift);
            }
            verification.repaired += verify::repair(maps, mirror, &verification.broken)? as u64;
            verification.broken.clear();
            Ok(())
        });
        match mended {
            Err(error) => {
                verification.failed(error);
                self.web.health.queued();
            }
            Ok(()) if verification.error.take().is_some() => {
                tracing::info!("maps: as programmed again");
                if self.sync_error.is_none() {
                    self.web.health.updated();
                }
            }
            Ok(()) => {}
        }
    }
}
