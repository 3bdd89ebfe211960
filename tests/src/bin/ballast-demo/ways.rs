//! The ways by which clients find a Service, each tried with the command that people type.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_tests::{Place, binary};
use lb_userspace::service_env::variable_name;

use crate::{
    away::Away,
    picks::{Headless, Pick, pick},
    sheet::{self, Outcome, Row},
    signals::Signals,
    stage::{Stage, ballast},
};

/// How long names may take to follow a Pod.
const FOLLOWED: Duration = Duration::from_secs(10);
/// Between two questions while they do.
const PAUSE: Duration = Duration::from_millis(20);
/// A proxy is for other places than these.
const PROXIES: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// What must come of a command.
#[derive(Debug)]
enum Expect {
    /// A page of one of these backends.
    Page(BTreeSet<String>),
    /// These addresses and no others, in any order.
    Addresses(BTreeSet<IpAddr>),
    /// A line that begins with this.
    Line(&'static str),
}

/// Runs the commands and prints the sheet.
pub(crate) struct Ways<'a> {
    stage: &'a Stage,
    signals: &'a Signals,
    resolvers: BTreeMap<String, PathBuf>,
    rows: usize,
    failed: usize,
}

/// Tries all; how many commands, and how many failed.
pub(crate) fn try_all(stage: &Stage, signals: &Signals) -> anyhow::Result<(usize, usize)> {
    let folder = stage.world.directory().join("bin");
    fs::create_dir(&folder).context("cannot make a folder for the commands")?;
    symlink(binary("ballast")?, folder.join("ballast")).context("cannot link ballast")?;
    let mut ways = Ways { stage, signals, resolvers: BTreeMap::new(), rows: 0, failed: 0 };
    println!("\nHow clients find a Service; commands of pods run with this resolver file\n{}", sheet::header());
    ways.inside()?;
    ways.headless()?;
    ways.outside()?;
    Ok((ways.rows, ways.failed))
}

impl<'a> Ways<'a> {
    /// Pods: by address, name and variables.
    fn inside(&mut self) -> anyhow::Result<()> {
        let stage = self.stage;
        let by_vip =
            |v6| pick(stage, v6, |target, _| if target.internal_local { None } else { like(&target.cluster_ips, v6) });
        let vips = [false, true].map(by_vip);
        for pick in vips.iter().flatten() {
            self.resolver(&pick.target.object.namespace)?;
        }
        self.group("virtual IP", &vips, |pick, _| {
            Some((pick.client, pick.namespace(), curl(&[], &pick.to().to_string())))
        })?;
        self.group("name, in the same namespace", &vips, |pick, family| {
            let to = format!("{}:{}", pick.target.object.name, pick.port.number);
            Some((pick.client, pick.namespace(), curl(&[family], &to)))
        })?;
        self.resolved(&vips)?;
        self.group("name.namespace, from another one", &vips, |pick, family| {
            let to = format!("{}.{}:{}", pick.target.object.name, pick.namespace(), pick.port.number);
            let (client, namespace) = stage.outside_of(pick.namespace())?;
            Some((client, namespace, curl(&[family], &to)))
        })?;
        let by_variable = |v6| {
            pick(stage, v6, |target, port| {
                let first = target.cluster_ips.first().copied().filter(|ip| ip.is_ipv6() == v6);
                first.filter(|_| port.is_first && !target.internal_local)
            })
        };
        self.group("environment variables", &[false, true].map(by_variable), |pick, family| {
            let name = variable_name(&pick.target.object.name);
            let host = format!("${name}_SERVICE_HOST");
            let host = if family == "-6" { format!("[{host}]") } else { host };
            let script = format!("curl -sS -m 5 {host}:${name}_SERVICE_PORT");
            let words = ballast(&["exec", pick.namespace()]).into_iter();
            let words = words.chain(["--", "sh", "-c", &script].map(str::to_owned)).collect();
            Some((pick.client, pick.namespace(), words))
        })
    }

    /// The client outside: by nodePort and by load balancer address.
    fn outside(&mut self) -> anyhow::Result<()> {
        let stage = self.stage;
        for node in stage.world.nodes() {
            let picks = [false, true].map(|v6| {
                pick(stage, v6, |target, port| {
                    let address = node.ips().into_iter().find(|ip| ip.is_ipv6() == v6);
                    address.filter(|_| {
                        port.exposed.is_some() && !target.external_local && like(&target.cluster_ips, v6).is_some()
                    })
                })
            });
            self.group(&format!("nodePort of {}", node.name()), &picks, |pick, _| {
                let to = SocketAddr::new(pick.address, pick.port.exposed?);
                Some((stage.client(), "", curl(&[], &to.to_string())))
            })?;
        }
        let balanced =
            |v6| pick(stage, v6, |target, _| like(&target.load_balancer_ips, v6).filter(|_| !target.external_local));
        self.group("EXTERNAL-IP", &[false, true].map(balanced), |pick, _| {
            Some((stage.client(), "", curl(&[], &pick.to().to_string())))
        })?;
        println!("balancer in front of the nodes");
        let first = stage.world.node(0).name();
        let why =
            format!("here the router has a route to {first} for each EXTERNAL-IP; nothing spreads them over the nodes");
        println!("{}", bare(Outcome::NotYet(why)).show());
        Ok(())
    }

    /// What the system's resolver makes of a name.
    fn resolved(&mut self, picks: &[Option<Pick<'a>>]) -> anyhow::Result<()> {
        for (pick, database) in picks.iter().zip(["ahostsv4", "ahostsv6"]) {
            let Some(pick) = pick else { continue };
            let words = ["getent", database, &pick.target.object.name].map(str::to_owned).to_vec();
            let expect = Expect::Addresses([pick.address].into());
            self.row(pick.client, pick.namespace(), words, &expect)?;
        }
        Ok(())
    }

    /// Rows of both families under a title.
    fn group(
        &mut self,
        title: &str,
        picks: &[Option<Pick<'a>>],
        command: impl Fn(&Pick<'a>, &'static str) -> Option<(&'a Place, &'a str, Vec<String>)>,
    ) -> anyhow::Result<()> {
        println!("{title}");
        for (pick, (flag, family)) in picks.iter().zip([("-4", "IPv4"), ("-6", "IPv6")]) {
            let tried = pick.as_ref().and_then(|pick| Some((pick, command(pick, flag)?)));
            if let Some((pick, (place, namespace, words))) = tried {
                self.row(place, namespace, words, &Expect::Page(pick.backends.clone()))?;
            } else {
                let why = format!("{family}: these documents have no Service and Pod for it");
                println!("{}", bare(Outcome::NotTried(why)).show());
            }
        }
        Ok(())
    }

    /// A Pod goes and comes back: the names follow.
    fn headless(&mut self) -> anyhow::Result<()> {
        let title = "headless Service: its A and AAAA records are its pods";
        println!("{title}");
        let found: Vec<_> = [false, true].into_iter().filter_map(|v6| Headless::find(self.stage, v6)).collect();
        if found.is_empty() {
            let why = "these documents have no headless Service whose pods have a place".to_owned();
            println!("{}", bare(Outcome::NotTried(why)).show());
            return Ok(());
        }
        for headless in &found {
            self.asked(headless, &headless.addresses, None)?;
        }
        let Some(leaving) = found.iter().find_map(|headless| headless.leaving.as_ref()) else { return Ok(()) };
        let Some(away) = Away::take(&self.stage.world, leaving)? else { return Ok(()) };
        let since = Instant::now();
        println!("  the document of Pod {leaving} is taken away");
        for headless in &found {
            let rest = headless.without(self.stage, leaving);
            self.asked(headless, &rest, Some(since))?;
        }
        away.put_back(&self.stage.world)?;
        let since = Instant::now();
        println!("  the document of Pod {leaving} is back");
        for headless in &found {
            self.asked(headless, &headless.addresses, Some(since))?;
        }
        Ok(())
    }

    /// Asks for the addresses; after a change until they are there.
    fn asked(
        &mut self,
        headless: &Headless<'a>,
        expected: &BTreeSet<IpAddr>,
        since: Option<Instant>,
    ) -> anyhow::Result<()> {
        let kind = if headless.v6 { "AAAA" } else { "A" };
        let words = ["dig", "+short", "+search", kind, &headless.object.name].map(str::to_owned).to_vec();
        let (place, namespace) = (headless.client, &headless.object.namespace);
        let expect = Expect::Addresses(expected.clone());
        let (mut output, mut result) = self.run(place, namespace, &words)?;
        // Each agent follows by itself, and any of them may be asked.
        while since.is_some_and(|since| since.elapsed() < FOLLOWED) {
            if result.is_ok() && judge(&expect, &output).is_ok() {
                break;
            }
            self.signals.check()?;
            thread::sleep(PAUSE);
            (output, result) = self.run(place, namespace, &words)?;
        }
        self.show(place, words, output, result, &expect)
    }

    /// The resolver file of a namespace, once.
    fn resolver(&mut self, namespace: &str) -> anyhow::Result<()> {
        if self.resolvers.contains_key(namespace) {
            return Ok(());
        }
        let Some(place) = self.stage.first_of(namespace) else { return Ok(()) };
        let words = self.stage.resolv(namespace);
        self.row(place, "", words.clone(), &Expect::Line("nameserver "))?;
        let (text, result) = self.run(place, "", &words)?;
        result.map_err(anyhow::Error::msg)?;
        let path = self.stage.resolver_file(namespace);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.resolvers.insert(namespace.to_owned(), path);
        Ok(())
    }

    /// Runs a command, judges what it says, and prints the row.
    fn row(&mut self, place: &Place, namespace: &str, words: Vec<String>, expect: &Expect) -> anyhow::Result<()> {
        if !namespace.is_empty() {
            self.resolver(namespace)?;
        }
        let (output, result) = self.run(place, namespace, &words)?;
        self.show(place, words, output, result, expect)
    }

    fn show(
        &mut self,
        place: &Place,
        words: Vec<String>,
        output: String,
        result: Result<(), String>,
        expect: &Expect,
    ) -> anyhow::Result<()> {
        let result = result.and_then(|()| judge(expect, &output));
        self.rows += 1;
        self.failed += usize::from(result.is_err());
        let outcome = result.map_or_else(Outcome::Failed, |()| Outcome::Ok);
        println!("{}", Row { outcome, from: place.name().to_owned(), words, output }.show());
        self.signals.check()
    }

    /// What it said on both outputs, and whether it ended well. `namespace`: with the resolver file of that one.
    fn run(&self, place: &Place, namespace: &str, words: &[String]) -> anyhow::Result<(String, Result<(), String>)> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command: Command = if let Some(resolver) = self.resolvers.get(namespace) {
            place.resolver(resolver, &words)?
        } else {
            let mut command = place.command("env")?;
            command.arg("--").args(&words);
            command
        };
        let folder = self.stage.world.directory();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([folder.join("bin")].into_iter().chain(std::env::split_paths(&path)))?;
        command.current_dir(folder).env("PATH", path);
        for name in PROXIES {
            command.env_remove(name);
        }
        let output = command.output().with_context(|| format!("cannot run {}", words.join(" ")))?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let result = if output.status.success() { Ok(()) } else { Err(format!("it ended with {}", output.status)) };
        Ok((text, result))
    }
}

/// A row without a command.
fn bare(outcome: Outcome) -> Row {
    Row { outcome, from: String::new(), words: Vec::new(), output: String::new() }
}

fn like(addresses: &[IpAddr], v6: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv6() == v6)
}

fn curl(flags: &[&str], to: &str) -> Vec<String> {
    ["curl", "-sS", "-m", "5"].iter().chain(flags).copied().chain([to]).map(str::to_owned).collect()
}

fn judge(expect: &Expect, output: &str) -> Result<(), String> {
    match expect {
        Expect::Page(backends) => {
            let names = || backends.iter().cloned().collect::<Vec<_>>().join(" or ");
            match output.split_whitespace().next() {
                Some(name) if backends.contains(name) => Ok(()),
                _ => Err(format!("no answer of {}", names())),
            }
        }
        Expect::Addresses(expected) => {
            let found: BTreeSet<IpAddr> =
                output.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
            let list = |all: &BTreeSet<IpAddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            if found == *expected { Ok(()) } else { Err(format!("the addresses are {}", list(expected))) }
        }
        Expect::Line(start) => {
            if output.lines().any(|line| line.starts_with(start)) {
                Ok(())
            } else {
                Err(format!("no line {start}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_expected_will_do() {
        let page = Expect::Page(["a".to_owned(), "b".to_owned()].into());
        assert_eq!(judge(&page, "b 10.0.0.1 4000\n"), Ok(()));
        for wrong in ["", "c 10.0.0.1 4000\n", "curl: (7) a\n"] {
            assert_eq!(judge(&page, wrong), Err("no answer of a or b".to_owned()));
        }
        let two = Expect::Addresses([IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])].into());
        assert_eq!(judge(&two, "10.0.0.2\n10.0.0.1\n"), Ok(()));
        assert_eq!(judge(&two, "10.0.0.2  STREAM x\n10.0.0.1  STREAM\n10.0.0.1  DGRAM\n"), Ok(()));
        for wrong in ["", "10.0.0.1\n", "10.0.0.1\n10.0.0.2\n10.0.0.3\n"] {
            assert_eq!(judge(&two, wrong), Err("the addresses are 10.0.0.1 and 10.0.0.2".to_owned()));
        }
        assert!(judge(&Expect::Line("nameserver "), "search x\n").is_err());
    }
}
