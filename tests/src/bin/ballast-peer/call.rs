//! One connection or datagram, and what it met.

use std::{
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use lb_tests::client::Answer;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::Target;

impl Target {
    pub(crate) fn pin(&self) -> anyhow::Result<()> {
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
    pub(crate) fn connect(&self) -> (Answer, Option<BufReader<TcpStream>>) {
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
        if line.starts_with("HTTP/") {
            while !matches!(line.as_str(), "\r\n" | "") {
                line.clear();
                stream.read_line(&mut line)?;
            }
            stream.read_line(&mut line)?;
        }
        read_greeting(line.trim_start(), answer)?;
        Ok(stream)
    }

    pub(crate) fn udp(&self, unconnected: bool, bytes: usize) -> Answer {
        let start = Instant::now();
        let mut answer = empty();
        answer.error = self.exchange(unconnected, bytes, &mut answer).err().map(|error| error_name(&error));
        answer.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        answer
    }

    fn exchange(&self, unconnected: bool, bytes: usize, answer: &mut Answer) -> io::Result<()> {
        let any = if self.to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(self.source.unwrap_or_else(|| SocketAddr::new(any, 0)))?;
        socket.set_read_timeout(Some(self.timeout()))?;
        let payload: Vec<u8> = b"datagram".iter().copied().cycle().take(bytes).collect();
        let mut buffer = vec![0; 1 << 16];
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

pub(crate) fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The errno's name where tests look at it.
pub(crate) fn error_name(error: &io::Error) -> String {
    let name = match (error.raw_os_error(), error.kind()) {
        (Some(libc::ECONNREFUSED), _) => "ECONNREFUSED",
        (Some(libc::ECONNRESET), _) => "ECONNRESET",
        (Some(libc::ECONNABORTED), _) => "ECONNABORTED",
        (Some(libc::EHOSTUNREACH), _) => "EHOSTUNREACH",
        (Some(libc::ENETUNREACH), _) => "ENETUNREACH",
        (Some(libc::EPERM), _) => "EPERM",
        (Some(libc::EACCES), _) => "EACCES",
        (Some(libc::EPIPE), _) => "EPIPE",
        (Some(libc::EDESTADDRREQ), _) => "EDESTADDRREQ",
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
