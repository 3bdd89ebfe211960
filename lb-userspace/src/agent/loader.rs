//! Reads the documents beside the agent's loop: they may lie on a slow disk, and the allocation file may be locked for
//! seconds, while new interfaces want their hooks at once.

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::file_source::{LoadError, Loaded, Options, Source};

/// One read at a time; a change during a read leads to another one.
#[derive(Debug)]
pub(super) struct Loader {
    state: State,
}

#[derive(Debug)]
enum State {
    Idle(Box<Source>),
    Reading {
        task: JoinHandle<(Box<Source>, Result<Loaded, LoadError>)>,
        again: bool,
    },
    /// A read panicked.
    Lost,
}

impl State {
    fn reading(mut source: Box<Source>) -> Self {
        let read = move || {
            let loaded = source.reload();
            (source, loaded)
        };
        Self::Reading { task: tokio::task::spawn_blocking(read), again: false }
    }
}

impl Loader {
    pub(super) fn new(options: Options) -> Self {
        Self { state: State::Idle(Box::new(Source::new(options))) }
    }

    /// Begins a read; what is read meanwhile may be old, so that it is read again.
    pub(super) fn start(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(source) => State::reading(source),
            State::Reading { task, .. } => State::Reading { task, again: true },
            State::Lost => State::Lost,
        };
    }

    /// Waits for the read in progress, forever if there is none. Nothing is lost when it is dropped before its end.
    pub(super) async fn finished(&mut self) -> anyhow::Result<Result<Loaded, LoadError>> {
        let State::Reading { task, again } = &mut self.state else { return std::future::pending().await };
        let ended = task.await;
        let again = *again;
        self.state = State::Lost;
        let (source, loaded) = ended.context("reading the documents failed; please file a bug")?;
        self.state = if again { State::reading(source) } else { State::Idle(source) };
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, future::Future as _, pin::pin, task};

    use super::*;

    #[tokio::test]
    async fn a_change_during_a_read_leads_to_another_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let namespace = |name: &str| {
            let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
            fs::write(directory.path().join("a.yaml"), text).expect("written");
        };
        namespace("one");
        let mut loader = Loader::new(Options::new(directory.path()));
        let is_idle = |loader: &mut Loader| {
            let finished = pin!(loader.finished());
            finished.poll(&mut task::Context::from_waker(task::Waker::noop())).is_pending()
        };
        assert!(is_idle(&mut loader), "nothing was started");
        loader.start();
        loader.finished().await.expect("no panic").expect("documents");
        loader.start();
        namespace("two");
        loader.start();
        loader.finished().await.expect("no panic").expect("documents");
        let last = loader.finished().await.expect("no panic").expect("documents");
        assert!(last.model.namespaces.contains("two"), "{last:?}");
        assert!(is_idle(&mut loader));
    }
}
