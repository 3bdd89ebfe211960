//! Garbage collection of flows: those that ended without a packet to say so.
//!
//! The kernel side expires lazily, when a packet meets an old entry. What no packet meets any more is collected here in
//! two rounds: a flow that is over, or will be by the next round, is marked, and removed once it is over if nothing touched
//! it meanwhile.

use std::{collections::BTreeMap, io};

use lb_common::{
    conntrack::{Conntrack, EntryKind, Phase},
    settings::{Setting, takeover_left},
    state::{Timeouts, flow_phase},
    tuple::FlowTuple,
};

use crate::bpf::{self, FlowFamily, Maps};

/// The clock of the stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Low 32 bits of jiffies.
    pub now: u32,
    /// Ticks in a second.
    pub ticks_per_second: u32,
    /// How long flows live.
    pub timeouts: Timeouts,
}

impl Clock {
    /// As the maps have it; the error where it cannot be read, or no agent has set it yet.
    pub fn of(maps: &Maps) -> io::Result<Self> {
        let ticks = maps.word("LB_SETTINGS", Setting::TicksPerSecond as u32)?;
        let ticks_per_second = u32::try_from(ticks).ok().filter(|ticks| *ticks > 0);
        let ticks_per_second = ticks_per_second.ok_or(io::ErrorKind::InvalidData)?;
        let timeouts = Timeouts(maps.word("LB_SETTINGS", Setting::Timeouts as u32)?);
        Ok(Self { now: bpf::clock()?, ticks_per_second, timeouts })
    }

    /// Seconds that a takeover ([`Setting::Takeover`]) still lasts; none once it is over.
    pub fn takeover_seconds(self, word: u64) -> Option<u32> {
        let left = takeover_left(word, self.now);
        (left != 0).then(|| left.div_ceil(self.ticks_per_second))
    }
}

/// Marks of the last round: entries by key, with the stamps they had.
#[derive(Debug, Default)]
pub struct Collector<A> {
    marked: BTreeMap<FlowTuple<A>, u32>,
}

/// Packets and bytes by service.
pub type Traffic = BTreeMap<u32, (u64, u64)>;

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries removed.
    pub removed: u64,
    /// What they counted.
    pub ended: Traffic,
    /// What was there when it began.
    pub survey: Survey,
    /// Ticks until the first of the flows that stayed is over if nothing touches it; none where there is no flow.
    pub next: Option<u32>,
}

/// What a conntrack map holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Entries.
    pub entries: u64,
    /// Flows.
    pub flows: u64,
    /// Flows by their phase.
    pub phases: BTreeMap<&'static str, u64>,
    /// What they counted so far.
    pub traffic: Traffic,
}

type Entries<A> = BTreeMap<FlowTuple<A>, Conntrack<A>>;

fn list<A: FlowFamily>(maps: &Maps) -> io::Result<Entries<A>> {
    Ok(maps.flows::<A>()?.into_iter().collect())
}

fn survey_of<A: FlowFamily>(entries: &Entries<A>) -> Survey {
    let mut survey = Survey { entries: entries.len() as u64, ..Survey::default() };
    for entry in entries.values() {
        if entry.kind == EntryKind::ORIGINAL {
            survey.flows += 1;
            let answer = entries.get(&entry.answer_key().0).map_or(entry.phase, |answer| answer.phase);
            *survey.phases.entry(phase_in_words(flow_phase(entry.protocol, entry.phase, answer))).or_default() += 1;
        }
        add(&mut survey.traffic, entry);
    }
    survey
}

/// Counts what is there, and changes nothing.
pub fn survey<A: FlowFamily>(maps: &Maps) -> io::Result<Survey> {
    list::<A>(maps).map(|entries| survey_of(&entries))
}

impl<A: FlowFamily> Collector<A> {
    /// One round over the conntrack map of a family. The next one comes in `ahead` ticks.
    pub fn round(&mut self, maps: &Maps, clock: Clock, ahead: u32) -> io::Result<Round> {
        let entries = list::<A>(maps)?;
        let previous = std::mem::take(&mut self.marked);
        let mut round = Round { survey: survey_of(&entries), ..Round::default() };
        for (key, entry, left) in lives(&entries, clock) {
            let marked = previous.get(&key) == Some(&entry.stamp.get());
            if left > 0 || !marked {
                round.next = Some(round.next.map_or(left, |next| next.min(left)));
                if left <= ahead {
                    self.marked.insert(key, entry.stamp.get());
                }
                continue;
            }
            // Seen untouched twice; a packet that came since the listing still saves the whole flow, some of whose
            // entries no packet stamps.
            let untouched = |key: &FlowTuple<A>, listed: &Conntrack<A>| {
                Ok::<_, io::Error>(maps.flow(key)?.is_none_or(|current| current.stamp == listed.stamp))
            };
            let original = entry.original_key().0;
            let saved = match entries.get(&original) {
                Some(listed) => !untouched(&original, listed)?,
                None => false,
            };
            if !saved && untouched(&key, entry)? && maps.remove_flow(&key)? {
                round.removed += 1;
                add(&mut round.ended, entry);
            }
        }
        Ok(round)
    }
}

/// A flow's phase, for people.
pub(crate) const fn phase_in_words(phase: Phase) -> &'static str {
    match phase {
        Phase::OPENING | Phase::ANSWERED => "opening",
        Phase::OPEN => "open",
        Phase::CLOSING | Phase::HALF_CLOSED => "closing",
        Phase::CLOSED => "closed",
        _ => crate::offline::UNKNOWN,
    }
}

/// Adds an entry's numbers to its service's, where they count.
fn add<A: FlowFamily>(totals: &mut Traffic, entry: &Conntrack<A>) {
    if counts(entry) {
        let (packets, bytes) = totals.entry(entry.service.get()).or_default();
        *packets = packets.wrapping_add(entry.packets.get());
        *bytes = bytes.wrapping_add(entry.bytes.get());
    }
}

/// Whether an entry's numbers count (design: the client's side and the backend's side are each counted once).
fn counts<A: FlowFamily>(entry: &Conntrack<A>) -> bool {
    entry.kind == EntryKind::ORIGINAL
        || entry.kind == EntryKind::REPLY
        || entry.kind == EntryKind::RETURN && entry.host != 0
}

/// The entries with the ticks that each has left: 0 if its flow is over, for both directions were silent for longer than
/// the flow's phase allows, or the original entry is gone.
fn lives<A: FlowFamily>(
    entries: &Entries<A>,
    clock: Clock,
) -> impl Iterator<Item = (FlowTuple<A>, &Conntrack<A>, u32)> {
    let left = move |original: &Conntrack<A>| {
        let answer = entries.get(&original.answer_key().0);
        let phase = answer.map_or(original.phase, |answer| flow_phase(original.protocol, original.phase, answer.phase));
        let left = |entry: &Conntrack<A>| ticks_left(entry, phase, clock);
        left(original).max(answer.map_or(0, left))
    };
    entries.iter().map(move |(key, entry)| {
        // Another flow may have taken over the original key: its entries name another backend.
        let original = entries.get(&entry.original_key().0).filter(|original| original.backend == entry.backend);
        (*key, entry, original.map_or(0, left))
    })
}

/// How long until [`lb_common::state::is_expired`] says so.
fn ticks_left<A>(entry: &Conntrack<A>, phase: Phase, clock: Clock) -> u32 {
    let timeout = clock.timeouts.seconds(entry.protocol, phase).wrapping_mul(clock.ticks_per_second);
    let age = clock.now.wrapping_sub(entry.stamp.get());
    // A packet came after the clock was read: young, not ages old.
    if age > u32::MAX / 2 { timeout } else { timeout.saturating_add(1).saturating_sub(age) }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        backend::{BackendId, ServiceId},
        protocol::{Port, Protocol},
        state::is_expired,
        tuple::L4Addr,
    };
    use zerocopy::native_endian::{U32, U64};

    use super::*;

    const CLOCK: Clock = Clock { now: 100_000, ticks_per_second: 100, timeouts: Timeouts::DEFAULT };

    fn entry(stamp: u32, phase: Phase) -> Conntrack<[u8; 4]> {
        let at = |host, port| L4Addr { addr: [10, 0, 0, host], port: Port::new(port) };
        Conntrack {
            client: at(1, 1000),
            frontend: at(2, 80),
            backend: at(3, 8080),
            source: L4Addr::NONE,
            service: ServiceId::new(1),
            backend_id: BackendId::new(1),
            generation: U32::new(1),
            stamp: U32::new(stamp),
            packets: U64::new(1),
            bytes: U64::new(60),
            protocol: Protocol::TCP,
            kind: EntryKind::ORIGINAL,
            phase,
            host: 0,
            device: U32::ZERO,
            alias: Port::NONE,
            mark: U32::ZERO,
            reserved: [0; 2],
        }
    }

    fn flow(original: (u32, Phase), reply: (u32, Phase)) -> Entries<[u8; 4]> {
        let original = entry(original.0, original.1);
        let reply = Conntrack { kind: EntryKind::REPLY, ..entry(reply.0, reply.1) };
        [(original.original_key().0, original), (reply.answer_key().0, reply)].into()
    }

    fn over(entries: &Entries<[u8; 4]>, clock: Clock) -> Vec<FlowTuple<[u8; 4]>> {
        lives(entries, clock).filter(|(.., left)| *left == 0).map(|(key, ..)| key).collect()
    }

    #[test]
    fn a_flow_is_over_when_its_phase_says_so_and_not_a_tick_before() {
        for (phase, seconds) in
            [(Phase::CLOSED, 10), (Phase::CLOSING, 120), (Phase::OPENING, 60), (Phase::OPEN, 86_400)]
        {
            for (age, left) in [(0, seconds * 100 + 1), (seconds * 100, 1), (seconds * 100 + 1, 0), (seconds * 200, 0)]
            {
                let clock = Clock { now: age, ..CLOCK };
                let timeout = clock.timeouts.seconds(Protocol::TCP, phase);
                let expired = is_expired(timeout, 0, clock.now, clock.ticks_per_second);
                assert_eq!((ticks_left(&entry(0, phase), phase, clock), expired), (left, left == 0), "{phase:?} {age}");
            }
        }
    }

    #[test]
    fn a_flow_is_over_when_both_directions_are_silent() {
        let old = CLOCK.now - 100 * 121;
        assert_eq!(over(&flow((old, Phase::CLOSING), (old, Phase::CLOSING)), CLOCK).len(), 2);
        assert!(over(&flow((old, Phase::CLOSING), (CLOCK.now, Phase::CLOSING)), CLOCK).is_empty());
        assert!(over(&flow((CLOCK.now, Phase::CLOSING), (old, Phase::CLOSING)), CLOCK).is_empty());
    }

    #[test]
    fn the_later_phase_of_either_direction_counts() {
        let old = CLOCK.now - 100 * 121;
        // Established for a day, unless the backend said goodbye.
        assert!(over(&flow((old, Phase::OPEN), (old, Phase::OPEN)), CLOCK).is_empty());
        assert_eq!(over(&flow((old, Phase::OPEN), (old, Phase::CLOSED)), CLOCK).len(), 2);
    }

    #[test]
    fn configured_timeouts_are_heeded() {
        let old = CLOCK.now - 100 * 121;
        let open = flow((old, Phase::OPEN), (old, Phase::OPEN));
        let closing = flow((old, Phase::CLOSING), (old, Phase::OPEN));
        let with = |open, half_closed| Clock { timeouts: Timeouts::new(open, half_closed, 0, 0), ..CLOCK };
        assert_eq!(over(&open, with(120, 0)).len(), 2);
        assert!(over(&open, with(121, 0)).is_empty() && over(&open, with(0, 120)).is_empty());
        assert!(over(&closing, CLOCK).is_empty() && over(&closing, with(120, 0)).is_empty());
        assert_eq!(over(&closing, with(0, 120)).len(), 2);
    }

    #[test]
    fn entries_without_their_flow_are_over() {
        let mut entries = flow((CLOCK.now, Phase::OPEN), (CLOCK.now, Phase::OPEN));
        let original = entry(CLOCK.now, Phase::OPEN).original_key().0;
        entries.remove(&original);
        assert_eq!(over(&entries, CLOCK).len(), 1);
        // The same client and frontend, now with another backend.
        let mut other = entry(CLOCK.now, Phase::OPEN);
        other.backend.addr = [10, 0, 0, 4];
        entries.insert(original, other);
        assert_eq!(over(&entries, CLOCK).len(), 1);
    }

    #[test]
    fn a_stamp_ahead_of_the_clock_is_young() {
        // The clock is read before the entries are listed, and packets go on meeting them.
        for ahead in [1, 1000] {
            let stamp = CLOCK.now + ahead;
            assert!(over(&flow((stamp, Phase::OPENING), (stamp, Phase::OPENING)), CLOCK).is_empty());
        }
    }

    #[test]
    fn the_clock_may_wrap() {
        let clock = Clock { now: 50, ..CLOCK };
        let just_before = u32::MAX - 50;
        assert!(over(&flow((just_before, Phase::CLOSING), (just_before, Phase::CLOSING)), clock).is_empty());
    }
}
