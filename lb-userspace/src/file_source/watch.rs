//! Tells when the documents changed.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{self, Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        mpsc::{self as std_mpsc, RecvTimeoutError},
    },
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
/// How often it is looked whether another folder has come in the place of the one that is watched.
const LOOK: Duration = Duration::from_secs(1);

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    _watcher: Arc<Mutex<RecommendedWatcher>>,
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
    allocations: Ticking,
}

impl Changes {
    /// Begins to watch.
    ///
    /// # Errors
    /// There are no such documents.
    pub fn of(options: &Options) -> anyhow::Result<Self> {
        let (watch, ticks) = watch(&options.path)?;
        let path = options.allocation_path();
        // The first `run` makes their folder.
        let allocations = Watch::of_what_may_come(&path)
            .with_context(|| format!("cannot watch {}; give another --allocations PATH", path.display()))?;
        Ok(Self { documents: watch.map(|watch| (watch, ticks)), allocations })
    }

    /// Waits until it is time to load again; standard input is read once, so for ever. None if the watch ended.
    pub async fn next(&mut self) -> Option<()> {
        let Some((_, documents)) = &mut self.documents else { return std::future::pending().await };
        let (_, allocations) = &mut self.allocations;
        tokio::select! {
            tick = documents.recv() => tick,
            tick = allocations.recv() => tick,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Done,
    Writing,
    /// The folder itself is gone from its place.
    Lost,
}

impl Watch {
    /// Watches a folder, or a file through its folder (a rename over it is a new file). Each tick means: load again. One also
    /// comes when the folder goes, and when another one is in its place.
    ///
    /// # Errors
    /// There is no such folder, or it cannot be watched.
    pub fn new(path: &Path) -> notify::Result<(Self, mpsc::Receiver<()>)> {
        Self::start(path, Place::watch)
    }

    /// The same where there may be no folder yet.
    fn of_what_may_come(path: &Path) -> notify::Result<(Self, mpsc::Receiver<()>)> {
        Self::start(path, |place| {
            place.look();
            Ok(())
        })
    }

    fn start(
        path: &Path,
        begin: impl FnOnce(&mut Place) -> notify::Result<()>,
    ) -> notify::Result<(Self, mpsc::Receiver<()>)> {
        let (folder, only): (PathBuf, Option<OsString>) = if path.is_dir() {
            (path.to_owned(), None)
        } else {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            (parent.to_owned(), path.file_name().map(ToOwned::to_owned))
        };
        // As events name it.
        let folder = path::absolute(folder).map_err(notify::Error::io)?;
        let (sender, changed) = std_mpsc::channel();
        let own = folder.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(change) = classify(&event, &own, only.as_ref())
                && sender.send(change).is_err()
            {
                tracing::trace!("a change came after the watch had ended");
            }
        })?;
        let watcher = Arc::new(Mutex::new(watcher));
        let mut place = Place { folder, watched: None, watcher: Arc::downgrade(&watcher) };
        begin(&mut place)?;
        let (ticks, receiver) = mpsc::channel(1);
        thread::Builder::new()
            .name("watch".into())
            .spawn(move || follow(place, &changed, &ticks))
            .map_err(notify::Error::io)?;
        Ok((Self { _watcher: watcher }, receiver))
    }
}

/// Where the folder is. The kernel watches a folder, not its path: whatever comes there later is another one.
struct Place {
    folder: PathBuf,
    /// Device and inode of the folder that is watched.
    watched: Option<(u64, u64)>,
    /// It ends with the [`Watch`].
    watcher: Weak<Mutex<RecommendedWatcher>>,
}

impl Place {
    fn there(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.folder).ok().map(|folder| (folder.dev(), folder.ino()))
    }

    /// Watches the folder that is there now.
    fn watch(&mut self) -> notify::Result<()> {
        let Some(watcher) = self.watcher.upgrade() else { return Ok(()) };
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        // What came there since would be found with the next look.
        let there = self.there();
        self.watched = None;
        if let Err(error) = watcher.unwatch(&self.folder) {
            tracing::trace!("{}: {error}", self.folder.display());
        }
        watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        self.watched = there;
        Ok(())
    }

    /// Whether another folder is there than the one that was watched, or none. It is watched from now on.
    fn look(&mut self) -> bool {
        let before = self.watched;
        if self.there() == before {
            return false;
        }
        if let Err(error) = self.watch()
            && before.is_some()
            && self.folder.exists()
        {
            let place = self.folder.display();
            tracing::error!("{place} cannot be watched, which is tried again every {} s: {error}", LOOK.as_secs());
        }
        self.watched != before
    }
}

fn classify(event: &notify::Result<Event>, folder: &Path, only: Option<&OsString>) -> Option<Change> {
    // An error such as a queue overflow means that changes were missed.
    let Ok(event) = event else { return Some(Change::Done) };
    let goes = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
    if goes && event.paths.iter().any(|path| path == folder) {
        return Some(Change::Lost);
    }
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

fn follow(mut place: Place, changed: &std_mpsc::Receiver<Change>, ticks: &mpsc::Sender<()>) {
    loop {
        let is_due = match changed.recv_timeout(LOOK) {
            Ok(change) => {
                burst(&mut place, changed, change);
                true
            }
            Err(RecvTimeoutError::Timeout) => place.look(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Full means that a tick is waiting, which covers this change too.
        if is_due && let Err(mpsc::error::TrySendError::Closed(())) = ticks.try_send(()) {
            return;
        }
    }
}

/// Waits until changes that come together have an end. A folder that went may be there again with the same inode.
fn burst(place: &mut Place, changed: &std_mpsc::Receiver<Change>, mut last: Change) {
    let begin = Instant::now();
    loop {
        if last == Change::Lost {
            place.watched = None;
        }
        let quiet = if last == Change::Writing { STILL_WRITING } else { QUIET };
        match changed.recv_timeout(quiet.min(LONGEST.saturating_sub(begin.elapsed()))) {
            Ok(change) => last = change,
            // Whoever ended the watch is told by the next wait.
            Err(_) => break,
        }
    }
    place.look();
}

#[cfg(test)]
mod tests {
    use notify::event::{RemoveKind, RenameMode};

    use super::*;

    #[test]
    fn a_folder_that_goes_is_told_apart_from_what_goes_in_it() {
        let folder = Path::new("/state");
        let of = |kind, path: &str| {
            let event = Event::new(kind).add_path(path.into());
            classify(&Ok(event), folder, Some(&"these.json".into()))
        };
        let (gone, moved) = (EventKind::Remove(RemoveKind::Other), ModifyKind::Name(RenameMode::From));
        assert!(
            of(gone, "/state") == Some(Change::Lost) && of(EventKind::Modify(moved), "/state") == Some(Change::Lost)
        );
        assert!(of(gone, "/state/these.json") == Some(Change::Done) && of(gone, "/state/others.json").is_none());
    }

    /// Another one may come to have its inode.
    #[test]
    fn a_folder_that_was_lost_is_watched_again_though_it_looks_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, changed) = std_mpsc::channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if sender.send(classify(&event, Path::new("/nowhere"), None)).is_err() {
                tracing::trace!("it came when the test had ended");
            }
        });
        let watcher = Arc::new(Mutex::new(watcher.expect("a watcher")));
        let mut place = Place { folder: folder.path().to_owned(), watched: None, watcher: Arc::downgrade(&watcher) };
        place.watched = place.there();
        assert!(!place.look(), "nothing seems to be another");
        let (_silent, nothing) = std_mpsc::channel();
        burst(&mut place, &nothing, Change::Lost);
        fs::write(folder.path().join("new"), "").expect("written");
        changed.recv_timeout(Duration::from_secs(10)).expect("it is watched");
    }
}
