//! `cargo xtask e2e`: Kubernetes' own end-to-end suite against a whole cluster on this machine in which Ballast stands in
//! for kube-proxy, installed from deploy/. tests/e2e has the scripts that start and end it.

mod images;
mod report;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use self::report::{Facts, Report};
use crate::{build, cluster, deploy, root, step, toolchain, tools};

/// The programs of tests/cluster that a cluster is made of.
const PROGRAMS: [&str; 17] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
    "kube-scheduler",
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "ptp",
    "loopback",
    "host-local",
    "portmap",
    "coredns",
    "agnhost",
    "ginkgo",
    "e2e.test",
];
/// Those that a runtime looks for in a folder of their own.
const CNI: [&str; 4] = ["ptp", "loopback", "host-local", "portmap"];

/// Debian packages: what nodes call, and what the suite's images are put together from.
const PACKAGES: [&str; 24] = [
    "runc",
    "iptables",
    "nftables",
    "conntrack",
    "ipset",
    "iproute2",
    "socat",
    "util-linux",
    "procps",
    "openssl",
    "python3",
    "curl",
    "bash",
    "dash",
    "busybox",
    "wget",
    "bind9-dnsutils",
    "bind9-host",
    "hostname",
    "libc-bin",
    "netcat-openbsd",
    "iperf",
    "nginx-light",
    "jq",
];

#[derive(Args, Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Options {
    /// Which tests, by their full names
    #[arg(long, value_name = "RE", default_value = r"\[sig-network\] Services")]
    focus: String,
    /// Which of them not: without a pod of kube-proxy and of the API server [Disruptive] ones skip themselves, and those
    /// of the nameserver `ConfigMap` write `CoreDNS`'s own configuration
    #[arg(long, value_name = "RE", default_value = r"\[Disruptive\]|DNS configMap nameserver")]
    skip: String,
    /// Nodes, each with a kubelet
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Tests at once
    #[arg(long, default_value_t = 4)]
    procs: u8,
    /// Install the flavour `least` instead of `privileged`
    #[arg(long)]
    least: bool,
    /// Who serves the cluster's names
    #[arg(long, value_enum, default_value_t = Dns::Coredns)]
    dns: Dns,
    /// Leave the cluster up afterwards; `cargo xtask e2e --down` ends it
    #[arg(long)]
    keep: bool,
    /// Only end a cluster that is up
    #[arg(long)]
    down: bool,
    /// Only show the results, and leave docs/conformance.md as it is
    #[arg(long)]
    no_write: bool,
}

/// Who answers for cluster.local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Dns {
    /// `CoreDNS`
    #[default]
    Coredns,
    /// `ballast dns`, installed by deploy/install-dns.yaml
    Ballast,
}

impl Dns {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Coredns => "CoreDNS",
            Self::Ballast => "Ballast",
        }
    }

    /// Its Deployment in namespace kube-system.
    fn deployment(self) -> &'static str {
        match self {
            Self::Coredns => "coredns",
            Self::Ballast => "ballast-dns",
        }
    }

    /// What installs it.
    fn manifest(self) -> Result<String> {
        let root = root::workspace();
        match self {
            Self::Coredns => {
                let path = root.join("tests/e2e/coredns.yaml");
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Ok(text.replace("@COREDNS@", &images::coredns_name()?))
            }
            Self::Ballast => without_upstream(&deploy::render(&root, deploy::DNS)?),
        }
    }
}

/// Nodes of this cluster have no name servers, and a server that is told to ask them does not start without.
fn without_upstream(install: &str) -> Result<String> {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(install).context("not YAML")?;
    let arguments =
        documents.iter_mut().find_map(|it| it.pointer_mut("/spec/template/spec/containers/0/args")?.as_array_mut());
    let arguments = arguments.with_context(|| format!("{}: its Deployment has no arguments", deploy::DNS))?;
    let count = arguments.len();
    let about_others =
        |argument: &str| argument.starts_with("--upstream=") || argument.starts_with("--allow-recursion=");
    arguments.retain(|argument| !argument.as_str().is_some_and(about_others));
    ensure!(arguments.len() + 2 == count, "{}: not one --upstream and one --allow-recursion", deploy::DNS);
    let texts = documents.iter().map(|document| serde_saphyr::to_string(document).context("cannot write YAML"));
    Ok(texts.collect::<Result<Vec<_>>>()?.join("---\n"))
}

/// Where everything of a run is.
struct Home(PathBuf);

impl Home {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(root::workspace().join("tests/e2e").join(name));
        step::clean(&mut command);
        command.env("E2E_HOME", &self.0);
        command
    }

    fn down(&self) -> Result<()> {
        step::must("end the cluster", &mut self.script("down.sh")).map(drop)
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if !tools::is_root() {
        bail!("the cluster's machines are namespaces: run it as root, `sudo -E env PATH=\"$PATH\" cargo xtask e2e`");
    }
    let home = Home(cluster::cache()?.join("e2e"));
    if options.down {
        home.down()?;
        return Ok(ExitCode::SUCCESS);
    }
    prepare(&home, options)?;
    // What an interrupted run left.
    home.down()?;
    let report = up(&home, options).and_then(|()| test(&home, options));
    if options.keep {
        println!("      kubectl: E2E_HOME={} {}/tests/e2e/kubectl.sh", home.0.display(), root::workspace().display());
    } else {
        home.down()?;
    }
    let report = report?;
    print!("{report}");
    if !options.no_write {
        report.write()?;
    }
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds and gathers everything; nothing is started.
fn prepare(home: &Home, options: &Options) -> Result<()> {
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !tools::has_package(package)).collect();
    tools::apt_install("a cluster with kubelets", &missing)?;
    let paths = cluster::build_named(&PROGRAMS.map(str::to_owned))?;
    let bin = home.path("bin");
    fs::create_dir_all(bin.join("cni")).with_context(|| format!("cannot make {}", bin.display()))?;
    for (name, path) in PROGRAMS.iter().zip(&paths) {
        let at = if CNI.contains(name) { bin.join("cni").join(name) } else { bin.join(name) };
        relink(path, &at)?;
    }
    build::object(&toolchain::ensure()?)?;
    let ballast = build::host(true)?;
    let started = Instant::now();
    let folder = home.path("images");
    images::make(&bin, &folder)?;
    let name = deploy::image_name(&root::workspace())?;
    let tar = folder.join("ballast.tar");
    fs::write(&tar, deploy::image_of(&name, &ballast)?).with_context(|| format!("cannot write {}", tar.display()))?;
    step::print_line(step::Mark::Ok, "images", Some(started.elapsed()));
    let overlay = if options.least { deploy::INSTALLS[1].1 } else { deploy::INSTALLS[0].1 };
    let install = deploy::render(&root::workspace(), overlay)?;
    // One of the suite's tests is about externalIPs, which are off by default.
    let switched = install.replace("externalIPs:\n      enabled: false", "externalIPs:\n      enabled: true");
    ensure!(switched != install, "{overlay}: its ConfigMap does not say that externalIPs are off");
    fs::write(home.path("install.yaml"), switched).context("cannot write install.yaml")?;
    fs::write(home.path("dns.yaml"), options.dns.manifest()?).context("cannot write dns.yaml")
}

/// A link that is replaced at once. What runs keeps what it has.
fn relink(target: &Path, at: &Path) -> Result<()> {
    let fresh = at.with_extension("new");
    drop(fs::remove_file(&fresh));
    symlink(target, &fresh)
        .and_then(|()| fs::rename(&fresh, at))
        .with_context(|| format!("cannot link {}", at.display()))
}

fn up(home: &Home, options: &Options) -> Result<()> {
    let run = home.path("run");
    fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    if options.least {
        fs::write(run.join("least"), "").context("cannot write what is to be mounted")?;
    }
    let mut command = home.script("up.sh");
    command.arg(options.nodes.to_string()).arg(home.path("install.yaml"));
    command.arg(images::name("Pause")?).arg(home.path("dns.yaml")).arg(options.dns.deployment());
    step::must(&format!("start a cluster of {} nodes without kube-proxy", options.nodes), &mut command).map(drop)
}

fn test(home: &Home, options: &Options) -> Result<Report> {
    let out = home.path("report");
    drop(fs::remove_dir_all(&out));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let bin = home.path("bin");
    let path = std::env::join_paths(
        [bin.clone()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let mut command = home.script("node.sh");
    command.arg("cp").arg("env").arg(format!("HOME={}", out.display())).arg(format!("PATH={}", path.display()));
    command.arg(bin.join("ginkgo")).args(["--focus", &options.focus, "--procs", &options.procs.to_string()]);
    if !options.skip.is_empty() {
        command.args(["--skip", &options.skip]);
    }
    command
        .args(["--timeout", "2h", "--no-color", "--silence-skips", "--json-report", "report.json", "--output-dir"])
        .arg(&out);
    command.arg(bin.join("e2e.test")).args(["--", "--provider", "skeleton", "--kubeconfig"]);
    command.arg(home.path("pki/admin.kubeconfig")).arg("--kubectl-path").arg(bin.join("kubectl"));
    command.args(["--num-nodes", &options.nodes.to_string(), "--disable-log-dump", "--dump-logs-on-failure=false"]);
    let started = Instant::now();
    let outcome = step::run(&format!("e2e {}", options.focus), &mut command)?;
    fs::write(out.join("output.txt"), outcome.lines.join("\n")).context("cannot write the output")?;
    let json = fs::read_to_string(out.join("report.json"))
        .with_context(|| format!("the suite left no report: see {}", out.join("output.txt").display()))?;
    let facts = Facts {
        versions: images::versions()?,
        dns: options.dns,
        flavour: if options.least { "least" } else { "privileged" },
        nodes: options.nodes,
        procs: options.procs,
        seconds: started.elapsed().as_secs(),
        skip: options.skip.clone(),
    };
    Report::new(&options.focus, facts, &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_server_has_a_manifest_with_its_deployment() -> Result<()> {
        let install = deploy::render(&root::workspace(), deploy::DNS)?;
        let text = without_upstream(&install)?;
        let name = format!("name: {}\n", Dns::Ballast.deployment());
        assert!(text.contains("kind: Deployment\n") && text.contains(&name), "{text}");
        assert!(
            install.contains("--upstream=") && !text.contains("--upstream=") && !text.contains("--allow-recursion")
        );
        assert!(text.contains("--rate-limit-exempt=") && text.contains("--service-cidr="), "all else stays: {text}");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        assert_eq!(documents.len(), install.matches("\n---\n").count());
        assert!(without_upstream(&text).is_err(), "what is not there is not left out in silence");
        Ok(())
    }
}
