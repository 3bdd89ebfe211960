//! The file that holds which Service owns which cluster IPs and nodePorts, shared by every node of a folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    net::IpAddr,
    num::NonZeroU16,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::LoadError;
use crate::model::{ObjectName, Protocol};

const VERSION: u32 = 1;
/// Holders only read a folder and write one file: far below a second.
const LOCK_TRIES: u32 = 1_000;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a Service owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    #[serde(rename = "clusterIPs", default)]
    pub(super) cluster_ips: Vec<IpAddr>,
    #[serde(default)]
    pub(super) node_ports: Vec<NodePortRecord>,
    #[serde(rename = "loadBalancerIPs", default)]
    pub(super) load_balancer_ips: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) health_check_node_port: Option<NonZeroU16>,
}

/// The nodePort of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodePortRecord {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) node_port: NonZeroU16,
}

pub(super) type Records = BTreeMap<ObjectName, Record>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    services: BTreeMap<String, Record>,
}

/// The right to write the file; released on drop.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock beside the file. The file itself is replaced by each write and cannot carry it.
pub(super) fn lock(path: &Path) -> Result<Lock, LoadError> {
    let failed =
        |cause: io::Error| LoadError::AllocationsUnwritable { path: path.to_owned(), cause: cause.to_string() };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make(parent).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o644)
        .open(beside(path, ".lock"))
        .map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
    }
    Err(LoadError::AllocationsLocked { path: path.to_owned() })
}

/// Makes the folders that are missing, for every command of every user whatever the umask.
fn make(folder: &Path) -> io::Result<()> {
    let missing: Vec<_> =
        folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    missing.into_iter().try_for_each(|folder| fs::set_permissions(folder, Permissions::from_mode(0o755)))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads the file; none is an empty one.
pub(super) fn read(path: &Path) -> Result<Records, LoadError> {
    let corrupt = |cause: String| LoadError::AllocationsCorrupt { path: path.to_owned(), cause };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::new()),
        Err(error) => {
            return Err(LoadError::AllocationsUnreadable { path: path.to_owned(), cause: error.to_string() });
        }
    };
    let content: Content = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
    if content.version != VERSION {
        return Err(corrupt(format!("version {} is not {VERSION}", content.version)));
    }
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let mut records = Records::new();
    for (name, record) in content.services {
        for ip in &record.cluster_ips {
            if !ips.insert(*ip) {
                return Err(corrupt(format!("{ip} has two owners, one of them {name}")));
            }
        }
        let node_ports = record.node_ports.iter().map(|port| (port.protocol, port.node_port));
        for (protocol, number) in node_ports.chain(record.health_check_node_port.map(|number| (Protocol::Tcp, number)))
        {
            if !ports.insert((protocol, number)) {
                return Err(corrupt(format!("port {number}/{protocol} has two owners, one of them {name}")));
            }
        }
        let (namespace, service) =
            name.split_once('/').ok_or_else(|| corrupt(format!("{name:?} is not namespace/name")))?;
        records.insert(ObjectName { namespace: namespace.to_owned(), name: service.to_owned() }, record);
    }
    Ok(records)
}

/// Replaces the file: after a crash it holds either the old or the new content.
pub(super) fn write(path: &Path, records: &Records, _lock: &Lock) -> Result<(), LoadError> {
    let services = records.iter().map(|(name, record)| (name.to_string(), record.clone())).collect();
    let replace = || -> io::Result<()> {
        let temporary = beside(path, ".tmp");
        let mut file = File::create(&temporary)?;
        serde_json::to_writer_pretty(&mut file, &Content { version: VERSION, services })?;
        file.write_all(b"\n")?;
        // Whatever the umask: every command of every user reads it.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    replace().map_err(|cause| LoadError::AllocationsUnwritable { path: path.to_owned(), cause: cause.to_string() })
}
