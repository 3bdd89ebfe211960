//! Ctrl-C and its like end the work at its next step, so that the world is always taken down.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread,
};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// A signal that asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Ctrl-C: at a terminal everybody in the foreground gets it.
    Interrupt,
    /// SIGTERM, or SIGHUP of a terminal that goes.
    Terminate,
}

/// Signals since the start.
pub(crate) struct Signals {
    seen: Arc<AtomicBool>,
    pub(crate) endings: mpsc::UnboundedReceiver<Ending>,
}

impl Signals {
    /// From the return of this on no signal ends the process by itself.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let seen = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&seen);
        let (sender, endings) = mpsc::unbounded_channel();
        let (ready, is_ready) = std_mpsc::channel();
        thread::spawn(move || drop(ready.send(receive(&flag, &sender, &ready))));
        is_ready.recv().context("the signal thread ended")??;
        Ok(Self { seen, endings })
    }

    /// An error once a signal has come.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.has_come() {
            bail!("interrupted");
        }
        Ok(())
    }

    pub(crate) fn has_come(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }
}

fn receive(
    flag: &AtomicBool,
    sender: &mpsc::UnboundedSender<Ending>,
    ready: &std_mpsc::Sender<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        ready.send(Ok(()))?;
        loop {
            let ending = tokio::select! {
                _ = interrupt.recv() => Ending::Interrupt,
                _ = terminate.recv() => Ending::Terminate,
                _ = hangup.recv() => Ending::Terminate,
            };
            flag.store(true, Ordering::Relaxed);
            sender.send(ending)?;
        }
    })
}
