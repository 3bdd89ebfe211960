//! `ballast check`: whether this machine can serve, and what stands in the way. Everything is tried or read; nothing is
//! changed, and nothing that was made to try something outlives the command.

mod kernel;
mod machine;
mod others;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{bpf::chain, config::Config, net};

/// What `ballast check` was asked for.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2, if not the root of its mount.
    pub cgroup: Option<PathBuf>,
    /// The configuration an agent would have.
    pub config: Config,
}

/// How bad a finding is. The order is from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something is missing or worth a look; an agent serves without it.
    Warning,
    /// An agent would not start, or would not serve.
    Problem,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// `kernel`, `mounts`, `settings`, `rights` or `others`.
    pub group: String,
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub object: String,
    /// What was found.
    pub found: String,
    /// What to do; absent where nothing is to be done.
    pub fix: Option<String>,
}

/// What was found, in the order it was looked at.
#[derive(Debug, Default)]
struct Findings {
    group: &'static str,
    all: Vec<Found>,
}

impl Findings {
    fn ok(&mut self, object: impl Into<String>, found: impl Into<String>) {
        self.add(Level::Ok, object, found, None);
    }

    fn warn(&mut self, object: impl Into<String>, found: impl Into<String>, fix: &str) {
        self.add(Level::Warning, object, found, Some(fix));
    }

    fn problem(&mut self, object: impl Into<String>, found: impl Into<String>, fix: &str) {
        self.add(Level::Problem, object, found, Some(fix));
    }

    /// What could not be looked at is no problem yet, and not nothing either.
    fn unseen(&mut self, object: impl Into<String>, error: &(dyn std::error::Error + 'static)) {
        self.warn(object, format!("could not look: {}", chain(error)), "run `ballast check` as root");
    }

    fn add(&mut self, level: Level, object: impl Into<String>, found: impl Into<String>, fix: Option<&str>) {
        let fix = fix.map(str::to_owned);
        let (object, found) = (object.into(), found.into());
        self.all.push(Found { group: self.group.to_owned(), level, object, found, fix });
    }
}

/// Looks at everything.
pub async fn check(options: &CheckOptions) -> Vec<Found> {
    let mut findings = Findings::default();
    let cgroup = match &options.cgroup {
        Some(path) => Ok(path.clone()),
        None => net::cgroup2_root(),
    };
    findings.group = "rights";
    machine::rights(&mut findings);
    findings.group = "mounts";
    machine::mounts(&mut findings, &options.bpffs, &cgroup);
    findings.group = "kernel";
    kernel::features(&mut findings, cgroup.as_deref().ok().filter(|_| options.config.socket_hooks));
    findings.group = "others";
    let uplinks = others::devices(&mut findings, &options.config).await;
    others::kube_proxy(&mut findings).await;
    findings.group = "settings";
    machine::settings(&mut findings, &options.config, &uplinks);
    findings.all
}
