//! `ballast conntrack list`: one row for a flow, from its original entry and the one that meets the answers.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    conntrack::{Conntrack, EntryKind},
    state::flow_phase,
};

use super::{ListError, Tables, unreadable};
use crate::{
    bpf::FlowFamily,
    gc::{Clock, phase_in_words},
    image::octets::{Octets, model_protocol},
    model::ObjectName,
    report::{FlowList, FlowRow},
};

/// Which flows to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Of this Service only.
    pub service: Option<ObjectName>,
    /// Of this client only.
    pub client: Option<IpAddr>,
    /// At most so many.
    pub limit: usize,
}

/// The flows in both families' tables. No more of them are held in memory than are shown.
pub fn flows(tables: &Tables, filter: &Filter) -> Result<FlowList, ListError> {
    let wanted = tables.numbers(filter.service.as_ref())?;
    let mut list = FlowList::default();
    // Where it cannot be read an age is unknown, and all else is told.
    let clock = Clock::of(&tables.maps).ok();
    add::<[u8; 4]>(tables, filter, wanted.as_deref(), clock, &mut list)?;
    add::<[u8; 16]>(tables, filter, wanted.as_deref(), clock, &mut list)?;
    list.flows.sort();
    Ok(list)
}

fn add<A: FlowFamily + Octets>(
    tables: &Tables,
    filter: &Filter,
    services: Option<&[u32]>,
    clock: Option<Clock>,
    list: &mut FlowList,
) -> Result<(), ListError> {
    let failed = |cause| unreadable(&format_args!("map {}", <A as FlowFamily>::CONNTRACK), cause);
    let client = match filter.client {
        None => None,
        Some(addr) => match A::from_ip(addr) {
            None => return Ok(()),
            some => some,
        },
    };
    let mut found = Vec::new();
    let room = filter.limit.saturating_sub(list.flows.len());
    let visit = |_, entry: Conntrack<A>| {
        let is_wanted = entry.kind == EntryKind::ORIGINAL
            && client.is_none_or(|client| client == entry.client.addr)
            && services.is_none_or(|services| services.contains(&entry.service.get()));
        if is_wanted && found.len() < room {
            found.push(entry);
        } else if is_wanted {
            list.left_out += 1;
        }
    };
    tables.maps.each_flow(visit).map_err(failed)?;
    for original in found {
        let answer = tables.maps.flow(&original.answer_key().0).map_err(failed)?;
        // Another flow may have taken the answers' key over.
        let answer = answer.filter(|answer| answer.client == original.client && answer.backend == original.backend);
        list.flows.push(row(tables, &original, answer.as_ref(), clock));
    }
    Ok(())
}

fn row<A: Octets>(
    tables: &Tables,
    original: &Conntrack<A>,
    answer: Option<&Conntrack<A>>,
    clock: Option<Clock>,
) -> FlowRow {
    let both = || [Some(original), answer].into_iter().flatten();
    let phase = answer.map_or(original.phase, |answer| flow_phase(original.protocol, original.phase, answer.phase));
    let age = |clock: Clock| both().map(|entry| age_seconds(entry.stamp.get(), clock)).min().unwrap_or(0);
    let protocol = model_protocol(original.protocol);
    FlowRow {
        service: tables.name(original.service.get()),
        protocol: protocol.map_or_else(|| original.protocol.0.to_string(), |protocol| protocol.to_string()),
        client: A::socket(original.client),
        frontend: A::socket(original.frontend),
        backend: A::socket(original.backend),
        source: source(original),
        phase: phase_in_words(phase).to_owned(),
        age_seconds: clock.map(age),
        packets: both().fold(0, |sum, entry| sum.wrapping_add(entry.packets.get())),
        bytes: both().fold(0, |sum, entry| sum.wrapping_add(entry.bytes.get())),
    }
}

/// What the backend sees instead of the client, if anything.
fn source<A: Octets>(entry: &Conntrack<A>) -> Option<SocketAddr> {
    let seen = if entry.has_source() { entry.source } else { entry.inner_client() };
    (seen != entry.client).then(|| A::socket(seen))
}

/// A stamp ahead of the clock was written after the clock was read.
fn age_seconds(stamp: u32, clock: Clock) -> u64 {
    let ticks = clock.now.wrapping_sub(stamp);
    if ticks > u32::MAX / 2 { 0 } else { u64::from(ticks / clock.ticks_per_second) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_survives_the_clocks_wrap_and_a_stamp_of_the_future() {
        let clock = Clock { now: 50, ticks_per_second: 100, timeouts: lb_common::state::Timeouts::DEFAULT };
        assert_eq!(age_seconds(u32::MAX - 149, clock), 2);
        assert_eq!(age_seconds(60, clock), 0);
        assert_eq!(age_seconds(50, clock), 0);
    }
}
