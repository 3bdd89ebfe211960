//! Where the pools are read: `addressPools` of a `BallastConfiguration`, in a file or a `ConfigMap`.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    config,
    events::{Event, Regarding},
    k8s::source::{Api, Kind},
    model::ObjectName,
    pools::{Pools, Reason},
    report::Problem,
};

/// How often it is looked whether they changed. A mounted `ConfigMap` is a link that is replaced, another file system may
/// tell nothing: looking is what works everywhere.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// Where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolSource {
    /// A file.
    File(PathBuf),
    /// A `ConfigMap`.
    ConfigMap(ObjectName),
}

impl fmt::Display for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
        }
    }
}

/// The pools as they were last good, and what is wrong with them now.
#[derive(Debug)]
pub(super) struct Reader {
    source: PoolSource,
    text: Option<String>,
    pub(super) pools: Option<Pools>,
    pub(super) problem: Option<Problem>,
}

impl Reader {
    pub(super) const fn new(source: PoolSource) -> Self {
        Self { source, text: None, pools: None, problem: None }
    }

    /// Looks; whether the pools are others now, or there are none and it is told otherwise why. What is broken changes no
    /// pools.
    pub(super) async fn read(&mut self, api: &Api) -> bool {
        let text = match self.fetch(api).await {
            Ok(text) => text,
            Err(problem) => return self.tell(problem),
        };
        if self.text.as_ref() == Some(&text) && self.problem.is_none() {
            return false;
        }
        match config::parse(&self.source.to_string(), &text) {
            Ok(loaded) => {
                if self.problem.take().is_some() {
                    tracing::info!("address pools in {}: well again", self.source);
                }
                self.text = Some(text);
                let pools = loaded.config.address_pools;
                let changed = self.pools.as_ref() != Some(&pools);
                if changed {
                    let words: Vec<String> = pools.iter().map(ToString::to_string).collect();
                    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
                    tracing::info!("address pools in {}: {words}", self.source);
                }
                self.pools = Some(pools);
                changed
            }
            Err(error) => self.tell(self.problem(&error.to_string(), "correct it")),
        }
    }

    async fn fetch(&self, api: &Api) -> Result<String, Problem> {
        match &self.source {
            PoolSource::File(path) => std::fs::read_to_string(path)
                .map_err(|error| self.problem(&format!("cannot be read: {error}"), "make it a readable file")),
            PoolSource::ConfigMap(name) => {
                let Some(data) = api.config_map(name).await? else {
                    return Err(self.problem("there is no such object", "create it, with addressPools in its data"));
                };
                match data.as_slice() {
                    [(_, text)] => Ok(text.clone()),
                    entries => {
                        let named = entries.iter().find(|(key, _)| key == KEY).map(|(_, text)| text.clone());
                        named.ok_or_else(|| {
                            self.problem(&format!("its data has no {KEY}"), "write a BallastConfiguration there")
                        })
                    }
                }
            }
        }
    }

    fn problem(&self, cause: &str, fix: &str) -> Problem {
        let stays =
            if self.pools.is_some() { "the last good pools stay in use" } else { "no address is given until then" };
        Problem {
            object: format!("address pools in {}", self.source),
            cause: format!("{cause}: {stays}"),
            fix: fix.to_owned(),
        }
    }

    fn tell(&mut self, problem: Problem) -> bool {
        let is_new = self.problem.as_ref() != Some(&problem);
        if is_new {
            tracing::error!("{}: {} ({})", problem.object, problem.cause, problem.fix);
        }
        self.problem = Some(problem);
        is_new && self.pools.is_none()
    }

    /// What is wrong with a `ConfigMap`, for those who look at it.
    pub(super) fn event(&self) -> Option<Event> {
        let (PoolSource::ConfigMap(name), Some(problem)) = (&self.source, &self.problem) else { return None };
        Some(Event {
            regarding: Regarding { kind: Kind::ConfigMap, name: name.clone() },
            reason: Reason::InvalidPools.word(),
            note: format!("{} ({})", problem.cause, problem.fix),
            of_node: false,
            varies: false,
        })
    }
}

/// Key of a `ConfigMap` that has several.
const KEY: &str = "config.yaml";
