//! UDP: an answer comes from the address that was asked, also where every address is listened on.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::Arc,
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use tokio::{io::Interest, task::JoinSet};

use super::server::{Handler, Outcome, Transport};

/// Longest question that is read; a longer one is cut, and so none.
const QUESTION: usize = 4096;
/// Questions that are taken before others of the thread get their turn.
const TURN: usize = 64;

/// A socket of one address, or of all.
#[derive(Debug)]
pub(super) struct Socket {
    socket: tokio::net::UdpSocket,
    /// It is of all: the kernel tells of each question which one was asked.
    wildcard: bool,
}

/// Who asked, and whom if that is not the socket's own address.
#[derive(Clone, Copy, Debug)]
struct Way {
    client: SocketAddr,
    asked: Option<IpAddr>,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let own = socket.local_addr()?.ip();
        if own.is_unspecified() && own.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else if own.is_unspecified() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self { socket: socket.try_into()?, wildcard: own.is_unspecified() })
    }

    fn receive(&self, bytes: &mut [u8], control: &mut [u8]) -> io::Result<(usize, Way)> {
        if !self.wildcard {
            let (length, client) = self.socket.try_recv_from(bytes)?;
            return Ok((length, Way { client, asked: None }));
        }
        self.socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(bytes)];
            let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
            let message = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(control), flags)?;
            let client = message.address.as_ref().and_then(std_address).ok_or(io::ErrorKind::InvalidData)?;
            let asked = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes())),
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                _ => None,
            });
            let asked = asked.filter(|asked| !asked.to_canonical().is_multicast());
            Ok((message.bytes, Way { client, asked }))
        })
    }

    fn try_send(&self, answer: &[u8], way: Way) -> io::Result<usize> {
        let Some(asked) = way.asked else { return self.socket.try_send_to(answer, way.client) };
        // The interface is that of the route: what is asked at one interface may come back by another.
        let control = |part: ControlMessage<'_>| {
            self.socket.try_io(Interest::WRITABLE, || {
                let (socket, client) = (self.socket.as_raw_fd(), SockaddrStorage::from(way.client));
                Ok(sendmsg(socket, &[IoSlice::new(answer)], &[part], MsgFlags::empty(), Some(&client))?)
            })
        };
        match asked {
            IpAddr::V4(asked) => control(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(asked.octets()) },
                ipi_addr: in_addr { s_addr: 0 },
            })),
            IpAddr::V6(asked) => control(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                ipi6_addr: in6_addr { s6_addr: asked.octets() },
                ipi6_ifindex: 0,
            })),
        }
    }

    /// An answer for which there is no room is lost, as datagrams are; its client asks again.
    fn send(&self, answer: &[u8], way: Way) {
        if let Err(error) = self.try_send(answer, way) {
            tracing::debug!("an answer to {} cannot be sent: {error}", way.client);
        }
    }
}

/// Answers until the socket fails.
pub(super) async fn answer(socket: Socket, handler: Handler) {
    let socket = Arc::new(socket);
    let (mut bytes, mut control) = ([0; QUESTION], cmsg_space!(in_pktinfo, in6_pktinfo));
    let room = control.capacity();
    control.resize(room, 0);
    let mut answer = Vec::new();
    let mut asking = JoinSet::new();
    loop {
        if let Err(error) = socket.socket.readable().await {
            tracing::debug!("a UDP socket cannot be waited for: {error}");
            return;
        }
        for _ in 0..TURN {
            let (length, way) = match socket.receive(&mut bytes, &mut control) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of an earlier answer: its client is gone.
                Err(_) => continue,
            };
            let client = way.client;
            let question = bytes.get(..length).filter(|_| can_be_answered(client));
            match question.map_or(Outcome::Nothing, |it| handler.respond(it, client, Transport::Udp, &mut answer)) {
                Outcome::Answered => socket.send(&answer, way),
                Outcome::Nothing => {}
                Outcome::Elsewhere(elsewhere) => {
                    let (handler, socket) = (handler.clone(), Arc::clone(&socket));
                    asking.spawn(async move {
                        if let Some(answer) = handler.finish(*elsewhere).await {
                            socket.send(&answer, way);
                        }
                    });
                }
            }
        }
        while asking.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

fn std_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
    address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)).or_else(v4)
}

/// What cannot be the source of a question.
fn can_be_answered(client: SocketAddr) -> bool {
    let address = client.ip();
    client.port() != 0 && !address.is_unspecified() && !address.is_multicast() && address != IpAddr::from([255; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_be_is_not_answered() {
        let can = |client: &str| can_be_answered(client.parse().expect("an address"));
        for client in ["192.0.2.1:1", "127.0.0.1:53", "[2001:db8::1]:53", "[::ffff:192.0.2.1]:9"] {
            assert!(can(client), "{client}");
        }
        for client in ["192.0.2.1:0", "0.0.0.0:9", "[::]:9", "224.0.0.1:9", "[ff02::1]:9", "255.255.255.255:9"] {
            assert!(!can(client), "{client}");
        }
    }
}
