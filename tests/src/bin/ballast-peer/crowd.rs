//! Many flows at once, each in lockstep with its server: whatever is lost, moved or broken is told.

use std::{
    io::{self, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use lb_tests::client::CrowdReport;

use crate::{
    Target,
    call::{error_name, malformed},
};

#[derive(Args)]
pub(crate) struct Crowd {
    /// Whom to speak to: ADDRESS:PORT; the flows take turns.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// TCP connections.
    #[arg(long)]
    tcp: usize,
    /// UDP flows.
    #[arg(long)]
    udp: usize,
    /// Pause between two echoes of a flow.
    #[arg(long, default_value_t = 50)]
    interval_ms: u64,
    /// End TCP connections by RST.
    #[arg(long)]
    reset: bool,
}

/// How long an echo may take: longer than a retransmission of TCP, and a datagram that takes it is lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most faults that are told in words.
const TOLD: usize = 8;
/// How many connections are opened at a time: as many as a set of the table of half-open flows holds. A burst of more may
/// push one of its own out between the SYN-ACK and what the client says to it, where tables are small.
const AT_ONCE: usize = 4;

struct Shared {
    lanes: [Mutex<()>; AT_ONCE],
    stop: AtomicBool,
    report: Mutex<CrowdReport>,
}

impl Crowd {
    /// Until standard input ends.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let shared = Shared { lanes: Default::default(), stop: AtomicBool::new(false), report: Mutex::default() };
        let (ready, all) = mpsc::channel();
        let nowhere = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0);
        thread::scope(|scope| -> anyhow::Result<()> {
            for number in 0..self.tcp + self.udp {
                let to = *self.to.get(number % self.to.len()).unwrap_or(&nowhere);
                let (shared, ready) = (&shared, ready.clone());
                let work = move || {
                    let result = if number < self.tcp {
                        self.connection(number, to, shared, &ready)
                    } else {
                        self.datagrams(to, shared, &ready)
                    };
                    if let Err(error) = result {
                        let protocol = if number < self.tcp { "TCP" } else { "UDP" };
                        shared
                            .fault(|report| report.broken += 1, &format!("{protocol} to {to}: {}", error_name(&error)));
                        ready.send(()).unwrap_or_default();
                    }
                };
                thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, work)?;
            }
            all.iter().take(self.tcp + self.udp).for_each(drop);
            println!("{{\"ready\":true}}");
            io::copy(&mut io::stdin(), &mut io::sink())?;
            shared.stop.store(true, Ordering::Relaxed);
            Ok(())
        })?;
        let report = shared.report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    }

    fn connection(&self, number: usize, to: SocketAddr, shared: &Shared, ready: &mpsc::Sender<()>) -> io::Result<()> {
        let target = Target { to, count: 1, timeout_ms: 5_000, source: None, cpu: None };
        let lane = shared.lanes.get(number % AT_ONCE).map(Mutex::lock);
        let (answer, stream) = target.connect();
        drop(lane);
        let Some(mut stream) = stream else {
            return Err(io::Error::other(answer.error.unwrap_or_else(|| "no stream".to_owned())));
        };
        stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        ready.send(()).unwrap_or_default();
        let result = self.rounds(shared, |number| echo(&mut stream, number));
        if self.reset {
            rustix::net::sockopt::set_socket_linger(stream.get_ref(), Some(Duration::ZERO))?;
        }
        result
    }

    fn datagrams(&self, to: SocketAddr, shared: &Shared, ready: &mpsc::Sender<()>) -> io::Result<()> {
        let any = if to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        let mut first = None;
        let mut ask = |number: u64| {
            socket.send(&number.to_be_bytes())?;
            let mut buffer = [0; 512];
            let count = match socket.recv(&mut buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    shared.fault(|report| report.lost += 1, &format!("a datagram to {to}"));
                    return Ok(());
                }
                other => other?,
            };
            let answer = buffer.get(..count).unwrap_or_default();
            let at = answer.iter().position(|byte| *byte == b'\n').ok_or_else(malformed)?;
            let (greeting, echo) = answer.split_at(at + 1);
            if echo != number.to_be_bytes() {
                return Err(malformed());
            }
            // The greeting names backend and source: neither may change.
            if *first.get_or_insert_with(|| greeting.to_vec()) != greeting {
                shared.fault(|report| report.moved += 1, &format!("{to}: now {}", String::from_utf8_lossy(greeting)));
            }
            Ok(())
        };
        ask(u64::MAX)?;
        ready.send(()).unwrap_or_default();
        self.rounds(shared, ask)
    }

    fn rounds(&self, shared: &Shared, mut echo: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let (mut rounds, mut longest) = (0, Duration::ZERO);
        let mut result = Ok(());
        while result.is_ok() && !shared.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            result = echo(rounds);
            longest = longest.max(start.elapsed());
            rounds += u64::from(result.is_ok());
            thread::sleep(Duration::from_millis(self.interval_ms));
        }
        shared.add(|report| {
            report.flows += u64::from(result.is_ok());
            report.rounds += rounds;
            report.max_gap_ms = report.max_gap_ms.max(longest.as_secs_f64() * 1e3);
        });
        result
    }
}

impl Shared {
    fn add(&self, change: impl FnOnce(&mut CrowdReport)) {
        change(&mut self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn fault(&self, change: impl FnOnce(&mut CrowdReport), what: &str) {
        self.add(|report| {
            change(report);
            if report.faults.len() < TOLD {
                report.faults.push(what.to_owned());
            }
        });
    }
}

fn echo(stream: &mut BufReader<TcpStream>, number: u64) -> io::Result<()> {
    stream.get_mut().write_all(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if answer == number.to_be_bytes() { Ok(()) } else { Err(malformed()) }
}
