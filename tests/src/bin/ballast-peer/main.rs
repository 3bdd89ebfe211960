//! The programs at both ends of the test world's connections: an echo server and clients, with JSON on stdout.

mod call;
mod crowd;
mod path;
mod server;
mod stream;
mod talk;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::stream::hold;

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
    /// Addresses to listen on; all, if none is given.
    #[arg(long)]
    bind: Vec<IpAddr>,
    /// Greet over TCP with an HTTP page, for clients such as curl.
    #[arg(long)]
    page: bool,
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
        /// Bytes of each.
        #[arg(long, default_value_t = 8)]
        bytes: usize,
    },
    /// Send bytes over TCP, have them echoed, compare.
    Bulk {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long, default_value_t = 200 << 20)]
        bytes: u64,
    },
    /// Do with one socket what standard input says, line by line; a line of JSON each.
    Talk,
    /// Keep many flows busy until standard input ends.
    Crowd(crowd::Crowd),
    /// Send datagrams that may not be fragmented, as large as the path takes, until one is answered.
    Path {
        #[command(flatten)]
        target: Target,
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

impl Client {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Connect { target } => {
                target.pin()?;
                for _ in 0..target.count {
                    println!("{}", serde_json::to_string(&target.connect().0)?);
                }
            }
            Self::Udp { mut target, unconnected, first_port, bytes } => {
                target.pin()?;
                let any = if target.to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
                let mut next = first_port;
                for _ in 0..target.count {
                    target.source = next.map(|port| SocketAddr::new(any, port)).or(target.source);
                    next = next.and_then(|port| port.checked_add(1));
                    println!("{}", serde_json::to_string(&target.udp(unconnected, bytes))?);
                }
            }
            Self::Bulk { target, bytes } => {
                target.pin()?;
                println!("{}", serde_json::to_string(&target.bulk(bytes))?);
            }
            Self::Talk => talk::talk()?,
            Self::Crowd(crowd) => crowd.run()?,
            Self::Path { target } => println!("{}", serde_json::to_string(&target.path())?),
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
