//! Scenarios: Kubernetes objects in, the tables in words out, step by step on tables in memory.
//!
//! A scenario is a YAML file under `tests/scenarios`, named after the rule of semantics.md it shows. Every step gives
//! the whole folder of documents (`always` and the step's `objects`), and what the node then holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use lb_userspace::{
    desired::{Desired, Detector, ExternalIps, NodeContext, desired},
    file_source,
    ids::Ids,
    image::{Capacity, Image, NextHopInfo, Table, build, dump},
    plan,
    pools::{AddressPool, PoolError},
    store::testing::FakeStore,
};
use serde::Deserialize;

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in one sentence.
    pub name: String,
    /// The node that is watched.
    #[serde(default)]
    pub node: Node,
    /// Routes to backends.
    #[serde(default)]
    pub routes: BTreeMap<IpAddr, Route>,
    /// Sizes of maps that matter here, by map name; all others are large.
    #[serde(default)]
    pub capacity: BTreeMap<String, u32>,
    /// First words of the lines that are compared.
    #[serde(default = "default_show")]
    pub show: BTreeSet<String>,
    /// addressPools of the configuration.
    #[serde(default)]
    pub pools: Vec<AddressPool>,
    /// Documents of every step.
    #[serde(default)]
    pub always: String,
    /// Steps.
    pub steps: Vec<ScenarioStep>,
}

fn default_show() -> BTreeSet<String> {
    ["frontend", "service", "backend", "warning", "problem"].map(str::to_owned).into()
}

/// The node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Those that nodePorts are served on.
    pub node_port_addresses: Vec<IpAddr>,
    /// Whether its podCIDRs are the local-traffic detector.
    pub detector: bool,
    /// These ranges are it instead.
    pub cluster_cidr: Option<Vec<IpNet>>,
    /// masqueradeAll.
    pub masquerade_all: bool,
    /// Ranges of externalIPs that are served; none: they are off.
    pub external_ips: Vec<IpNet>,
}

impl Default for Node {
    fn default() -> Self {
        let own = IpAddr::from([192, 0, 2, 1]);
        Self {
            name: "node1".to_owned(),
            addresses: [own].into(),
            node_port_addresses: vec![own],
            detector: true,
            cluster_cidr: None,
            masquerade_all: false,
            external_ips: Vec::new(),
        }
    }
}

/// A route.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The device.
    pub ifindex: u32,
    /// Its preferred source.
    pub prefsrc: Option<IpAddr>,
    /// To this node itself.
    #[serde(default)]
    pub local: bool,
}

/// A step.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScenarioStep {
    /// What happens, in words.
    #[serde(default)]
    pub change: String,
    /// Documents beside `always`.
    #[serde(default)]
    pub objects: String,
    /// addressPools from here instead, in this step.
    pub pools: Option<Vec<AddressPool>>,
    /// The agent restarts before it: `saved` with its ids, `lost` without them.
    pub restart: Option<Restart>,
    /// Number of writes it takes, where that is the point.
    pub writes: Option<usize>,
    /// What the tables hold in the end.
    pub expect: String,
}

/// How an agent restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Restart {
    /// With its saved ids.
    Saved,
    /// Without them.
    Lost,
}

/// What a step led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The tables in words, and what is not as asked.
    pub dump: String,
    /// Writes it took.
    pub writes: usize,
}

impl Scenario {
    /// Reads a scenario file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_saphyr::from_str(&text).map_err(|error| anyhow!("{}: {error}", path.display()))
    }

    /// Runs all steps.
    pub fn run(&self) -> Result<Vec<Outcome>> {
        let mut capacity = Capacity::uniform(4096);
        for (map, max_entries) in &self.capacity {
            let table = Table::ALL.into_iter().find(|table| table.map_name() == map);
            capacity = capacity.with(table.with_context(|| format!("no map is named {map}"))?, *max_entries);
        }
        let folder = tempfile::tempdir().context("making a folder for the documents")?;
        let mut run = Run {
            scenario: self,
            folder: folder.path(),
            store: FakeStore::new(capacity),
            mirror: Image::default(),
            ids: Ids::default(),
        };
        let step = |(number, step)| run.step(step).with_context(|| format!("step {number}"));
        (1..).zip(&self.steps).map(step).collect()
    }
}

struct Run<'a> {
    scenario: &'a Scenario,
    folder: &'a Path,
    store: FakeStore,
    mirror: Image,
    ids: Ids,
}

impl Run<'_> {
    fn step(&mut self, step: &ScenarioStep) -> Result<Outcome> {
        let (desired, findings) = self.desired(step)?;
        if let Some(restart) = step.restart {
            self.mirror = plan::read_mirror(&mut self.store)?;
            let saved = Ids::from_json(&self.ids.to_json()?)?;
            self.ids = if restart == Restart::Saved { saved } else { Ids::default() };
            self.ids.adopt(&self.mirror, &desired);
        }
        let routes = self.scenario.routes.iter();
        let next_hops: BTreeMap<IpAddr, NextHopInfo> = routes
            .map(|(addr, Route { ifindex, prefsrc, local })| {
                (*addr, NextHopInfo { ifindex: *ifindex, prefsrc: *prefsrc, local: *local })
            })
            .collect();
        let capacity = Capacity::of(&self.store);
        let mut writes = 0;
        let refused = loop {
            let built = build(&desired, &mut self.ids, &next_hops, &[], &capacity);
            let plan = plan::diff(&built.image, &self.mirror);
            writes += plan::apply(&plan, &mut self.store, &mut self.mirror)?.writes;
            // What was refused may fit into what this plan freed.
            if !self.ids.commit() || built.refused.is_empty() {
                break built.refused;
            }
        };
        if plan::read_mirror(&mut self.store)? != self.mirror {
            bail!("the mirror is not what the tables hold");
        }
        let mut lines = dump(&self.mirror);
        for problem in desired.problems.iter().chain(&refused) {
            lines.push_str(&format!("problem   {}: {}\n", problem.object, problem.cause));
        }
        for warning in &desired.warnings {
            lines.push_str(&format!("warning   {}: {}\n", warning.object, warning.cause));
        }
        for finding in findings {
            lines.push_str(&format!("problem   {finding}\n"));
        }
        let is_shown = |line: &&str| line.split(' ').next().is_some_and(|word| self.scenario.show.contains(word));
        let dump = lines.lines().filter(is_shown).map(|line| format!("{line}\n")).collect();
        Ok(Outcome { dump, writes })
    }

    fn desired(&self, step: &ScenarioStep) -> Result<(Desired, Vec<String>)> {
        let documents = self.folder.join("documents");
        fs::create_dir_all(&documents)?;
        fs::write(documents.join("always.yaml"), &self.scenario.always)?;
        fs::write(documents.join("step.yaml"), &step.objects)?;
        let mut options = file_source::Options::new(documents);
        options.allocations = Some(self.folder.join("allocations.json"));
        options.write_allocations = true;
        let pools = step.pools.as_ref().unwrap_or(&self.scenario.pools).clone();
        options.pools = pools.try_into().map_err(|error: PoolError| anyhow!("{}: {}", error.field, error.cause))?;
        let loaded = file_source::load(&options)?;
        let node = &self.scenario.node;
        let context = NodeContext {
            name: node.name.clone(),
            node_port_addrs: node.node_port_addresses.clone(),
            local_addrs: node.addresses.clone(),
            service_cidrs: options.service_cidrs.clone(),
            detector: match (&node.cluster_cidr, node.detector) {
                (Some(ranges), _) => Detector::Ranges(ranges.clone()),
                (None, true) => Detector::NodeCidr,
                (None, false) => Detector::default(),
            },
            masquerade_all: node.masquerade_all,
            external_ips: match node.external_ips.as_slice() {
                [] => ExternalIps::Off,
                nets => ExternalIps::Within(nets.to_vec()),
            },
            bind_address: None,
        };
        let folder = format!("{}/", options.path.display());
        let findings = loaded.findings.iter().map(|finding| finding.to_string().replace(&folder, "")).collect();
        Ok((desired(&loaded.model, &context), findings))
    }
}

/// The text of a scenario file with the expected blocks replaced, in their order.
pub fn bless(text: &str, outcomes: &[Outcome]) -> String {
    let mut blessed = String::new();
    let mut outcomes = outcomes.iter();
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|within| line.trim().is_empty() || indent > within) {
            continue;
        }
        block = None;
        blessed.push_str(line);
        blessed.push('\n');
        if line.trim_start().trim_start_matches("- ").starts_with("expect: |")
            && let Some(outcome) = outcomes.next()
        {
            block = Some(indent);
            for expected in outcome.dump.lines() {
                blessed.push_str(&format!("{}  {expected}\n", " ".repeat(indent)));
            }
        }
    }
    blessed
}
