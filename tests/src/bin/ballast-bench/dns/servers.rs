//! The servers: each on the same core, with the same API server.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use lb_tests::{Process, api_server::ApiServer, binary, program};

use super::{load, wire::Question};
use crate::control::process::Usage;

/// How long a server may take to know the cluster.
const START: Duration = Duration::from_mins(5);
/// The core of the servers; the client and the API server have another one.
const CORE: &str = "1";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Ballast,
    /// As kubeadm configures it.
    CoreDns,
    /// With its cache for the cluster's names too.
    CoreDnsCached,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Ballast, Self::CoreDns, Self::CoreDnsCached];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ballast => "Ballast",
            Self::CoreDns => "CoreDNS",
            Self::CoreDnsCached => "CoreDNS, caching",
        }
    }
}

/// A server that knows the cluster.
pub(super) struct Server {
    pub(super) kind: Kind,
    pub(super) at: SocketAddr,
    pub(super) process: Process,
    /// From its start to its first right answer.
    pub(super) start: Duration,
}

impl Server {
    /// Starts one and waits until it has an address for `known`.
    pub(super) fn start(kind: Kind, api: &ApiServer, folder: &Path, known: &Question) -> anyhow::Result<Self> {
        let at = free()?;
        let mut command = Command::new("taskset");
        command.args(["-c", CORE]);
        match kind {
            Kind::Ballast => {
                command.arg(binary("ballast")?).args(["dns", "--master", &api.url(), "--listen", &at.to_string()]);
                let [health, metrics] = [free()?, free()?].map(|at| at.to_string());
                command.args(["--healthz-bind-address", &health, "--metrics-bind-address", &metrics]);
                command.args(["--pods", "insecure", "--ttl", "30"]);
            }
            Kind::CoreDns | Kind::CoreDnsCached => {
                let file = folder.join(format!("Corefile-{}", at.port()));
                std::fs::write(&file, corefile(kind, at, &api.url())?).context("cannot write a Corefile")?;
                command.arg(program("coredns")?).arg("-conf").arg(file);
            }
        }
        let begin = Instant::now();
        let mut process = Process::spawn(kind.name(), command)?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
        for id in 0_u16.. {
            if load::ask(&socket, known, id)?.is_some_and(|answer| answer.code == 0 && answer.records > 0) {
                return Ok(Self { kind, at, process, start: begin.elapsed() });
            }
            if !process.is_running() || begin.elapsed() > START {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("{} does not answer for {}: {}", kind.name(), known.shown(), process.stderr());
    }

    /// What it takes now.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.process.id())
    }
}

/// Free for UDP and TCP a moment ago.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no port")?.local_addr()?)
}

/// That of kubeadm. Left out: `forward`, since nothing outside is asked for, with `loop`, which looks for its loops;
/// `reload`, as the file stays; `loadbalance` is there, since Ballast rotates its answers too.
fn corefile(kind: Kind, at: SocketAddr, api: &str) -> anyhow::Result<String> {
    let (port, health, ready, metrics) = (at.port(), free()?, free()?, free()?);
    let cache = match kind {
        Kind::CoreDnsCached => "cache 30",
        _ => "cache 30 {\n        disable success cluster.local\n        disable denial cluster.local\n    }",
    };
    Ok(format!(
        ".:{port} {{
    bind 127.0.0.1
    errors
    health {health}
    ready {ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint {api}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus {metrics}
    {cache}
    loadbalance
}}
"
    ))
}
