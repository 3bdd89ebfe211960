//! What a service manager is told (`sd_notify(3)`): `READY=1` once the node forwards, be it by what an earlier agent left,
//! or has nothing to forward yet; `STATUS=` which of these it is; `WATCHDOG=1` as long as the loop goes round; `STOPPING=1` at
//! the end. Without `$NOTIFY_SOCKET` nobody is told anything.

use std::{
    borrow::Cow,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It has started.
    Ready,
    /// For people.
    Status(&'static str),
    /// The loop still goes round.
    Alive,
    /// It ends in order.
    Stopping,
}

impl Notice {
    fn text(self) -> Cow<'static, str> {
        match self {
            Self::Ready => "READY=1".into(),
            Self::Status(words) => format!("STATUS={words}").into(),
            Self::Alive => "WATCHDOG=1".into(),
            Self::Stopping => "STOPPING=1".into(),
        }
    }
}

/// Whoever started this process and wants to hear of it; mostly nobody.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<String>,
    /// Without a sign of life for so long it ends this process.
    patience: Option<Duration>,
}

impl ServiceManager {
    /// By the environment.
    pub(crate) fn of_this_process() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        Self::by(text, std::process::id())
    }

    fn by(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        // WATCHDOG_PID names whom the watchdog is about: a child of the service is not.
        let ours = variable("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
        let patience = variable("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        Self {
            socket: variable("NOTIFY_SOCKET").filter(|path| path.starts_with(['/', '@'])),
            patience: patience.filter(|_| ours).map(Duration::from_micros),
        }
    }

    /// Ticks when a sign of life is due, twice as often as it must be; where nobody waits for one, hardly ever.
    pub(crate) fn watchdog(&self) -> Watchdog {
        let waiting = self.patience.filter(|_| self.socket.is_some());
        Watchdog {
            interval: waiting.map(|patience| {
                let mut interval = interval_at(Instant::now(), (patience / 2).max(Duration::from_millis(1)));
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                interval
            }),
        }
    }

    /// Tells it; one that does not listen is only logged.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Some(path) = &self.socket
            && let Err(error) = send(path, &notice.text())
        {
            tracing::warn!("cannot tell the service manager {} at $NOTIFY_SOCKET {path}: {error}", notice.text());
        }
    }
}

fn send(path: &str, text: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that reads no more must not stop the loop.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// When a sign of life is due.
#[derive(Debug)]
pub(crate) struct Watchdog {
    interval: Option<Interval>,
}

impl Watchdog {
    /// Waits until one is due; for ever where nobody waits for one.
    pub(crate) async fn tick(&mut self) {
        match &mut self.interval {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(variables: &[(&str, &str)]) -> ServiceManager {
        let of = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        ServiceManager::by(of, 7)
    }

    #[test]
    fn the_environment_says_whom_to_tell_and_how_often() {
        let silent = manager(&[]);
        assert_eq!((silent.socket, silent.patience), (None, None));
        let asked = manager(&[("NOTIFY_SOCKET", "/s"), ("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")]);
        assert_eq!((asked.socket.as_deref(), asked.patience), (Some("/s"), Some(Duration::from_secs(3))));
        assert_eq!(manager(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "8")]).patience, None, "another's");
        for wrong in ["0", "-1", "x", ""] {
            assert_eq!(manager(&[("WATCHDOG_USEC", wrong)]).patience, None, "{wrong}");
        }
        assert_eq!(manager(&[("NOTIFY_SOCKET", "vsock:2:1")]).socket, None, "no socket of this machine");
    }

    #[tokio::test]
    async fn it_is_told_in_time_at_paths_and_abstract_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify").display().to_string();
        let name = format!("ballast-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (path.clone(), UnixDatagram::bind(&path).expect("bound")),
            (format!("@{name}"), UnixDatagram::bind_addr(&address).expect("bound")),
        ];
        for (at, socket) in sockets {
            let manager = manager(&[("NOTIFY_SOCKET", &at), ("WATCHDOG_USEC", "20000")]);
            manager.tell(Notice::Ready);
            let mut watchdog = manager.watchdog();
            let begin = Instant::now();
            watchdog.tick().await;
            watchdog.tick().await;
            assert!(begin.elapsed() < Duration::from_secs(5));
            manager.tell(Notice::Status("serving"));
            manager.tell(Notice::Alive);
            manager.tell(Notice::Stopping);
            for wanted in ["READY=1", "STATUS=serving", "WATCHDOG=1", "STOPPING=1"] {
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).expect("told");
                assert_eq!(buffer.get(..length), Some(wanted.as_bytes()));
            }
        }
    }

    #[tokio::test]
    async fn nobody_to_tell_is_no_error_and_takes_no_turns() {
        let manager = manager(&[("WATCHDOG_USEC", "20000")]);
        manager.tell(Notice::Ready);
        let tick = tokio::time::timeout(Duration::from_millis(100), async { manager.watchdog().tick().await }).await;
        assert!(tick.is_err(), "no socket, no signs of life");
    }
}
