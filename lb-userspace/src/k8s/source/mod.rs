//! The API server as the source: lists and watches straight into the model.
//!
//! ```text
//! API server -> watch (one for each kind) -> changes -> Cluster -> Model
//! ```
//! The model is touched first when every kind has been listed once.

mod access;
mod api;
mod calls;
mod cluster;
mod connection;
mod failure;
mod kind;
mod pace;
mod plugin;
mod recorder;
mod request;
mod servers;
mod status;
mod task;
mod watch;
mod wire;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::{sync::mpsc, task::JoinSet};

pub use self::{
    access::{Access, AccessError},
    api::{Api, Lease, Written, lease_time},
    calls::Calls,
    kind::{Kind, Selectors},
    pace::{Timing, spread},
    recorder::{Recorder, Sent},
};
use self::{
    cluster::{Change, Cluster},
    connection::Connection,
    failure::{Cause, Failure},
    kind::Watched,
    status::Watches,
    task::keep_running,
    watch::Watch,
};
use super::{EndpointSlice, Namespace, Node, Pod, Service, ServiceCidr};
use crate::{
    convert::Severity,
    model::{Changes, Model, ObjectName, Touched},
    report::{Problem, WatchStatus},
};

/// Changes that may wait for the agent; a watch waits when there are more.
const QUEUE: usize = 4096;

/// What is watched, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The way to the API server.
    pub access: Access,
    /// Which objects.
    pub selectors: Selectors,
    /// Whether `ServiceCIDR` objects are.
    pub service_cidrs: bool,
    /// How patiently.
    pub timing: Timing,
}

/// What a watch tells.
#[derive(Debug)]
enum Update {
    /// A list came to its end (then with the server's name), or an event came.
    Change(Box<Change>, Option<String>),
    /// A watch was begun at this server.
    Following(Kind, String),
    /// A bookmark.
    Heard(Kind),
    Failed(Kind, Failure, Problem),
}

/// The watches of a cluster. They end when it is dropped.
#[derive(Debug)]
pub struct Source {
    updates: mpsc::Receiver<Update>,
    cluster: Cluster,
    watches: Watches,
    words: String,
    /// Where the addresses of the API servers are kept, and those that are.
    servers: Option<(PathBuf, BTreeSet<SocketAddr>)>,
    connection: Arc<Connection>,
    timing: Timing,
    tasks: JoinSet<()>,
}

impl Source {
    /// Begins to watch what a datapath needs. What is wrong with the credentials themselves is an error; a server that does
    /// not answer is not.
    pub async fn start(options: Options) -> Result<Self, AccessError> {
        let cidrs = options.service_cidrs.then_some(Kind::ServiceCidr);
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node].into_iter().chain(cidrs);
        Self::watch(options.access, &options.selectors, options.timing, &kinds.collect::<Vec<_>>()).await
    }

    /// Begins to watch what a name service needs; `pods` too, if addresses are compared with theirs.
    pub async fn start_names(access: Access, timing: Timing, pods: bool) -> Result<Self, AccessError> {
        let pods = pods.then_some(Kind::Pod);
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Namespace].into_iter().chain(pods);
        Self::watch(access, &Selectors::names(), timing, &kinds.collect::<Vec<_>>()).await
    }

    /// Begins to watch what whoever gives load balancer addresses needs: all Services, whatever serves them, and the labels
    /// of namespaces.
    pub fn start_balancers(api: &Api, timing: Timing) -> Self {
        let mut source = Self::watch_with(api, &Selectors::default(), timing, &[Kind::Service, Kind::Namespace]);
        source.cluster.keep_told();
        source
    }

    async fn watch(access: Access, selectors: &Selectors, timing: Timing, kinds: &[Kind]) -> Result<Self, AccessError> {
        Ok(Self::watch_with(&Api::open(access).await?, selectors, timing, kinds))
    }

    fn watch_with(api: &Api, selectors: &Selectors, timing: Timing, kinds: &[Kind]) -> Self {
        let Api { connection, access } = api.clone();
        let words = access.words();
        let servers = match &access {
            Access::InCluster { servers, .. } => Some((servers.clone(), servers::read(servers))),
            Access::Kubeconfig { .. } | Access::Master(_) => None,
        };
        let (sender, updates) = mpsc::channel(QUEUE);
        let mut start = Start { connection, selectors, timing, sender, tasks: JoinSet::new() };
        for kind in kinds {
            match kind {
                Kind::Service => start.watch::<Service>(),
                Kind::EndpointSlice => start.watch::<EndpointSlice>(),
                Kind::Node => start.watch::<Node>(),
                Kind::ServiceCidr => start.watch::<ServiceCidr>(),
                Kind::Namespace => start.watch::<Namespace>(),
                Kind::Pod => start.watch::<Pod>(),
                Kind::ConfigMap => {}
            }
        }
        Self {
            updates,
            cluster: Cluster::new(Kind::ALL.into_iter().filter(|kind| !kinds.contains(kind))),
            watches: Watches::new(kinds.iter().copied()),
            words,
            servers,
            connection: start.connection,
            timing: start.timing,
            tasks: start.tasks,
        }
    }

    /// Sends Events in the name of `node` from now on; it ends with this.
    pub fn recorder(&mut self, node: &str) -> Recorder {
        Recorder::start(self.connection.clone(), self.timing, node, &mut self.tasks)
    }

    /// Objects told by the server so far.
    pub const fn changes(&self) -> Changes {
        self.cluster.changes()
    }

    /// The Services the server told of since this was asked last, be they as they were before or not; of a source of balancers.
    pub fn told(&mut self) -> BTreeSet<ObjectName> {
        self.cluster.told()
    }

    /// Load balancer addresses of Services that are refused, as their statuses say.
    pub fn kept(&self) -> impl Iterator<Item = (IpAddr, &ObjectName)> {
        self.cluster.kept()
    }

    /// What was asked of API servers.
    pub fn calls(&self) -> Calls {
        self.connection.calls.clone()
    }

    /// Waits for news and applies all there are; what of the model is another one now. Nothing is lost when it is dropped
    /// before its end.
    pub async fn changed(&mut self, model: &mut Model) -> Touched {
        let Some(first) = self.updates.recv().await else { return std::future::pending().await };
        let mut touched = self.apply(model, first);
        for _ in 0..QUEUE {
            let Ok(update) = self.updates.try_recv() else { break };
            touched.add(self.apply(model, update));
        }
        if touched != Touched::NOTHING {
            self.keep_servers(model);
        }
        touched
    }

    fn apply(&mut self, model: &mut Model, update: Update) -> Touched {
        match update {
            Update::Change(change, listed) => {
                let kind = change.kind();
                match listed {
                    Some(server) => self.watches.listed(kind, server),
                    None => self.watches.heard(kind),
                }
                self.cluster.apply(model, *change)
            }
            Update::Following(kind, server) => {
                self.watches.following(kind, server);
                Touched::NOTHING
            }
            Update::Heard(kind) => {
                self.watches.heard(kind);
                Touched::NOTHING
            }
            Update::Failed(kind, failure, problem) => {
                let missing = failure.cause == Cause::Missing;
                let refused = self.watches.refused(kind, &failure) >= self.timing.lasting;
                let is_optional = kind.is_optional();
                self.watches.failed(kind, &failure, problem, missing && is_optional);
                match failure.cause {
                    Cause::Missing if is_optional => self.cluster.settle(model, kind),
                    Cause::Forbidden(_) if is_optional && refused => self.cluster.settle_as_known(model, kind),
                    _ => Touched::NOTHING,
                }
            }
        }
    }

    fn keep_servers(&mut self, model: &Model) {
        let Some((file, kept)) = &mut self.servers else { return };
        let found = servers::of(model);
        if found.is_empty() || found == *kept {
            return;
        }
        match servers::keep(file, &found) {
            Ok(()) => *kept = found,
            Err(error) => tracing::warn!("cannot keep the API servers in {}: {error}", file.display()),
        }
    }

    /// Whether every kind has been listed once: the model is the cluster's.
    pub const fn is_complete(&self) -> bool {
        self.cluster.is_complete()
    }

    /// Where the objects come from.
    pub fn words(&self) -> String {
        self.watches.server().map_or_else(|| self.words.clone(), |server| format!("{server} ({})", self.words))
    }

    /// State of the watches.
    pub fn status(&self) -> Vec<WatchStatus> {
        self.watches.status()
    }

    /// What is wrong with watches; what is wrong with objects is in the log already.
    pub fn watch_problems(&self, severity: Severity) -> Vec<Problem> {
        self.watches.problems(severity).collect()
    }

    /// What is wrong with objects and watches.
    pub fn problems(&self, severity: Severity) -> Vec<Problem> {
        let watches = self.watches.problems(severity);
        self.cluster.problems(severity).chain(watches).collect()
    }
}

struct Start<'a> {
    connection: Arc<Connection>,
    selectors: &'a Selectors,
    timing: Timing,
    sender: mpsc::Sender<Update>,
    tasks: JoinSet<()>,
}

impl Start<'_> {
    fn watch<O: Watched>(&mut self) {
        let selector = self.selectors.of(O::KIND).map(|(name, selector)| (name, selector.to_owned()));
        let (connection, updates) = (self.connection.clone(), self.sender.clone());
        let watch = Watch { connection, selector, updates, timing: self.timing };
        let updates = self.sender.clone();
        let tell = move |failure: Failure| {
            let problem = failure.problem(O::KIND, "watch", "the API server");
            let update = Update::Failed(O::KIND, failure, problem);
            let updates = updates.clone();
            async move { updates.send(update).await.is_ok() }
        };
        self.tasks.spawn(keep_running(self.timing, move || watch.clone().run::<O>(), tell));
    }
}
