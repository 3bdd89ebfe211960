//! `cargo xtask image`: Ballast as a container image, from scratch: the binary and the shared libraries it names.
//!
//! glibc resolves names with what is in libc.so since 2.34 (`files` and `dns`), so that no further library is loaded while
//! it runs; `docs/install.md` says what the image does not have.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{elf, image_name, oci};
use crate::{build, root, toolchain};

#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Name and tag of the image [default: the one that deploy/ runs]
    #[arg(long)]
    name: Option<String>,
    /// The tar to write [default: target/ballast-image.tar]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The debug build, which is faster to make
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    build::object(&toolchain::ensure()?)?;
    let binary = build::host(!options.debug)?;
    let name = options.name.clone().map_or_else(|| image_name(&root::workspace()), Ok)?;
    ensure!(name.contains(':'), "--name {name}: give it a tag, such as {name}:v1");
    let out = options.out.clone().unwrap_or_else(|| root::target().join("ballast-image.tar"));
    let bytes = of(&name, &binary)?;
    fs::write(&out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{name}: {} ({} MiB)", root::display(&out), bytes.len() >> 20);
    println!("into a node's containerd: `ctr -n k8s.io images import {}`", out.display());
    Ok(ExitCode::SUCCESS)
}

/// The tar of the image with this binary.
pub(crate) fn of(name: &str, binary: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut files = oci::Files::default();
    files.file("/ballast", read(binary)?, 0o755);
    for library in elf::libraries(binary)? {
        files.file(&library.display().to_string(), read(&library)?, 0o755);
    }
    // Without it glibc asks for NIS and others first.
    files.file("/etc/nsswitch.conf", b"hosts: files dns\n".to_vec(), 0o644);
    files.file("/etc/passwd", b"root:x:0:0:root:/:/ballast\n".to_vec(), 0o644);
    // Where the manifests mount: with a read-only root nobody could make them.
    for folder in
        ["/etc/ballast", "/var/lib/ballast", "/host/cgroup", "/host/proc/sys/net", "/proc", "/sys", "/dev", "/run"]
    {
        files.directory(folder);
    }
    oci::image(name, &files, oci::Start { entrypoint: &["/ballast"], path: "/", ..oci::Start::default() })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _, process::Command};

    use super::*;

    /// The files of the image's only layer, unpacked into a folder as a runtime does.
    fn unpack(image: &[u8], folder: &Path) -> Result<()> {
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(image).entries()? {
            let mut entry = entry?;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            blobs.insert(entry.path()?.display().to_string(), bytes);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&blobs["manifest.json"])?;
        let layer = manifest[0]["Layers"][0].as_str().context("a layer")?;
        tar::Archive::new(&*blobs[layer]).unpack(folder)?;
        Ok(())
    }

    #[test]
    fn the_binary_starts_with_what_is_in_its_image() {
        // With the tests' own where nobody built the agent; they need the same libraries and more.
        let given = std::env::var_os("BALLAST_BIN").map(PathBuf::from).filter(|path| path.is_file());
        let binary = given.map_or_else(std::env::current_exe, Ok).expect("a binary");
        let image = of("ballast.dev/ballast:test", &binary).expect("an image");
        let folder = tempfile::tempdir().expect("a folder");
        unpack(&image, folder.path()).expect("unpacked");
        let start = |folder: &Path| {
            // Whoever is no root is one in a namespace.
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "chroot"]).arg(folder).args(["/ballast", "--help"]);
            command.output().expect("unshare")
        };
        let started = start(folder.path());
        assert!(started.status.success(), "{started:?}");
        assert!(String::from_utf8_lossy(&started.stdout).contains("Usage"), "{started:?}");
        // And without one of its libraries it does not.
        let libraries = elf::libraries(&binary).expect("its libraries");
        let name = libraries.iter().find(|library| library.display().to_string().contains("libc.so")).expect("libc");
        fs::remove_file(folder.path().join(name.strip_prefix("/").expect("an absolute path"))).expect("removed");
        assert!(!start(folder.path()).status.success(), "{} is not needed", name.display());
    }
}
