//! Where the objects come from: documents or an API server.

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};

use super::{RunOptions, loader::Loader, snapshot};
use crate::{
    convert::Severity,
    file_source::{self, Finding, LoadError, Watch},
    k8s::source::{self, Access, Calls, Kind, Recorder, Selectors, Timing},
    model::{Changes, Model, Touched},
    report::{Problem, WatchStatus},
};

/// What was asked for.
#[derive(Clone, Debug)]
pub enum SourceOptions {
    /// A file or folder of documents, or `-`.
    Documents(file_source::Options),
    /// A cluster.
    Cluster {
        /// The way to its API server.
        access: Access,
        /// Service CIDRs, instead of those of its `ServiceCIDR` objects.
        service_cidrs: Option<Vec<IpNet>>,
    },
}

impl SourceOptions {
    /// The Service CIDRs that were given.
    pub(super) fn service_cidrs(&self) -> Option<&[IpNet]> {
        match self {
            Self::Documents(options) => Some(&options.service_cidrs),
            Self::Cluster { service_cidrs, .. } => service_cidrs.as_deref(),
        }
    }
}

/// The source as the agent has it.
pub(super) struct Input {
    from: From,
}

enum From {
    Documents(Documents),
    Cluster(Box<Cluster>),
}

struct Cluster {
    source: source::Source,
    started: Instant,
    until: Until,
}

/// What is served until a cluster's objects have all been listed. Times are in seconds since 1970.
enum Until {
    Nothing,
    /// What an earlier agent left in the tables; the model is of the snapshot of that time, if there is one.
    Tables(Option<u64>),
    /// The model is of the snapshot of that time, and so are the tables.
    Snapshot(u64),
}

struct Documents {
    words: String,
    _watch: Option<Watch>,
    ticks: mpsc::Receiver<()>,
    loader: Loader,
    findings: Vec<Finding>,
    changes: Changes,
    /// Why they cannot be read now.
    error: Option<Problem>,
}

impl Input {
    /// Documents are read into `model`; a cluster's objects come later.
    pub(super) async fn open(options: &RunOptions, model: &mut Model) -> anyhow::Result<Self> {
        let from = match &options.source {
            SourceOptions::Documents(options) => From::Documents(Documents::open(options, model).await?),
            SourceOptions::Cluster { access, service_cidrs } => {
                let options = source::Options {
                    access: access.clone(),
                    selectors: Selectors::datapath(&options.node),
                    service_cidrs: service_cidrs.is_none(),
                    timing: Timing::default(),
                };
                let source = source::Source::start(options).await?;
                From::Cluster(Box::new(Cluster { source, started: Instant::now(), until: Until::Nothing }))
            }
        };
        Ok(Self { from })
    }

    /// Waits for news; what of the model is another one now. Nothing is lost when it is dropped before its end.
    pub(super) async fn next(&mut self, model: &mut Model) -> anyhow::Result<Touched> {
        match &mut self.from {
            From::Documents(documents) => documents.next(model).await,
            From::Cluster(cluster) => Ok(cluster.source.changed(model).await),
        }
    }

    /// Whether the model is whole, be it of a snapshot.
    pub(super) const fn is_ready(&self) -> bool {
        match &self.from {
            From::Documents(_) => true,
            From::Cluster(cluster) => cluster.source.is_complete() || matches!(cluster.until, Until::Snapshot(_)),
        }
    }

    /// Whether that is so.
    pub(super) const fn is_snapshot(&self) -> bool {
        matches!(&self.from, From::Cluster(cluster)
            if !cluster.source.is_complete() && matches!(cluster.until, Until::Snapshot(_)))
    }

    /// The model is of a snapshot until all is listed.
    pub(super) const fn set_snapshot(&mut self, at_seconds: u64) {
        self.set_until(Until::Snapshot(at_seconds));
    }

    /// Until all is listed the tables are an earlier agent's, and the model is of the snapshot of that time.
    pub(super) const fn set_tables(&mut self, at_seconds: Option<u64>) {
        self.set_until(Until::Tables(at_seconds));
    }

    const fn set_until(&mut self, until: Until) {
        if let From::Cluster(cluster) = &mut self.from {
            cluster.until = until;
        }
    }

    /// Age of what is served, where it may be no longer what the cluster says.
    pub(super) fn stale_seconds(&self) -> Option<u64> {
        match &self.from {
            From::Documents(_) => None,
            From::Cluster(cluster) => cluster.stale_seconds(),
        }
    }

    /// Whether objects come of a cluster, of which only the own Node is known.
    pub(super) const fn has_cluster(&self) -> bool {
        matches!(&self.from, From::Cluster(_))
    }

    /// Whether a snapshot is to be kept of the model.
    pub(super) const fn is_of_cluster(&self) -> bool {
        matches!(&self.from, From::Cluster(cluster) if cluster.source.is_complete())
    }

    /// Tries again what failed and tells nobody when it would succeed.
    pub(super) fn retry(&mut self) {
        match &mut self.from {
            // No change of the documents tells that a lock was released or an allocation file restored.
            From::Documents(documents) if documents.error.is_some() => documents.loader.start(),
            From::Documents(_) | From::Cluster(_) => {}
        }
    }

    /// Whoever sends Events to the cluster; documents have nobody to send them to.
    pub(super) fn recorder(&mut self, node: &str) -> Option<Recorder> {
        match &mut self.from {
            From::Documents(_) => None,
            From::Cluster(cluster) => Some(cluster.source.recorder(node)),
        }
    }

    /// Changes of objects so far.
    pub(super) const fn changes(&self) -> Changes {
        match &self.from {
            From::Documents(documents) => documents.changes,
            From::Cluster(cluster) => cluster.source.changes(),
        }
    }

    /// What was asked of API servers.
    pub(super) fn calls(&self) -> Calls {
        match &self.from {
            From::Documents(_) => Calls::default(),
            From::Cluster(cluster) => cluster.source.calls(),
        }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match &self.from {
            From::Documents(documents) => documents.words.clone(),
            From::Cluster(cluster) => cluster.source.words(),
        }
    }

    /// The watches at an API server.
    pub(super) fn watches(&self) -> Vec<WatchStatus> {
        match &self.from {
            From::Documents(_) => Vec::new(),
            From::Cluster(cluster) => cluster.source.status(),
        }
    }

    /// What is wrong with the objects or the way to them.
    pub(super) fn problems(&self, severity: Severity) -> Vec<Problem> {
        match &self.from {
            From::Documents(documents) => documents.problems(severity),
            From::Cluster(cluster) => {
                let waiting = (severity == Severity::Error && !cluster.source.is_complete()).then(|| cluster.waiting());
                waiting.into_iter().chain(cluster.source.problems(severity)).collect()
            }
        }
    }
}

impl Cluster {
    fn stale_seconds(&self) -> Option<u64> {
        if self.source.is_complete() {
            return out_of_step(&self.source.status());
        }
        // A clock that was set back makes no age.
        let ago = |saved| snapshot::now().saturating_sub(saved);
        match self.until {
            Until::Nothing => None,
            // At least.
            Until::Tables(None) => Some(self.started.elapsed().as_secs()),
            Until::Tables(Some(saved)) | Until::Snapshot(saved) => Some(ago(saved)),
        }
    }

    fn waiting(&self) -> Problem {
        let (cause, fix) = if matches!(self.until, Until::Snapshot(_)) {
            (
                "what is served is of a snapshot: the cluster's objects have not all been listed since the agent started",
                "see the watches",
            )
        } else {
            (
                "the cluster's objects have not all been listed since the agent started",
                "see the watches; until then the tables stay as they are, and Services are shown as last saved",
            )
        };
        Problem { object: "source".to_owned(), cause: cause.to_owned(), fix: fix.to_owned() }
    }
}

/// For how long one of the watches has followed nothing since it failed. `ServiceCIDR` objects do not count: they hardly ever
/// change, and a role or a cluster may do without them.
fn out_of_step(watches: &[WatchStatus]) -> Option<u64> {
    let is_broken = |watch: &&WatchStatus| {
        !watch.synced && watch.last_error.is_some() && watch.resource != Kind::ServiceCidr.resource()
    };
    let age = |watch: &WatchStatus| watch.last_event_seconds.unwrap_or(u64::MAX).min(watch.since_seconds);
    watches.iter().filter(is_broken).map(age).max()
}

impl Documents {
    async fn open(options: &file_source::Options, model: &mut Model) -> anyhow::Result<Self> {
        let (watch, ticks) = file_source::watch(&options.path)?;
        let words = options.path.display().to_string();
        let loader = Loader::new(options.clone());
        let mut documents = Self {
            words,
            _watch: watch,
            ticks,
            loader,
            findings: Vec::new(),
            changes: Changes::default(),
            error: None,
        };
        documents.loader.start();
        let loaded = documents.loader.finished().await?.context("no documents to begin with")?;
        documents.take(loaded, model);
        Ok(documents)
    }

    async fn next(&mut self, model: &mut Model) -> anyhow::Result<Touched> {
        loop {
            tokio::select! {
                Some(()) = self.ticks.recv() => self.loader.start(),
                loaded = self.loader.finished() => match loaded? {
                    Ok(loaded) => {
                        let touched = Touched::between(model, &loaded.model);
                        self.take(loaded, model);
                        // Whoever writes the same once more wants it looked at.
                        return Ok(if touched == Touched::NOTHING { Touched::All } else { touched });
                    }
                    Err(error) => self.unreadable(&error),
                },
            }
        }
    }

    fn take(&mut self, loaded: file_source::Loaded, model: &mut Model) {
        let Changes { services, slices } = Changes::between(model, &loaded.model);
        self.changes.services += services;
        self.changes.slices += slices;
        *model = loaded.model;
        self.findings = loaded.findings;
        self.error = None;
        for finding in &self.findings {
            tracing::warn!("{finding}");
        }
    }

    /// The last good ones stay.
    fn unreadable(&mut self, error: &LoadError) {
        let problem = Problem {
            object: format!("source {}", self.words),
            cause: error.to_string(),
            fix: "correct it; until then the last good state stays".to_owned(),
        };
        if self.error.as_ref() != Some(&problem) {
            tracing::error!("{error}; the last good state stays");
        }
        self.error = Some(problem);
    }

    fn problems(&self, severity: Severity) -> Vec<Problem> {
        let of = self.findings.iter().filter(|finding| finding.severity == severity).map(Problem::from);
        of.chain(self.error.clone().filter(|_| severity == Severity::Error)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_stale_from_when_a_watch_fails_until_it_follows_again() {
        let watch = |kind: Kind, synced, since_seconds, heard, error: Option<&str>| WatchStatus {
            resource: kind.resource().to_owned(),
            synced,
            since_seconds,
            last_event_seconds: heard,
            last_error: error.map(str::to_owned),
            last_error_seconds: error.map(|_| 1),
        };
        let well = || watch(Kind::Service, true, 900, Some(30), Some("once"));
        for (other, wanted) in [
            (watch(Kind::Node, true, 900, Some(3), None), None),
            // Listed just now, and about to be followed for the first time.
            (watch(Kind::Node, false, 2, Some(0), None), None),
            (watch(Kind::Node, false, 700, Some(730), Some("away")), Some(700)),
            // Only lists come through.
            (watch(Kind::Node, false, 700, Some(20), Some("may not watch")), Some(20)),
            (watch(Kind::Node, false, 700, None, Some("away")), Some(700)),
            (watch(Kind::ServiceCidr, false, 700, None, Some("may not list")), None),
        ] {
            assert_eq!(out_of_step(&[well(), other.clone()]), wanted, "{other:?}");
        }
        let two = [watch(Kind::Node, false, 7, None, Some("away")), watch(Kind::Service, false, 9, None, Some("away"))];
        assert_eq!(out_of_step(&two), Some(9));
    }
}
