//! A file or folder of Kubernetes documents as the source, with what a control plane would add to them.
//!
//! ```text
//! files -> documents -> objects (checked, defaulted) -> addresses allocated -> slices made -> Model
//! ```
//! Needs neither root nor a node: `ballast env` and `ballast dns` read the same way as the agent.

mod allocate;
mod allocation_file;
mod balancers;
pub(crate) mod document;
mod finding;
mod generate;
mod intake;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use self::{document::Document, intake::Objects};
pub use self::{
    finding::Finding,
    watch::{Changes, Watch, watch},
};
pub use crate::convert::Severity;
use crate::{model::Model, pools::Pools};

/// What to read and what to allocate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// File, folder, or `-` for standard input.
    pub path: PathBuf,
    /// Ranges of cluster IPs; the first one's family is the default family.
    pub service_cidrs: Vec<IpNet>,
    /// Range of nodePorts.
    pub node_port_range: RangeInclusive<u16>,
    /// The allocation file; by default one for each real path, under `/var/lib/ballast/allocations`.
    pub allocations: Option<PathBuf>,
    /// Where Services of type LoadBalancer get addresses that have none; for whoever allocates.
    pub pools: Pools,
    /// Allocate and write: `run` does, every other command only reads.
    pub write_allocations: bool,
}

impl Options {
    /// The defaults, as a reader.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let v4 = Ipv4Net::new_assert([10, 96, 0, 0].into(), 16);
        let v6 = Ipv6Net::new_assert([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0].into(), 112);
        Self {
            path: path.into(),
            service_cidrs: vec![v4.into(), v6.into()],
            node_port_range: 30_000..=32_767,
            allocations: None,
            pools: Pools::default(),
            write_allocations: false,
        }
    }

    /// Where the allocations are.
    pub fn allocation_path(&self) -> PathBuf {
        self.allocations.clone().unwrap_or_else(|| {
            let real = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
            let digest = Sha256::digest(real.as_os_str().as_encoded_bytes());
            PathBuf::from(format!("/var/lib/ballast/allocations/{digest:x}.json"))
        })
    }
}

/// One read of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// All that is valid.
    pub model: Model,
    /// All that is not, or may not be as meant.
    pub findings: Vec<Finding>,
}

/// Nothing could be loaded. Whoever has an earlier [`Loaded`] keeps it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The path cannot be read.
    #[error("{path}: {cause}; give a file or folder that can be read, or - for standard input")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The system's error.
        cause: String,
    },
    /// There are files, but not one document in them can be read.
    #[error("no document can be read; the first error is {0}")]
    NoDocument(Box<Finding>),
    /// The allocation file is damaged. It is never overwritten.
    #[error("allocation file {path}: {cause}; restore it, or delete it to allocate anew (addresses may then change)")]
    AllocationsCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The allocation file cannot be read, whatever is in it.
    #[error(
        "allocation file {path}: cannot be read: {cause}; make it and its folders readable, or give --allocations PATH"
    )]
    AllocationsUnreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: String,
    },
    /// Another process holds the lock for too long.
    #[error("allocation file {path}: locked by another process for more than 10 s; stop that process")]
    AllocationsLocked {
        /// The file.
        path: PathBuf,
    },
    /// The allocation file or its lock cannot be written.
    #[error("allocation file {path}: cannot be written: {cause}; make its folder writable, or give --allocations PATH")]
    AllocationsUnwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: String,
    },
}

/// Reads the source once.
pub fn load(options: &Options) -> Result<Loaded, LoadError> {
    Source::new(options.clone()).reload()
}

/// A source that is read again and again, and remembers what was good.
#[derive(Debug)]
pub struct Source {
    options: Options,
    files: BTreeMap<String, FileState>,
    last: Objects,
}

/// What is in use of a file.
#[derive(Clone, Debug)]
struct FileState {
    /// Not the documents parsed: they take twenty times the room, and are needed again only if the file breaks.
    text: Arc<str>,
    /// It holds a document that could be read.
    useful: bool,
    /// Every document could be read.
    clean: bool,
}

impl Source {
    /// A source that has not been read yet.
    pub fn new(options: Options) -> Self {
        Self { options, files: BTreeMap::new(), last: Objects::default() }
    }

    /// Reads everything again. After an error the state is that of the last success.
    pub fn reload(&mut self) -> Result<Loaded, LoadError> {
        let allocations = self.options.allocation_path();
        let texts = read_files(&self.options.path)?;
        // Read again under the lock: whoever releases an address must have seen what the holder before it saw.
        let (lock, texts) = if self.options.write_allocations {
            let lock = allocation_file::lock(&allocations)?;
            let again = if self.options.path == Path::new("-") { texts } else { read_files(&self.options.path)? };
            (Some(lock), again)
        } else {
            (None, texts)
        };
        let records = allocation_file::read(&allocations)?;
        let mut findings = Vec::new();
        let Parsed { files, documents, readable } = self.parse(texts, &mut findings);
        if documents.is_empty()
            && let Some(first) = findings.iter().find(|finding| finding.severity == Severity::Error)
        {
            return Err(LoadError::NoDocument(Box::new(first.clone())));
        }
        let mut objects = intake::read(documents, &self.last, &self.options, &mut findings);
        let complete = readable && !objects.nameless;
        let present: BTreeSet<_> = objects.service_documents.keys().cloned().collect();
        let last = &self.last.services;
        let allocated = allocate::allocate(last, &records, &present, complete, &objects, &self.options);
        if let Some(lock) = &lock
            && allocated.records != records
        {
            allocation_file::write(&allocations, &allocated.records, lock)?;
        }
        for (name, issue) in allocated.issues {
            if let Some(document) = objects.service_documents.get(&name) {
                findings.push(intake::finding(document, Some(format!("Service {name}")), issue));
            }
        }
        // What is in use now is what an invalid change falls back to.
        let (mut drafts, mut services) = (BTreeMap::new(), BTreeMap::new());
        for (name, (draft, service)) in allocated.services {
            drafts.insert(name.clone(), draft);
            services.insert(name, service);
        }
        objects.services = drafts;
        let mut model = Model {
            services,
            slices: objects.slices.iter().filter_map(|(name, slice)| Some((name.clone(), slice.clone()?))).collect(),
            nodes: objects.nodes.clone(),
            pods: objects.pods.clone(),
            namespaces: objects.namespaces.clone(),
            namespace_labels: objects.namespace_labels.clone(),
            service_cidrs: BTreeMap::new(),
        };
        generate::add_slices(&mut model, &objects.with_slices, &objects.endpoints);
        objects.service_documents.clear();
        self.last = objects;
        self.files = files;
        Ok(Loaded { model, findings })
    }

    /// What is to be used of each file.
    fn parse(&self, texts: BTreeMap<String, Result<String, String>>, findings: &mut Vec<Finding>) -> Parsed {
        let mut parsed = Parsed { files: BTreeMap::new(), documents: Vec::new(), readable: true };
        for (name, text) in texts {
            let last = self.files.get(&name);
            let fallback = last.filter(|last| last.useful);
            let text = match text {
                Ok(text) => text,
                Err(cause) => {
                    parsed.readable = false;
                    findings.push(intake::broken(&name, None, cause, fallback.is_some()));
                    if let Some(last) = fallback {
                        parsed.keep(name, last);
                    }
                    continue;
                }
            };
            // Many writers truncate first: an empty file is most often one that is being written.
            if text.is_empty()
                && let Some(last) = fallback
            {
                parsed.readable = false;
                let mut finding = intake::broken(&name, None, "the file is empty".into(), true);
                finding.fix = "delete the file to remove its objects".into();
                findings.push(finding);
                parsed.keep(name, last);
                continue;
            }
            let text: Arc<str> = text.into();
            let (documents, broken) = document::parse(&name.as_str().into(), &text);
            let clean = broken.is_empty();
            parsed.readable &= clean;
            let kept = last.filter(|last| !clean && last.clean && last.useful);
            for error in broken {
                findings.push(intake::broken(&name, error.line, error.reason, kept.is_some()));
            }
            if let Some(last) = kept {
                parsed.keep(name, last);
            } else {
                parsed.files.insert(name, FileState { text, useful: !documents.is_empty(), clean });
                parsed.documents.extend(documents);
            }
        }
        parsed
    }
}

/// What is to be used of the files.
struct Parsed {
    files: BTreeMap<String, FileState>,
    documents: Vec<Document>,
    /// All of all files could be read.
    readable: bool,
}

impl Parsed {
    /// Uses a file as it was when it was good.
    fn keep(&mut self, name: String, last: &FileState) {
        self.documents.extend(document::parse(&name.as_str().into(), &last.text).0);
        self.files.insert(name, last.clone());
    }
}

/// A limit against a path that never ends.
const MAX_BYTES: u64 = 512 << 20;

fn read_files(path: &Path) -> Result<BTreeMap<String, Result<String, String>>, LoadError> {
    let unreadable = |cause: &dyn ToString| LoadError::Unreadable { path: path.to_owned(), cause: cause.to_string() };
    if path == Path::new("-") {
        let text = read_all(io::stdin().lock()).map_err(|cause| unreadable(&cause))?;
        return Ok([("-".to_owned(), Ok(text))].into());
    }
    let meta = fs::metadata(path).map_err(|cause| unreadable(&cause))?;
    if !meta.is_dir() {
        let text = read_file(path).map_err(|cause| unreadable(&cause))?;
        return Ok([(path.display().to_string(), Ok(text))].into());
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(|cause| unreadable(&cause))? {
        let path = entry.map_err(|cause| unreadable(&cause))?.path();
        // Like kubectl apply -f: these endings, not recursive. Dot files are editors' locks and half-written copies.
        let wanted = path.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !wanted || hidden || path.is_dir() {
            continue;
        }
        match read_file(&path) {
            // Gone since the listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            text => {
                files.insert(path.display().to_string(), text.map_err(|error| error.to_string()));
            }
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> io::Result<String> {
    read_all(fs::File::open(path)?)
}

fn read_all(reader: impl Read) -> io::Result<String> {
    let mut text = String::new();
    reader.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 512 MiB of documents in one file"));
    }
    Ok(text)
}
