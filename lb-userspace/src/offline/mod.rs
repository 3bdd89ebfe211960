//! Answers without an agent: what the pins and the saved numbers tell. Nothing is written.
//!
//! What only the documents say (selectors, labels, fields not honoured, Services without a datapath) is unknown here,
//! and said to be.

mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use lb_common::{frontend::PrefixFlags, settings::Setting};

use crate::{
    bpf::{self, Hooks, Maps, OpenError, Pins},
    control::{Request, Response},
    desired::{Desired, ServiceKey},
    engine,
    gc::Clock,
    ids::Ids,
    image::{self, Image, Programmed},
    net::{self, Netlink, host_device},
    numbers, plan,
    report::{DeviceStatus, HookStatus, Problem, Status},
};

/// The word for what the tables do not hold.
pub const UNKNOWN: &str = "unknown";

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// State directory.
    pub state_dir: &'a Path,
    /// The bpffs.
    pub bpffs: &'a Path,
    /// The cgroup2, if not the root of its mount.
    pub cgroup: Option<&'a Path>,
}

/// Nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is nothing to read.
    #[error(
        "no agent runs on {state_dir}, and nothing of Ballast is pinned in {bpffs}; start one with `ballast run`, or \
         name its --state-dir and --bpffs"
    )]
    Nothing {
        /// Where an agent would listen.
        state_dir: PathBuf,
        /// Where pins would be.
        bpffs: PathBuf,
    },
    /// There is nowhere to read.
    #[error(
        "no agent runs on {state_dir}, and {bpffs} is no bpffs where its pins could be; start one with `ballast run`, or \
         name its --state-dir and --bpffs"
    )]
    Nowhere {
        /// Where an agent would listen.
        state_dir: PathBuf,
        /// Where pins would be.
        bpffs: PathBuf,
    },
    /// The pins cannot be read.
    #[error("no agent runs on {state_dir}, and what is pinned cannot be told: {cause}")]
    Pins {
        /// Where an agent would listen.
        state_dir: PathBuf,
        /// Why.
        cause: Box<OpenError>,
    },
    /// A map or the file of numbers cannot be read.
    #[error("no agent runs on {state_dir}, and {what} cannot be read: {cause}; run this as root")]
    State {
        /// Where an agent would listen.
        state_dir: PathBuf,
        /// What.
        what: String,
        /// Why.
        cause: io::Error,
    },
}

/// What is left of an agent.
struct Left<'a> {
    places: Places<'a>,
    maps: Maps,
    image: Image,
    ids: Ids,
    services: BTreeMap<u32, Programmed>,
    problems: Vec<Problem>,
}

/// Answers a question from what an agent left.
pub async fn answer(places: Places<'_>, request: &Request) -> Result<Response, OfflineError> {
    let left = Left::read(places)?;
    Ok(match request {
        Request::Status => Response::Status(Box::new(left.status().await)),
        Request::Services => Response::Services(left.rows()),
        Request::Describe { namespace, name } => match left.detail(namespace, name) {
            Some(detail) => Response::Detail(Box::new(detail)),
            None => Response::NotFound { namespace: namespace.clone(), name: name.clone() },
        },
    })
}

impl<'a> Left<'a> {
    fn read(places: Places<'a>) -> Result<Self, OfflineError> {
        let state_dir = || places.state_dir.to_owned();
        let mut maps = match bpf::read_pinned(places.bpffs) {
            Ok(Some(maps)) => maps,
            Ok(None) => return Err(OfflineError::Nothing { state_dir: state_dir(), bpffs: places.bpffs.to_owned() }),
            Err(OpenError::NoBpffs(bpffs)) => return Err(OfflineError::Nowhere { state_dir: state_dir(), bpffs }),
            Err(cause) => return Err(OfflineError::Pins { state_dir: state_dir(), cause: cause.into() }),
        };
        let failed = |what: String| move |cause| OfflineError::State { state_dir: state_dir(), what, cause };
        let image = plan::read_mirror(&mut maps).map_err(failed("the pinned maps".to_owned()))?;
        let file = engine::ids_file(places.state_dir);
        let (mut ids, damaged) = engine::load_ids(&file).map_err(failed(file.display().to_string()))?;
        ids.adopt(&image, &Desired::default());
        let mut problems = vec![Problem {
            object: "agent".to_owned(),
            cause: format!("not running on {}; programs and tables stay as they are", places.state_dir.display()),
            fix: "start it with `ballast run`".to_owned(),
        }];
        problems
            .extend(damaged.map(|problem| Problem { fix: "start the agent: it makes it anew".to_owned(), ..problem }));
        let services = image::programmed(&image);
        let left = Self { places, maps, image, ids, services, problems };
        Ok(left.with_nameless_told())
    }

    fn with_nameless_told(mut self) -> Self {
        let names = self.names();
        let nameless: Vec<String> =
            self.services.keys().filter(|id| !names.contains_key(id)).map(ToString::to_string).collect();
        if !nameless.is_empty() {
            self.problems.push(Problem {
                object: format!("file {}", engine::ids_file(self.places.state_dir).display()),
                cause: format!("does not name the service ports with the numbers {}", nameless.join(", ")),
                fix: "name the --state-dir of the agent that made them, or start the agent: it names them".to_owned(),
            });
        }
        self
    }

    /// Whose the numbers are.
    fn names(&self) -> BTreeMap<u32, &ServiceKey> {
        self.ids.services.owners().map(|(key, id)| (id, key)).collect()
    }

    async fn status(&self) -> Status {
        let surveys = numbers::surveys(&self.maps);
        let cidrs = image::prefixes(&self.image, PrefixFlags::DETECTED);
        let cidrs: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
        let names = self.names();
        let services: BTreeSet<_> =
            self.services.keys().map(|id| names.get(id).map(|key| &key.service).ok_or(id)).collect();
        let pins = Pins::new(self.places.bpffs);
        let mut problems = self.problems.clone();
        let devices = devices(&pins).await.unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: UNKNOWN.to_owned(),
            agent_pid: None,
            source: format!("the pins in {}", pins.maps().display()),
            watches: Vec::new(),
            stale_seconds: None,
            detector: if cidrs.is_empty() { "none".to_owned() } else { format!("NodeCIDR {}", cidrs.join(",")) },
            socket_hooks: self.socket_hooks(&pins),
            takeover_seconds: self.takeover_seconds(),
            devices,
            maps: numbers::map_use(&self.maps, &self.image, &surveys),
            bpf_memory_bytes: self.maps.memory(),
            services: services.len() as u64,
            frontends: self.services.values().map(|service| service.frontends.len() as u64).sum(),
            backends: self.services.values().map(|service| service.backends.len() as u64).sum(),
            flows: surveys.iter().map(|survey| survey.flows).sum(),
            verified: None,
            counters: numbers::counters(&self.maps),
            problems,
            warnings: Vec::new(),
        }
    }

    /// Absent as well where the clock cannot be read.
    fn takeover_seconds(&self) -> Option<u32> {
        let word = self.maps.word("LB_SETTINGS", Setting::Takeover as u32).ok()?;
        Clock::of(&self.maps).ok()?.takeover_seconds(word)
    }

    fn socket_hooks(&self, pins: &Pins) -> HookStatus {
        let ids = match pins.cgroups() {
            Ok(ids) => ids,
            Err(error) => return HookStatus { attached: false, detail: format!("the pinned links: {error}") },
        };
        let root = match self.places.cgroup {
            Some(path) => Some(path.to_owned()),
            None => net::cgroup2_root().ok(),
        };
        let named = root.and_then(|path| Some((fs::metadata(&path).ok()?.ino(), path)));
        let texts: Vec<String> = ids
            .iter()
            .map(|id| match &named {
                Some((inode, path)) if inode == id => path.display().to_string(),
                _ => format!("cgroup with id {id}"),
            })
            .collect();
        let detail = if texts.is_empty() { "no link is pinned".to_owned() } else { texts.join(",") };
        HookStatus { attached: !texts.is_empty(), detail }
    }
}

/// The devices that have links pinned.
async fn devices(pins: &Pins) -> Result<Vec<DeviceStatus>, Problem> {
    let problem = |what: &str, error: &io::Error| Problem {
        object: "devices".to_owned(),
        cause: format!("{what} cannot be listed: {error}"),
        fix: "run this as root of the agent's network namespace".to_owned(),
    };
    let pinned = pins.devices().map_err(|error| problem("pinned links", &error))?;
    let listed = async { Netlink::open()?.links().await };
    let links = listed.await.map_err(|error| problem("interfaces", &error))?;
    let status = |(ifindex, hooks): (u32, Hooks)| {
        let link = links.iter().find(|link| link.ifindex == ifindex);
        DeviceStatus {
            name: link.map_or_else(|| format!("#{ifindex}"), |link| link.name.clone()),
            ifindex,
            role: if hooks.host { "host" } else { UNKNOWN }.to_owned(),
            why: "links are pinned".to_owned(),
            hooks: match hooks {
                Hooks { xdp: true, tcx: true, .. } => "xdp+tcx",
                Hooks { xdp: true, .. } => "xdp",
                Hooks { .. } => "tcx",
            }
            .to_owned(),
            degraded: link.is_none().then(|| "no interface of this network namespace has this index".to_owned()),
        }
    };
    let mut devices: Vec<DeviceStatus> = pinned.into_iter().map(status).collect();
    devices.sort_by_key(|device| device.name == host_device::NAME);
    Ok(devices)
}
