//! `cargo xtask check`: formatting, lints, house rules, licences, spelling.

use std::{collections::BTreeSet, path::Path, process::Command, time::Instant};

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    report::{Skip, Tally},
    root,
    step::{self, Mark},
    suites,
    tidy::{self, Severity},
    toolchain, tools,
};

const CARGO_DENY: &str = "0.20.2";
const TYPOS: &str = "1.52.0";

/// The crates clippy looks at on the host.
const HOST_CRATES: &[(&str, &str)] =
    &[("lb-common", "lb-common"), ("lb-userspace", "lb-userspace"), ("tests", "lb-tests"), ("xtask", "xtask")];

#[derive(Args, Debug, Default, Clone, Copy)]
pub(crate) struct Options {
    /// fmt, clippy on the crates that git says changed, tidy, lb-common's tests
    #[arg(long)]
    fast: bool,
    /// Also ask the `RustSec` database for advisories
    #[arg(long)]
    online: bool,
}

/// Runs the checks and returns the counts; each step is one.
pub(crate) fn run(options: Options) -> Result<Tally> {
    let mut tally = Tally::default();
    count(&mut tally, "fmt", step::cargo().args(["fmt", "--all", "--check"]), "run `cargo fmt --all`")?;
    if options.fast {
        let changed = changed_crates();
        if !changed.is_empty() {
            clippy(&mut tally, &changed)?;
        }
        tally.add(&tidy());
        suites::fast(&mut tally)?;
        return Ok(tally);
    }
    tally.add(&tidy());
    bpf(&mut tally)?;
    clippy(&mut tally, &HOST_CRATES.iter().map(|&(_, package)| package).collect::<Vec<_>>())?;
    deny(&mut tally, options.online)?;
    typos(&mut tally)?;
    Ok(tally)
}

/// The house rules as one step.
pub(crate) fn tidy() -> Tally {
    let mut tally = Tally::default();
    let started = Instant::now();
    match tidy::findings(&root::workspace()) {
        Ok(findings) => {
            let broken = findings.iter().any(|finding| finding.severity == Severity::Error);
            step::print_line(if broken { Mark::Failed } else { Mark::Ok }, "tidy", Some(started.elapsed()));
            for finding in &findings {
                println!("    {finding}");
            }
            if broken { tally.fail("tidy", "see the findings above") } else { tally.pass() }
        }
        Err(error) => {
            step::print_line(Mark::Failed, "tidy", Some(started.elapsed()));
            tally.fail("tidy", &format!("{error:#}"));
        }
    }
    tally
}

/// The BPF crate: it must build, and clippy must be content where the toolchain has it.
fn bpf(tally: &mut Tally) -> Result<()> {
    let toolchain = match toolchain::ensure() {
        Ok(toolchain) => toolchain,
        Err(error) => {
            tally.skip(Skip::Environment, "BPF object", &format!("{error:#}"));
            return Ok(());
        }
    };
    match build::object(&toolchain) {
        Ok(()) => tally.pass(),
        Err(error) => tally.fail("BPF object", &format!("{error:#}")),
    }
    let installed = toolchain::ensure_clippy(&toolchain);
    let name = "clippy lb-ebpf, with the BPF toolchain";
    match (installed, toolchain.clippy()) {
        (Ok(()), Some(_)) => count(
            tally,
            name,
            toolchain.cargo("clippy").args(["--", "-D", "warnings"]),
            "mend what clippy says, or expect it with a reason",
        ),
        (Err(error), _) => {
            step::print_line(Mark::Skipped, name, None);
            tally.skip(Skip::Environment, name, &format!("{error:#}"));
            Ok(())
        }
        (Ok(()), None) => {
            step::print_line(Mark::Skipped, name, None);
            tally.skip(Skip::Environment, name, "clippy is missing: `rustup component add clippy --toolchain nightly`");
            Ok(())
        }
    }
}

fn clippy(tally: &mut Tally, packages: &[&str]) -> Result<()> {
    let mut command = step::cargo();
    command.arg("clippy").arg("--all-targets");
    for package in packages {
        command.args(["-p", package]);
    }
    command.args(["--", "-D", "warnings"]);
    let name = format!("clippy {}", packages.join(" "));
    count(tally, &name, &mut command, "mend what clippy says, or expect it with a reason")
}

fn deny(tally: &mut Tally, online: bool) -> Result<()> {
    let what: &[&str] =
        if online { &["bans", "licenses", "sources", "advisories"] } else { &["bans", "licenses", "sources"] };
    let name = format!("cargo-deny {}", what.join(" "));
    if !has_tool(tally, &name, "cargo-deny", "cargo-deny", CARGO_DENY)? {
        return Ok(());
    }
    // cargo-deny looks at the crates of every platform, of which a build has fetched only some.
    let mut fetch = step::cargo();
    fetch.args(["fetch", "--locked"]);
    if !step::run("fetch the crates of every platform", &mut fetch)?.ok {
        tally.fail(&name, "the crates could not be fetched");
        return Ok(());
    }
    let mut command = step::cargo();
    command.arg("deny");
    if !online {
        command.arg("--offline");
    }
    command.args(["--log-level", "warn", "check", "--hide-inclusion-graph"]).args(what);
    command.env("PATH", tools::path_with_cargo_bin());
    count(tally, &name, &mut command, "each exception belongs in deny.toml with a sentence")
}

fn typos(tally: &mut Tally) -> Result<()> {
    if !has_tool(tally, "typos", "typos", "typos-cli", TYPOS)? {
        return Ok(());
    }
    let mut command = Command::new("typos");
    command.current_dir(root::workspace()).env("PATH", tools::path_with_cargo_bin());
    count(tally, "typos", &mut command, "correct it, or add the word to typos.toml")
}

/// Whether a tool of crates.io is there, installed if it may be; if not, the check of that name is counted.
fn has_tool(tally: &mut Tally, check: &str, program: &str, package: &str, version: &str) -> Result<bool> {
    if tools::find(program).is_some() {
        return Ok(true);
    }
    let arguments = ["install", package, "--version", version, "--locked"];
    if !tools::is_root() {
        step::print_line(Mark::Skipped, check, None);
        tally.skip(Skip::Environment, check, &format!("{program} is missing: `cargo {}`", arguments.join(" ")));
        return Ok(false);
    }
    let mut install = step::cargo();
    install.args(arguments).env_remove("CARGO_TARGET_DIR").current_dir("/");
    let installed = step::run(&format!("install {package} {version}, once"), &mut install)?.ok;
    if !installed {
        tally.fail(check, &format!("{program} could not be installed"));
    }
    Ok(installed)
}

fn count(tally: &mut Tally, name: &str, command: &mut Command, mend: &str) -> Result<()> {
    if step::run(name, command)?.ok {
        tally.pass();
    } else {
        tally.fail(name, mend);
    }
    Ok(())
}

/// The packages with a file that git says changed or does not know.
fn changed_crates() -> Vec<&'static str> {
    let mut command = Command::new("git");
    command.current_dir(root::workspace()).args(["status", "--porcelain", "--untracked-files=all", "--no-renames"]);
    // Without git everything counts as changed.
    step::ask(&mut command)
        .map_or_else(|| HOST_CRATES.iter().map(|&(_, package)| package).collect(), |status| packages_of(&status))
}

fn packages_of(status: &str) -> Vec<&'static str> {
    let folders: BTreeSet<String> = status
        .lines()
        .filter_map(|line| line.get(3..))
        .filter_map(|path| Path::new(path.trim_matches('"')).iter().next()?.to_str().map(str::to_owned))
        .collect();
    HOST_CRATES.iter().filter(|(folder, _)| folders.contains(*folder)).map(|&(_, package)| package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_names_its_crate() {
        let status = " M tests/src/lib.rs\n?? lb-common/src/new.rs\n M README.md\n";
        assert_eq!(packages_of(status), ["lb-common", "lb-tests"]);
        assert!(packages_of("").is_empty());
    }
}
