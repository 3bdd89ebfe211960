//! An image in words, for scenarios and for people.

use std::{collections::BTreeMap, fmt::Write};

use lb_common::{
    backend::{Backend, NextHop},
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendKey, FrontendWord, MetBy, PrefixFlags, PrefixKey, Scope,
        SourceKey, SourceRange,
    },
    ring::WhenEmpty,
};
use zerocopy::native_endian::U32;

use super::{
    Image, Table,
    octets::{Octets, array, decode, model_protocol},
    programmed::ring,
};

/// One line for each entry that is in use: frontends with their rules, services with their sets, backends, next hops,
/// addresses and prefixes.
pub fn dump(image: &Image) -> String {
    let mut lines = Lines::default();
    lines.family::<[u8; 4]>(image);
    lines.family::<[u8; 16]>(image);
    let settings = image.table(Table::Settings).filter_map(decode::<U32, u64>);
    lines.add(settings.map(|(index, value)| format!("setting   {index} {value}")));
    lines.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, lines: impl Iterator<Item = String>) {
        for line in lines {
            self.0.push_str(&line);
            self.0.push('\n');
        }
    }

    fn family<A: Octets>(&mut self, image: &Image) {
        let records: BTreeMap<u32, Frontend<A>> = array(image, A::RECORDS).collect();
        let backends: BTreeMap<u32, Backend<A>> = array(image, A::BACKENDS).collect();
        let frontends = image.table(A::FRONTENDS).filter_map(decode::<FrontendKey<A>, FrontendWord>);
        self.add(frontends.map(|(key, word)| frontend(&key, word, &records)));

        let mut services: Vec<u32> = records.values().map(|record| record.service.get()).collect();
        services.sort_unstable();
        services.dedup();
        self.add(services.into_iter().map(|service| {
            let set = |scope| set(image, service * 2 + scope, &backends);
            let seconds = image.get(Table::Affinities, &service.to_ne_bytes()).and_then(|word| word.try_into().ok());
            let affinity = seconds.map_or_else(String::new, |word| format!(" affinity={}", u64::from_ne_bytes(word)));
            format!("service   {service} cluster={} local={}{affinity}", set(0), set(1))
        }));
        let live = backends.iter().filter(|(_, backend)| backend.service.get() != 0);
        self.add(live.map(|(id, backend)| {
            let at = A::socket(backend.address);
            let (service, hop) = (backend.service.get(), backend.next_hop.get());
            format!("backend   {id} {at} service={service} next-hop={hop}")
        }));
        let hops = array::<NextHop<A>>(image, A::NEXT_HOPS);
        self.add(hops.filter(|(_, hop)| hop.ifindex.get() != 0).map(|(id, hop)| {
            let mut line = format!("next-hop  {id} ifindex={}", hop.ifindex);
            if hop.prefsrc != A::UNSPECIFIED {
                // Writing to a String cannot fail.
                write!(line, " prefsrc={}", hop.prefsrc.to_ip()).unwrap_or_default();
            }
            if hop.flags.get() & NextHop::<A>::LOCAL != 0 {
                line.push_str(" local");
            }
            line
        }));
        let vips = image.table(A::VIPS).filter_map(decode::<A, u64>);
        self.add(vips.map(|(vip, _)| format!("vip       {}", vip.to_ip())));
        let sources = image.table(A::SOURCES).filter_map(decode::<SourceKey<A>, u32>);
        self.add(sources.map(|(key, _)| {
            let length = key.length.get().saturating_sub(SourceRange::<A>::SERVICE_BITS);
            format!("source    {} {}/{length}", key.range.service.get(), key.range.addr.to_ip())
        }));
        let prefixes = image.table(A::PREFIXES).filter_map(decode::<PrefixKey<A>, PrefixFlags>);
        self.add(prefixes.map(|(key, flags)| {
            let mut line = format!("prefix    {}/{}", key.addr.to_ip(), key.length);
            if flags.contains(PrefixFlags::SERVICE) {
                line.push_str(" service");
            }
            line.push_str(match (flags.contains(PrefixFlags::LOCAL_PODS), flags.contains(PrefixFlags::DETECTED)) {
                (true, true) => " local-pods",
                (true, false) => " local-pods-not-detected",
                (false, true) => " detected",
                (false, false) => "",
            });
            line
        }));
    }
}

fn frontend<A: Octets>(key: &FrontendKey<A>, word: FrontendWord, records: &BTreeMap<u32, Frontend<A>>) -> String {
    let protocol = model_protocol(key.protocol).map_or_else(|| key.protocol.0.to_string(), |it| it.to_string());
    let met_by = if key.met_by == MetBy::HOST_SOCKETS { " host-sockets" } else { "" };
    let head = format!("frontend  {}/{}{met_by}", A::socket(key.address), protocol.to_lowercase());
    match records.get(&word.id().0) {
        None => format!("{head} record {} is missing", word.id().0),
        Some(record) => format!(
            "{head} service={} pod={} host={} outside={}{}",
            record.service.get(),
            rule(record.pod),
            rule(record.host),
            rule(record.outside),
            if record.flags.contains(FrontendFlags::SOURCE_RANGES) { " source-ranges" } else { "" },
        ),
    }
}

fn rule(rule: ClientRule) -> String {
    let scope = match rule.scope() {
        Scope::Cluster => "cluster",
        Scope::Local => "local",
    };
    format!("{scope}{}", if rule.masquerade() { "+masq" } else { "" })
}

/// A ring's backends in the order of their addresses: the rendezvous order tells a reader nothing.
fn set<A: Octets>(image: &Image, index: u32, backends: &BTreeMap<u32, Backend<A>>) -> String {
    let Some((word, ids)) = ring(image, index) else { return "unused".to_owned() };
    if ids.is_empty() {
        return match word.when_empty() {
            WhenEmpty::Reject => "reject",
            WhenEmpty::Drop => "drop",
        }
        .to_owned();
    }
    let live = |id| backends.get(&id).filter(|backend| backend.service.get() != 0).map(|it| A::socket(it.address));
    let mut addrs: Vec<_> = ids.into_iter().map(|id| id.and_then(live)).collect();
    addrs.sort_unstable();
    let addrs: Vec<_> =
        addrs.into_iter().map(|addr| addr.map_or_else(|| "missing".to_owned(), |addr| addr.to_string())).collect();
    format!("[{}]", addrs.join(" "))
}
