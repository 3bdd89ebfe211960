//! Services in memory as the agent would program them: documents, desired state, image, and from there the pipeline's
//! tables.

use std::{collections::BTreeMap, fs, net::IpAddr};

use lb_common::{
    backend::BackendId,
    family::Addr,
    frontend::{PrefixFlags, PrefixKey},
    ring::RingWord,
    settings::{Setting, snat_ports},
    testing::{FamilyTables, Memory},
};
use lb_userspace::{
    desired::{Detector, ExternalIps, NodeContext, desired},
    file_source::{Options, load},
    ids::Ids,
    image::{Capacity, Image, NextHopInfo, Table, build},
};
use zerocopy::{FromBytes, native_endian::U32};

/// Services with backends here and elsewhere, with none, and with external policy Local.
pub(super) const DOCUMENTS: &str = include_str!("world.yaml");

/// The node that reads the documents.
pub(super) fn node(options: &Options) -> NodeContext {
    let own = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    NodeContext {
        name: "node1".to_owned(),
        node_port_addrs: own.to_vec(),
        local_addrs: own.into(),
        service_cidrs: options.service_cidrs.clone(),
        detector: Detector::NodeCidr,
        masquerade_all: false,
        external_ips: ExternalIps::All,
        bind_address: None,
    }
}

/// The tables of [`DOCUMENTS`].
pub(super) fn memory() -> Memory {
    let image = image();
    let mut memory = Memory {
        v4: family(&image, TABLES_4),
        v6: family(&image, TABLES_6),
        services: array::<RingWord>(&image, Table::Services).collect(),
        rings: array::<BackendId>(&image, Table::Rings).collect(),
        ..Memory::default()
    };
    memory.settings.extend([
        (Setting::HostDevice, 1),
        (Setting::HostMac, 0x0203_0405_0607),
        (Setting::SnatPorts, snat_ports(40_000, 40_007)),
        (Setting::HashSeed, 0x1234_5678_9abc_def0),
        (Setting::TicksPerSecond, 250),
    ]);
    memory
}

fn image() -> Image {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("world.yaml");
    fs::write(&path, DOCUMENTS).expect("a file");
    let options = Options::new(path);
    let context = node(&options);
    let loaded = load(&options).expect("known documents");
    assert_eq!(loaded.findings, [], "the documents are right");
    let desired = desired(&loaded.model, &context);
    let ways: BTreeMap<IpAddr, NextHopInfo> = desired
        .services
        .values()
        .flat_map(|service| service.backends.iter())
        .map(|at| {
            let prefsrc = context.node_port_addrs.iter().copied().find(|own| own.is_ipv4() == at.addr.is_ipv4());
            (at.addr, NextHopInfo { ifindex: 2, prefsrc, local: context.local_addrs.contains(&at.addr) })
        })
        .collect();
    let built = build(&desired, &mut Ids::default(), &ways, &[], &Capacity::uniform(1024));
    assert_eq!(built.refused, [], "the tables are large enough");
    built.image
}

/// A family's tables of the image: frontends, records, VIPs, prefixes, backends, next hops.
type Names = [Table; 6];

const TABLES_4: Names =
    [Table::Frontends4, Table::Records4, Table::Vips4, Table::Prefixes4, Table::Backends4, Table::NextHops4];
const TABLES_6: Names =
    [Table::Frontends6, Table::Records6, Table::Vips6, Table::Prefixes6, Table::Backends6, Table::NextHops6];

fn family<A: Addr>(image: &Image, names: Names) -> FamilyTables<A> {
    let [frontends, records, vips, prefixes, backends, next_hops] = names;
    let prefix = |(key, flags): (PrefixKey<A>, PrefixFlags)| (key.length.get(), key.addr, flags);
    FamilyTables {
        frontends: entries(image, frontends).collect(),
        records: array(image, records).collect(),
        vips: entries::<A, u64>(image, vips).map(|(addr, _)| addr).collect(),
        prefixes: entries(image, prefixes).map(prefix).collect(),
        backends: array(image, backends).collect(),
        next_hops: array(image, next_hops).collect(),
        // So few that a run fills it.
        conntrack_capacity: 64,
        ..FamilyTables::default()
    }
}

fn entries<K: FromBytes, V: FromBytes>(image: &Image, table: Table) -> impl Iterator<Item = (K, V)> {
    image.table(table).map(|(key, value)| {
        let key = K::read_from_bytes(key).expect("the table's key");
        (key, V::read_from_bytes(value).expect("the table's value"))
    })
}

fn array<V: FromBytes>(image: &Image, table: Table) -> impl Iterator<Item = (u32, V)> {
    entries::<U32, V>(image, table).map(|(index, value)| (index.get(), value))
}
