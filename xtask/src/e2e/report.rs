//! docs/conformance.md: a section a focus and a DNS server, with a line for each test that the focus matches.

use std::{collections::BTreeSet, fmt, fs, process::Command};

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::Value;

use super::Dns;
use crate::{root, step};

const FILE: &str = "docs/conformance.md";
const HEAD: &str = "# Kubernetes' own tests\n\n\
    Written by `cargo xtask e2e`, which runs tests of Kubernetes' end-to-end suite against a cluster on one machine, with\n\
    kubelets and containers and without kube-proxy: Ballast is installed from deploy/. A run replaces the section of its\n\
    focus, DNS server and flavour and names the commit it ran. A test that skipped itself tells why; one that does not was\n\
    left out by `--skip`.\n";

/// Of what and how a run was.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) versions: String,
    pub(super) dns: Dns,
    pub(super) flavour: &'static str,
    pub(super) nodes: u8,
    pub(super) procs: u8,
    pub(super) seconds: u64,
    pub(super) skip: String,
}

/// The results of a run.
#[derive(Debug)]
pub(super) struct Report {
    focus: String,
    facts: Facts,
    /// `passed NAME`
    lines: BTreeSet<String>,
}

impl Report {
    /// Reads what ginkgo wrote (`types.Report` of its version 2).
    pub(super) fn new(focus: &str, facts: Facts, json: &str) -> Result<Self> {
        let pattern = Regex::new(focus).with_context(|| format!("--focus {focus}: no regular expression"))?;
        let suites: Value = serde_json::from_str(json).context("the report is no JSON")?;
        let specs = suites.as_array().into_iter().flatten().filter_map(|suite| suite.get("SpecReports")?.as_array());
        let specs: Vec<_> = specs.flatten().filter(|spec| spec["LeafNodeType"] == "It").collect();
        if specs.is_empty() {
            bail!("the report has no tests");
        }
        let line = |spec: &&Value| {
            let name = name(spec);
            pattern.is_match(&name).then(|| line(spec, &name))
        };
        let lines = specs.iter().filter_map(line).collect();
        Ok(Self { focus: focus.to_owned(), facts, lines })
    }

    pub(super) fn failed(&self) -> usize {
        self.count("failed")
    }

    fn count(&self, verdict: &str) -> usize {
        self.lines.iter().filter(|line| line.starts_with(verdict)).count()
    }

    fn summary(&self) -> String {
        let [passed, failed, skipped] = ["passed", "failed", "skipped"].map(|verdict| self.count(verdict));
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    fn section(&self, stamp: &Stamp) -> String {
        let Facts { versions, dns, flavour, nodes, procs, seconds, skip } = &self.facts;
        let skip = if skip.is_empty() { "nothing".to_owned() } else { format!("`{skip}`") };
        // As `without_upstream` takes them away.
        let without = if *dns == Dns::Ballast { ", DNS without `--upstream` and `--allow-recursion`" } else { "" };
        let mut text = format!(
            "{}\n\
             - {}\n- commit {}, {}, kernel {}\n- {versions}\n- deploy/, flavour {flavour}{without}; {nodes} nodes, {procs} tests at once, \
             {seconds} s; left out: {skip}\n- `cargo xtask e2e --focus '{}' --nodes {nodes}{}{}`\n\n```text\n",
            self.title(),
            self.summary(),
            stamp.commit,
            stamp.date,
            stamp.kernel,
            self.focus,
            if *flavour == "least" { " --least" } else { "" },
            if *dns == Dns::Ballast { " --dns ballast" } else { "" },
        );
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("```\n");
        text
    }

    fn title(&self) -> String {
        title(&self.focus, self.facts.dns, self.facts.flavour)
    }

    /// Replaces the section of this focus, DNS server and flavour.
    pub(super) fn write(&self) -> Result<()> {
        let path = root::workspace().join(FILE);
        let page = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, replace(&page, &self.title(), &self.section(&Stamp::here()?)))
            .with_context(|| format!("cannot write {FILE}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines.iter().filter(|line| !line.starts_with("passed")) {
            writeln!(f, "      {line}")?;
        }
        writeln!(f, "{}", self.summary())
    }
}

fn name(spec: &Value) -> String {
    let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.chain(spec["LeafNodeText"].as_str()).collect::<Vec<_>>().join(" ")
}

/// All that is neither passed nor skipped failed: `panicked`, `timedout`, `interrupted` and the like.
fn line(spec: &Value, name: &str) -> String {
    match spec["State"].as_str() {
        Some("passed") => format!("passed {name}"),
        Some("skipped" | "pending") => {
            let reason = spec["Failure"]["Message"].as_str().unwrap_or_default();
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            if reason.is_empty() { format!("skipped {name}") } else { format!("skipped {name} -- {reason}") }
        }
        _ => format!("failed {name}"),
    }
}

/// The line above a section.
fn title(focus: &str, dns: Dns, flavour: &str) -> String {
    let flavour = if flavour == "least" { ", flavour least" } else { "" };
    format!("## `{focus}`, names by {}{flavour}\n", dns.name())
}

/// The page with another section below a title; the others stay as they are, in their order.
fn replace(page: &str, title: &str, section: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for line in page.split_inclusive('\n') {
        match parts.last_mut() {
            Some(part) if !line.starts_with("## `") => part.push_str(line),
            _ => parts.push(line.to_owned()),
        }
    }
    let mut sections: Vec<String> = parts.into_iter().filter(|part| part.starts_with("## `")).collect();
    match sections.iter_mut().find(|known| known.starts_with(title)) {
        Some(known) => section.clone_into(known),
        None => sections.push(section.to_owned()),
    }
    let sections = sections.iter().map(|section| section.trim_end()).collect::<Vec<_>>();
    format!("{HEAD}\n{}\n", sections.join("\n\n"))
}

/// Where and when.
struct Stamp {
    commit: String,
    date: String,
    kernel: String,
}

impl Stamp {
    /// Of this work tree, which must be as it was committed, but for the page itself.
    fn here() -> Result<Self> {
        let ask = |program: &str, args: &[&str]| {
            let answer = step::ask(Command::new(program).args(args).current_dir(root::workspace()));
            answer.map(|text| text.trim().to_owned()).with_context(|| format!("`{program} {}` failed", args.join(" ")))
        };
        let changes = ask("git", &["status", "--porcelain", "--", ".", &format!(":!{FILE}")])?;
        if !changes.is_empty() {
            bail!(
                "{FILE} names the commit that was run, and there are changes beside it; commit them first:\n{changes}"
            );
        }
        Ok(Self {
            commit: ask("git", &["rev-parse", "--short=10", "HEAD"])?,
            date: ask("date", &["-u", "+%F"])?,
            kernel: ask("uname", &["-r"])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(focus: &str) -> Result<Report> {
        let spec = |text: &str, state: &str, reason: &str| {
            json!({
                "ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": text,
                "State": state, "Failure": {"Message": reason},
            })
        };
        let setup = json!({"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"});
        let suite = json!([{"SpecReports": [
            setup,
            spec("b", "passed", ""),
            spec("a", "timedout", "too slow"),
            spec("c", "skipped", "skipped -\n Need  more nodes"),
            spec("d", "skipped", ""),
            {"ContainerHierarchyTexts": ["[sig-apps] x"], "LeafNodeType": "It", "LeafNodeText": "y", "State": "skipped"},
        ]}]);
        Report::new(focus, Facts::default(), &suite.to_string())
    }

    #[test]
    fn every_test_of_the_focus_has_a_line() -> Result<()> {
        let report = report(r"\[sig-network\] Services")?;
        let lines: Vec<_> = report.lines.iter().map(String::as_str).collect();
        assert_eq!(
            lines,
            [
                "failed [sig-network] Services a",
                "passed [sig-network] Services b",
                "skipped [sig-network] Services c -- skipped - Need more nodes",
                "skipped [sig-network] Services d",
            ]
        );
        assert_eq!((report.summary().as_str(), report.failed()), ("1 passed, 1 failed, 2 skipped", 1));
        assert!(Report::new("x", Facts::default(), "[]").is_err(), "no tests are no success");
        Ok(())
    }

    #[test]
    fn a_run_replaces_its_own_section_only() {
        let of =
            [("a", Dns::Coredns, ""), ("a", Dns::Ballast, ""), ("ab", Dns::Coredns, ""), ("a", Dns::Coredns, "least")];
        let titles = of.map(|(focus, dns, flavour)| title(focus, dns, flavour));
        let section = |index: usize, body: &str| format!("{}\n```text\n{body}\n```\n", titles[index]);
        let mut page = String::new();
        for index in [0, 1, 2, 3] {
            page = replace(&page, &titles[index], &section(index, "old"));
        }
        assert!(page.starts_with(HEAD));
        let all = |bodies: [&str; 4]| [0, 1, 2, 3].map(|index| section(index, bodies[index])).join("\n");
        assert_eq!(page, format!("{HEAD}\n{}", all(["old"; 4])));
        for index in [0, 1, 2, 3] {
            let mut bodies = ["old"; 4];
            bodies[index] = "new";
            let next = replace(&page, &titles[index], &section(index, "new"));
            assert_eq!(next, format!("{HEAD}\n{}", all(bodies)));
            assert_eq!(replace(&next, &titles[index], &section(index, "new")), next, "written twice");
        }
    }

    #[test]
    fn a_section_tells_how_to_repeat_it() -> Result<()> {
        let stamp = Stamp { commit: "c".to_owned(), date: "d".to_owned(), kernel: "k".to_owned() };
        for (dns, flavour, line) in [
            (Dns::Coredns, "privileged", "--nodes 2`"),
            (Dns::Ballast, "privileged", "--nodes 2 --dns ballast`"),
            (Dns::Coredns, "least", "--nodes 2 --least`"),
        ] {
            let mut report = report("Services")?;
            report.facts = Facts { dns, flavour, nodes: 2, ..Facts::default() };
            let section = report.section(&stamp);
            assert!(section.starts_with(&title("Services", dns, flavour)), "{section}");
            assert!(section.contains(&format!("`cargo xtask e2e --focus 'Services' {line}\n")), "{section}");
        }
        Ok(())
    }
}
