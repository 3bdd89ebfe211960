//! A socket at a place of the world that a test leads step by step.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{Namespace, Place, Process, process::binary};

/// What a step met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Met {
    /// Name of the error.
    pub error: Option<String>,
    /// The socket's cookie.
    pub cookie: u64,
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    /// After `connect`: what `getpeername` shows. After `receive`: whom the datagram came from.
    pub peer: Option<SocketAddr>,
    /// The server's name in its greeting.
    pub backend: Option<String>,
    /// The client's address as the server saw it.
    pub source: Option<IpAddr>,
}

/// A process with one socket at a time.
#[derive(Debug)]
pub struct Talk {
    process: Process,
    said: usize,
}

impl Talk {
    /// Starts it at `place`, without a socket.
    pub fn start(place: &Place) -> anyhow::Result<Self> {
        let mut command = place.command(binary("ballast-peer")?)?;
        command.arg("talk");
        Ok(Self { process: Process::spawn(&format!("talk at {}", place.name()), command)?, said: 0 })
    }

    /// The same in a namespace, in this process's cgroup, so that no socket hook of a world sees it.
    pub fn unseen(namespace: &Namespace) -> anyhow::Result<Self> {
        let mut command = std::process::Command::new(binary("ballast-peer")?);
        command.arg("talk");
        let process = namespace.run(|| Process::spawn(&format!("talk in {}", namespace.name()), command))??;
        Ok(Self { process, said: 0 })
    }

    /// Makes a socket: `udp4`, `udp6`, `tcp4` or `tcp6`, the latter of each for both families; bound to `bind`.
    pub fn new_socket(&mut self, kind: &str, bind: Option<SocketAddr>) -> anyhow::Result<Met> {
        self.step(&format!("new {kind} {}", bind.map_or_else(|| "any".to_owned(), |at| at.to_string())))
    }

    /// `connect`, then `getpeername`.
    pub fn connect(&mut self, to: SocketAddr) -> anyhow::Result<Met> {
        self.step(&format!("connect {to}"))
    }

    /// `connect` with `AF_UNSPEC`.
    pub fn disconnect(&mut self) -> anyhow::Result<Met> {
        self.step("disconnect")
    }

    /// `sendto`.
    pub fn send(&mut self, to: SocketAddr) -> anyhow::Result<Met> {
        self.step(&format!("send {to}"))
    }

    /// `send` on a connected socket.
    pub fn write(&mut self) -> anyhow::Result<Met> {
        self.step("write")
    }

    /// `recvfrom`, within a second.
    pub fn receive(&mut self) -> anyhow::Result<Met> {
        self.step("receive")
    }

    /// `sendto` and the answer, or the first error.
    pub fn exchange(&mut self, to: SocketAddr) -> anyhow::Result<Met> {
        let sent = self.send(to)?;
        if sent.error.is_some() { Ok(sent) } else { self.receive() }
    }

    fn step(&mut self, command: &str) -> anyhow::Result<Met> {
        self.process.tell(command)?;
        let line = self.process.line(self.said, Duration::from_secs(10)).with_context(|| format!("at {command:?}"))?;
        self.said += 1;
        serde_json::from_str(&line).with_context(|| format!("cannot read {line:?}"))
    }
}
