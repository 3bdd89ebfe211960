//! What makes the zone follow the objects.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

use super::{
    Options, SourceOptions,
    worker::Worker,
    zone::{self, Zone},
    zones::Zones,
};
use crate::{
    convert::Severity,
    file_source::{self, Changes, Finding, Source},
    k8s::source::{self, Access, Calls, Timing},
    memory,
    model::{Model, Touched},
    report::Problem,
};

/// What makes the zone follow the objects.
pub(super) enum Feed {
    Documents(Box<Documents>),
    Cluster(Box<source::Source>),
}

pub(super) struct Documents {
    source: Source,
    changes: Changes,
    path: String,
}

impl Feed {
    pub(super) async fn open(options: &Options) -> anyhow::Result<Self> {
        Ok(match &options.source {
            SourceOptions::Documents(documents) => Self::Documents(Box::new(Documents::open(documents)?)),
            SourceOptions::Cluster(access) => {
                let pods = options.zone.pods == zone::Pods::Verified;
                let source = source::Source::start_names(access.clone(), Timing::default(), pods).await?;
                Self::Cluster(Box::new(source))
            }
        })
    }

    pub(super) fn calls(&self) -> Calls {
        match self {
            Self::Documents(_) => Calls::default(),
            Self::Cluster(source) => source.calls(),
        }
    }

    pub(super) async fn run(self, zones: &Zones, options: &zone::Options, words: &str) -> anyhow::Result<()> {
        match self {
            Self::Documents(documents) => documents.run(zones, options, words).await,
            Self::Cluster(source) => follow_cluster(*source, zones, options, words, |_| {}).await,
        }
    }
}

/// `tell` is told the source after each change of it.
async fn follow_cluster(
    mut source: source::Source,
    zones: &Zones,
    options: &zone::Options,
    words: &str,
    tell: impl Fn(&source::Source),
) -> ! {
    let mut model = Model::default();
    tracing::info!("the names are those of {}", source.words());
    loop {
        let touched = source.changed(&mut model).await;
        tell(&source);
        if touched == Touched::NOTHING || !source.is_complete() {
            continue;
        }
        if !zones.follow(&model, &touched) {
            zones.set(Zone::new(&model, options.clone()));
            tracing::info!("{words}: {} Services of {}", model.services.len(), source.words());
            memory::give_back();
        }
    }
}

/// Makes a zone follow a cluster beside whatever else the process does; it ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    problems: Arc<Mutex<Vec<Problem>>>,
    _worker: Worker,
}

impl Follower {
    /// Begins to watch all Services, slices and Namespaces.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub fn start(access: Access, zones: Arc<Zones>, options: zone::Options, words: String) -> anyhow::Result<Self> {
        let problems = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&problems);
        let begin = async move || {
            let pods = options.pods == zone::Pods::Verified;
            let source = source::Source::start_names(access, Timing::default(), pods).await?;
            Ok(async move {
                let tell = |source: &source::Source| {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = source.problems(Severity::Error);
                };
                follow_cluster(source, &zones, &options, &words, tell).await
            })
        };
        Ok(Self { problems, _worker: Worker::start("dns-names", begin)? })
    }

    /// What is wrong with objects and watches.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Documents {
    fn open(options: &file_source::Options) -> anyhow::Result<Self> {
        let (changes, source) = (Changes::of(options)?, Source::new(options.clone()));
        Ok(Self { source, changes, path: options.path.display().to_string() })
    }

    async fn run(self, zones: &Zones, options: &zone::Options, words: &str) -> anyhow::Result<()> {
        let Self { mut source, mut changes, path } = self;
        let mut shown: Vec<Finding> = Vec::new();
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let loaded = source.reload();
                (source, loaded)
            });
            let (back, loaded) = read.await.context("reading the documents failed; please file a bug")?;
            source = back;
            let first = !zones.is_set();
            match loaded {
                Ok(loaded) => {
                    tell(&loaded, &mut shown);
                    if !zones.follow(&loaded.model, &Touched::All) {
                        zones.set(Zone::new(&loaded.model, options.clone()));
                        tracing::info!("{words}");
                        memory::give_back();
                    }
                }
                Err(error) if first => return Err(error).context("no documents to begin with"),
                Err(error) => tracing::error!("{error}; the last good state stays"),
            }
            if changes.next().await.is_none() {
                anyhow::bail!("the watch of {path} ended");
            }
        }
    }
}

/// Each finding once: also where lines that came or went in front of it have moved it.
fn tell(loaded: &file_source::Loaded, shown: &mut Vec<Finding>) {
    for finding in loaded.findings.iter().filter(|finding| !shown.iter().any(|old| finding.is_again(old))) {
        if finding.severity == Severity::Error { tracing::error!("{finding}") } else { tracing::warn!("{finding}") }
    }
    shown.clone_from(&loaded.findings);
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
