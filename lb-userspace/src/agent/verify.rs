//! The tables are verified as the agent runs, and mended where somebody else wrote to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, SystemTime},
};

use lb_common::settings::Setting;
use tokio::time::Instant;

use super::Agent;
use crate::{
    engine::{Backends, Engine, SyncError},
    image::{Image, NextHops, Table, reroute},
    plan::ApplyError,
    report::{Problem, VerifyStatus},
    store::MapStore,
    verify::{self, Noting, Ops, Place, Verifier, VerifyError},
    web::health::Health,
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
        let otherwise = "see what else writes to the pinned maps (`bpftool map`), and the kernel log";
        let help = match &error {
            VerifyError::Write(error) => help(error).unwrap_or(otherwise),
            VerifyError::Read { .. } | VerifyError::NotKept { .. } => otherwise,
        };
        let problem = Problem {
            object: "maps".to_owned(),
            cause: error.to_string(),
            fix: format!("{help}; it is tried again every second"),
        };
        if self.error.as_ref() != Some(&problem) {
            tracing::error!("{}: {}; it is tried again every second", problem.object, problem.cause);
        }
        self.error = Some(problem);
        if let VerifyError::NotKept { places, .. } = error {
            self.broken.extend(places);
        }
    }

    /// Compares the tables with `mirror`, what was programmed, and mends them; whether that is known not to be so, or was
    /// until now.
    fn round(&mut self, maps: &mut dyn MapStore, mirror: &Image) -> bool {
        self.next = Instant::now() + PERIOD;
        if let Err(error) = self.compare_and_mend(maps, mirror) {
            self.failed(error);
            return true;
        }
        let is_over = self.error.take().is_some();
        if is_over {
            tracing::info!("maps: as programmed again");
        }
        is_over
    }

    fn compare_and_mend(&mut self, maps: &mut dyn MapStore, mirror: &Image) -> Result<(), VerifyError> {
        let round = self.verifier.round(maps, mirror)?;
        self.compared += round.compared;
        if round.ended {
            self.passes += 1;
            self.ended = Some((Instant::now(), SystemTime::now()));
        }
        let is_fresh = !round.drift.is_subset(&self.broken);
        self.broken.extend(round.drift);
        if self.broken.is_empty() {
            return Ok(());
        }
        if is_fresh {
            let drift = self.broken.clone();
            self.found(&drift);
        }
        self.repaired += verify::repair(maps, mirror, &self.broken)? as u64;
        self.broken.clear();
        Ok(())
    }

    /// Tells probers whether the tables are what they should be, for all that is known of them and of the last sync.
    fn tell(&self, health: &Health, sync_error: Option<&Problem>) {
        match sync_error.or(self.error.as_ref()) {
            Some(problem) => health.failed(problem),
            None => health.updated(),
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
            Ok(writes) => {
                self.sync_error = None;
                self.tell_health();
                if writes > 0 {
                    tracing::info!(
                        "{writes} map writes: the tables follow the network, the cluster's objects are not here yet"
                    );
                }
            }
            Err(error) => self.not_synced(&error),
        }
        self.network.route(&served).await;
    }

    /// The maps are not what they should be.
    pub(super) fn not_synced(&mut self, error: &SyncError) {
        tracing::error!("{error}");
        let help = match error {
            SyncError::Apply(error) => help(error).map(|help| format!("{help}; ")),
            SyncError::Save { .. } => None,
        };
        self.sync_error = Some(Problem {
            object: "maps".to_owned(),
            cause: error.to_string(),
            fix: format!("{}it is tried again with the next change", help.unwrap_or_default()),
        });
        self.tell_health();
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
        if self.verification.round(&mut self.datapath.maps, self.engine.mirror()) {
            self.tell_health();
        }
    }

    pub(super) fn tell_health(&self) {
        self.verification.tell(&self.web.health, self.sync_error.as_ref());
    }
}

/// What helps where the kernel takes no write, if trying again does not.
fn help(error: &ApplyError) -> Option<&'static str> {
    (error.cause.kind() == io::ErrorKind::PermissionDenied).then_some(
        "if `bpftool map` shows the map frozen, nobody can write to it any more: `ballast cleanup`, and start the agent again; \
         else give the agent CAP_BPF",
    )
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::advance;

    use super::*;
    use crate::{image::Capacity, store::testing::FakeStore, web::health::TIMEOUT};

    async fn healthz(health: &Health) -> (u16, String) {
        let response = health.answer("/healthz");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Rounds for a time, and what probers are told of them.
    async fn rounds(of: &mut Verification, store: &mut FakeStore, mirror: &Image, health: &Health, time: Duration) {
        for _ in 0..time.as_secs() {
            if of.round(store, mirror) {
                of.tell(health, None);
            }
            advance(PERIOD).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn drift_that_cannot_be_mended_makes_the_agent_unhealthy_until_it_can() {
        let (mut store, mut mirror) = (FakeStore::new(Capacity::uniform(64)), Image::default());
        let (key, value): (Box<[u8]>, Box<[u8]>) = (Box::new([10, 96, 0, 10]), Box::new([1; 8]));
        store.update(Table::Vips4, &key, &value).expect("room");
        mirror.insert_bytes(Table::Vips4, key.clone(), value);
        let (mut verification, health) = (Verification::new(), Health::default());
        rounds(&mut verification, &mut store, &mirror, &health, TIMEOUT * 2).await;
        assert_eq!(healthz(&health).await.0, 200, "nothing is wrong");

        store.update(Table::Vips4, &key, &[2; 8]).expect("foreign");
        store.fail_after(Some(0));
        rounds(&mut verification, &mut store, &mirror, &health, TIMEOUT).await;
        assert_eq!(healthz(&health).await.0, 200, "as long as a change may wait");
        rounds(&mut verification, &mut store, &mirror, &health, TIMEOUT).await;
        let (status, body) = healthz(&health).await;
        assert!(status == 503 && body.contains("LB4_VIPS") && body.contains("injected failure"), "{body}");
        let problem = verification.problem().expect("told in status");
        assert!(problem.cause.contains("LB4_VIPS"), "{problem:?}");
        let told = verification.status();
        assert_eq!((told.drift["LB4_VIPS"], told.repaired), (1, 0), "counted once");

        store.fail_after(None);
        rounds(&mut verification, &mut store, &mirror, &health, PERIOD).await;
        let (status, body) = healthz(&health).await;
        assert!(status == 200 && !body.contains("cause"), "{body}");
        assert_eq!((verification.problem(), verification.status().repaired), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_is_what_is_wrong_now() {
        let (mut verification, health) = (Verification::new(), Health::default());
        let sync_error =
            Problem { object: "maps".to_owned(), cause: "no space".to_owned(), fix: "free some".to_owned() };
        verification.failed(VerifyError::Read { map: "LB4_VIPS", cause: io::ErrorKind::Interrupted.into() });
        verification.tell(&health, Some(&sync_error));
        advance(TIMEOUT + PERIOD).await;
        let (status, body) = healthz(&health).await;
        assert!(status == 503 && body.contains("maps: no space (free some)"), "{body}");
        verification.tell(&health, None);
        let (status, body) = healthz(&health).await;
        assert!(status == 503 && body.contains("map LB4_VIPS cannot be read back"), "one of two is over: {body}");
    }

    #[test]
    fn a_map_that_takes_no_writes_any_more_is_told_how_to_mend() {
        let mut verification = Verification::new();
        let cause = io::ErrorKind::PermissionDenied.into();
        verification.failed(VerifyError::Write(ApplyError {
            what: "writing map LB4_VIPS".into(),
            done: 0,
            total: 1,
            cause,
        }));
        let problem = verification.problem().expect("told");
        assert!(problem.fix.contains("frozen") && problem.fix.contains("ballast cleanup"), "{problem:?}");
    }
}
