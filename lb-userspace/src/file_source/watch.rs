//! Tells when the documents changed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::mpsc::{self as std_mpsc, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use super::Options;

/// Quiet time after which a burst of changes counts as done.
const QUIET: Duration = Duration::from_millis(20);
/// The same for a file that is still open for writing.
const STILL_WRITING: Duration = Duration::from_millis(300);
/// A burst that never ends is reported anyway.
const LONGEST: Duration = Duration::from_secs(1);
/// How often the folder of allocations is looked for until there is one.
const LOOK: Duration = Duration::from_secs(1);

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Watches what may be watched: standard input is read once, and without a watch no tick ever comes.
///
/// # Errors
/// There is no such file or folder.
pub fn watch(path: &Path) -> anyhow::Result<(Option<Watch>, mpsc::Receiver<()>)> {
    if path.as_os_str() == "-" {
        return Ok((None, mpsc::channel(1).1));
    }
    let (watch, ticks) = Watch::new(path)
        .with_context(|| format!("cannot watch {}; give a file or folder that exists", path.display()))?;
    Ok((Some(watch), ticks))
}

type Ticking = (Watch, mpsc::Receiver<()>);

/// Documents, and the addresses that `run` allocates for them: what a reader follows. `run` itself knows what it wrote.
#[derive(Debug)]
pub struct Changes {
    documents: Option<Ticking>,
    path: PathBuf,
    /// None until the first `run` has made their folder.
    allocations: Option<Ticking>,
}

impl Changes {
    /// Begins to watch.
    ///
    /// # Errors
    /// There are no such documents.
    pub fn of(options: &Options) -> anyhow::Result<Self> {
        let (watch, ticks) = watch(&options.path)?;
        let path = options.allocation_path();
        let allocations = Watch::new(&path).ok();
        Ok(Self { documents: watch.map(|watch| (watch, ticks)), path, allocations })
    }

    /// Waits until it is time to load again; standard input is read once, so for ever. None if the watch ended.
    pub async fn next(&mut self) -> Option<()> {
        let Some((_, documents)) = &mut self.documents else { return std::future::pending().await };
        if let Some((_, allocations)) = &mut self.allocations {
            return tokio::select! {
                tick = documents.recv() => tick,
                tick = allocations.recv() => tick,
            };
        }
        loop {
            if let Ok(watch) = Watch::new(&self.path) {
                self.allocations = Some(watch);
                // The file may have been there before the watch was.
                return Some(());
            }
            tokio::select! {
                tick = documents.recv() => return tick,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Done,
    Writing,
}

impl Watch {
    /// Watches a folder, or a file through its folder (a rename over it is a new file). Each tick means: load again.
    pub fn new(path: &Path) -> notify::Result<(Self, mpsc::Receiver<()>)> {
        let (folder, only): (PathBuf, Option<OsString>) = if path.is_dir() {
            (path.to_owned(), None)
        } else {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            (parent.to_owned(), path.file_name().map(ToOwned::to_owned))
        };
        let (sender, changed) = std_mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(change) = classify(&event, only.as_ref())
                && sender.send(change).is_err()
            {
                tracing::trace!("a change came after the watch had ended");
            }
        })?;
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        let (ticks, receiver) = mpsc::channel(1);
        thread::Builder::new()
            .name("watch".into())
            .spawn(move || debounce(&changed, &ticks))
            .map_err(notify::Error::io)?;
        Ok((Self { _watcher: watcher }, receiver))
    }
}

fn classify(event: &notify::Result<Event>, only: Option<&OsString>) -> Option<Change> {
    // An error such as a queue overflow means that changes were missed.
    let Ok(event) = event else { return Some(Change::Done) };
    let ours = |path: &PathBuf| only.is_none_or(|only| path.file_name() == Some(only));
    if !event.need_rescan() && !event.paths.is_empty() && !event.paths.iter().any(ours) {
        return None;
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Change::Done),
        EventKind::Access(_) => None,
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => Some(Change::Writing),
        _ => Some(Change::Done),
    }
}

fn debounce(changed: &std_mpsc::Receiver<Change>, ticks: &mpsc::Sender<()>) {
    while let Ok(mut last) = changed.recv() {
        let begin = Instant::now();
        loop {
            let quiet = if last == Change::Done { QUIET } else { STILL_WRITING };
            match changed.recv_timeout(quiet.min(LONGEST.saturating_sub(begin.elapsed()))) {
                Ok(change) => last = change,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // Full means that a tick is waiting, which covers this change too.
        if let Err(mpsc::error::TrySendError::Closed(())) = ticks.try_send(()) {
            return;
        }
    }
}
