//! What a process takes.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::Context as _;

/// CPU time so far, and memory now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// In user and kernel mode.
    pub(crate) cpu: Duration,
    /// Bytes of anonymous memory, which is the process's own.
    pub(crate) anonymous: u64,
    /// Bytes of all resident memory, that of its file included.
    pub(crate) resident: u64,
    /// Bytes of the BPF maps it holds.
    pub(crate) maps: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        let kilobytes = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            let number = line.split_whitespace().next().with_context(|| format!("{name} is empty"))?;
            Ok(number.parse::<u64>()? * 1024)
        };
        let stat = read("stat")?;
        // Behind the name, which may have spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("no CPU time");
        let ticks = ticks(11)? + ticks(12)?;
        let cpu = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1));
        Ok(Self { cpu, anonymous: kilobytes("RssAnon:")?, resident: kilobytes("VmRSS:")?, maps: maps(pid)? })
    }
}

/// What the kernel charges for the maps that a process has open.
fn maps(pid: u32) -> anyhow::Result<u64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(size)) = (field("map_id:"), field("memlock:"))
            && seen.insert(id)
        {
            bytes += size;
        }
    }
    Ok(bytes)
}
