//! Zones that follow the objects against new ones.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::model::{EndpointSlice, ObjectName};

/// What is done to the model: the number of an object, and what becomes of it.
fn change(model: &mut Model, whole: &Model, (kind, which, how): (u8, usize, u8)) {
    let pick = |count: usize| which.checked_rem(count).unwrap_or(0);
    if kind == 0 {
        let Some((name, service)) = whole.services.iter().nth(pick(whole.services.len())) else { return };
        let mut service = service.clone();
        match how {
            0 => drop(model.services.remove(name)),
            1 => drop(model.services.insert(name.clone(), service)),
            2 => {
                service.headless = !service.headless;
                model.services.insert(name.clone(), service);
            }
            _ => {
                service.cluster_ips = vec![IpAddr::from([10, 96, 0, how])];
                model.services.insert(name.clone(), service);
            }
        }
        return;
    }
    let Some((name, slice)) = whole.slices.iter().nth(pick(whole.slices.len())) else { return };
    let mut slice: EndpointSlice = slice.clone();
    match how {
        0 => drop(model.slices.remove(name)),
        1 => drop(model.slices.insert(name.clone(), slice)),
        2 => {
            // The Service it is of changes.
            slice.service = "idle".to_owned();
            model.slices.insert(name.clone(), slice);
        }
        _ => {
            for endpoint in &mut slice.endpoints {
                endpoint.ready = !endpoint.ready;
                endpoint.hostname = (how % 2 == 0).then(|| format!("h{how}"));
            }
            // A second slice with the same addresses.
            let name = ObjectName { name: format!("{}-{}", name.name, how % 2), ..name.clone() };
            model.slices.insert(name, slice);
        }
    }
}

/// Names that some state may have.
fn names() -> Vec<String> {
    let mut names: Vec<String> =
        ["10.in-addr.arpa", "shop.svc.cluster.local", "empty.svc.cluster.local"].map(str::to_owned).into();
    for last in 7..=9 {
        names.push(reverse(IpAddr::from([10, 0, 0, last])));
    }
    for last in 0..=30 {
        names.push(reverse(IpAddr::from([10, 96, 0, last])));
    }
    for service in ["web", "dual", "db", "idle", "alias", "literal"] {
        for below in ["", "10-0-0-7.", "10-0-0-9.", "db-0.", "h4.", "_tcp.", "_sql._tcp.", "_http._tcp."] {
            names.push(format!("{below}{service}.shop.svc.cluster.local"));
        }
    }
    names
}

proptest! {
    #[test]
    fn a_zone_that_followed_answers_as_a_new_one(
        changes in proptest::collection::vec((0..2_u8, 0..20_usize, 0..6_u8), 1..12),
    ) {
        let whole = model();
        let mut model = whole.clone();
        let mut zone = Zone::new(&model, options());
        for step in changes {
            let old = model.clone();
            change(&mut model, &whole, step);
            let before = zone.serial();
            let changed = zone.follow(&model, &Touched::between(&old, &model), 1);
            prop_assert_eq!(changed, zone.serial() > before);
            let new = Zone::new(&model, options());
            prop_assert_eq!(zone.sizes(), new.sizes());
            for name in names() {
                for kind in [Kind::A, Kind::Aaaa, Kind::Srv, Kind::Ptr, Kind::Cname, Kind::Other] {
                    prop_assert_eq!(zone.answer(&name, kind), new.answer(&name, kind), "{} {:?}", name, kind);
                }
            }
        }
    }
}
