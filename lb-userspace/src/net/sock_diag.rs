//! Connected UDP sockets of this network namespace: listed and ended (`sock_diag(7)`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use rtnetlink::sys::{Socket, protocols::NETLINK_SOCK_DIAG};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `1 << TCP_ESTABLISHED`: the state of a connected UDP socket.
const ESTABLISHED: u32 = 1 << 1;
const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    family: u8,
    /// `struct inet_diag_sockid`, as the kernel wants it back: ports, addresses, interface, cookie.
    id: [u8; 48],
    /// Its own address.
    pub local: SocketAddr,
    /// Whom it is connected to.
    pub remote: SocketAddr,
    /// Its cookie, as the socket hooks know it.
    pub cookie: u64,
}

#[cfg(test)]
impl Connected {
    pub(crate) fn example(cookie: u64, remote: SocketAddr) -> Self {
        Self { family: AF_INET, id: [0; 48], local: SocketAddr::from(([192, 0, 2, 1], 40_000)), remote, cookie }
    }
}

/// A connection to the kernel's socket monitor.
pub struct SockDiag {
    socket: Socket,
}

impl SockDiag {
    /// Connects, and tries whether the kernel ends sockets: one of our own. Without `CONFIG_INET_DIAG_DESTROY` it says
    /// `EOPNOTSUPP`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        let diag = Self { socket };
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let local = own.local_addr()?;
        own.connect(local)?;
        let found = diag.connected()?.into_iter().find(|it| it.local == local && it.remote == local);
        let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "our own UDP socket is not listed"))?;
        diag.end(&found)?;
        Ok(diag)
    }

    /// Every connected UDP socket of this network namespace.
    pub fn connected(&self) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request(family, ESTABLISHED, &[0; 48]))?;
            self.receive(|body| found.extend(connected(body)))?;
        }
        Ok(found)
    }

    /// Ends a socket: its process gets `ECONNABORTED`. False if it is gone already, or somebody else has its addresses.
    pub fn end(&self, socket: &Connected) -> io::Result<bool> {
        self.send(SOCK_DESTROY, NLM_F_ACK, &request(socket.family, ESTABLISHED, &socket.id))?;
        match self.receive(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        self.socket.send(&message, 0).map(drop)
    }

    /// Visits the bodies of an answer up to its end.
    fn receive(&self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &*datagram;
            while let Some((kind, body, behind)) = message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = array(body, 0).map_or(0, i32::from_ne_bytes);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => visit(body),
                }
                rest = behind;
            }
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut request = vec![family, UDP, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

/// Type, body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(array(bytes, 0)?) as usize;
    let kind = u16::from_ne_bytes(array(bytes, 4)?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// `struct inet_diag_msg`.
fn connected(body: &[u8]) -> Option<Connected> {
    let family = *body.first()?;
    let id: [u8; 48] = array(body, 4)?;
    let end = |port: usize, addr: usize| {
        let port = u16::from_be_bytes(array(&id, port)?);
        let addr = if family == AF_INET6 {
            IpAddr::from(Ipv6Addr::from(array::<16>(&id, addr)?)).to_canonical()
        } else {
            IpAddr::from(Ipv4Addr::from(array::<4>(&id, addr)?))
        };
        Some(SocketAddr::new(addr, port))
    };
    // Two words, the low one first.
    let word = |at: usize| Some(u64::from(u32::from_ne_bytes(array(&id, at)?)));
    let cookie = word(40)? | word(44)? << 32;
    Some(Connected { family, id, local: end(0, 4)?, remote: end(2, 20)?, cookie })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 socket that speaks IPv4, as the kernel writes it.
    #[test]
    fn a_dump_is_read() {
        let mut body = vec![AF_INET6, 1, 0, 0];
        body.extend(40_000_u16.to_be_bytes());
        body.extend(53_u16.to_be_bytes());
        body.extend(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets());
        body.extend(Ipv4Addr::new(10, 244, 1, 2).to_ipv6_mapped().octets());
        body.extend([0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0]);
        body.resize(72, 0);
        let found = connected(&body).expect("a socket");
        assert_eq!(found.local, "192.0.2.1:40000".parse().expect("an address"));
        assert_eq!(found.remote, "10.244.1.2:53".parse().expect("an address"));
        assert_eq!(found.cookie, 1 << 32 | 7);
        // A piece of a message is none.
        for length in [0, 3, 47, 51] {
            assert_eq!(connected(&body[..length]), None, "{length} bytes");
        }
        let length = u32::try_from(HEADER + body.len()).expect("short");
        let mut whole = length.to_ne_bytes().to_vec();
        whole.extend([20, 0]);
        whole.resize(HEADER, 0);
        whole.extend(&body);
        assert_eq!(message(&whole), Some((20, &*body, &[][..])));
        assert_eq!(message(&whole[..whole.len() - 1]), None);
    }
}
