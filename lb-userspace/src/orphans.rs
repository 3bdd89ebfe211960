//! Which connected UDP sockets have lost their backend: what the hooks remember, against what the tables hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{backend::Backend, udp_socket::Peer};
use zerocopy::FromBytes as _;

use crate::{
    image::{Image, octets::Octets},
    net::sock_diag::Connected,
};

/// A socket that the hooks connected to a backend that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    /// The socket.
    pub(crate) socket: Connected,
    /// What its application asked for.
    pub(crate) frontend: SocketAddr,
}

/// What a look at the connected sockets of a family came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// To be ended.
    pub(crate) orphans: Vec<Orphan>,
    /// Cookies that are remembered and that no connected socket has: closed, or about to be connected.
    pub(crate) absent: BTreeSet<u64>,
}

/// Looks at the sockets there are. One that no hook connected, or that was connected elsewhere since, is no orphan.
pub(crate) fn look<A: Octets>(
    image: &Image,
    remembered: &[(u64, Peer<A>)],
    sockets: &BTreeMap<u64, Connected>,
) -> Look {
    let mut look = Look::default();
    for (cookie, peer) in remembered {
        // A record stays when its socket is disconnected (`AF_UNSPEC`), which runs no hook.
        let here = |socket: &&Connected| socket.remote == A::socket(peer.backend);
        let Some(socket) = sockets.get(cookie).filter(here) else {
            look.absent.insert(*cookie);
            continue;
        };
        let slot = image.get(A::BACKENDS, &peer.id.get().to_ne_bytes());
        let slot = slot.and_then(|bytes| Backend::<A>::read_from_bytes(bytes).ok());
        if !peer.lives(slot.as_ref()) {
            look.orphans.push(Orphan { socket: socket.clone(), frontend: A::socket(peer.frontend) });
        }
    }
    look
}
