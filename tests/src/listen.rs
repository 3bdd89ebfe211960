//! Listening on an interface: a packet socket read by a thread of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, anyhow};

use crate::{Namespace, sockets::PacketSocket};

/// Collects what `visit` makes of the frames an interface receives.
#[derive(Debug)]
pub(crate) struct Listener<R> {
    stop: Arc<AtomicBool>,
    /// What was seen, and how many packets were lost.
    thread: Option<JoinHandle<anyhow::Result<(R, u64)>>>,
}

impl<R: Default + Send + 'static> Listener<R> {
    /// Starts it; it sees everything that arrives once this has returned. `visit` gets a frame and whether its checksum
    /// is still to be finished.
    pub(crate) fn start(
        namespace: &Namespace,
        interface: &str,
        visit: impl FnMut(&mut R, &[u8], bool) + Send + 'static,
    ) -> anyhow::Result<Self> {
        // A socket belongs to the namespace it was opened in, whatever thread uses it later.
        let socket = namespace.run(|| -> anyhow::Result<_> {
            let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
            let ifindex = rustix::net::netdevice::name_to_index(&any, interface)
                .with_context(|| format!("no interface {interface} in {}", namespace.name()))?;
            PacketSocket::open(ifindex, Duration::from_millis(20)).context("cannot open a packet socket")
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Some(thread::spawn(move || listen(&socket, &stopped, visit)));
        Ok(Self { stop, thread })
    }

    /// Ends it once nothing arrives any more.
    pub(crate) fn stop(self) -> anyhow::Result<R> {
        Ok(self.stop_and_count_lost()?.0)
    }

    /// The same, and how many packets the socket's buffer did not take.
    pub(crate) fn stop_and_count_lost(mut self) -> anyhow::Result<(R, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the listener was stopped before")?;
        thread.join().map_err(|_| anyhow!("the listener panicked"))?
    }
}

impl<R> Drop for Listener<R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn listen<R: Default>(
    socket: &PacketSocket,
    stopped: &AtomicBool,
    mut visit: impl FnMut(&mut R, &[u8], bool),
) -> anyhow::Result<(R, u64)> {
    let mut report = R::default();
    let mut buffer = vec![0_u8; 1 << 17];
    loop {
        match socket.receive(&mut buffer).context("cannot read the packet socket")? {
            Some(frame) if !frame.outgoing => {
                visit(&mut report, buffer.get(..frame.length).unwrap_or_default(), frame.partial);
            }
            None if stopped.load(Ordering::Relaxed) => {
                let lost = socket.lost().context("cannot read the packet socket's statistics")?;
                return Ok((report, lost));
            }
            Some(_) | None => {}
        }
    }
}

/// A TCP or UDP packet that an interface received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where it says it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Its TTL or hop limit.
    pub hops: u8,
    /// The MAC it is sent to.
    pub mac: [u8; 6],
}

/// Remembers the headers of the TCP and UDP packets that an interface receives.
#[derive(Debug)]
pub struct Capture(Listener<Vec<Seen>>);

impl Capture {
    /// Starts it; it sees everything that arrives once this has returned.
    pub fn start(namespace: &Namespace, interface: &str) -> anyhow::Result<Self> {
        let listener =
            Listener::start(namespace, interface, |seen: &mut Vec<Seen>, frame, _| seen.extend(read(frame)))?;
        Ok(Self(listener))
    }

    /// Ends it once nothing arrives any more; what it saw.
    pub fn stop(self) -> anyhow::Result<Vec<Seen>> {
        self.0.stop()
    }
}

fn read(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(14..)?;
    let mac = *frame.first_chunk()?;
    let (protocol, seen) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let at = |offset: usize| -> Option<IpAddr> {
                Some(Ipv4Addr::from(*packet.get(offset..)?.first_chunk::<4>()?).into())
            };
            (*packet.get(9)?, Seen { source: at(12)?, destination: at(16)?, hops: *packet.get(8)?, mac })
        }
        [0x86, 0xdd] => {
            let at = |offset: usize| -> Option<IpAddr> {
                Some(Ipv6Addr::from(*packet.get(offset..)?.first_chunk::<16>()?).into())
            };
            (*packet.get(6)?, Seen { source: at(8)?, destination: at(24)?, hops: *packet.get(7)?, mac })
        }
        _ => return None,
    };
    matches!(protocol, 6 | 17).then_some(seen)
}
