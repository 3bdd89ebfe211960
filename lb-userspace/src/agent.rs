//! The agent: one event loop between the source, the network and the maps.

use std::{ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;

use crate::config::Config;

/// What `ballast run` was asked for.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// File, folder, or `-`.
    pub path: PathBuf,
    /// Name of this node.
    pub node: String,
    /// The configuration, already read and checked.
    pub config: Config,
    /// State directory.
    pub state_dir: PathBuf,
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2 whose processes are served; the root of the cgroup2 mount if absent.
    pub cgroup: Option<PathBuf>,
    /// The allocation file, if not the default one.
    pub allocations: Option<PathBuf>,
    /// Service CIDRs.
    pub service_cidrs: Vec<IpNet>,
    /// nodePort range.
    pub node_port_range: RangeInclusive<u16>,
}

/// What `ballast cleanup` was asked for.
#[derive(Clone, Debug)]
pub struct CleanupOptions {
    /// State directory.
    pub state_dir: PathBuf,
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// Runs until SIGTERM or SIGINT. What was pinned stays and keeps forwarding.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    anyhow::bail!("not wired yet: {}", options.path.display())
}

/// Removes everything an agent made and nothing else; says what, one line each.
pub async fn cleanup(options: CleanupOptions) -> anyhow::Result<Vec<String>> {
    anyhow::bail!("not wired yet: {}", options.state_dir.display())
}
