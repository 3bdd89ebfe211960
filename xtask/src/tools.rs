//! Programs that come from outside: found on PATH, installed by apt or `cargo install`, or named.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::step;

/// Programs the tests call, with the Debian package of each.
pub(crate) const TEST_TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
    ("dig", "bind9-dnsutils"),
    ("faketime", "faketime"),
    ("systemd-nspawn", "systemd-container"),
];

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The first program of that name on PATH, in cargo's bin folder or in the system's sbin.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo_bin())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    Some(home.join("bin"))
}

/// PATH with cargo's bin folder in front, so that rustc finds the linker installed there.
pub(crate) fn path_with_cargo_bin() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = cargo_bin().into_iter().chain(std::env::split_paths(&path).collect::<Vec<_>>());
    std::env::join_paths(folders).unwrap_or(path)
}

/// Whether dpkg says that the package is installed.
pub(crate) fn has_package(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status}", name]);
    step::ask(&mut query).is_some_and(|status| status == "installed")
}

/// Installs Debian packages, or says which command would.
pub(crate) fn apt_install(why: &str, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let command = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
    if find("apt-get").is_none() {
        bail!("{why} needs {list}, and this machine has no apt; on Debian: `{command}`");
    }
    if !is_root() {
        bail!("{why} needs {list}, and only root may install it: `sudo sh -c '{command}'`");
    }
    step::must("apt-get update", apt().arg("update"))?;
    step::must(
        &format!("apt-get install {list}"),
        apt().args(["install", "-y", "--no-install-recommends"]).args(packages),
    )?;
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    command
}

/// Makes sure of the programs the tests call.
pub(crate) fn ensure_test_tools() -> Result<()> {
    let missing: Vec<&str> =
        TEST_TOOLS.iter().filter(|(program, _)| find(program).is_none()).map(|&(_, package)| package).collect();
    apt_install("the network tests", &missing)
}
