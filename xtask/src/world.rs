//! `cargo xtask run` and `bench`: build what is needed, then become the program that does it.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::{build, cluster, root, step, toolchain, tools};

/// Everything after `run` belongs to the demo, `--help` included; `--host` is the one word read here.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct RunOptions {
    /// Arguments of the demo; or `--host -f PATH ...`: arguments of `ballast run` on this machine
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Bench {
    /// Nanoseconds for one packet of an established flow, beside the floor
    #[command(disable_help_flag = true)]
    Packet {
        /// Arguments of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// From the API server to the first correct packet, memory and idle CPU, beside kube-proxy
    #[command(disable_help_flag = true)]
    Control {
        /// Arguments of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Answers a second, their time, start-up and memory of `ballast dns`, beside `CoreDNS`
    #[command(disable_help_flag = true)]
    Dns {
        /// Arguments of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Builds and becomes the demo, or with `--host` the agent on this machine.
pub(crate) fn run(options: &RunOptions) -> Result<ExitCode> {
    let arguments = with_separator(&options.arguments, std::env::args_os());
    if let Some(rest) = host_arguments(&arguments) {
        needs_root("cargo xtask run --host")?;
        prepare()?;
        let binary = build::host(true)?;
        return become_program(Command::new(binary).arg("run").args(rest));
    }
    if asks_help(&arguments) {
        println!("cargo xtask run --host -f PATH [...]: build and run `ballast run -f PATH` on this machine\n");
    } else {
        needs_root("cargo xtask run")?;
        tools::ensure_test_tools()?;
    }
    if !has_binary("ballast-demo") {
        bail!("this tree has no demo (tests/src/bin/ballast-demo.rs); `cargo xtask run --host -f PATH` runs the agent");
    }
    prepare()?;
    let ballast = build::host(false)?;
    step::must("build the demo", step::cargo().args(["build", "-p", "lb-tests", "--bin", "ballast-demo"]))?;
    become_program(Command::new(root::target().join("debug/ballast-demo")).env("BALLAST_BIN", ballast).args(&arguments))
}

/// Builds and becomes the benchmark.
pub(crate) fn bench(what: &Bench) -> Result<ExitCode> {
    let (name, arguments) = match what {
        Bench::Packet { arguments } => ("packet", arguments),
        Bench::Control { arguments } => ("control", arguments),
        Bench::Dns { arguments } => ("dns", arguments),
    };
    if !has_binary("ballast-bench") {
        bail!("this tree has no benchmark (tests/src/bin/ballast-bench.rs)");
    }
    if asks_help(arguments) {
        step::must("build the benchmark", step::cargo().args(["build", "-p", "lb-tests", "--bin", "ballast-bench"]))?;
        return become_program(Command::new(root::target().join("debug/ballast-bench")).arg(name).arg("--help"));
    }
    if !matches!(what, Bench::Dns { .. }) {
        needs_root(&format!("cargo xtask bench {name}"))?;
    }
    prepare()?;
    let mut command = Command::new(root::target().join("release/ballast-bench"));
    let mut build = vec!["build", "--release", "-p", "lb-tests", "--bin", "ballast-bench"];
    if matches!(what, Bench::Control { .. }) {
        tools::ensure_test_tools()?;
        cluster::build_named(&["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy"].map(str::to_owned))?;
        build.extend(["--bin", "ballast-peer"]);
        command.env("BALLAST_BIN", build::host(true)?);
    }
    if matches!(what, Bench::Dns { .. }) {
        cluster::build_named(&["coredns".to_owned()])?;
        command.env("BALLAST_BIN", build::host(true)?);
    }
    step::must("build the benchmark (release)", step::cargo().args(build))?;
    become_program(command.arg(name).args(arguments))
}

fn prepare() -> Result<()> {
    build::object(&toolchain::ensure()?)
}

/// Replaces this process, so that signals and the exit code are the program's own.
pub(crate) fn become_program(command: &mut Command) -> Result<ExitCode> {
    step::clean(command);
    let shown = step::show(command);
    let error = command.exec();
    bail!("cannot start `{shown}`: {error}")
}

fn needs_root(what: &str) -> Result<()> {
    if !tools::is_root() {
        bail!(
            "{what} loads BPF programs and makes network namespaces: run it as root, `sudo -E env PATH=\"$PATH\" {what}`"
        );
    }
    Ok(())
}

fn has_binary(name: &str) -> bool {
    let folder = root::workspace().join("tests/src/bin");
    folder.join(format!("{name}.rs")).is_file() || folder.join(name).join("main.rs").is_file()
}

fn asks_help(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|a| a == "--help" || a == "-h")
}

/// The arguments of `ballast run` when `--host` stands before any `--`.
fn host_arguments(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let position = arguments.iter().take_while(|argument| *argument != "--").position(|a| a == "--host")?;
    let mut rest = arguments.to_vec();
    rest.remove(position);
    Some(rest)
}

/// clap takes a `--` that comes first for itself; `run -- CMD` needs it.
fn with_separator(parsed: &[OsString], raw: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let raw: Vec<OsString> = raw.skip_while(|argument| argument != "run").skip(1).collect();
    if raw.first().is_some_and(|first| first == "--") && parsed.first() != raw.first() { raw } else { parsed.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn host_is_read_only_before_the_separator() {
        assert_eq!(host_arguments(&words("--host -f x")), Some(words("-f x")));
        assert_eq!(host_arguments(&words("-f x -- cmd --host")), None);
    }

    #[test]
    fn a_leading_separator_reaches_the_demo() {
        let raw = words("xtask run -- curl x");
        assert_eq!(with_separator(&words("curl x"), raw.into_iter()), words("-- curl x"));
        let raw = words("xtask run --once");
        assert_eq!(with_separator(&words("--once"), raw.into_iter()), words("--once"));
    }
}
