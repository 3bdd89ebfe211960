//! What the kernel's tables hold, entry by entry: read from the pins by the command itself, whether an agent runs or
//! not, so that a table of 262,144 flows costs the agent nothing. Nothing is written.

mod backends;
mod conntrack;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

pub use self::{
    backends::backends,
    conntrack::{Filter, flows},
};
use crate::{
    bpf::{self, Maps, OpenError},
    engine,
    ids::Ids,
    model::ObjectName,
    report::ServicePortName,
};

/// Nothing can be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// There is nothing to read.
    #[error("nothing of Ballast is pinned in {0}; start an agent with `ballast run`, or name its --bpffs")]
    Nothing(PathBuf),
    /// The pins cannot be read.
    #[error(transparent)]
    Pins(#[from] OpenError),
    /// A map or the file of numbers cannot be read.
    #[error("{what} cannot be read: {cause}; run this as root")]
    State {
        /// What.
        what: String,
        /// Why.
        cause: io::Error,
    },
    /// The Service that was asked for is unknown.
    #[error(
        "the tables in {bpffs} hold no Service {service}; `ballast service list` shows those there are (their names come \
         from {names})"
    )]
    NoService {
        /// Which.
        service: ObjectName,
        /// Where its maps would be.
        bpffs: PathBuf,
        /// Where its name would be.
        names: PathBuf,
    },
}

/// The open tables with the names of their numbers.
#[derive(Debug)]
pub struct Tables {
    maps: Maps,
    names: BTreeMap<u32, ServicePortName>,
    bpffs: PathBuf,
    ids_file: PathBuf,
}

impl Tables {
    /// Opens the pins in `bpffs` to read them; names come from the agent's state directory.
    pub fn open(state_dir: &Path, bpffs: &Path) -> Result<Self, ListError> {
        let maps = bpf::read_pinned(bpffs)?.ok_or_else(|| ListError::Nothing(bpffs.to_owned()))?;
        let ids_file = engine::ids_file(state_dir);
        // A damaged file names nobody: `ballast status` tells what is wrong with it.
        let (ids, _) = engine::load_ids(&ids_file).map_err(|cause| unreadable(&ids_file.display(), cause))?;
        Ok(Self { maps, names: names(&ids), bpffs: bpffs.to_owned(), ids_file })
    }

    /// Numbers of the service ports of `wanted`; `None` for all there are.
    fn numbers(&self, wanted: Option<&ObjectName>) -> Result<Option<Vec<u32>>, ListError> {
        let Some(wanted) = wanted else { return Ok(None) };
        let of_wanted = |name: &ServicePortName| (&name.namespace, &name.name) == (&wanted.namespace, &wanted.name);
        let found: Vec<u32> = self.names.iter().filter(|(_, name)| of_wanted(name)).map(|(id, _)| *id).collect();
        if found.is_empty() {
            let (bpffs, names) = (self.bpffs.clone(), self.ids_file.clone());
            return Err(ListError::NoService { service: wanted.clone(), bpffs, names });
        }
        Ok(Some(found))
    }

    fn name(&self, service: u32) -> ServicePortName {
        self.names.get(&service).cloned().unwrap_or_else(|| ServicePortName {
            namespace: crate::offline::UNKNOWN.to_owned(),
            name: format!("#{service}"),
            port_name: String::new(),
        })
    }
}

fn unreadable(what: &dyn std::fmt::Display, cause: io::Error) -> ListError {
    ListError::State { what: what.to_string(), cause }
}

fn names(ids: &Ids) -> BTreeMap<u32, ServicePortName> {
    let name = |(key, id): (&crate::desired::ServiceKey, u32)| {
        let ObjectName { namespace, name } = key.service.clone();
        (id, ServicePortName { namespace, name, port_name: key.port_name.clone() })
    };
    ids.services.owners().map(name).collect()
}
