//! The cluster's DNS: names of Services and endpoints (`zone`, pure), the server that answers for them (`server`), and
//! `ballast dns` around both.

pub mod limit;
pub mod metrics;
pub mod server;
pub mod site;
pub mod upstream;
pub mod zone;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hickory_server::Server;
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    limit::Limit,
    server::{Handler, Rules, Zones},
    site::Site,
    upstream::Upstream,
    zone::Zone,
};
use crate::{
    convert::Severity,
    file_source::{self, Finding, Source},
    k8s::source::{self, Access, Calls, Timing},
    model::{Model, Touched},
};

/// How long clients may keep an answer, in seconds (D15).
pub const DEFAULT_TTL: u32 = 5;
/// UDP answers a second for each client that is not exempt.
pub const DEFAULT_RATE: u32 = 1000;
/// A TCP connection without a question for so long is closed.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Answers a TCP client may leave unread.
const TCP_ANSWERS: usize = 16;

/// Who may ask what, as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Servers that know other names.
    pub upstream: Vec<SocketAddr>,
    /// Clients whose questions are passed on to them.
    pub recursion: Vec<IpNet>,
    /// UDP answers a second for each client; 0 for no limit.
    pub rate: u32,
    /// Clients without a limit.
    pub exempt: Vec<IpNet>,
}

impl Clients {
    /// The rules, for a server that listens there.
    ///
    /// # Errors
    /// The server would ask itself.
    pub fn rules(&self, listen: &[SocketAddr]) -> anyhow::Result<Rules> {
        if let Some(own) = self.upstream.iter().find(|server| listen.contains(server)) {
            anyhow::bail!("--upstream {own} is where this server listens; give a server that knows other names");
        }
        let upstream = (!self.upstream.is_empty()).then(|| Upstream::new(self.upstream.clone()));
        let limit = Limit::new(self.rate, self.exempt.clone());
        Ok(Rules { upstream, recursion: self.recursion.clone(), limit })
    }
}

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum SourceOptions {
    /// Documents.
    Documents(file_source::Options),
    /// A cluster.
    Cluster(Access),
}

/// What `ballast dns` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects.
    pub source: SourceOptions,
    /// Where to listen, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Zone and TTL.
    pub zone: zone::Options,
    /// Who may ask what.
    pub clients: Clients,
    /// Where `/health` and `/ready` are.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics: Option<SocketAddr>,
    /// How long answers go on after it is told to end, while it is not ready any more.
    pub lameduck: Duration,
}

/// Serves the zone of the objects until a signal comes.
///
/// # Errors
/// An address cannot be listened on, there are no documents to begin with, or the credentials cannot be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let zones = Arc::new(Zones::default());
    let handler = Handler::new(Arc::clone(&zones), options.clients.rules(&options.listen)?);
    // Before the first read, so that questions get SERVFAIL meanwhile (D14).
    let mut server = listen(&options.listen, handler.clone(), "--listen").await?;
    let feed = Feed::open(&options).await?;
    let site = Site::new(&handler, feed.calls());
    let _pages = site.listen(options.health, options.metrics);
    let mut terminate = signal(SignalKind::terminate())?;
    let words = format!("answering for {} on {}", options.zone.zone, words(&options.listen));
    tokio::select! {
        fed = feed.run(&zones, &options.zone, &words) => fed?,
        ended = server.block_until_done() => ended.context("the DNS server ended")?,
        _ = terminate.recv() => {
            site.end();
            tokio::time::sleep(options.lameduck).await;
        }
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    server.shutdown_gracefully().await.context("the DNS server ended")
}

/// What makes the zone follow the objects.
enum Feed {
    Documents(Box<Documents>),
    Cluster(Box<source::Source>),
}

struct Documents {
    source: Source,
    watch: Option<file_source::Watch>,
    ticks: mpsc::Receiver<()>,
    path: String,
}

impl Feed {
    async fn open(options: &Options) -> anyhow::Result<Self> {
        Ok(match &options.source {
            SourceOptions::Documents(documents) => {
                let (watch, ticks) = file_source::watch(&documents.path)?;
                let (source, path) = (Source::new(documents.clone()), documents.path.display().to_string());
                Self::Documents(Box::new(Documents { source, watch, ticks, path }))
            }
            SourceOptions::Cluster(access) => {
                let pods = options.zone.pods == zone::Pods::Verified;
                let source = source::Source::start_names(access.clone(), Timing::default(), pods).await?;
                Self::Cluster(Box::new(source))
            }
        })
    }

    fn calls(&self) -> Calls {
        match self {
            Self::Documents(_) => Calls::default(),
            Self::Cluster(source) => source.calls(),
        }
    }

    async fn run(self, zones: &Zones, options: &zone::Options, words: &str) -> anyhow::Result<()> {
        match self {
            Self::Documents(documents) => documents.run(zones, options, words).await,
            Self::Cluster(source) => follow_cluster(*source, zones, options, words).await,
        }
    }
}

async fn follow_cluster(mut source: source::Source, zones: &Zones, options: &zone::Options, words: &str) -> ! {
    let mut model = Model::default();
    tracing::info!("the objects come from {}", source.words());
    loop {
        if source.changed(&mut model).await == Touched::NOTHING || !source.is_complete() {
            continue;
        }
        if !zones.follow(&model) {
            zones.set(Zone::new(&model, options.clone()));
            tracing::info!("{words}: {} Services of {}", model.services.len(), source.words());
        }
    }
}

impl Documents {
    async fn run(self, zones: &Zones, options: &zone::Options, words: &str) -> anyhow::Result<()> {
        let Self { mut source, watch, mut ticks, path } = self;
        let mut shown: Vec<Finding> = Vec::new();
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let loaded = source.reload();
                (source, loaded)
            });
            let (back, loaded) = read.await.context("reading the documents failed; please file a bug")?;
            source = back;
            let first = !zones.is_set();
            match loaded {
                Ok(loaded) => {
                    tell(&loaded, &mut shown, first);
                    if !zones.follow(&loaded.model) {
                        zones.set(Zone::new(&loaded.model, options.clone()));
                        tracing::info!("{words}");
                    }
                }
                Err(error) if first => return Err(error).context("no documents to begin with"),
                Err(error) => tracing::error!("{error}; the last good state stays"),
            }
            if watch.is_none() {
                // Standard input is read once.
                return std::future::pending().await;
            }
            if ticks.recv().await.is_none() {
                anyhow::bail!("the watch of {path} ended");
            }
        }
    }
}

/// Findings that are new, and Services that have no address yet.
fn tell(loaded: &file_source::Loaded, shown: &mut Vec<Finding>, first: bool) {
    for finding in loaded.findings.iter().filter(|finding| !shown.contains(finding)) {
        if finding.severity == Severity::Error { tracing::error!("{finding}") } else { tracing::warn!("{finding}") }
    }
    shown.clone_from(&loaded.findings);
    let addressed = |service: &crate::model::Service| {
        service.headless
            || !service.cluster_ips.is_empty()
            || service.service_type == crate::model::ServiceType::ExternalName
    };
    for (name, _) in loaded.model.services.iter().filter(|(_, service)| first && !addressed(service)) {
        tracing::warn!(
            "Service {name}: it has no cluster IP yet (`ballast run` allocates one); its name has no address"
        );
    }
}

/// Listens on all addresses, UDP and TCP, or on none.
///
/// # Errors
/// Names the address that cannot be had.
pub async fn listen(addresses: &[SocketAddr], handler: Handler, flag: &str) -> anyhow::Result<Server<Handler>> {
    let mut server = Server::new(handler);
    for address in addresses {
        let why = |protocol| format!("cannot listen on {protocol} {address}; give another {flag} ADDR:PORT");
        let udp = every(*address, UdpSocket::bind).await.with_context(|| why("UDP"))?;
        let tcp = every(*address, TcpListener::bind).await.with_context(|| why("TCP"))?;
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
    }
    Ok(server)
}

/// `[::]` is every address, those of IPv4 where there is no IPv6.
async fn every<T, F: Future<Output = io::Result<T>>>(
    address: SocketAddr,
    bind: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    match bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && is_without_ipv6(&error) => {
            tracing::warn!("there is no IPv6 here: {address} is port {} of IPv4 alone", address.port());
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).await
        }
        other => other,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(errno, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

pub(crate) fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
