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

#[cfg(test)]
mod tests {
    use lb_common::{
        backend::{BackendId, NextHopId, ServiceId, Sets},
        tuple::L4Addr,
    };
    use zerocopy::native_endian::U32;

    use super::*;

    type A = [u8; 4];

    fn l4(text: &str) -> L4Addr<A> {
        let at: SocketAddr = text.parse().expect("an address");
        A::l4(at.ip(), at.port()).expect("IPv4")
    }

    /// An image with backend 3 at 10.0.0.3:53.
    fn image(service: u32, generation: u32) -> Image {
        let backend = Backend {
            address: l4("10.0.0.3:53"),
            sets: Sets::NONE,
            reserved: 0,
            service: ServiceId::new(service),
            generation: U32::new(generation),
            next_hop: NextHopId::new(0),
            next_hop_generation: U32::ZERO,
        };
        let mut image = Image::default();
        image.insert(A::BACKENDS, &U32::new(3), &backend);
        image
    }

    /// What [`look`] says of a socket with cookie 7 that was connected to backend 3, generation 5, and is now to `remote`.
    fn looked(image: &Image, remote: &str) -> Look {
        let peer = Peer {
            frontend: l4("10.96.0.10:53"),
            backend: l4("10.0.0.3:53"),
            id: BackendId::new(3),
            generation: U32::new(5),
            ..Peer::NONE
        };
        let socket = Connected::example(7, remote.parse().expect("an address"));
        look(image, &[(7, peer), (8, peer)], &BTreeMap::from([(7, socket)]))
    }

    #[test]
    fn a_socket_whose_backend_is_gone_is_an_orphan() {
        for (image, expected) in [
            (image(1, 5), 0),
            // Its slot has another owner, none, or is not there.
            (image(1, 6), 1),
            (image(0, 5), 1),
            (Image::default(), 1),
        ] {
            let look = looked(&image, "10.0.0.3:53");
            assert_eq!(look.orphans.len(), expected);
            assert_eq!(look.absent, BTreeSet::from([8]), "no socket has that cookie");
            let frontend = "10.96.0.10:53".parse().expect("an address");
            assert!(look.orphans.iter().all(|it| it.socket.cookie == 7 && it.frontend == frontend));
        }
    }

    #[test]
    fn a_socket_that_is_connected_elsewhere_is_none() {
        let look = looked(&Image::default(), "10.0.0.4:53");
        assert_eq!((look.orphans, look.absent), (vec![], BTreeSet::from([7, 8])));
    }
}
