//! Connections opened from a place of the world, and what came of them.
//!
//! Each runs in a child process, since socket hooks look at the process's cgroup; the child is `ballast-peer`, and the
//! types here are its output.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use crate::{Place, Process, process::binary};

/// What one connection or datagram met.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Name of the error (`ECONNREFUSED`, `ETIMEDOUT`, ...); absent when answered.
    pub error: Option<String>,
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    /// What `getpeername` shows; for an unconnected socket, whom the answer came from.
    pub peer: Option<SocketAddr>,
    /// The name of the server that answered.
    pub backend: Option<String>,
    /// The client's address as the server saw it.
    pub source: Option<SocketAddr>,
    /// From the call to its result.
    pub elapsed_ms: f64,
}

impl Answer {
    /// The backend and the source address it saw, or the error in words.
    pub fn reached(&self) -> anyhow::Result<(&str, IpAddr)> {
        match (&self.error, &self.backend, self.source) {
            (None, Some(backend), Some(source)) => Ok((backend, source.ip())),
            (error, ..) => Err(anyhow!(
                "no answer: {} after {:.0} ms",
                error.as_deref().unwrap_or("malformed greeting"),
                self.elapsed_ms
            )),
        }
    }
}

/// How a [`Call`] speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP connection each.
    Tcp,
    /// A connected UDP socket each.
    Udp,
    /// An unconnected UDP socket each (`sendto`).
    UdpUnconnected,
}

/// Some connections, one after the other.
#[derive(Clone, Debug)]
pub struct Call {
    transport: Transport,
    to: SocketAddr,
    count: u32,
    timeout: Duration,
    source: Option<SocketAddr>,
    cpu: Option<u32>,
    bytes: usize,
}

impl Call {
    /// One connection to `to`, given two seconds.
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self { transport, to, count: 1, timeout: Duration::from_secs(2), source: None, cpu: None, bytes: 8 }
    }

    /// One TCP connection.
    pub fn tcp(to: impl Into<SocketAddr>) -> Self {
        Self::new(Transport::Tcp, to.into())
    }

    /// One datagram from a connected UDP socket.
    pub fn udp(to: impl Into<SocketAddr>) -> Self {
        Self::new(Transport::Udp, to.into())
    }

    /// This many, each with a socket of its own.
    #[must_use]
    pub fn count(self, count: u32) -> Self {
        Self { count, ..self }
    }

    /// How long each may take.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Bind to this address (port 0: any) first.
    #[must_use]
    pub fn source(self, source: SocketAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Bytes of a datagram, at least one.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Run on this CPU only.
    #[must_use]
    pub fn cpu(self, cpu: u32) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    /// Makes them at `place`.
    ///
    /// UDP sockets get ports that no earlier call of this process had, unless a source is given: with a port of an earlier
    /// one they would go on with its flow, to its backend.
    pub fn run(&self, place: &Place) -> anyhow::Result<Vec<Answer>> {
        let mut command = place.command(binary("ballast-peer")?)?;
        match self.transport {
            Transport::Tcp => command.arg("connect"),
            Transport::Udp => command.arg("udp"),
            Transport::UdpUnconnected => command.args(["udp", "--unconnected"]),
        };
        command.arg("--to").arg(self.to.to_string());
        command.arg("--count").arg(self.count.to_string());
        command.arg("--timeout-ms").arg(self.timeout.as_millis().to_string());
        match (self.source, self.transport) {
            (Some(source), _) => {
                command.arg("--source").arg(source.to_string());
            }
            (None, Transport::Udp | Transport::UdpUnconnected) => {
                command.arg("--first-port").arg(fresh_ports(self.count)?.to_string());
            }
            (None, Transport::Tcp) => {}
        }
        if self.transport != Transport::Tcp {
            command.arg("--bytes").arg(self.bytes.to_string());
        }
        if let Some(cpu) = self.cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let limit = self.timeout * self.count + Duration::from_secs(10);
        let output = Process::spawn(&format!("client at {}", place.name()), command)?.output(limit)?;
        output
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("cannot read the peer's line {line:?}")))
            .collect()
    }

    /// Makes one at `place`.
    pub fn run_one(&self, place: &Place) -> anyhow::Result<Answer> {
        self.clone().count(1).run(place)?.pop().context("the peer printed nothing")
    }
}

/// The first of `count` ports in a row, below those the kernel gives out and those of Services.
fn fresh_ports(count: u32) -> anyhow::Result<u16> {
    const FIRST: u32 = 10_000;
    const END: u32 = 30_000;
    static USED: AtomicU32 = AtomicU32::new(0);
    let used = USED.fetch_add(count, Ordering::Relaxed) % (END - FIRST);
    let first = if used + count <= END - FIRST { FIRST + used } else { FIRST };
    u16::try_from(first).context("cannot number UDP ports")
}

/// What a bulk transfer met: an echo of `bytes` bytes, so the same data both ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkReport {
    /// Name of the error, if it did not end well.
    pub error: Option<String>,
    /// Who echoed.
    pub backend: Option<String>,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back.
    pub received: u64,
    /// Their hash as sent.
    pub sent_sha256: String,
    /// Their hash as they came back.
    pub received_sha256: String,
    /// How long it took.
    pub elapsed_ms: f64,
}

impl BulkReport {
    /// Whether all came back as it was sent.
    pub fn is_intact(&self) -> bool {
        self.error.is_none() && self.sent == self.received && self.sent_sha256 == self.received_sha256
    }
}

/// Sends `bytes` bytes over TCP from `place` and has them echoed.
pub fn bulk(place: &Place, to: SocketAddr, bytes: u64, limit: Duration) -> anyhow::Result<BulkReport> {
    let mut command = place.command(binary("ballast-peer")?)?;
    command.arg("bulk").arg("--to").arg(to.to_string()).arg("--bytes").arg(bytes.to_string());
    let output = Process::spawn(&format!("bulk client at {}", place.name()), command)?.output(limit)?;
    serde_json::from_str(&output).with_context(|| format!("cannot read the peer's report {output:?}"))
}

/// What a datagram socket that forbids fragments learned of its path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathReport {
    /// Name of the error, if nobody answered in the end.
    pub error: Option<String>,
    /// The path MTU the kernel knows after the answer.
    pub mtu: u32,
    /// How often a datagram was called too long.
    pub too_long: u32,
    /// How often one was sent.
    pub sent: u32,
    /// Bytes of the datagram that was answered.
    pub answered: usize,
}

/// Sends datagrams that may not be fragmented from `place`, as large as the path is said to take, until one is answered.
pub fn path(place: &Place, to: SocketAddr) -> anyhow::Result<PathReport> {
    let mut command = place.command(binary("ballast-peer")?)?;
    command.arg("path").arg("--to").arg(to.to_string());
    let output = Process::spawn(&format!("datagrams of {}", place.name()), command)?.output(Duration::from_secs(20))?;
    serde_json::from_str(&output).with_context(|| format!("cannot read the peer's report {output:?}"))
}

/// What became of a held connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldReport {
    /// Name of the error that ended it early (`ECONNRESET`, `EOF`, `ETIMEDOUT`: nothing came back for five seconds).
    pub error: Option<String>,
    /// Who echoed.
    pub backend: Option<String>,
    /// Echoes that came back.
    pub rounds: u64,
    /// The longest an echo took.
    pub max_gap_ms: f64,
}

/// A TCP connection kept busy by small echoes until it is stopped.
#[derive(Debug)]
pub struct Hold {
    process: Process,
    answer: Answer,
}

impl Hold {
    /// Opens it; established when this returns.
    pub fn start(place: &Place, to: SocketAddr) -> anyhow::Result<Self> {
        Self::start_every(place, to, Duration::from_millis(2))
    }

    /// The same with such a pause between echoes.
    pub fn start_every(place: &Place, to: SocketAddr, pause: Duration) -> anyhow::Result<Self> {
        let mut command = place.command(binary("ballast-peer")?)?;
        command.arg("hold").arg("--to").arg(to.to_string());
        command.arg("--interval-ms").arg(pause.as_millis().to_string());
        let mut process = Process::spawn(&format!("held connection at {}", place.name()), command)?;
        let line = process.first_line(Duration::from_secs(10))?;
        let answer: Answer = serde_json::from_str(&line).with_context(|| format!("cannot read {line:?}"))?;
        answer.reached()?;
        Ok(Self { process, answer })
    }

    /// Whom it reached.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Ends it with one more echo, after the pause; how it fared.
    pub fn stop(self) -> anyhow::Result<HoldReport> {
        let output = self.process.output(Duration::from_secs(15))?;
        let line = output.lines().nth(1).context("the peer gave no report")?;
        serde_json::from_str(line).with_context(|| format!("cannot read {line:?}"))
    }
}

/// How a [`Crowd`] fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CrowdReport {
    /// Flows that lasted from start to end.
    pub flows: u64,
    /// Echoes of all of them.
    pub rounds: u64,
    /// Flows that ended by an error.
    pub broken: u64,
    /// Answers from another backend, or with another source, than the flow's first one.
    pub moved: u64,
    /// Datagrams without an answer.
    pub lost: u64,
    /// The longest an echo took.
    pub max_gap_ms: f64,
    /// The first faults in words.
    pub faults: Vec<String>,
}

/// Many flows of one client, each kept busy by small echoes until they are stopped.
#[derive(Debug)]
pub struct Crowd {
    process: Process,
}

impl Crowd {
    /// Opens them, to each address in turn; all were answered when this returns. However many they are, together they make
    /// 2,500 echoes a second at most: more than a machine takes would show its queues only.
    pub fn start(place: &Place, to: &[SocketAddr], tcp: u32, udp: u32) -> anyhow::Result<Self> {
        let pause = (tcp + udp) * 1000 / 2_500;
        let [tcp, udp, pause] = [tcp, udp, pause].map(|number| number.to_string());
        Self::with(place, to, &["--tcp", &tcp, "--udp", &udp, "--interval-ms", &pause])
    }

    fn with(place: &Place, to: &[SocketAddr], arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = place.command(binary("ballast-peer")?)?;
        command.arg("crowd").args(arguments);
        for to in to {
            command.arg("--to").arg(to.to_string());
        }
        let mut process = Process::spawn(&format!("crowd at {}", place.name()), command)?;
        process.first_line(Duration::from_secs(30))?;
        Ok(Self { process })
    }

    /// The same, TCP that ends by RST.
    pub fn resetting(place: &Place, to: &[SocketAddr], tcp: u32) -> anyhow::Result<Self> {
        Self::with(place, to, &["--reset", "--tcp", &tcp.to_string(), "--udp", "0"])
    }

    /// Ends them; how they fared.
    pub fn stop(self) -> anyhow::Result<CrowdReport> {
        let output = self.process.output(Duration::from_secs(15))?;
        let line = output.lines().nth(1).context("the peer gave no report")?;
        serde_json::from_str(line).with_context(|| format!("cannot read {line:?}"))
    }
}
