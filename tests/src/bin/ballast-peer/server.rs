//! The echo server.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::Context;

use crate::Server;

impl Server {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // Std leaves IPV6_V6ONLY off, so one socket serves both families.
        let any = [IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let addresses = if self.bind.is_empty() { &any[..] } else { &self.bind };
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for &address in addresses {
            for &port in &self.tcp {
                let at = (address, port);
                tcp.push(TcpListener::bind(at).with_context(|| format!("cannot listen on TCP {at:?}"))?);
            }
            for &port in &self.udp {
                let at = (address, port);
                udp.push(UdpSocket::bind(at).with_context(|| format!("cannot listen on UDP {at:?}"))?);
            }
        }
        println!("{{\"ready\":true}}");
        let (name, greet) = (&*self.name, if self.page { page } else { greeting });
        thread::scope(|scope| {
            for listener in &tcp {
                scope.spawn(move || serve_tcp(name, greet, listener));
            }
            for socket in &udp {
                scope.spawn(move || serve_udp(name, socket));
            }
        });
        Ok(())
    }
}

/// What a connection gets first: of the server's name and the client's address.
type Greet = fn(&str, SocketAddr) -> String;

fn serve_tcp(name: &str, greet: Greet, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        // A client that goes away ends its own thread only.
        thread::spawn(move || drop(echo_tcp(&name, greet, stream)));
    }
}

fn echo_tcp(name: &str, greet: Greet, mut stream: TcpStream) -> io::Result<()> {
    let from = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    stream.write_all(greet(name, from).as_bytes())?;
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

/// The greeting as what curl shows: it is sent before the request, which is echoed behind it and read by nobody.
fn page(name: &str, from: SocketAddr) -> String {
    let body = greeting(name, from);
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
