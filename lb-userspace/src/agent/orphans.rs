//! UDP sockets of this node's processes that are connected to a backend that is gone are ended, so that a one-way sender
//! does not send to nobody for ever.

use lb_common::verdict::Counter;

use super::Agent;
use crate::{net::sock_diag::SockDiag, orphans::orphan, report::Problem};

/// Log lines in a row; the counter has all.
const SAID: usize = 20;

impl Agent {
    /// Ends them. To be called when backends may have gone: all are looked at, so that nothing is lost when a call fails.
    pub(super) fn end_orphans(&mut self) {
        let Ok(diag) = &self.sock_diag else { return };
        match end_orphans(self, diag) {
            Ok(()) => self.orphans_error = None,
            Err(error) => {
                let problem = problem(format!("cannot be looked at or ended: {error}"), "it is tried again soon");
                if self.orphans_error.as_ref() != Some(&problem) {
                    tracing::warn!("UDP sockets of host processes {}", problem.cause);
                }
                self.orphans_error = Some(problem);
            }
        }
    }
}

fn end_orphans(agent: &Agent, diag: &SockDiag) -> std::io::Result<()> {
    let maps = &agent.datapath.maps;
    let image = agent.engine.mirror();
    let mut ended = 0_usize;
    let mut result = Ok(());
    for socket in diag.connected(&maps.udp_sockets()?)? {
        let Some(orphan) = orphan(image, &socket) else { continue };
        match diag.end(&socket) {
            Ok(true) => {
                ended += 1;
                if ended <= SAID {
                    let (local, frontend, backend) = (socket.local, orphan.frontend, orphan.backend);
                    tracing::info!(
                        "ended the UDP socket {local}, connected to {frontend}: its backend {backend} is gone"
                    );
                }
            }
            Ok(false) => {}
            Err(error) => result = Err(error),
        }
    }
    if ended > SAID {
        tracing::info!("ended {} more", ended - SAID);
    }
    if ended > 0 {
        maps.add_to_counter(Counter::SocketDestroyed, ended as u64)?;
    }
    result
}

/// Opens the socket monitor, or says what is without it.
pub(super) fn open() -> Result<SockDiag, Problem> {
    SockDiag::open().map_err(|error| {
        problem(
            format!("connected UDP sockets whose backend is gone are not ended: {error}"),
            "use a kernel with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY; until then restart such processes, or \
             set socketHooks: false",
        )
    })
}

fn problem(cause: String, fix: &str) -> Problem {
    Problem { object: "UDP sockets of host processes".to_owned(), cause, fix: fix.to_owned() }
}
