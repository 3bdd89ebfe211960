//! The entries of a few Services, where nothing but their backends has changed.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::{IntoBytes as _, native_endian::U32};

use super::{Builder, Built, NextHops};
use crate::{
    desired::Desired,
    ids::Ids,
    image::{Capacity, Image, Table},
    model::{IpFamily, ObjectName},
};

/// What [`build_some`] made.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuiltSome {
    /// Entries as they should be.
    pub entries: Image,
    /// Keys of those that should not be there, unless they are among the entries.
    pub cleared: BTreeSet<(Table, Box<[u8]>)>,
}

/// What [`super::build`] makes of these Services alone, whose backends and rings are other ones than in its last image; their frontends
/// are not, and neither is anything else. `None` where that is not enough: something does not fit, and what does has to be
/// told from everything.
pub fn build_some(
    desired: &Desired,
    names: &BTreeSet<ObjectName>,
    ids: &mut Ids,
    next_hops: &dyn NextHops,
    capacity: &Capacity,
) -> Option<BuiltSome> {
    let mut built_ports = BTreeMap::new();
    let mut builder = Builder { ids, next_hops, capacity, built: Built::default() };
    for name in names {
        let ports: Vec<_> = desired.of_service(name).collect();
        builder.service(&ports, &desired.vips).ok()?;
        let numbered = ports.iter().filter_map(|(key, _)| Some((builder.ids.services.get(key)?, key.family)));
        built_ports.extend(numbered);
    }
    for (family, id) in builder.ids.sweep_some(&built_ports) {
        match family {
            IpFamily::V4 => builder.vacant_backend::<[u8; 4]>(id),
            IpFamily::V6 => builder.vacant_backend::<[u8; 16]>(id),
        }
    }
    let cleared = builder.ids.rings.retiring_slots();
    let cleared = cleared.map(|slot| (Table::Rings, U32::new(slot).as_bytes().into())).collect();
    let Built { image: entries, refused } = builder.built;
    refused.is_empty().then_some(BuiltSome { entries, cleared })
}
