//! Datagrams from a pod, each a new flow, until the right backend answers one.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use lb_tests::Place;

/// Between two datagrams: short beside what is measured, long enough to leave the CPU to it.
const PACE: Duration = Duration::from_micros(250);
/// How long one is waited for.
const ANSWER: Duration = Duration::from_millis(2);

/// A pod that asks.
pub(super) struct Prober<'a> {
    from: &'a Place,
    to: SocketAddr,
}

impl<'a> Prober<'a> {
    pub(super) const fn new(from: &'a Place, to: SocketAddr) -> Self {
        Self { from, to }
    }

    /// Does `change` while datagrams go; when it began, and when the first datagram was sent that `name` answered.
    pub(super) fn wait_for(
        &self,
        name: &str,
        limit: Duration,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<(Instant, Instant)> {
        let given_up = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| self.from.namespace().run(|| self.ask(name, limit, &given_up)));
            let begin = Instant::now();
            let changed = change();
            if changed.is_err() {
                given_up.store(true, Ordering::Relaxed);
            }
            let answered = asking.join().map_err(|_| anyhow::anyhow!("the prober panicked"))?;
            changed?;
            Ok((begin, answered??))
        })
    }

    fn ask(&self, name: &str, limit: Duration, given_up: &AtomicBool) -> anyhow::Result<Instant> {
        let begin = Instant::now();
        let expected = format!("{name} ");
        let mut buffer = [0; 512];
        while begin.elapsed() < limit && !given_up.load(Ordering::Relaxed) {
            let socket = UdpSocket::bind("0.0.0.0:0").context("a socket")?;
            socket.set_read_timeout(Some(ANSWER))?;
            let sent = Instant::now();
            // Before there is a Service the way to it may be refused.
            let answered =
                socket.connect(self.to).and_then(|()| socket.send(b"?")).and_then(|_| socket.recv(&mut buffer));
            match answered {
                Ok(count) if buffer.get(..count).is_some_and(|answer| answer.starts_with(expected.as_bytes())) => {
                    return Ok(sent);
                }
                Ok(_) => {}
                Err(error) if is_expected(&error) => {}
                Err(error) => return Err(error).context("a datagram"),
            }
            thread::sleep(PACE);
        }
        bail!("{name} answered nothing in {} s", limit.as_secs())
    }
}

/// Nobody answers yet, or an ICMP error says so.
fn is_expected(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NetworkUnreachable | PermissionDenied | TimedOut | WouldBlock
    )
}
