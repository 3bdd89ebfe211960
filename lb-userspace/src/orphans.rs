//! Which connected UDP sockets have lost their backend: what their hooks remember, against what the tables hold.

use std::net::SocketAddr;

use lb_common::{backend::Backend, udp_socket::UdpSocket};
use zerocopy::FromBytes as _;

use crate::{
    image::{Image, octets::Octets},
    net::sock_diag::Connected,
};

/// A socket that the hooks connected to a backend that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// What its application asked for.
    pub frontend: SocketAddr,
    /// Where its datagrams go.
    pub backend: SocketAddr,
}

/// Whether a socket is one. A socket that nobody's hook connected, or that was connected elsewhere since, never is.
pub fn orphan(image: &Image, socket: &Connected) -> Option<Orphan> {
    of_family::<[u8; 4]>(image, socket).or_else(|| of_family::<[u8; 16]>(image, socket))
}

fn of_family<A: Octets>(image: &Image, socket: &Connected) -> Option<Orphan> {
    // The values of the two families differ in size.
    let own = socket.storage.iter().find_map(|value| UdpSocket::<A>::read_from_bytes(value).ok())?;
    let peer = own.connected;
    let backend = A::socket(peer.backend);
    // A record stays with a socket that was disconnected since (`AF_UNSPEC`).
    if backend != socket.remote || peer.id.get() == 0 {
        return None;
    }
    let slot = image.get(A::BACKENDS, &peer.id.get().to_ne_bytes());
    let slot = slot.and_then(|bytes| Backend::<A>::read_from_bytes(bytes).ok());
    (!peer.lives(slot.as_ref())).then(|| Orphan { frontend: A::socket(peer.frontend), backend })
}
