//! The programs at both ends of the test world's connections: an echo server and clients, with JSON on stdout.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use lb_tests::client::{Answer, BulkReport, HoldReport};
use rustix::net::{AddressFamily, SocketType, sockopt};
use sha2::{Digest, Sha256};

#[derive(Parser)]
#[command(about = "Echo server and clients of the Ballast test world")]
enum Peer {
    /// Serve: a greeting `NAME CLIENT-ADDRESS CLIENT-PORT`, then an echo.
    Server(Server),
    #[command(flatten)]
    Client(Client),
}

#[derive(Args)]
struct Server {
    /// The name in the greeting.
    #[arg(long)]
    name: String,
    /// TCP ports.
    #[arg(long)]
    tcp: Vec<u16>,
    /// UDP ports.
    #[arg(long)]
    udp: Vec<u16>,
}

#[derive(Subcommand)]
enum Client {
    /// Open TCP connections, one after the other; a line of JSON each.
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Send datagrams, each from a new socket; a line of JSON each.
    Udp {
        #[command(flatten)]
        target: Target,
        /// Do not connect the socket.
        #[arg(long)]
        unconnected: bool,
        /// Port of the first socket; each further one has the next.
        #[arg(long, conflicts_with = "source")]
        first_port: Option<u16>,
    },
    /// Send bytes over TCP, have them echoed, compare.
    Bulk {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long, default_value_t = 200 << 20)]
        bytes: u64,
    },
    /// Keep a TCP connection busy until standard input ends.
    Hold {
        #[command(flatten)]
        target: Target,
        /// Pause between two echoes.
        #[arg(long, default_value_t = 2)]
        interval_ms: u64,
    },
}

#[derive(Args)]
struct Target {
    /// Whom to speak to: ADDRESS:PORT.
    #[arg(long)]
    to: SocketAddr,
    /// How often.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// How long each may take.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Bind to this ADDRESS:PORT first.
    #[arg(long)]
    source: Option<SocketAddr>,
    /// Stay on this CPU.
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    match Peer::parse() {
        Peer::Server(server) => server.run(),
        Peer::Client(client) => client.run(),
    }
}

impl Server {
    fn run(self) -> anyhow::Result<()> {
        let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        // Std leaves IPV6_V6ONLY off, so one socket serves both families.
        let tcp: Vec<_> = self
            .tcp
            .iter()
            .map(|&port| TcpListener::bind((any, port)).with_context(|| format!("cannot listen on TCP port {port}")))
            .collect::<anyhow::Result<_>>()?;
        let udp: Vec<_> = self
            .udp
            .iter()
            .map(|&port| UdpSocket::bind((any, port)).with_context(|| format!("cannot listen on UDP port {port}")))
            .collect::<anyhow::Result<_>>()?;
        println!("{{\"ready\":true}}");
        let name = &*self.name;
        thread::scope(|scope| {
            for listener in &tcp {
                scope.spawn(move || serve_tcp(name, listener));
            }
            for socket in &udp {
                scope.spawn(move || serve_udp(name, socket));
            }
        });
        Ok(())
    }
}

fn serve_tcp(name: &str, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        // A client that goes away ends its own thread only.
        thread::spawn(move || drop(echo_tcp(&name, stream)));
    }
}

fn echo_tcp(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let from = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    stream.write_all(greeting(name, from).as_bytes())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = stream.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { return Ok(()) };
        stream.write_all(read)?;
    }
}

fn serve_udp(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An ICMP error of an earlier answer may surface here: not this server's end.
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = greeting(name, from).into_bytes();
        answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
        drop(socket.send_to(&answer, from));
    }
}

fn greeting(name: &str, from: SocketAddr) -> String {
    format!("{name} {} {}\n", from.ip().to_canonical(), from.port())
}

impl Client {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Connect { target } => {
                target.pin()?;
                for _ in 0..target.count {
                    println!("{}", serde_json::to_string(&target.connect().0)?);
                }
            }
            Self::Udp { mut target, unconnected, first_port } => {
                target.pin()?;
                let any = if target.to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
                let mut next = first_port;
                for _ in 0..target.count {
                    target.source = next.map(|port| SocketAddr::new(any, port)).or(target.source);
                    next = next.and_then(|port| port.checked_add(1));
                    println!("{}", serde_json::to_string(&target.udp(unconnected))?);
                }
            }
            Self::Bulk { target, bytes } => {
                target.pin()?;
                println!("{}", serde_json::to_string(&target.bulk(bytes))?);
            }
            Self::Hold { target, interval_ms } => {
                target.pin()?;
                let (answer, stream) = target.connect();
                println!("{}", serde_json::to_string(&answer)?);
                if let Some(stream) = stream {
                    let report = hold(answer.backend, stream, Duration::from_millis(interval_ms));
                    println!("{}", serde_json::to_string(&report)?);
                }
            }
        }
        Ok(())
    }
}

impl Target {
    fn pin(&self) -> anyhow::Result<()> {
        if let Some(cpu) = self.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot stay on CPU {cpu}"))?;
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// A connection whose greeting has been read, or why not.
    fn connect(&self) -> (Answer, Option<BufReader<TcpStream>>) {
        let start = Instant::now();
        let mut answer = empty();
        let result = self.open(&mut answer);
        answer.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        match result {
            Ok(stream) => (answer, Some(stream)),
            Err(error) => {
                answer.error = Some(error_name(&error));
                (answer, None)
            }
        }
    }

    fn open(&self, answer: &mut Answer) -> io::Result<BufReader<TcpStream>> {
        let stream = match self.source {
            None => TcpStream::connect_timeout(&self.to, self.timeout())?,
            Some(source) => {
                let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
                sockopt::set_socket_reuseaddr(&socket, true)?;
                rustix::net::bind(&socket, &source)?;
                // Bounds connect() as well.
                sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Send, Some(self.timeout()))?;
                rustix::net::connect(&socket, &self.to)?;
                TcpStream::from(socket)
            }
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout()))?;
        answer.local = Some(stream.local_addr()?);
        answer.peer = Some(stream.peer_addr()?);
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        read_greeting(&line, answer)?;
        Ok(stream)
    }

    fn udp(&self, unconnected: bool) -> Answer {
        let start = Instant::now();
        let mut answer = empty();
        answer.error = self.exchange(unconnected, &mut answer).err().map(|error| error_name(&error));
        answer.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        answer
    }

    fn exchange(&self, unconnected: bool, answer: &mut Answer) -> io::Result<()> {
        let any = if self.to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(self.source.unwrap_or_else(|| SocketAddr::new(any, 0)))?;
        socket.set_read_timeout(Some(self.timeout()))?;
        let payload = *b"datagram";
        let mut buffer = [0; 2048];
        let count = if unconnected {
            socket.send_to(&payload, self.to)?;
            let (count, from) = socket.recv_from(&mut buffer)?;
            answer.peer = Some(from);
            count
        } else {
            socket.connect(self.to)?;
            answer.peer = Some(socket.peer_addr()?);
            socket.send(&payload)?;
            socket.recv(&mut buffer)?
        };
        answer.local = Some(socket.local_addr()?);
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        let (line, echo) = text.split_once('\n').ok_or_else(malformed)?;
        if echo.as_bytes() != payload {
            return Err(malformed());
        }
        read_greeting(line, answer)
    }

    fn bulk(&self, bytes: u64) -> BulkReport {
        let start = Instant::now();
        let (answer, stream) = self.connect();
        let mut report = BulkReport {
            error: answer.error,
            backend: answer.backend,
            sent: 0,
            received: 0,
            sent_sha256: String::new(),
            received_sha256: String::new(),
            elapsed_ms: 0.0,
        };
        if let Some(stream) = stream
            && let Err(error) = transfer(stream, bytes, &mut report)
        {
            report.error = Some(error_name(&error));
        }
        report.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        report
    }
}

/// Writes on one thread and reads on another: an echo of more than the buffers hold would deadlock on one.
fn transfer(mut stream: BufReader<TcpStream>, bytes: u64, report: &mut BulkReport) -> io::Result<()> {
    let mut writer = stream.get_ref().try_clone()?;
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(10)))?;
    writer.set_write_timeout(Some(Duration::from_secs(10)))?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> io::Result<(u64, String)> {
            let mut hash = Sha256::new();
            let (mut left, mut seed) = (bytes, 0x9e37_79b9_7f4a_7c15_u64);
            let mut chunk = vec![0_u8; 1 << 16];
            while left > 0 {
                for word in chunk.chunks_exact_mut(8) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word.copy_from_slice(&seed.to_le_bytes());
                }
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                let part = chunk.get(..count).unwrap_or_default();
                hash.update(part);
                writer.write_all(part)?;
                left -= part.len() as u64;
            }
            writer.shutdown(std::net::Shutdown::Write)?;
            Ok((bytes, hex(&hash.finalize())))
        });
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let reading = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    hash.update(buffer.get(..count).unwrap_or_default());
                    report.received += count as u64;
                }
                Err(error) => break Err(error),
            }
        };
        report.received_sha256 = hex(&hash.finalize());
        let sent = sending.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
        reading?;
        (report.sent, report.sent_sha256) = sent?;
        Ok(())
    })
}

fn hold(backend: Option<String>, mut stream: BufReader<TcpStream>, interval: Duration) -> HoldReport {
    static STOP: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        STOP.store(true, Ordering::Relaxed);
    });
    let mut report = HoldReport { error: None, backend, rounds: 0, max_gap_ms: 0.0 };
    while !STOP.load(Ordering::Relaxed) {
        let start = Instant::now();
        if let Err(error) = echo_once(&mut stream, report.rounds) {
            report.error = Some(error_name(&error));
            break;
        }
        report.rounds += 1;
        report.max_gap_ms = report.max_gap_ms.max(start.elapsed().as_secs_f64() * 1e3);
        thread::sleep(interval);
    }
    report
}

fn echo_once(stream: &mut BufReader<TcpStream>, round: u64) -> io::Result<()> {
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.get_mut().write_all(&round.to_be_bytes())?;
    let mut echo = [0; 8];
    stream.read_exact(&mut echo)?;
    if echo == round.to_be_bytes() { Ok(()) } else { Err(malformed()) }
}

fn empty() -> Answer {
    Answer { error: None, local: None, peer: None, backend: None, source: None, elapsed_ms: 0.0 }
}

fn read_greeting(line: &str, answer: &mut Answer) -> io::Result<()> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(Ok(ip)), Some(Ok(port)), None) =
        (words.next(), words.next().map(str::parse::<IpAddr>), words.next().map(str::parse), words.next())
    else {
        return Err(if line.is_empty() { io::ErrorKind::UnexpectedEof.into() } else { malformed() });
    };
    answer.backend = Some(name.to_owned());
    answer.source = Some(SocketAddr::new(ip, port));
    Ok(())
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The errno's name where tests look at it.
fn error_name(error: &io::Error) -> String {
    let name = match (error.raw_os_error(), error.kind()) {
        (Some(libc::ECONNREFUSED), _) => "ECONNREFUSED",
        (Some(libc::ECONNRESET), _) => "ECONNRESET",
        (Some(libc::EHOSTUNREACH), _) => "EHOSTUNREACH",
        (Some(libc::ENETUNREACH), _) => "ENETUNREACH",
        (Some(libc::EPERM), _) => "EPERM",
        (Some(libc::EACCES), _) => "EACCES",
        (Some(libc::EPIPE), _) => "EPIPE",
        (Some(libc::EADDRINUSE), _) => "EADDRINUSE",
        (Some(libc::EADDRNOTAVAIL), _) => "EADDRNOTAVAIL",
        // A read that timed out says EAGAIN, a bounded connect() EINPROGRESS.
        (Some(libc::ETIMEDOUT | libc::EAGAIN | libc::EINPROGRESS), _) | (None, io::ErrorKind::TimedOut) => "ETIMEDOUT",
        (None, io::ErrorKind::UnexpectedEof) => "EOF",
        (None, io::ErrorKind::InvalidData) => "MALFORMED",
        _ => return error.to_string(),
    };
    name.to_owned()
}
