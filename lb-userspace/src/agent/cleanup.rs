//! `ballast cleanup`: everything an agent made goes, nothing else.

use std::{fs, io, path::Path};

use anyhow::{Context as _, anyhow};

use super::CleanupOptions;
use crate::{
    bpf::Pins,
    lock::InstanceLock,
    net::{Netlink, host_device, reserved_ports},
};

/// Files of ours in the state directory. Allocations are shared by all nodes of a folder and stay.
const FILES: [&str; 9] = [
    "ids.json",
    "ids.json.new",
    "api-servers.json",
    "api-servers.json.new",
    "snapshot",
    "snapshot.new",
    "snapshot.previous",
    "control.sock",
    "lock",
];

/// Removes everything an agent made and nothing else; says what, one line each.
pub async fn cleanup(options: CleanupOptions) -> anyhow::Result<Vec<String>> {
    let CleanupOptions { state_dir, bpffs, cgroup: _, proc_sys_net, dry_run } = options;
    // A running agent would make it all again, whichever state directory it has.
    let _lock = if state_dir.is_dir() { Some(InstanceLock::take(&state_dir)?) } else { None };
    let _pins = InstanceLock::take_existing_pins(&bpffs)?;
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut lines = Vec::new();
    let removed =
        Pins::new(&bpffs).remove(dry_run).with_context(|| format!("cannot remove the pins in {}", bpffs.display()))?;
    lines.extend(removed.iter().map(|path| format!("{verb} {}", path.display())));
    let netlink = Netlink::open().context("cannot speak to the kernel")?;
    let found = if dry_run { host_device::exists(&netlink).await } else { host_device::remove(&netlink).await };
    if found.map_err(|error| anyhow!("{error}; run this as root of the agent's network namespace"))? {
        lines.push(format!("{verb} device {} with its routes", host_device::NAME));
    }
    if reserved_ports::restore(&proc_sys_net, &state_dir, dry_run)
        .context("cannot restore net.ipv4.ip_local_reserved_ports")?
    {
        lines.push(format!("{verb} our ports from net.ipv4.ip_local_reserved_ports"));
    }
    for file in FILES {
        let path = state_dir.join(file);
        // The lock is ours while we run; it alone is no trace of an agent.
        if path.exists() && !(dry_run && file == "lock") {
            if !dry_run {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            lines.push(format!("{verb} {}", path.display()));
        }
    }
    if !dry_run && is_empty(&state_dir)? {
        fs::remove_dir(&state_dir).with_context(|| format!("cannot remove {}", state_dir.display()))?;
        lines.push(format!("{verb} {}", state_dir.display()));
    }
    if lines.is_empty() {
        lines.push("nothing of Ballast is here".to_owned());
    }
    Ok(lines)
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
