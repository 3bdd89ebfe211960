//! The last whole state of a cluster on disk: what a node serves after a reboot until the API server answers.
//!
//! ```text
//! ballast-snapshot 1 <sha256 of the rest, hex>\n
//! {"node": ..., "atSeconds": ..., "services": [[name, service], ...], ...}
//! ```

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    model::{EndpointSlice, Model, Node, ObjectName, Service},
    report::Problem,
};

const MAGIC: &str = "ballast-snapshot 1";
/// Between two writes.
const EVERY: Duration = Duration::from_secs(30);

/// What is saved.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    node: &'a str,
    at_seconds: u64,
    services: Vec<(&'a ObjectName, &'a Service)>,
    slices: Vec<(&'a ObjectName, &'a EndpointSlice)>,
    nodes: Vec<(&'a String, &'a Node)>,
    service_cidrs: Vec<(&'a String, &'a Vec<IpNet>)>,
}

/// What is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    node: String,
    at_seconds: u64,
    services: Vec<(ObjectName, Service)>,
    slices: Vec<(ObjectName, EndpointSlice)>,
    nodes: Vec<(String, Node)>,
    service_cidrs: Vec<(String, Vec<IpNet>)>,
}

/// A state that was saved.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) model: Model,
    /// When, in seconds since 1970.
    pub(super) at_seconds: u64,
}

/// Where it is.
pub(super) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("snapshot")
}

/// The one before it, for the case that it is damaged.
pub(super) fn previous(file: &Path) -> PathBuf {
    file.with_extension("previous")
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The newest state of `node` that can be read, and what is wrong with those that cannot.
pub(super) fn read(file: &Path, node: &str) -> (Option<Snapshot>, Vec<Problem>) {
    let mut problems = Vec::new();
    for path in [file.to_owned(), previous(file)] {
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(refused(&path, &error.to_string())),
            Ok(bytes) => match parse(&bytes, node) {
                Ok(snapshot) => return (Some(snapshot), problems),
                Err(cause) => problems.push(refused(&path, &cause)),
            },
        }
    }
    (None, problems)
}

fn refused(path: &Path, cause: &str) -> Problem {
    Problem {
        object: format!("file {}", path.display()),
        cause: format!("{cause}: not used"),
        fix: "nothing: it is written anew when the cluster's objects are listed".to_owned(),
    }
}

fn parse(bytes: &[u8], node: &str) -> Result<Snapshot, String> {
    let split = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (head, body) = (bytes.get(..split).unwrap_or_default(), bytes.get(split + 1..).unwrap_or_default());
    if head != head_of(body).as_bytes() {
        return Err("its checksum is wrong, or it is of another version".to_owned());
    }
    let read: Read = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if read.node != node {
        return Err(format!("it is of node {:?}, not {node:?}", read.node));
    }
    let model = Model {
        services: read.services.into_iter().collect(),
        slices: read.slices.into_iter().collect(),
        nodes: read.nodes.into_iter().collect(),
        service_cidrs: read.service_cidrs.into_iter().collect(),
        ..Model::default()
    };
    Ok(Snapshot { model, at_seconds: read.at_seconds })
}

fn head_of(body: &[u8]) -> String {
    format!("{MAGIC} {:x}", Sha256::digest(body))
}

fn body(model: &Model, node: &str) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Written {
        node,
        at_seconds: now(),
        services: model.services.iter().collect(),
        slices: model.slices.iter().collect(),
        nodes: model.nodes.iter().collect(),
        service_cidrs: model.service_cidrs.iter().collect(),
    })
}

/// Whatever moment the power fails at, one of the two files is whole.
fn write(file: &Path, body: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut out = File::create(&new)?;
    out.write_all(head_of(body).as_bytes())?;
    out.write_all(b"\n")?;
    out.write_all(body)?;
    out.sync_all()?;
    match fs::rename(file, previous(file)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&new, file)?;
    file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Writes states, not too often.
#[derive(Debug)]
pub(super) struct Writer {
    file: PathBuf,
    node: String,
    dirty: bool,
    not_before: Instant,
    writing: Option<JoinHandle<io::Result<()>>>,
    error: Option<Problem>,
}

impl Writer {
    pub(super) fn new(file: PathBuf, node: String) -> Self {
        Self { file, node, dirty: false, not_before: Instant::now(), writing: None, error: None }
    }

    /// There is another state.
    pub(super) const fn mark(&mut self) {
        self.dirty = true;
    }

    /// Waits until a state is to be written, for ever if there is none.
    pub(super) async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            let result = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.writing = None;
            self.note(result);
        }
        if self.dirty {
            tokio::time::sleep_until(self.not_before).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Writes it beside the agent's loop.
    pub(super) fn start(&mut self, model: &Model) {
        self.dirty = false;
        self.not_before = Instant::now() + EVERY;
        match body(model, &self.node) {
            Ok(body) => {
                let file = self.file.clone();
                self.writing = Some(tokio::task::spawn_blocking(move || write(&file, &body)));
            }
            Err(error) => self.note(Err(error.into())),
        }
    }

    /// Writes it now, if there is anything to write.
    pub(super) async fn finish(&mut self, model: &Model) {
        if let Some(writing) = self.writing.take() {
            let result = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.note(result);
        }
        if self.dirty {
            let result = body(model, &self.node).map_err(Into::into).and_then(|body| write(&self.file, &body));
            self.dirty = result.is_err();
            self.note(result);
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        let problem = result.err().map(|error| Problem {
            object: format!("file {}", self.file.display()),
            cause: format!("the snapshot cannot be written: {error}"),
            fix: "free space or fix its permissions; after a reboot nothing is served until the API server answers"
                .to_owned(),
        });
        if let Some(new) = problem.as_ref().filter(|_| problem != self.error) {
            tracing::warn!("{}: {} ({})", new.object, new.cause, new.fix);
        }
        if problem.is_some() {
            // Tried again, not too soon.
            self.dirty = true;
        }
        self.error = problem;
    }

    pub(super) const fn problem(&self) -> Option<&Problem> {
        self.error.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixture;

    fn saved() -> (tempfile::TempDir, PathBuf, Model) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = file(directory.path());
        let (mut model, _) = fixture::web();
        model.service_cidrs.insert("kubernetes".into(), vec!["10.96.0.0/16".parse().expect("a range")]);
        write(&path, &body(&model, "node1").expect("JSON")).expect("written");
        (directory, path, model)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_directory, path, model) = saved();
        let (read_back, problems) = read(&path, "node1");
        assert_eq!((read_back.expect("a snapshot").model, problems), (model, vec![]));
        let (other, problems) = read(&path, "node2");
        assert!(other.is_none() && problems[0].cause.contains("node1"), "{problems:?}");
        assert_eq!(read(Path::new("/nonexistent/snapshot"), "node1"), (None, vec![]));
    }

    #[test]
    fn corrupt_files_are_refused_and_the_one_before_is_used() {
        let (_directory, path, model) = saved();
        let good = fs::read(&path).expect("read");
        write(&path, &body(&Model::default(), "node1").expect("JSON")).expect("written");
        for seed in 0..10_000_usize {
            let mut bytes = good.clone();
            // Each length and each bit in turn.
            if seed % 4 == 0 {
                bytes.truncate(seed * 7 % good.len());
            } else {
                let at = seed * 13 % good.len();
                bytes[at] ^= 1 << (seed % 8);
            }
            assert!(parse(&bytes, "node1").is_err(), "seed {seed}");
        }
        fs::write(&path, &good[..good.len() - 1]).expect("written");
        let (found, problems) = read(&path, "node1");
        assert_eq!((found.expect("the one before").model, problems.len()), (model, 1));
        println!(
            "SCOREBOARD R24 10000 snapshots with a bit flipped or an end cut off: each refused, the one before is used"
        );
    }
}
