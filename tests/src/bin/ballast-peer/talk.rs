//! One socket at a time, told what to do line by line; each line is answered by a line of JSON.

use std::{
    io::{self, BufRead},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, bail};
use lb_tests::talk::Met;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, sockopt};

use crate::call::error_name;

/// How long a connect or an answer may take.
const LIMIT: Duration = Duration::from_secs(1);

struct Talk {
    socket: OwnedFd,
    v6: bool,
    /// The last datagram or greeting that came.
    greeting: String,
}

/// Reads commands from standard input until it ends.
pub(crate) fn talk() -> anyhow::Result<()> {
    let mut talk = None;
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read a command")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let addr = |word: &str| word.parse::<SocketAddr>().with_context(|| format!("{word} is no address"));
        let mut met = Met::default();
        let result = match (words.as_slice(), &mut talk) {
            (["new", kind, bind], _) => {
                let (new, result) = Talk::new(kind, if *bind == "any" { None } else { Some(addr(bind)?) })?;
                talk = Some(new);
                result
            }
            (["connect", to], Some(talk)) => talk.connect(addr(to)?, &mut met),
            (["disconnect"], Some(talk)) => rustix::net::connect_unspec(&talk.socket).map_err(io::Error::from),
            (["send", to], Some(talk)) => talk.send(Some(addr(to)?)),
            (["write"], Some(talk)) => talk.send(None),
            (["receive"], Some(talk)) => talk.receive(&mut met),
            _ => bail!("cannot do {line:?}"),
        };
        met.error = result.err().map(|error| error_name(&error));
        if let Some(talk) = &talk {
            met.cookie = sockopt::socket_cookie(&talk.socket)?;
            met.local = rustix::net::getsockname(&talk.socket).ok().and_then(plain);
        }
        println!("{}", serde_json::to_string(&met)?);
    }
    Ok(())
}

fn plain(addr: impl TryInto<SocketAddr>) -> Option<SocketAddr> {
    let addr = addr.try_into().ok()?;
    Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

impl Talk {
    /// `udp4`, `udp6`, `tcp4` or `tcp6`; IPv6 sockets speak IPv4 as well. The result is that of `bind`.
    fn new(kind: &str, bind: Option<SocketAddr>) -> anyhow::Result<(Self, io::Result<()>)> {
        let (family, v6) =
            if kind.ends_with('6') { (AddressFamily::INET6, true) } else { (AddressFamily::INET, false) };
        let kind = if kind.starts_with("tcp") { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = rustix::net::socket(family, kind, None)?;
        for which in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            sockopt::set_socket_timeout(&socket, which, Some(LIMIT))?;
        }
        let talk = Self { socket, v6, greeting: String::new() };
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let result = match (bind, kind) {
            (Some(at), _) => rustix::net::bind(&talk.socket, &talk.address(at)),
            (None, SocketType::DGRAM) => rustix::net::bind(&talk.socket, &SocketAddr::new(any, 0)),
            (None, _) => Ok(()),
        };
        Ok((talk, result.map_err(io::Error::from)))
    }

    /// As this socket's family writes it.
    fn address(&self, addr: SocketAddr) -> SocketAddr {
        match addr.ip() {
            IpAddr::V4(v4) if self.v6 => SocketAddr::new(v4.to_ipv6_mapped().into(), addr.port()),
            ip => SocketAddr::new(ip, addr.port()),
        }
    }

    fn connect(&mut self, to: SocketAddr, met: &mut Met) -> io::Result<()> {
        rustix::net::connect(&self.socket, &self.address(to))?;
        let peer = rustix::net::getpeername(&self.socket)?;
        met.peer = peer.and_then(plain);
        Ok(())
    }

    fn send(&mut self, to: Option<SocketAddr>) -> io::Result<()> {
        match to {
            Some(to) => rustix::net::sendto(&self.socket, b"hello", SendFlags::empty(), &self.address(to))?,
            None => rustix::net::send(&self.socket, b"hello", SendFlags::NOSIGNAL)?,
        };
        Ok(())
    }

    fn receive(&mut self, met: &mut Met) -> io::Result<()> {
        let mut buffer = [0_u8; 512];
        let (_, count, from) = rustix::net::recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        met.peer = from.and_then(plain);
        self.greeting = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        met.backend = self.greeting.split_whitespace().next().map(str::to_owned);
        met.source = self.greeting.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        Ok(())
    }
}
