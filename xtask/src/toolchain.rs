//! The toolchain that builds the BPF object: the sources of `core` and a bpf-linker that reads its bitcode.
//!
//! Way 1 is a rustup nightly with rust-src, way 2 Debian's rustc-web; the first that is whole is used and named. See
//! docs/decisions/0001-toolchain.md.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    root,
    step::{self, Mark},
    tools,
};

const BPF_LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Debian's packages for way 2: the compiler and the sources of `core`.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// Debian's packages that building bpf-linker needs, beside a C compiler for its link step.
const LINKER_PACKAGES: &[&str] =
    &["llvm-22-dev", "clang-22", "libpolly-22-dev", "gcc", "libc6-dev", "zlib1g-dev", "libzstd-dev"];
/// Lints for the BPF crate with way 2.
const CLIPPY_PACKAGE: &str = "rust-web-clippy";

/// What the linker is told. The datapath reads addresses at any offset: without misaligned access each `[u8; 4]` to
/// `u32` is four loads and six shifts; the kernel's verifier lets them through on the machines we run on.
const RUSTFLAGS: &[&str] = &[
    "-Cdebuginfo=2",
    "-Ctarget-cpu=v3",
    "-Clink-arg=--btf",
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// A toolchain that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// Way 1: the rustup toolchain of that name.
    Rustup { cargo: PathBuf },
    /// Way 2: Debian's packages under /usr/bin.
    Debian,
}

impl Toolchain {
    /// One line for the log.
    fn describe(&self) -> String {
        match self {
            Self::Rustup { .. } => "way 1, rustup nightly with rust-src".to_owned(),
            Self::Debian => "way 2, Debian's rustc-web with rust-web-src".to_owned(),
        }
    }

    /// Whether clippy can look at the BPF crate with this toolchain.
    pub(crate) fn clippy(&self) -> Option<PathBuf> {
        let driver = match self {
            Self::Rustup { cargo } => cargo.with_file_name("cargo-clippy"),
            Self::Debian => PathBuf::from("/usr/bin/cargo-clippy"),
        };
        driver.is_file().then_some(driver)
    }

    /// `cargo VERB` for the BPF crate, with everything set but the verb's own flags.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let program = match self {
            Self::Rustup { cargo } => cargo.clone(),
            Self::Debian => PathBuf::from("/usr/bin/cargo"),
        };
        let mut command = Command::new(&program);
        step::clean(&mut command);
        // The host's toolchain must not leak in: rustup and `cargo run` set all of these for their children.
        for name in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC", "RUSTC_WRAPPER", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        let rustc = program.with_file_name("rustc");
        command
            .current_dir(root::workspace())
            .env("PATH", path_behind(&program))
            .env("RUSTC", rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
            // Compiled in pieces the programs become others, which the verifier refuses (a misaligned stack access).
            .env("CARGO_INCREMENTAL", "0")
            .args([verb, "--profile", "bpf", "-p", "lb-ebpf", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .arg("--target-dir")
            .arg(root::bpf_target());
        command
    }
}

/// PATH with the toolchain's own folder first (cargo looks its subcommands' drivers up there) and cargo's bin folder
/// next, for bpf-linker.
fn path_behind(program: &Path) -> std::ffi::OsString {
    let rest = tools::path_with_cargo_bin();
    let folders = program.parent().map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&rest));
    std::env::join_paths(folders).unwrap_or_else(|_| rest.clone())
}

/// Finds way 1 whole or makes way 2 whole, and prints which one it is.
pub(crate) fn ensure() -> Result<Toolchain> {
    let toolchain = match way_1() {
        Some(toolchain) => toolchain,
        None => way_2()?,
    };
    step::print_line(Mark::Note, &format!("BPF toolchain: {}", toolchain.describe()), None);
    Ok(toolchain)
}

/// The rustup nightly, when it has rust-src and the installed bpf-linker reads what it writes.
fn way_1() -> Option<Toolchain> {
    let rustup = tools::find("rustup")?;
    let mut which = Command::new(rustup);
    which.args(["which", "--toolchain", "nightly", "cargo"]);
    step::clean(&mut which);
    let cargo = PathBuf::from(step::ask(&mut which)?.trim());
    let sysroot = cargo.parent()?.parent()?;
    let whole =
        sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() && links(&cargo.with_file_name("rustc"));
    whole.then_some(Toolchain::Rustup { cargo })
}

/// Debian's packages and bpf-linker, installed where they are missing.
fn way_2() -> Result<Toolchain> {
    let mut missing: Vec<&str> =
        COMPILER_PACKAGES.iter().copied().filter(|package| !tools::has_package(package)).collect();
    let linker = has_linker();
    if !linker {
        missing.extend(LINKER_PACKAGES.iter().copied().filter(|package| !tools::has_package(package)));
    }
    tools::apt_install("the BPF object (way 2; way 1 is `rustup toolchain install nightly -c rust-src`)", &missing)?;
    if !linker {
        install_linker()?;
    }
    let rustc = Path::new("/usr/bin/rustc");
    if !links(rustc) {
        bail!(
            "bpf-linker cannot read what {} writes: it was built for another LLVM; reinstall it with `{}`",
            rustc.display(),
            linker_command_line()
        );
    }
    Ok(Toolchain::Debian)
}

/// clippy for way 2, when it may be installed. Without it the BPF crate is built with rustc's lints only.
pub(crate) fn ensure_clippy(toolchain: &Toolchain) -> Result<()> {
    if *toolchain == Toolchain::Debian && toolchain.clippy().is_none() {
        tools::apt_install("clippy on the BPF crate", &[CLIPPY_PACKAGE])?;
    }
    Ok(())
}

fn has_linker() -> bool {
    let Some(linker) = tools::find("bpf-linker") else { return false };
    step::ask(Command::new(linker).arg("--version")).is_some_and(|text| is_wanted_linker(&text))
}

fn is_wanted_linker(version: &str) -> bool {
    version.split_whitespace().last() == Some(BPF_LINKER)
}

fn linker_arguments() -> [&'static str; 8] {
    ["install", "bpf-linker", "--version", BPF_LINKER, "--no-default-features", "--features", "llvm-22", "--locked"]
}

fn linker_command_line() -> String {
    format!("LLVM_PREFIX={LLVM_PREFIX} cargo {} --force", linker_arguments().join(" "))
}

fn install_linker() -> Result<()> {
    let mut command = step::cargo();
    command.env("LLVM_PREFIX", LLVM_PREFIX).args(linker_arguments()).arg("--force");
    // Outside the workspace, whose target folder is no place for another project's build.
    command.env_remove("CARGO_TARGET_DIR").current_dir("/");
    step::must(&format!("install bpf-linker {BPF_LINKER}"), &mut command)?;
    Ok(())
}

/// Whether bpf-linker reads the bitcode of this rustc and knows the features we ask of it. The question is put to
/// the programs themselves, on an empty crate: version numbers say little about whose LLVM was linked in.
fn links(rustc: &Path) -> bool {
    let Some(linker) = tools::find("bpf-linker") else { return false };
    probe(rustc, &linker).unwrap_or(false)
}

fn probe(rustc: &Path, linker: &Path) -> Result<bool> {
    let folder = root::target().join("bpf-probe");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (source, bitcode) = (folder.join("empty.rs"), folder.join("empty.bc"));
    std::fs::write(&source, "#![feature(no_core)]\n#![no_core]\n#![crate_type = \"lib\"]\n")
        .with_context(|| format!("cannot write {}", source.display()))?;
    let mut compile = Command::new(rustc);
    compile.env("RUSTC_BOOTSTRAP", "1").env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN");
    compile.args(["--target", "bpfel-unknown-none", "--emit=llvm-bc", "-o"]).arg(&bitcode).arg(&source);
    let mut link = Command::new(linker);
    link.args(["--cpu", "v3", "--cpu-features=+allows-misaligned-mem-access", "--btf", "-o"]);
    link.arg(folder.join("empty.o")).arg(&bitcode);
    Ok(step::ask(&mut compile).is_some() && step::ask(&mut link).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the command sets a variable to; "(removed)" when it takes it away.
    fn environment(command: &Command, name: &str) -> String {
        let set = command.get_envs().find(|(key, _)| *key == name).map(|(_, value)| value);
        set.map_or_else(
            || "(inherited)".to_owned(),
            |value| value.map_or_else(|| "(removed)".to_owned(), |value| value.to_string_lossy().into_owned()),
        )
    }

    #[test]
    fn another_linker_version_is_not_taken() {
        assert!(is_wanted_linker("bpf-linker 0.13.0\n"));
        assert!(!is_wanted_linker("bpf-linker 0.10.3\n"));
    }

    #[test]
    fn the_hosts_toolchain_does_not_leak_into_the_bpf_build() {
        let command = Toolchain::Debian.cargo("build");
        assert_eq!(command.get_program(), "/usr/bin/cargo");
        assert_eq!(environment(&command, "RUSTC"), "/usr/bin/rustc");
        assert_eq!(environment(&command, "RUSTUP_TOOLCHAIN"), "(removed)");
        assert_eq!(environment(&command, "LD_LIBRARY_PATH"), "(removed)");
    }

    #[test]
    fn addresses_are_loaded_whole() {
        let flags = RUSTFLAGS.join(" ");
        assert!(flags.contains("allows-misaligned-mem-access") && flags.contains("target-cpu=v3"));
    }
}
