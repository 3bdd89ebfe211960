//! `cargo xtask fuzz`: the fuzz targets, each for a while or for a number of inputs, from the committed seeds on.
//!
//! They are built by the host's own toolchain, without a sanitizer: see docs/decisions/0007-fuzzing.md.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    report::Tally,
    root,
    step::{self, Mark},
    tools,
};

const CARGO_FUZZ: &str = "0.13.2";

/// Most memory a target may take, in MiB: what an input makes it take counts as a finding.
const MEMORY: u32 = 1024;
/// Longest time one input may take, in seconds.
const PATIENCE: u32 = 10;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only this target: a file of `fuzz/fuzz_targets`
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, conflicts_with = "runs")]
    seconds: u32,
    /// Run each target for so many inputs instead, always the same ones
    #[arg(long)]
    runs: Option<u32>,
    /// Watch memory with the address sanitizer: a third of the speed, and the toolchain must bring its library
    #[arg(long)]
    address_sanitizer: bool,
}

/// Builds the targets and runs them one after the other; each is one count.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let known = targets(&folder().join("fuzz_targets"))?;
    let wanted = match &options.target {
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => bail!("no fuzz target is named {name}: targets are {}", known.join(", ")),
        None => known,
    };
    ensure_cargo_fuzz()?;
    step::must("build the fuzz targets", cargo_fuzz("build", options).arg("--release"))?;
    let mut tally = Tally::default();
    for target in wanted {
        one(&mut tally, &target, options)?;
    }
    Ok(tally)
}

fn one(tally: &mut Tally, target: &str, options: &Options) -> Result<()> {
    let scratch = Scratch::new(target)?;
    // libFuzzer adds to the first folder it is given. What a timed run learns stays for the next one, beside the seeds and
    // out of the repository; a counted one begins with the seeds alone.
    let found = match options.runs {
        None => folder().join("found").join(target),
        Some(_) => scratch.0.join("found"),
    };
    let artifacts = folder().join("artifacts").join(target);
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let before = files(&artifacts)?;
    let mut command = cargo_fuzz("run", options);
    command
        .args(["--release", target])
        .arg(&found)
        .arg(folder().join("corpus").join(target))
        .arg("--")
        .args(limits(options));
    command.env("TMPDIR", &scratch.0);
    let name = format!("fuzz {target}");
    let outcome = step::run(&name, &mut command)?;
    if let Some(line) = last_status(&outcome.lines) {
        println!("      {line}");
    }
    if outcome.ok {
        tally.pass();
        return Ok(());
    }
    let new: Vec<String> =
        files(&artifacts)?.into_iter().filter(|file| !before.contains(file)).map(|file| root::display(&file)).collect();
    let mend = if new.is_empty() {
        "see its output".to_owned()
    } else {
        format!("{}: copy it to fuzz/corpus/{target}, where tests run it, and mend the code", new.join(", "))
    };
    step::print_line(Mark::Note, &mend, None);
    tally.fail(&name, &mend);
    Ok(())
}

/// What libFuzzer is told.
fn limits(options: &Options) -> Vec<String> {
    let length = options.runs.map_or_else(
        || vec![format!("-max_total_time={}", options.seconds)],
        // One seed and no clock: the same inputs every time.
        |runs| vec![format!("-runs={runs}"), "-seed=1".to_owned()],
    );
    let limits = [format!("-rss_limit_mb={MEMORY}"), format!("-timeout={PATIENCE}"), "-print_final_stats=1".to_owned()];
    length.into_iter().chain(limits).collect()
}

/// `cargo fuzz VERB` with the flags of a build.
fn cargo_fuzz(verb: &str, options: &Options) -> Command {
    let mut command = step::cargo();
    command.env("PATH", tools::path_with_cargo_bin()).env_remove("CARGO_TARGET_DIR");
    // The targets need no programs: without the object they need not be built again when it changes.
    command.env("BALLAST_BPF_OBJECT", "/dev/null");
    command.args(["fuzz", verb, "--fuzz-dir"]).arg(folder()).arg("--sanitizer");
    if options.address_sanitizer {
        // The flag is unstable, the library is part of stable toolchains.
        command.arg("address").env("RUSTC_BOOTSTRAP", "1");
    } else {
        command.arg("none");
    }
    command
}

fn ensure_cargo_fuzz() -> Result<()> {
    if tools::find("cargo-fuzz").is_some() {
        return Ok(());
    }
    let arguments = ["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked"];
    let command = format!("cargo {}", arguments.join(" "));
    if !tools::is_root() {
        bail!("cargo-fuzz is missing: `{command}`");
    }
    if tools::find("c++").is_none() {
        tools::apt_install("libFuzzer", &["g++"])?;
    }
    let mut install = step::cargo();
    install.args(arguments).env_remove("CARGO_TARGET_DIR").current_dir("/");
    step::must(&format!("install cargo-fuzz {CARGO_FUZZ}, once"), &mut install)?;
    Ok(())
}

fn folder() -> PathBuf {
    root::workspace().join("fuzz")
}

/// The names of the targets, in order.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let name = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = files(folder)?.iter().filter_map(name).collect();
    names.sort();
    Ok(names)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot read {}", folder.display());
    fs::read_dir(folder).with_context(failed)?.map(|entry| Ok(entry.with_context(failed)?.path())).collect()
}

/// libFuzzer's last word on how far it came: executions, edges covered, speed.
fn last_status(lines: &[String]) -> Option<&str> {
    lines.iter().rev().map(String::as_str).find(|line| line.starts_with('#') && line.contains(" cov: "))
}

/// A folder for what a target writes, in memory where that is possible; a target that crashes cannot clean up.
struct Scratch(PathBuf);

impl Scratch {
    fn new(target: &str) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let path = base.join(format!("ballast-fuzz-{target}-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(runs: Option<u32>) -> Options {
        Options { target: None, seconds: 5, runs, address_sanitizer: false }
    }

    #[test]
    fn a_count_is_seeded_and_a_time_is_not() {
        let timed = limits(&options(None)).join(" ");
        assert!(timed.contains("-max_total_time=5") && !timed.contains("-seed"), "{timed}");
        let counted = limits(&options(Some(9))).join(" ");
        assert!(counted.contains("-runs=9 -seed=1") && !counted.contains("-max_total_time"), "{counted}");
    }

    #[test]
    fn the_last_status_is_the_one_that_counts() {
        let lines = ["#2 INITED cov: 9 ft: 9", "#8 DONE   cov: 12 ft: 15", "Done 8 runs"].map(str::to_owned);
        assert_eq!(last_status(&lines), Some("#8 DONE   cov: 12 ft: 15"));
    }

    #[test]
    fn targets_are_the_programs_in_the_folder() {
        let names = targets(&folder().join("fuzz_targets")).unwrap();
        assert!(names.iter().any(|name| name == "packet"), "{names:?}");
    }
}
