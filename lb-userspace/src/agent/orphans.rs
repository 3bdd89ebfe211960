//! UDP sockets of this node's processes that are connected to a backend that is gone are ended, so that a one-way sender
//! does not send to nobody for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use lb_common::verdict::Counter;

use super::Agent;
use crate::{
    bpf::{FlowFamily, Maps},
    image::{Image, octets::Octets},
    net::sock_diag::{Connected, SockDiag},
    orphans::look,
    report::Problem,
};

/// Log lines in a row; the counter has all.
const SAID: usize = 20;

/// Ends sockets, and forgets those that are closed.
pub(super) struct Orphans {
    diag: Result<SockDiag, Problem>,
    /// Why it could not the last time.
    error: Option<Problem>,
    /// What was remembered of no socket in the last collection: IPv4, IPv6.
    absent: [BTreeSet<u64>; 2],
}

impl Orphans {
    /// Opens the socket monitor. What is without it is told by [`problems`](Self::problems).
    pub(super) fn open() -> Self {
        let diag = SockDiag::open().map_err(|error| {
            problem(
                format!("connected UDP sockets whose backend is gone are not ended: {error}"),
                "use a kernel with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY; until then restart such \
                 processes, or set socketHooks: false",
            )
        });
        if let Err(problem) = &diag {
            tracing::warn!("{}", problem.cause);
        }
        Self { diag, error: None, absent: Default::default() }
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.diag.as_ref().err().into_iter().chain(&self.error).cloned()
    }
}

impl Agent {
    /// Ends them. To be called when backends may have gone: all are looked at, so that nothing is lost when a call fails.
    pub(super) fn end_orphans(&mut self) {
        let Ok(diag) = &self.orphans.diag else { return };
        let result = end_orphans(&self.datapath.maps, self.engine.mirror(), diag);
        self.orphans_result(result.map(drop));
    }

    /// The same, and forgets the sockets that are closed: in the second round that finds them so, for one that was seen
    /// between its hook and its connection is not.
    pub(super) fn collect_sockets(&mut self) {
        let Ok(diag) = &self.orphans.diag else { return };
        let maps = &self.datapath.maps;
        let result = end_orphans(maps, self.engine.mirror(), diag).and_then(|absent| {
            forget::<[u8; 4]>(maps, self.orphans.absent[0].intersection(&absent[0]).copied())?;
            forget::<[u8; 16]>(maps, self.orphans.absent[1].intersection(&absent[1]).copied())?;
            Ok(absent)
        });
        let result = result.map(|absent| self.orphans.absent = absent);
        self.orphans_result(result);
    }

    fn orphans_result(&mut self, result: io::Result<()>) {
        let problem = result.err().map(|error| {
            problem(format!("connected ones cannot be looked at or ended: {error}"), "it is tried again soon")
        });
        if let Some(new) = problem.as_ref().filter(|_| problem != self.orphans.error) {
            tracing::warn!("UDP sockets of host processes: {}", new.cause);
        }
        self.orphans.error = problem;
    }
}

/// Returns what is remembered of no socket.
fn end_orphans(maps: &Maps, image: &Image, diag: &SockDiag) -> io::Result<[BTreeSet<u64>; 2]> {
    // Listed before the sockets: a record is never newer than what it is compared with.
    let (v4, v6) = (maps.connected::<[u8; 4]>()?, maps.connected::<[u8; 16]>()?);
    if v4.is_empty() && v6.is_empty() {
        return Ok(Default::default());
    }
    let sockets: BTreeMap<u64, Connected> = diag.connected()?.into_iter().map(|it| (it.cookie, it)).collect();
    let (v4, v6) = (look(image, &v4, &sockets), look(image, &v6, &sockets));
    let mut ended = 0_usize;
    let mut result = Ok(());
    for orphan in v4.orphans.iter().chain(&v6.orphans) {
        match diag.end(&orphan.socket) {
            Ok(true) => {
                ended += 1;
                if ended <= SAID {
                    let Connected { local, remote, .. } = orphan.socket;
                    let frontend = orphan.frontend;
                    tracing::info!(
                        "ended the UDP socket {local}, connected to {frontend}: its backend {remote} is gone"
                    );
                }
            }
            Ok(false) => {}
            Err(error) => result = Err(error),
        }
    }
    if ended > SAID {
        tracing::info!("ended {} UDP sockets more", ended - SAID);
    }
    if ended > 0 {
        maps.add_to_counter(Counter::SocketDestroyed, ended as u64)?;
    }
    result.map(|()| [v4.absent, v6.absent])
}

fn forget<A: FlowFamily + Octets>(maps: &Maps, cookies: impl IntoIterator<Item = u64>) -> io::Result<()> {
    for cookie in cookies {
        maps.remove_connected::<A>(cookie)?;
    }
    Ok(())
}

fn problem(cause: String, fix: &str) -> Problem {
    Problem { object: "UDP sockets of host processes".to_owned(), cause, fix: fix.to_owned() }
}
