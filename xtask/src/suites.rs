//! `cargo xtask test`: the tiers of the test pyramid.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build, cluster, libtest,
    report::{Skip, Tally},
    root, scoreboard,
    step::{self, Mark},
    toolchain, tools,
};

#[derive(Args, Debug, Default, Clone)]
pub(crate) struct Options {
    /// Only this tier
    #[arg(value_enum)]
    tier: Option<Tier>,
    /// Only this suite of tests/tests, for example `netns_restart`, or package; several times for several
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// The slow suites too
    #[arg(long)]
    all: bool,
    /// Write docs/reliability.md from what the tests print, if none of them fails
    #[arg(long)]
    scoreboard: bool,
}

/// Those with tests in their files.
const PACKAGES: [&str; 4] = ["lb-common", "lb-userspace", "xtask", "lb-tests"];

/// A tier of the pyramid, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Tier {
    /// In the files themselves; no root, milliseconds
    Unit,
    /// API objects in, map image out; the whole binary without a kernel
    Scenario,
    /// The programs in this kernel: verifier, test-run, host against kernel
    Kernel,
    /// Real sockets in network namespaces
    Netns,
    /// A real Kubernetes control plane beside them; needs Go to build it once
    Cluster,
}

impl Tier {
    const ALL: [Self; 5] = [Self::Unit, Self::Scenario, Self::Kernel, Self::Netns, Self::Cluster];

    fn needs_root(self) -> bool {
        matches!(self, Self::Kernel | Self::Netns | Self::Cluster)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Scenario => "scenario",
            Self::Kernel => "kernel",
            Self::Netns => "netns",
            Self::Cluster => "cluster",
        }
    }
}

/// Runs the tiers and returns the counts.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    // Before anything is run: it may refuse.
    let stamp = options.scoreboard.then(scoreboard::Stamp::here).transpose()?;
    let tally = run_tiers(options)?;
    if let Some(stamp) = stamp {
        if tally.failed > 0 {
            step::print_line(Mark::Note, "docs/reliability.md is left as it was: a test failed", None);
        } else {
            scoreboard::write(&tally.scores, &stamp)?;
        }
    }
    Ok(tally)
}

fn run_tiers(options: &Options) -> Result<Tally> {
    let mut targets = targets(&root::workspace().join("tests/tests"))?;
    if !options.suite.is_empty() {
        keep(&mut targets, &options.suite)?;
    }
    let is_named = |name: &str| options.suite.is_empty() || options.suite.iter().any(|suite| suite == name);
    let packages: Vec<&str> = PACKAGES.into_iter().filter(|package| is_named(package)).collect();
    let wanted = |tier: &Tier| match tier {
        Tier::Unit => !packages.is_empty(),
        tier => options.suite.is_empty() || targets.contains_key(tier),
    };
    let tiers = options.tier.map_or_else(|| Tier::ALL.to_vec(), |tier| vec![tier]);
    let tiers: Vec<Tier> = tiers.into_iter().filter(wanted).collect();
    let mut tally = Tally::default();
    if tiers.iter().any(|&tier| tier != Tier::Unit) {
        let bpf = toolchain::ensure()?;
        build::object(&bpf)?;
        build::host(false)?;
    }
    for tier in tiers {
        if tier == Tier::Unit {
            unit(&mut tally, &packages, options.all)?;
            continue;
        }
        let Some(names) = targets.get(&tier) else {
            step::print_line(Mark::Skipped, tier.name(), None);
            tally.skip(Skip::Choice, tier.name(), "no such suite under tests/tests yet");
            continue;
        };
        if tier.needs_root() {
            if !tools::is_root() {
                step::print_line(Mark::Skipped, tier.name(), None);
                tally.skip(Skip::Environment, tier.name(), "needs root: `sudo -E env PATH=\"$PATH\" cargo xtask test`");
                continue;
            }
            if let Err(error) = tools::ensure_test_tools() {
                step::print_line(Mark::Skipped, tier.name(), None);
                tally.skip(Skip::Environment, tier.name(), &format!("{error:#}"));
                continue;
            }
        }
        if tier == Tier::Cluster
            && let Err(error) = cluster::build_for_tests()
        {
            let why = format!("{error:#}");
            if error.is::<cluster::NoGo>() {
                step::print_line(Mark::Skipped, tier.name(), None);
                tally.skip(Skip::Environment, tier.name(), &why);
            } else {
                tally.fail(tier.name(), &why);
            }
            continue;
        }
        for name in names {
            let mut command = step::cargo();
            command.args(["test", "-p", "lb-tests", "--test", name]);
            harness(&mut command, options.all);
            suite(&mut tally, &format!("test {name}"), &mut command)?;
        }
    }
    Ok(tally)
}

/// Leaves these suites alone.
fn keep(targets: &mut BTreeMap<Tier, Vec<String>>, suites: &[String]) -> Result<()> {
    for name in suites {
        if !PACKAGES.contains(&name.as_str()) && !targets.values().flatten().any(|known| known == name) {
            bail!("no suite {name}: neither tests/tests nor the packages {} have that name", PACKAGES.join(", "));
        }
    }
    targets.retain(|_, names| {
        names.retain(|name| suites.contains(name));
        !names.is_empty()
    });
    Ok(())
}

fn unit(tally: &mut Tally, packages: &[&str], all: bool) -> Result<()> {
    for package in packages {
        let mut command = step::cargo();
        command.args(["test", "-p", package]);
        let mut name = format!("test {package}");
        if *package == "lb-tests" {
            command.args(["--lib", "--bins"]);
            name.push_str(", the library");
        }
        harness(&mut command, all);
        suite(tally, &name, &mut command)?;
    }
    Ok(())
}

/// lb-common's own tests: the quick part of `check --fast`.
pub(crate) fn fast(tally: &mut Tally) -> Result<()> {
    let mut command = step::cargo();
    command.args(["test", "-p", "lb-common"]);
    harness(&mut command, false);
    suite(tally, "test lb-common", &mut command)
}

fn suite(tally: &mut Tally, name: &str, command: &mut Command) -> Result<()> {
    let outcome = step::run(name, command)?;
    libtest::count(tally, name, outcome.ok, &outcome.lines);
    tally.scores.extend(scoreboard::scores(&outcome.lines));
    for note in libtest::notes(&outcome.lines) {
        println!("      {note}");
    }
    Ok(())
}

fn harness(command: &mut Command, all: bool) {
    command.env("BALLAST_BIN", root::target().join("debug/ballast"));
    // Every binary is run even when one failed; tests that pass may still have said SKIP or NOTE.
    command.args(["--no-fail-fast", "--", "--show-output"]);
    if all {
        command.arg("--include-ignored");
    }
}

/// The test targets of lb-tests by tier; a name without a known prefix is a scenario.
fn targets(folder: &Path) -> Result<BTreeMap<Tier, Vec<String>>> {
    let mut found: BTreeMap<Tier, Vec<String>> = BTreeMap::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let is_target = path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").is_file();
        if let (true, Some(name)) = (is_target, path.file_stem().and_then(|stem| stem.to_str())) {
            found.entry(tier_of(name)).or_default().push(name.to_owned());
        }
    }
    for names in found.values_mut() {
        names.sort();
    }
    Ok(found)
}

fn tier_of(target: &str) -> Tier {
    if target.starts_with("cluster") {
        Tier::Cluster
    } else if target.starts_with("netns") {
        Tier::Netns
    } else if target.starts_with("kernel") {
        Tier::Kernel
    } else {
        Tier::Scenario
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_belongs_to_the_tier_of_its_prefix() {
        assert_eq!(tier_of("netns_matrix"), Tier::Netns);
        assert_eq!(tier_of("cluster_up"), Tier::Cluster);
        assert_eq!(tier_of("kernel"), Tier::Kernel);
        assert_eq!(tier_of("scenario"), Tier::Scenario);
        assert_eq!(tier_of("allocations"), Tier::Scenario);
    }

    #[test]
    fn a_suite_can_be_run_alone() {
        let of = |tier: Tier, names: &[&str]| (tier, names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let all = BTreeMap::from([of(Tier::Kernel, &["kernel_load"]), of(Tier::Netns, &["netns_a", "netns_b"])]);
        let mut some = all.clone();
        keep(&mut some, &["netns_b".to_owned()]).expect("known");
        assert_eq!(some, BTreeMap::from([of(Tier::Netns, &["netns_b"])]));
        let error = keep(&mut all.clone(), &["netns_c".to_owned()]).expect_err("unknown");
        assert!(error.to_string().contains("netns_c"), "{error}");
    }

    #[test]
    fn only_the_lower_tiers_run_without_root() {
        let without: Vec<Tier> = Tier::ALL.into_iter().filter(|tier| !tier.needs_root()).collect();
        assert_eq!(without, [Tier::Unit, Tier::Scenario]);
    }
}
