//! The sockets' tasks, in a thread of their own: what else the process does delays no answer.

use std::net::{TcpListener, UdpSocket};

use tokio::task::JoinSet;

use super::{server::Handler, tcp, udp, worker::Worker};

/// The sockets of one address.
pub(super) type Sockets = (UdpSocket, TcpListener);

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    worker: Worker,
}

impl Server {
    /// Begins to answer.
    pub(super) fn start(handler: &Handler, bound: Vec<Sockets>) -> anyhow::Result<Self> {
        let handler = handler.clone();
        let begin = async move || {
            let mut tasks = JoinSet::new();
            for (udp, listener) in bound {
                listener.set_nonblocking(true)?;
                tasks.spawn(udp::answer(udp::Socket::new(udp)?, handler.clone()));
                tasks.spawn(tcp::answer(listener.try_into()?, handler.clone()));
            }
            handler.probe();
            Ok(async move {
                let ended = tasks.join_next().await;
                tracing::error!("DNS: a socket is answered no more: {ended:?}");
            })
        };
        Ok(Self { worker: Worker::start("dns", begin)? })
    }

    /// Waits for its end, which is a fault: it goes on until it is dropped.
    pub async fn ended(&self) {
        self.worker.ended().await;
    }
}
