//! Puts the BPF object where the agent embeds it from: `OUT_DIR/lb-ebpf.o`.
//!
//! The object is built by another toolchain (`cargo xtask build`), so it may be missing when somebody only runs
//! `cargo check`. Then an empty file takes its place and the agent says at run time what to do.

use std::{env, fs, path::PathBuf, process::ExitCode};

const OVERRIDE: &str = "BALLAST_BPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let (Some(out), Some(manifest)) = (env::var_os("OUT_DIR"), env::var_os("CARGO_MANIFEST_DIR")) else {
        eprintln!("OUT_DIR and CARGO_MANIFEST_DIR are not set: run this through cargo");
        return ExitCode::FAILURE;
    };
    let object = env::var_os(OVERRIDE)
        .map_or_else(|| PathBuf::from(manifest).join("../target/bpf/bpfel-unknown-none/bpf/lb-ebpf"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        println!("cargo::warning=no BPF object at {} ({error}): run `cargo xtask build`", object.display());
        Vec::new()
    });
    let copy = PathBuf::from(out).join("lb-ebpf.o");
    if let Err(error) = fs::write(&copy, bytes) {
        eprintln!("cannot write {}: {error}", copy.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
