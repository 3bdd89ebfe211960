//! Flows that ended in silence are removed, and what they counted is kept.

use std::{io, time::Duration};

use lb_common::{conntrack::Phase, protocol::Protocol, state::Timeouts, verdict::Counter};
use tokio::time::Instant;

use super::Agent;
use crate::{
    bpf::{FlowFamily, Maps},
    gc::{Clock, Collector, Survey},
    image::{Image, Table},
    model::{IpFamily, Touched},
    report::Problem,
};

/// How often flows are collected while there is room.
const AT_LEAST: Duration = Duration::from_secs(10);
/// How often clients are forgotten: all room for them is read, and to one whose time is over nothing binds anyway.
const CLIENTS_EVERY: Duration = Duration::from_mins(1);
/// As often at most, while there is no room.
const AT_MOST: Duration = Duration::from_millis(100);
/// How often it is asked whether there is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A round under pressure is followed by a pause of at least this many times its length.
const REST: u32 = 3;
/// What counts flows that found no room.
const REFUSALS: [Counter; 3] = [Counter::ConntrackFull, Counter::SnatExhausted, Counter::TupleTaken];

/// The rounds of both families and when the next one comes.
pub(super) struct Collection {
    collectors: (Collector<[u8; 4]>, Collector<[u8; 16]>),
    next: Instant,
    look: Instant,
    pressure: Pressure,
    /// When clients are looked through next, if there can be any.
    clients: Instant,
    may_have_clients: bool,
    /// What the last round saw.
    pub(super) surveys: Option<[Survey; 2]>,
}

/// Whether flows are refused because there is no room: what ends is then removed as soon as it is over.
#[derive(Debug, Default)]
struct Pressure {
    refused: Option<[u64; 3]>,
    /// Refusals since it began, and when the last ones were seen.
    now: Option<([u64; 3], Instant)>,
}

impl Pressure {
    /// It lasts for as long as flows that were there at the last refusal may take to end: all but open TCP connections.
    fn lasts() -> Duration {
        Duration::from_secs(Timeouts::DEFAULT.seconds(Protocol::UDP, Phase::OPEN).into())
    }

    /// `counted`: [`REFUSALS`]. Whether it has just begun.
    fn look(&mut self, counted: [u64; 3], now: Instant) -> bool {
        let before = self.refused.replace(counted).unwrap_or(counted);
        let mut more = [0; 3];
        for (more, (counted, before)) in more.iter_mut().zip(counted.iter().zip(before)) {
            *more = counted.saturating_sub(before);
        }
        let begun = self.now.is_none();
        if more != [0; 3] {
            let (sum, last) = self.now.get_or_insert(([0; 3], now));
            *last = now;
            for (sum, more) in sum.iter_mut().zip(more) {
                *sum += more;
            }
        } else if self.now.is_some_and(|(_, last)| now.duration_since(last) > Self::lasts()) {
            self.now = None;
        }
        begun && self.now.is_some()
    }

    fn problem(&self) -> Option<Problem> {
        let (refused, _) = self.now?;
        let named: Vec<String> = REFUSALS
            .iter()
            .zip(refused)
            .filter(|(_, count)| *count > 0)
            .map(|(what, n)| format!("{n} {what:?}"))
            .collect();
        let fix = if refused[0] > 0 {
            "raise maps.conntrack in BallastConfiguration; what ended is removed at once meanwhile"
        } else {
            "widen snatPorts in BallastConfiguration; what ended is removed at once meanwhile"
        };
        Some(Problem {
            object: "new flows".to_owned(),
            cause: format!("refused within the last {} s: {}", Self::lasts().as_secs(), named.join(", ")),
            fix: fix.to_owned(),
        })
    }
}

impl Collection {
    pub(super) fn new(maps: &Maps) -> Self {
        let next = Instant::now() + AT_LEAST;
        let mut new = Self {
            collectors: Default::default(),
            next,
            look: Instant::now(),
            pressure: Pressure::default(),
            clients: next,
            may_have_clients: true,
            surveys: None,
        };
        new.look(maps);
        new
    }

    /// When [`Agent::collect`] has something to do.
    pub(super) fn due(&self) -> Instant {
        self.next.min(self.look)
    }

    /// Flows are refused, or were a short while ago.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.pressure.problem()
    }

    fn look(&mut self, maps: &Maps) {
        self.look = Instant::now() + LOOK_EVERY;
        let mut counted = [0; 3];
        for (counted, counter) in counted.iter_mut().zip(REFUSALS) {
            match maps.counter(counter) {
                Ok(count) => *counted = count,
                Err(error) => return tracing::warn!("cannot read {counter:?}: {error}"),
            }
        }
        let now = Instant::now();
        if self.pressure.look(counted, now) {
            if let Some(problem) = self.problem() {
                tracing::warn!("new flows are {}; {}", problem.cause, problem.fix);
            }
            self.next = now;
        }
    }
}

impl Agent {
    /// A round of garbage collection, if it is time for one; whether it was.
    pub(super) async fn collect(&mut self) -> bool {
        self.collection.look(&self.datapath.maps);
        if Instant::now() < self.collection.next {
            return false;
        }
        self.collection.next = Instant::now() + AT_LEAST;
        let now = match self.datapath.clock() {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!("cannot read the kernel's clock: {error}; flows are not collected now");
                return true;
            }
        };
        let clock = Clock { now, ticks_per_second: self.clock_ticks, timeouts: self.options.config.timeouts };
        if self.takeover.ends(clock) {
            self.program(&Touched::All).await;
        }
        let maps = &self.datapath.maps;
        let ahead = self.clock_ticks.saturating_mul(u32::try_from(AT_LEAST.as_secs()).unwrap_or(u32::MAX));
        let (v4, v6) = &mut self.collection.collectors;
        let start = Instant::now();
        match (v4.round(maps, clock, ahead), v6.round(maps, clock, ahead)) {
            (Ok(v4), Ok(v6)) => {
                for (family, round) in [(IpFamily::V4, &v4), (IpFamily::V6, &v6)] {
                    self.collected(family, round.removed, start.elapsed());
                }
                let removed = v4.removed + v6.removed;
                for (service, (packets, bytes)) in v4.ended.iter().chain(&v6.ended) {
                    self.add_traffic(*service, *packets, *bytes);
                }
                if removed > 0 {
                    tracing::debug!("{removed} conntrack entries collected");
                }
                let next = v4.next.into_iter().chain(v6.next).min();
                self.collection.surveys = Some([v4.survey, v6.survey]);
                if let (Some(_), Some(ticks)) = (self.collection.pressure.now, next) {
                    let left = Duration::from_secs(ticks.into()) / self.clock_ticks.max(1);
                    let rest = AT_MOST.max(start.elapsed() * REST);
                    self.collection.next = Instant::now() + left.min(AT_LEAST).max(rest);
                }
            }
            (Err(error), _) | (_, Err(error)) => tracing::warn!("cannot collect flows: {error}; tried again soon"),
        }
        match self.collect_clients(clock) {
            Ok(0) => {}
            Ok(forgotten) => tracing::debug!("{forgotten} clients forgotten"),
            Err(error) => tracing::warn!("cannot collect clients: {error}; tried again soon"),
        }
        true
    }

    /// Forgets clients whose timeout is over. The kernel side would not count them anyway, until its clock has come round.
    fn collect_clients(&mut self, clock: Clock) -> io::Result<u64> {
        let (maps, mirror, collection) = (&self.datapath.maps, self.engine.mirror(), &mut self.collection);
        let remembers = mirror.len(Table::Affinities) > 0;
        if Instant::now() < collection.clients || !(remembers || collection.may_have_clients) {
            return Ok(0);
        }
        let forgotten = forget::<[u8; 4]>(maps, mirror, clock)? + forget::<[u8; 16]>(maps, mirror, clock)?;
        collection.clients = Instant::now() + CLIENTS_EVERY;
        // Once more after the last service that remembers its clients: a program may have been about to write one.
        collection.may_have_clients = remembers;
        Ok(forgotten)
    }

    fn add_traffic(&self, service: u32, packets: u64, bytes: u64) {
        let maps = &self.datapath.maps;
        for (index, more) in [(service * 2, packets), (service * 2 + 1, bytes)] {
            let written = maps
                .word("LB_SVC_TRAFFIC", index)
                .and_then(|word| maps.set_word("LB_SVC_TRAFFIC", index, word.wrapping_add(more)));
            if let Err(error) = written {
                tracing::warn!("cannot keep the traffic of service {service}: {error}");
            }
        }
    }
}

fn forget<A: FlowFamily>(maps: &Maps, mirror: &Image, clock: Clock) -> io::Result<u64> {
    maps.forget::<A>(|client| {
        let seconds = mirror.get(Table::Affinities, &client.service.get().to_ne_bytes());
        let seconds = seconds.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let ticks = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(clock.ticks_per_second);
        !client.is_live(clock.now, ticks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_with_a_refusal_and_lasts_until_the_flows_of_then_have_ended() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pressure = Pressure::default();
        // What an earlier run counted is none of ours.
        assert!(!pressure.look([7, 0, 0], at(0)) && pressure.problem().is_none());
        assert!(pressure.look([7, 2, 0], at(1)), "begun");
        assert!(!pressure.look([7, 3, 0], at(2)), "goes on");
        let problem = pressure.problem().expect("told");
        assert!(problem.cause.ends_with(": 3 SnatExhausted") && problem.fix.contains("snatPorts"), "{problem:?}");
        assert!(!pressure.look([7, 3, 0], at(182)) && pressure.problem().is_some());
        assert!(!pressure.look([7, 3, 0], at(183)) && pressure.problem().is_none(), "over");
        assert!(pressure.look([8, 3, 0], at(200)), "and begins again");
        assert!(pressure.problem().is_some_and(|problem| problem.fix.contains("maps.conntrack")));
    }
}
