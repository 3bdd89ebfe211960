//! Stable numbers for everything the maps name by number.
//!
//! ```text
//! build (image) -> assign, sweep -> plan -> save -> apply -> commit -> save
//! ```
//! Saving before applying makes the file never older than the maps; [`Ids::adopt`] settles what a crash leaves between.
//! Rings and backends are not saved: the maps hold all there is to know about them. So a change of endpoints, the one that
//! comes most often, changes nothing in the file.

mod adopt;
mod rings;
mod slots;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use self::slots::SavedSlots;
pub use self::{
    rings::{Lease, MAX_RING, Rings},
    slots::Slots,
};
use crate::{
    desired::{BackendAddr, ServiceKey},
    image::{Capacity, Table},
    model::{IpFamily, Protocol},
};

/// Owner of a backend's number: the service port (by its number) and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendKey {
    /// Number of the service port.
    pub service: u32,
    /// Where it listens.
    pub at: BackendAddr,
}

/// Owner of a frontend record's number: all of its content, since a published record never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    /// Number of the service port.
    pub service: u32,
    /// Rules for pods, processes of this node, and everyone else, as in the record.
    pub rules: [u8; 3],
    /// Flags as in the record.
    pub flags: u8,
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Owner of a next hop's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NextHopKey {
    /// The device.
    pub ifindex: u32,
    /// The source address the route prefers.
    pub prefsrc: Option<IpAddr>,
    /// The address belongs to this node.
    pub local: bool,
}

/// The numbers of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyIds {
    /// `LB4_BACKENDS`, `LB6_BACKENDS`
    pub backends: Slots<BackendKey>,
    /// `LB4_RECORDS`, `LB6_RECORDS`
    pub records: Slots<RecordKey>,
    /// `LB4_NEXT_HOPS`, `LB6_NEXT_HOPS`
    pub next_hops: Slots<NextHopKey>,
}

/// All numbers of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Service ports.
    pub services: Slots<ServiceKey>,
    /// IPv4.
    pub v4: FamilyIds,
    /// IPv6.
    pub v6: FamilyIds,
    /// `LB_RINGS`.
    pub rings: Rings,
}

/// A saved state that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Not JSON of the expected shape.
    #[error("not a saved id state: {0}; delete the file, and the ids are recovered from the maps")]
    Malformed(String),
    /// Of another program or version.
    #[error("format {found:?} instead of {FORMAT:?}; delete the file, and the ids are recovered from the maps")]
    Foreign {
        /// What the file says it is.
        found: String,
    },
    /// Contradicts itself.
    #[error("{table}: {cause}; delete the file, and the ids are recovered from the maps")]
    Damaged {
        /// Which part.
        table: &'static str,
        /// What is wrong.
        cause: String,
    },
}

const FORMAT: &str = "ballast-ids/2";
/// The format that had the numbers of backends too, which the maps tell as well.
const WITH_BACKENDS: &str = "ballast-ids/1";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: String,
    services: SavedSlots<ServiceKey>,
    v4: SavedFamily,
    v6: SavedFamily,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedFamily {
    /// Not written: each entry in use names its owner, each other one keeps its generation.
    #[serde(default, skip_serializing)]
    backends: Option<SavedSlots<BackendKey>>,
    records: SavedSlots<RecordKey>,
    next_hops: SavedSlots<NextHopKey>,
}

impl FamilyIds {
    fn commit(&mut self) -> bool {
        // Every one has to run.
        self.backends.commit() | self.records.commit() | self.next_hops.commit()
    }

    fn sweep(&mut self) {
        self.backends.sweep();
        self.records.sweep();
        self.next_hops.sweep();
    }

    fn save(&self) -> SavedFamily {
        SavedFamily { backends: None, records: self.records.save(), next_hops: self.next_hops.save() }
    }

    fn load(saved: SavedFamily) -> Result<Self, LoadError> {
        Ok(Self {
            backends: saved.backends.map_or_else(|| Ok(Slots::default()), |saved| load_slots("backends", saved))?,
            records: load_slots("records", saved.records)?,
            next_hops: load_slots("next hops", saved.next_hops)?,
        })
    }
}

fn load_slots<K: Ord + Clone>(table: &'static str, saved: SavedSlots<K>) -> Result<Slots<K>, LoadError> {
    Slots::load(saved).map_err(|cause| LoadError::Damaged { table, cause })
}

impl Ids {
    /// The numbers of a family.
    pub const fn family(&self, family: IpFamily) -> &FamilyIds {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    pub(crate) const fn family_mut(&mut self, family: IpFamily) -> &mut FamilyIds {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }

    /// Forgets all numbers if arrays of these sizes do not have some: a saved state may come from larger ones. An array is
    /// resized only by making all maps anew, so nothing stands there and no flow remembers any of them; and what is left
    /// of a service without a number would only take room.
    pub(crate) fn fit(&mut self, capacity: &Capacity) {
        let fits = |family: &FamilyIds, backends, records, next_hops| {
            family.backends.fits(capacity.get(backends))
                && family.records.fits(capacity.records(records))
                && family.next_hops.fits(capacity.get(next_hops))
        };
        let fit = self.services.fits(capacity.services())
            && fits(&self.v4, Table::Backends4, Table::Records4, Table::NextHops4)
            && fits(&self.v6, Table::Backends6, Table::Records6, Table::NextHops6);
        if !fit {
            *self = Self::default();
        }
    }

    /// Begins to number something that may not fit.
    pub(crate) fn begin(&mut self) {
        self.services.begin();
        for family in [&mut self.v4, &mut self.v6] {
            family.backends.begin();
            family.records.begin();
        }
    }

    /// It did not fit: what was numbered since [`Self::begin`] never was.
    pub(crate) fn give_back(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family.records.give_back();
            family.backends.give_back();
        }
        self.services.give_back();
    }

    /// Ends a build: what it did not use loses its number.
    pub(crate) fn sweep(&mut self) {
        self.services.sweep();
        self.v4.sweep();
        self.v6.sweep();
        let (services, rings) = (&self.services, &mut self.rings);
        let kept: std::collections::BTreeSet<u32> = services.owners().map(|(_, id)| id).collect();
        rings.sweep(|service| kept.contains(&service));
    }

    /// Ends a build of some service ports, whose numbers stay: backends of theirs that it did not use lose their numbers,
    /// which it returns by family.
    pub(crate) fn sweep_some(&mut self, services: &BTreeMap<u32, IpFamily>) -> Vec<(IpFamily, u32)> {
        let mut lost = Vec::new();
        for (&service, &family) in services {
            let first = |service| BackendKey { service, at: BackendAddr::FIRST };
            let range = first(service)..first(service.saturating_add(1));
            lost.extend(self.family_mut(family).backends.sweep_some(range).into_iter().map(|id| (family, id)));
        }
        self.services.settle();
        for family in [&mut self.v4, &mut self.v6] {
            family.backends.settle();
            family.records.settle();
            family.next_hops.settle();
        }
        lost
    }

    /// The numbers of next hops, of both families.
    pub(crate) fn next_hops(&self) -> [Slots<NextHopKey>; 2] {
        [&self.v4, &self.v6].map(|family| family.next_hops.clone())
    }

    /// To be called after the plan of the last build was applied whole: the numbers it stopped using become free. `true`
    /// if there were any; a build that refused something for want of room is then worth repeating.
    pub fn commit(&mut self) -> bool {
        self.services.commit() | self.v4.commit() | self.v6.commit() | self.rings.commit()
    }

    /// The state as JSON, for `<state-dir>/ids.json`. To be written before a plan is applied, and after.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Saved {
            format: FORMAT.to_owned(),
            services: self.services.save(),
            v4: self.v4.save(),
            v6: self.v6.save(),
        })
    }

    /// Reads [`Self::to_json`]. Follow with [`Self::adopt`].
    pub fn from_json(json: &[u8]) -> Result<Self, LoadError> {
        let malformed = |error: serde_json::Error| LoadError::Malformed(error.to_string());
        let header: Header = serde_json::from_slice(json).map_err(malformed)?;
        if header.format != FORMAT && header.format != WITH_BACKENDS {
            return Err(LoadError::Foreign { found: header.format });
        }
        let saved: Saved = serde_json::from_slice(json).map_err(malformed)?;
        Ok(Self {
            services: load_slots("services", saved.services)?,
            v4: FamilyIds::load(saved.v4)?,
            v6: FamilyIds::load(saved.v6)?,
            rings: Rings::default(),
        })
    }
}
