//! The cluster's DNS: names of Services and endpoints (`zone`, pure) and the server that answers for them (`server`).

pub mod server;
pub mod zone;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use hickory_server::Server;
use tokio::net::{TcpListener, UdpSocket};

use self::{
    server::{Handler, Zones},
    zone::Zone,
};
use crate::{
    convert::Severity,
    file_source::{self, Finding, Source},
};

/// How long clients may keep an answer, in seconds (D15).
pub const DEFAULT_TTL: u32 = 5;
/// A TCP connection without a question for so long is closed.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Answers a TCP client may leave unread.
const TCP_ANSWERS: usize = 16;

/// What `ballast dns` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Documents.
    pub source: file_source::Options,
    /// Where to listen, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Zone and TTL.
    pub zone: zone::Options,
}

/// Serves the zone of documents until a signal comes.
///
/// # Errors
/// An address cannot be listened on, or there are no documents to begin with.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let zones = Arc::new(Zones::default());
    // Before the first read, so that questions get SERVFAIL meanwhile (D14).
    let mut server = listen(&options.listen, &zones, "--listen").await?;
    let path = options.source.path.clone();
    let (watch, mut ticks) = file_source::watch(&path)?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut source = Source::new(options.source);
    let mut first = true;
    let mut shown: Vec<Finding> = Vec::new();
    loop {
        let zone = options.zone.clone();
        let read = tokio::task::spawn_blocking(move || {
            let loaded = source.reload().map(|loaded| (Zone::new(&loaded.model, zone), loaded));
            (source, loaded)
        });
        let (back, loaded) = read.await.context("reading the documents failed; please file a bug")?;
        source = back;
        match loaded {
            Ok((zone, loaded)) => {
                tell(&loaded, &mut shown, first);
                zones.set(zone);
                if first {
                    tracing::info!("answering for {} on {}", options.zone.zone, words(&options.listen));
                }
            }
            Err(error) if first => return Err(error).context("no documents to begin with"),
            Err(error) => tracing::error!("{error}; the last good state stays"),
        }
        first = false;
        tokio::select! {
            tick = ticks.recv(), if watch.is_some() => if tick.is_none() { anyhow::bail!("the watch of {} ended", path.display()) },
            ended = server.block_until_done() => ended.context("the DNS server ended")?,
            _ = terminate.recv() => break,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; break }
        }
    }
    server.shutdown_gracefully().await.context("the DNS server ended")
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
pub async fn listen(addresses: &[SocketAddr], zones: &Arc<Zones>, flag: &str) -> anyhow::Result<Server<Handler>> {
    let mut server = Server::new(Handler::new(Arc::clone(zones)));
    for address in addresses {
        let why = |protocol| format!("cannot listen on {protocol} {address}; give another {flag} ADDR:PORT");
        let udp = UdpSocket::bind(address).await.with_context(|| why("UDP"))?;
        let tcp = TcpListener::bind(address).await.with_context(|| why("TCP"))?;
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
    }
    Ok(server)
}

pub(crate) fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
