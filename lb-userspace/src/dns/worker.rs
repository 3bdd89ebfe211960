//! Threads with a runtime of their own.

use std::{sync::mpsc, thread};

use anyhow::Context as _;
use tokio::{runtime, sync::watch};

/// A thread that does one thing; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Begins with `begin`, whose error is that of this, and goes on with what it gives.
    pub(super) fn start<B, F>(name: &str, begin: B) -> anyhow::Result<Self>
    where
        B: AsyncFnOnce() -> anyhow::Result<F> + Send + 'static,
        F: Future,
    {
        let (stop, mut stopped) = watch::channel(false);
        let (tell, told) = mpsc::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        let work = move || {
            runtime.block_on(async {
                let (said, work) = match begin().await {
                    Ok(work) => (Ok(()), Some(work)),
                    Err(error) => (Err(error), None),
                };
                if let (Ok(()), Some(work)) = (tell.send(said), work) {
                    tokio::select! {
                        told = stopped.wait_for(|stop| *stop) => drop(told),
                        _ = work => {}
                    }
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).context("no thread")?;
        told.recv().with_context(|| format!("thread {name} ended; please file a bug"))??;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Waits for its end, which is a fault: it goes on until it is dropped.
    pub(super) async fn ended(&self) {
        self.stop.closed().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by a fault.
        self.stop.send_replace(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread of DNS panicked; please file a bug");
        }
    }
}
