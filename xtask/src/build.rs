//! Building: the BPF object, then the host binary that embeds it.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{root, step, toolchain::Toolchain};

/// Whether the programs log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// As released.
    Off,
    /// A debug build.
    On,
}

/// Builds the BPF object as released.
pub(crate) fn object(toolchain: &Toolchain) -> Result<()> {
    object_with(toolchain, Log::Off)
}

/// Builds the BPF object. Cargo leaves it alone when nothing changed, so the binary is not rebuilt either.
pub(crate) fn object_with(toolchain: &Toolchain, log: Log) -> Result<()> {
    let mut command = toolchain.cargo("build");
    if log == Log::On {
        command.args(["--features", "log"]);
    }
    step::must("build the BPF object", &mut command)?;
    let object = root::bpf_object();
    if !object.is_file() {
        bail!("the BPF build succeeded but left no {}", object.display());
    }
    Ok(())
}

/// Builds `ballast` as released and returns where it is.
pub(crate) fn host(release: bool) -> Result<PathBuf> {
    host_with(release, Log::Off)
}

/// Builds `ballast` and returns where it is.
pub(crate) fn host_with(release: bool, log: Log) -> Result<PathBuf> {
    let mut command = step::cargo();
    command.args(["build", "-p", "lb-userspace", "--bin", "ballast"]);
    if log == Log::On {
        command.args(["--features", "bpf-log"]);
    }
    let profile = if release { "release" } else { "debug" };
    if release {
        command.arg("--release");
    }
    step::must(&format!("build ballast ({profile})"), &mut command)?;
    Ok(root::target().join(profile).join("ballast"))
}
