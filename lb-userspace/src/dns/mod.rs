//! The cluster's DNS: names of Services and endpoints (`zone`, pure), the server that answers for them (`server`), and
//! `ballast dns` around both.

mod feed;
pub mod limit;
pub mod metrics;
mod records;
pub mod server;
pub mod site;
mod sockets;
mod tcp;
mod udp;
pub mod upstream;
mod wire;
mod worker;
pub mod zone;
mod zones;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;
use nix::sys::socket::SockaddrStorage;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    feed::Feed,
    limit::Limit,
    server::{Handler, Rules},
    site::Site,
    upstream::Upstream,
};
pub use self::{feed::Follower, sockets::Server, zones::Zones};
use crate::{file_source, k8s::source::Access};

/// How long clients may keep an answer, in seconds (D15).
pub const DEFAULT_TTL: u32 = 5;
/// UDP answers a second for each client that is not exempt.
pub const DEFAULT_RATE: u32 = 1000;
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
        let here = Here::new();
        if let Some(own) = self.upstream.iter().find(|server| listen.iter().any(|at| here.is_at(*at, **server))) {
            anyhow::bail!("--upstream {own} is where this server listens; give a server that knows other names");
        }
        let upstream = (!self.upstream.is_empty()).then(|| Upstream::new(self.upstream.clone()));
        let limit = Limit::new(self.rate, self.exempt.clone());
        Ok(Rules { upstream, recursion: self.recursion.clone(), limit })
    }
}

/// What leads to this machine.
struct Here {
    addresses: Vec<IpAddr>,
}

impl Here {
    fn new() -> Self {
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
        let ip = |address: SockaddrStorage| {
            let v4 = || address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
            let any = address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)).or_else(v4);
            any.map(|any| any.ip())
        };
        Self { addresses: all.filter_map(ip).collect() }
    }

    /// Whether a question to `server` arrives at a listener of `at`.
    fn is_at(&self, at: SocketAddr, server: SocketAddr) -> bool {
        let (own, asked) = (at.ip().to_canonical(), server.ip().to_canonical());
        // Who asks the address of nobody asks the loopback one.
        let asked = match asked {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            asked => asked,
        };
        let everywhere = own.is_unspecified() && (own.is_ipv6() || asked.is_ipv4());
        let is_here = || asked.is_loopback() || self.addresses.contains(&asked);
        at.port() == server.port() && (own == asked || everywhere && is_here())
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
    let server = listen(&options.listen, &handler, "--listen")?;
    let feed = Feed::open(&options).await?;
    let site = Site::new(&handler, feed.calls());
    let _pages = site.listen(options.health, options.metrics);
    let mut terminate = signal(SignalKind::terminate())?;
    let words = format!("answering for {} on {}", options.zone.zone, words(&options.listen));
    tokio::select! {
        fed = feed.run(&zones, &options.zone, &words) => fed?,
        () = server.ended() => anyhow::bail!("the DNS server ended; please file a bug"),
        _ = terminate.recv() => {
            site.end();
            tokio::time::sleep(options.lameduck).await;
        }
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// Listens on all addresses, UDP and TCP, or on none.
///
/// # Errors
/// Names the address that cannot be had.
pub fn listen(addresses: &[SocketAddr], handler: &Handler, flag: &str) -> anyhow::Result<Server> {
    let bind = |address: &SocketAddr| {
        let why = |protocol| format!("cannot listen on {protocol} {address}; give another {flag} ADDR:PORT");
        let udp = every(*address, UdpSocket::bind).with_context(|| why("UDP"))?;
        let tcp = every(*address, TcpListener::bind).with_context(|| why("TCP"))?;
        Ok((udp, tcp))
    };
    Server::start(handler, addresses.iter().map(bind).collect::<anyhow::Result<_>>()?)
}

/// `[::]` is every address, those of IPv4 where there is no IPv6.
fn every<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && is_without_ipv6(&error) => {
            tracing::warn!("there is no IPv6 here: {address} is port {} of IPv4 alone", address.port());
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
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
