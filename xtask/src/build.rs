//! Building: the BPF object, then the host binary that embeds it.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{root, step, toolchain::Toolchain};

/// Builds the BPF object. Cargo leaves it alone when nothing changed, so the binary is not rebuilt either.
pub(crate) fn object(toolchain: &Toolchain) -> Result<()> {
    step::must("build the BPF object", &mut toolchain.cargo("build"))?;
    let object = root::bpf_object();
    if !object.is_file() {
        bail!("the BPF build succeeded but left no {}", object.display());
    }
    Ok(())
}

/// Builds `ballast` and returns where it is.
pub(crate) fn host(release: bool) -> Result<PathBuf> {
    let mut command = step::cargo();
    command.args(["build", "-p", "lb-userspace", "--bin", "ballast"]);
    let profile = if release { "release" } else { "debug" };
    if release {
        command.arg("--release");
    }
    step::must(&format!("build ballast ({profile})"), &mut command)?;
    Ok(root::target().join(profile).join("ballast"))
}
