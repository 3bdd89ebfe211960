//! One Service of each family and protocol, whose backend has the frontend's own address.

use anyhow::Context as _;
use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId, Sets},
    frontend::{ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, Scope, VIP_OWNED},
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    settings::{Setting, snat_ports},
    tuple::L4Addr,
};
use lb_userspace::{
    bpf::{Datapath, FlowFamily},
    image::Table,
    store::MapStore as _,
};
use zerocopy::{IntoBytes as _, native_endian::U32};

use crate::frames::{PORT, VIP4, VIP6};

/// Fills the tables.
pub(crate) fn fill(datapath: &mut Datapath) -> anyhow::Result<()> {
    for (setting, word) in [
        (Setting::SnatPorts, snat_ports(40_000, 49_999)),
        (Setting::HashSeed, 0x1234_5678_9abc_def0),
        (Setting::TicksPerSecond, 250),
    ] {
        set(datapath, Table::Settings, &(setting as u32).to_ne_bytes(), &word.to_ne_bytes())?;
    }
    let v4 = [Table::Frontends4, Table::Records4, Table::Vips4, Table::Backends4, Table::NextHops4];
    let v6 = [Table::Frontends6, Table::Records6, Table::Vips6, Table::Backends6, Table::NextHops6];
    family(datapath, v4, 1, VIP4)?;
    family(datapath, v6, 2, VIP6)
}

fn family<A: FlowFamily>(datapath: &mut Datapath, tables: [Table; 5], service: u32, vip: A) -> anyhow::Result<()> {
    let [frontends, records, vips, backends, next_hops] = tables;
    let hop = NextHop { ifindex: U32::new(1), generation: U32::new(1), flags: U32::ZERO, prefsrc: vip };
    set(datapath, next_hops, &1_u32.to_ne_bytes(), hop.as_bytes())?;
    let address = L4Addr { addr: vip, port: Port::new(PORT) };
    let backend = Backend {
        address,
        sets: Sets::CLUSTER.with(Sets::LOCAL),
        reserved: 0,
        service: ServiceId::new(service),
        generation: U32::new(1),
        next_hop: NextHopId::new(1),
        next_hop_generation: U32::new(1),
    };
    set(datapath, backends, &1_u32.to_ne_bytes(), backend.as_bytes())?;
    set(datapath, Table::Rings, &service.to_ne_bytes(), BackendId::new(1).as_bytes())?;
    let word = RingWord::new(service, 1, WhenEmpty::Reject, 1);
    for scope in 0..2 {
        set(datapath, Table::Services, &(service * 2 + scope).to_ne_bytes(), word.as_bytes())?;
    }
    for (id, protocol) in [(FrontendId(1), Protocol::TCP), (FrontendId(2), Protocol::UDP)] {
        let rule = ClientRule::new(Scope::Cluster, false);
        let service = ServiceId::new(service);
        let flags = FrontendFlags::NONE;
        let record = Frontend { service, pod: rule, host: rule, outside: rule, flags, address, protocol, reserved: 0 };
        set(datapath, records, &id.0.to_ne_bytes(), record.as_bytes())?;
        let key = FrontendKey::new(protocol, address);
        set(datapath, frontends, key.as_bytes(), FrontendWord::new(id, 1).as_bytes())?;
    }
    set(datapath, vips, vip.as_bytes(), &VIP_OWNED.to_ne_bytes())
}

fn set(datapath: &mut Datapath, table: Table, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
    datapath.maps.update(table, key, value).with_context(|| format!("cannot fill {table:?}"))
}
