//! Who leads, by a Lease: the algorithm of client-go's `leaderelection`, without clock and network.
//!
//! Clocks of machines are never compared. Whoever sees a record that did not change for as long as it is meant to last, by
//! its own clock, may take it.

use std::time::{Duration, Instant};

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long others wait for a leader that is not heard of.
    pub lease: Duration,
    /// How long a leader that cannot renew leads on; less than `lease`.
    pub renew: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

impl Terms {
    /// Why they cannot be, as client-go checks them.
    pub fn wrong(&self) -> Option<String> {
        let Self { lease, renew, retry } = self;
        if lease <= renew {
            return Some(format!("a lease of {lease:?} must be longer than the renew deadline of {renew:?}"));
        }
        // JitterFactor is 1.2.
        if renew.as_secs_f64() <= retry.as_secs_f64() * 1.2 {
            return Some(format!("a renew deadline of {renew:?} must be longer than 1.2 retry periods of {retry:?}"));
        }
        (lease.subsec_nanos() != 0 || retry.is_zero())
            .then(|| "a lease lasts whole seconds, a retry period some time".to_owned())
    }
}

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// holderIdentity; empty: given back.
    pub holder: String,
    /// leaseDurationSeconds.
    pub seconds: u64,
    /// acquireTime.
    pub acquired: String,
    /// renewTime.
    pub renewed: String,
    /// leaseTransitions.
    pub transitions: u64,
}

/// One that leads or would like to.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    terms: Terms,
    /// The record, and when it was seen to be another one.
    seen: Option<(Record, Instant)>,
    /// When the last renewal that succeeded was begun.
    renewed: Option<Instant>,
}

impl Candidate {
    /// One of that name.
    pub const fn new(identity: String, terms: Terms) -> Self {
        Self { identity, terms, seen: None, renewed: None }
    }

    /// Takes notice of what the Lease says now.
    pub fn observe(&mut self, record: Record, now: Instant) {
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record, now));
        }
    }

    /// Whether the record is its own, is given back, or was not renewed for as long as it lasts.
    pub fn may_take(&self, now: Instant) -> bool {
        self.seen.as_ref().is_none_or(|(record, at)| {
            let lasts = Duration::from_secs(record.seconds);
            record.holder.is_empty() || record.holder == self.identity || now.saturating_duration_since(*at) >= lasts
        })
    }

    /// Who holds it, for people.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref().map(|(record, _)| &*record.holder).filter(|holder| !holder.is_empty())
    }

    /// What it writes to have it; `time` is the wall clock's.
    pub fn claim(&self, time: String) -> Record {
        let old = self.seen.as_ref().map(|(record, _)| record);
        let own = old.filter(|record| record.holder == self.identity);
        Record {
            holder: self.identity.clone(),
            seconds: self.terms.lease.as_secs(),
            acquired: own.map_or_else(|| time.clone(), |record| record.acquired.clone()),
            renewed: time,
            transitions: old.map_or(0, |record| record.transitions.saturating_add(u64::from(own.is_none()))),
        }
    }

    /// What it writes to give it back; nothing if it has not got it.
    pub fn release(&self, time: String) -> Option<Record> {
        let (record, _) = self.seen.as_ref().filter(|(record, _)| record.holder == self.identity)?;
        Some(Record {
            holder: String::new(),
            seconds: 1,
            acquired: time.clone(),
            renewed: time,
            transitions: record.transitions,
        })
    }

    /// Its claim, begun at `began`, was written.
    pub fn won(&mut self, record: Record, began: Instant) {
        self.seen = Some((record, began));
        self.renewed = Some(began);
    }

    /// It was seen that another one has it, or it is given back.
    pub const fn lost(&mut self) {
        self.renewed = None;
    }

    /// Until when it leads: before anybody else may take the Lease.
    pub fn leads_until(&self) -> Option<Instant> {
        let (record, _) = self.seen.as_ref()?;
        self.renewed.filter(|_| record.holder == self.identity).map(|renewed| renewed + self.terms.renew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn candidates() -> [Candidate; 2] {
        ["a", "b"].map(|name| Candidate::new(name.to_owned(), Terms::default()))
    }

    #[test]
    fn whoever_comes_second_waits_until_the_lease_is_not_renewed() {
        let ([mut one, mut other], start) = (candidates(), Instant::now());
        assert!(one.may_take(start), "there is no Lease yet");
        let mut lease = one.claim("t0".to_owned());
        assert_eq!((&*lease.holder, lease.seconds, lease.transitions), ("a", 15, 0));
        one.won(lease.clone(), start);
        for second in 0..60 {
            let now = start + SECOND * second;
            if second % 2 == 0 {
                lease = one.claim(format!("t{second}"));
                one.won(lease.clone(), now);
                assert_eq!(lease.acquired, "t0");
            }
            other.observe(lease.clone(), now);
            assert!(!other.may_take(now) && one.leads_until() > Some(now), "{second}");
        }
        // It dies: the last change was seen at 58 s.
        let end = start + SECOND * 58;
        assert!(!other.may_take(end + SECOND * 14) && other.may_take(end + SECOND * 15));
        assert!(one.leads_until() < Some(end + SECOND * 15), "the old leader stopped before");
        let taken = other.claim("t73".to_owned());
        assert_eq!((&*taken.holder, taken.transitions, &*taken.acquired), ("b", 1, "t73"));
        other.won(taken.clone(), end + SECOND * 15);
        one.observe(taken, end + SECOND * 16);
        assert!(one.leads_until().is_none() && !one.may_take(end + SECOND * 16) && one.holder() == Some("b"));
    }

    #[test]
    fn a_clock_that_is_wrong_takes_nothing_from_a_leader() {
        let ([one, mut other], start) = (candidates(), Instant::now());
        let mut record = one.claim("1970-01-01T00:00:00Z".to_owned());
        other.observe(record.clone(), start);
        assert!(!other.may_take(start + SECOND * 14));
        record.renewed = "1970-01-01T00:00:02Z".to_owned();
        other.observe(record, start + SECOND * 14);
        assert!(!other.may_take(start + SECOND * 28));
    }

    #[test]
    fn what_is_given_back_is_taken_at_once_and_the_giver_stops() {
        let ([mut one, mut other], now) = (candidates(), Instant::now());
        assert_eq!(one.release("t".to_owned()), None, "it has none");
        one.won(one.claim("t0".to_owned()), now);
        let released = one.release("t1".to_owned()).expect("its own");
        one.observe(released.clone(), now);
        one.lost();
        other.observe(released, now);
        assert!(one.leads_until().is_none() && other.may_take(now) && other.holder().is_none());
        assert_eq!(other.claim("t2".to_owned()).transitions, 1);
    }

    /// Whoever may write Leases must not be able to end a controller by it.
    #[test]
    fn any_number_in_a_lease_can_be_gone_on_from() {
        let ([mut one, _], start) = (candidates(), Instant::now());
        let record = Record { holder: "x".to_owned(), seconds: u64::MAX, transitions: u64::MAX, ..Record::default() };
        one.observe(record, start);
        assert!(!one.may_take(start + SECOND * 1000));
        assert_eq!(one.claim("t0".to_owned()).transitions, u64::MAX);
    }

    #[test]
    fn a_leader_that_cannot_renew_ends_before_its_lease() {
        let ([mut one, _], start) = (candidates(), Instant::now());
        one.won(one.claim("t0".to_owned()), start);
        assert_eq!(one.leads_until(), Some(start + SECOND * 10));
    }

    #[test]
    fn terms_are_checked_as_client_go_checks_them() {
        let terms =
            |lease, renew, retry| Terms { lease: SECOND * lease, renew: SECOND * renew, retry: SECOND * retry }.wrong();
        assert_eq!((terms(15, 10, 2), terms(3, 2, 1)), (None, None));
        assert!(terms(10, 10, 2).is_some() && terms(15, 10, 9).is_some() && terms(15, 10, 0).is_some());
    }
}
