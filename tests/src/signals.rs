//! Signals to threads.

use std::{io, os::unix::thread::JoinHandleExt as _, thread::JoinHandle};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Interrupts threads of this process, which take the signal and go on.
#[derive(Debug)]
pub struct Interrupter {
    taken: Signal,
}

impl Interrupter {
    /// Of a tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { taken: signal(SignalKind::user_defined1())? })
    }

    /// Interrupts this one.
    pub fn interrupt<T>(&self, thread: &JoinHandle<T>) -> io::Result<()> {
        // SAFETY: the thread is not joined while there is its handle, and the signal has a handler as long as the process lives.
        match unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits until a signal was taken.
    pub async fn taken(&mut self) {
        self.taken.recv().await;
    }
}
