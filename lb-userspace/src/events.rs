//! Which Events are due: what is wrong with an object is told once, again when it comes back, and now and then while it
//! lasts. No clock and no I/O in a [`Ledger`]; an [`Outbox`] sends what is due of it.

mod outbox;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub use self::outbox::{Counts, Outbox};
use crate::{k8s::source::Kind, model::ObjectName, report::Problem};

/// Between two messages about what comes and goes.
const FLAPPING: Duration = Duration::from_mins(5);
/// Between two messages about what lasts: API servers forget Events after an hour.
const LASTING: Duration = Duration::from_mins(30);
/// What is over for so long begins anew.
const FORGET: Duration = Duration::from_hours(1);
/// Events that are kept in mind.
const MOST: usize = 4096;

/// Kinds that a [`Problem::object`] names.
const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// What is told of an object. Two are equal if they tell the same: see [`Self::identity`].
#[derive(Clone, Debug)]
pub struct Event {
    /// The object.
    pub regarding: Regarding,
    /// Why, in one word for machines: `NoRoom`.
    pub reason: &'static str,
    /// For people.
    pub note: String,
    /// It is so on this node, and may be otherwise on others. What is so everywhere is one Event, whoever tells it first.
    pub of_node: bool,
    /// The note has figures that change with other objects, and tells the same whatever they are.
    pub varies: bool,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// Its kind.
    pub kind: Kind,
    /// Its name; without namespace for a cluster-wide one.
    pub name: ObjectName,
}

impl Regarding {
    /// The object that [`Problem::object`] names, if Events can be about it.
    pub fn of(object: &str) -> Option<Self> {
        let (kind, name) = object.split_once(' ')?;
        let kind = KINDS.into_iter().find(|known| known.to_string() == kind)?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let is_whole = kind.is_namespaced() != namespace.is_empty() && !name.contains('/');
        is_whole.then(|| Self { kind, name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() } })
    }
}

impl Event {
    /// What a problem is as an Event, if it is one of an object.
    pub fn of(problem: &Problem, reason: &'static str, of_node: bool) -> Option<Self> {
        let regarding = Regarding::of(&problem.object)?;
        Some(Self { regarding, reason, note: format!("{}; {}", problem.cause, problem.fix), of_node, varies: false })
    }

    /// What makes it another Event: a note that varies does not.
    pub fn identity(&self) -> (&Regarding, &'static str, &str, bool) {
        (&self.regarding, self.reason, if self.varies { "" } else { &self.note }, self.of_node)
    }
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// What.
    pub event: Event,
    /// How often it was so.
    pub count: u32,
}

/// What has been told.
#[derive(Debug, Default)]
pub struct Ledger {
    told: BTreeMap<Event, Told>,
    backlog: Backlog,
}

/// What is due and is not told yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events that could not be sent yet.
    pub waiting: u64,
    /// What has no Event, for no more can be kept in mind.
    pub untold: u64,
    /// Events that had to wait so far, each time once.
    pub delayed: u64,
}

impl Backlog {
    /// For people.
    pub fn problem(&self) -> Option<Problem> {
        let (cause, fix) = match (self.untold, self.waiting) {
            (0, 0) => return None,
            (0, waiting) => (
                format!("{waiting} Events wait: more became due than may be sent"),
                "nothing: they are sent one by one, and what was never told first".to_owned(),
            ),
            (untold, _) => (
                format!("{untold} problems of objects have no Event: no more than {MOST} are kept in mind"),
                "mend what is told: whatever is over makes room for another Event".to_owned(),
            ),
        };
        Some(Problem { object: "events".to_owned(), cause, fix })
    }
}

#[derive(Debug)]
struct Told {
    /// It is so now.
    present: bool,
    count: u32,
    sent: Option<Instant>,
    /// Since when it is due, until it is sent.
    due: Option<Instant>,
    /// It was not told yet that it came again.
    again: bool,
    seen: Instant,
}

impl Told {
    const fn new(now: Instant) -> Self {
        Self { present: true, count: 1, sent: None, due: None, again: false, seen: now }
    }

    /// It is so.
    fn see(&mut self, now: Instant) {
        self.seen = now;
        if !std::mem::replace(&mut self.present, true) {
            self.again = true;
            self.count = self.count.saturating_add(1);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let pause = if self.again { FLAPPING } else { LASTING };
        self.sent.is_none_or(|sent| now.saturating_duration_since(sent) >= pause)
    }

    /// How often it was so, when it is told.
    fn next_count(&self) -> u32 {
        let lasts = self.sent.is_some() && !self.again;
        self.count.saturating_add(lasts.into())
    }

    const fn was_sent(&mut self, count: u32, now: Instant) {
        self.count = count;
        self.sent = Some(now);
        self.due = None;
        self.again = false;
    }
}

impl Ledger {
    /// Sends what is due, `current` being all there is to tell now, until `send` has no room for more: first what was never
    /// told, then what was told the longest ago.
    pub fn observe(&mut self, current: BTreeSet<Event>, now: Instant, mut send: impl FnMut(Due) -> bool) {
        self.see(&current, now);
        let mut due = Vec::new();
        for event in current {
            let Some(told) = self.told.get_mut(&event).filter(|told| told.is_due(now)) else { continue };
            let is_fresh = told.due.is_none();
            let since = *told.due.get_or_insert(now);
            due.push(((told.sent, since), is_fresh, event));
        }
        due.sort_by_key(|(turn, ..)| *turn);
        self.backlog.waiting = 0;
        for (_, is_fresh, event) in due {
            let Some(told) = self.told.get_mut(&event) else { continue };
            let count = told.next_count();
            if self.backlog.waiting == 0 && send(Due { event, count }) {
                told.was_sent(count, now);
            } else {
                self.backlog.waiting += 1;
                self.backlog.delayed += u64::from(is_fresh);
            }
        }
    }

    /// What is not told.
    pub const fn backlog(&self) -> Backlog {
        self.backlog
    }

    fn see(&mut self, current: &BTreeSet<Event>, now: Instant) {
        for (event, told) in &mut self.told {
            if told.present && !current.contains(event) {
                told.present = false;
                told.due = None;
            }
        }
        self.told.retain(|_, told| told.present || now.saturating_duration_since(told.seen) < FORGET);
        for event in current {
            if let Some(told) = self.told.get_mut(event) {
                told.see(now);
            }
        }
        let new: Vec<&Event> = current.iter().filter(|event| !self.told.contains_key(*event)).collect();
        self.make_room(new.len());
        let room = MOST.saturating_sub(self.told.len());
        self.backlog.untold = new.len().saturating_sub(room) as u64;
        self.told.extend(new.into_iter().take(room).map(|event| (event.clone(), Told::new(now))));
    }

    /// Forgets what is over, the oldest first, as far as that makes room for so many.
    fn make_room(&mut self, new: usize) {
        let lacking = (self.told.len() + new).saturating_sub(MOST);
        if lacking == 0 {
            return;
        }
        let over = self.told.iter().filter(|(_, told)| !told.present);
        let mut over: Vec<(Instant, Event)> = over.map(|(event, told)| (told.seen, event.clone())).collect();
        over.sort_by_key(|(seen, _)| *seen);
        for (_, event) in over.into_iter().take(lacking) {
            self.told.remove(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, note: &str) -> Event {
        let problem =
            Problem { object: format!("Service default/{name}"), cause: note.to_owned(), fix: "mend it".to_owned() };
        Event::of(&problem, "NotServed", false).expect("of a Service")
    }

    /// What is sent of `current`, where no more than `room` fit.
    fn tell(ledger: &mut Ledger, current: BTreeSet<Event>, now: Instant, room: usize) -> Vec<Due> {
        let mut sent = Vec::new();
        ledger.observe(current, now, |due| {
            let fits = sent.len() < room;
            if fits {
                sent.push(due);
            }
            fits
        });
        sent
    }

    fn events(names: std::ops::Range<usize>) -> BTreeSet<Event> {
        names.map(|index| event(&format!("s{index:04}"), "broken")).collect()
    }

    #[test]
    fn what_was_never_told_goes_before_what_is_told_again() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut told = BTreeSet::new();
        // As many as are sent in 100 minutes, and some have been told for longer than API servers keep them by then.
        for step in 0..100 {
            let now = start + Duration::from_mins(step);
            told.extend(tell(&mut ledger, events(0..3000), now, 30).into_iter().map(|due| due.event));
        }
        assert_eq!(told.len(), 3000);
    }

    #[test]
    fn what_is_over_makes_room_for_what_is_new() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        for minute in 0..10 {
            let from = minute * 1000;
            let now = start + Duration::from_mins(minute as u64);
            assert_eq!(tell(&mut ledger, events(from..from + 1000), now, usize::MAX).len(), 1000, "{minute}");
        }
        assert!(ledger.told.len() <= MOST);
    }

    #[test]
    fn only_problems_of_objects_are_events() {
        let others =
            ["maps", "watch of services", "Service CIDRs", "Service web", "Node a/b", "file a/b", "device eth0"];
        for object in others {
            assert_eq!(Regarding::of(object), None, "{object}");
        }
        for (object, kind, namespace, name) in [
            ("Service a/b", Kind::Service, "a", "b"),
            ("EndpointSlice a/b-1", Kind::EndpointSlice, "a", "b-1"),
            ("Node n", Kind::Node, "", "n"),
            ("ServiceCIDR kubernetes", Kind::ServiceCidr, "", "kubernetes"),
        ] {
            let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
            assert_eq!(Regarding::of(object), Some(Regarding { kind, name }), "{object}");
        }
        assert_eq!(event("web", "broken").note, "broken; mend it");
    }

    #[test]
    fn what_lasts_is_told_once_and_now_and_then() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let current = || BTreeSet::from([event("web", "broken")]);
        let all = usize::MAX;
        assert_eq!(tell(&mut ledger, current(), start, all), [Due { event: event("web", "broken"), count: 1 }]);
        for minutes in 1..30 {
            assert_eq!(tell(&mut ledger, current(), start + Duration::from_mins(minutes), all), [], "{minutes}");
        }
        assert_eq!(tell(&mut ledger, current(), start + LASTING, all)[0].count, 2);
        assert_eq!(tell(&mut ledger, current(), start + LASTING, all), []);
        // Another cause is another Event.
        let both = BTreeSet::from([event("web", "broken"), event("web", "worse")]);
        assert_eq!(tell(&mut ledger, both, start + LASTING, all), [Due { event: event("web", "worse"), count: 1 }]);
    }

    #[test]
    fn what_comes_and_goes_is_counted_and_told_seldom() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut sent = Vec::new();
        for second in 0..1200 {
            let now = start + Duration::from_secs(second);
            let current = if second % 2 == 0 { [event("web", "broken")].into() } else { BTreeSet::new() };
            sent.extend(tell(&mut ledger, current, now, 1).into_iter().map(|due| (second, due.count)));
        }
        assert_eq!(sent, [(0, 1), (300, 151), (600, 301), (900, 451)]);
        // Over for an hour, it is forgotten.
        assert_eq!(tell(&mut ledger, BTreeSet::new(), start + Duration::from_mins(20) + FORGET, 1), []);
        assert!(ledger.told.is_empty());
    }

    #[test]
    fn what_was_not_sent_waits_for_its_turn_and_is_counted_once() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(tell(&mut ledger, events(5..8), at(0), 0), []);
        assert_eq!(ledger.backlog(), Backlog { waiting: 3, untold: 0, delayed: 3 });
        let problem = ledger.backlog().problem().expect("told");
        assert!(problem.cause.starts_with("3 Events wait"), "{problem:?}");
        // Whoever comes later has a later turn, whatever the name.
        let sent = tell(&mut ledger, events(0..8), at(1), 4);
        let names: Vec<&str> = sent.iter().map(|due| due.event.regarding.name.name.as_str()).collect();
        assert_eq!(names, ["s0005", "s0006", "s0007", "s0000"]);
        assert!(sent.iter().all(|due| due.count == 1), "{sent:?}");
        assert_eq!(ledger.backlog(), Backlog { waiting: 4, untold: 0, delayed: 7 });
        assert_eq!(tell(&mut ledger, events(0..8), at(2), 9).len(), 4);
        assert_eq!(ledger.backlog(), Backlog { waiting: 0, untold: 0, delayed: 7 });
        assert_eq!(ledger.backlog().problem(), None);
    }

    #[test]
    fn what_there_is_no_room_for_is_told_of_and_comes_when_there_is() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let at = |minutes| start + Duration::from_mins(minutes);
        let all = usize::MAX;
        assert_eq!(tell(&mut ledger, events(0..MOST + 100), start, all).len(), MOST);
        assert_eq!((ledger.told.len(), ledger.backlog().untold), (MOST, 100));
        let problem = ledger.backlog().problem().expect("told");
        assert!(problem.cause.starts_with("100 problems of objects have no Event"), "{problem:?}");
        // Nothing is told twice for want of room.
        assert_eq!(tell(&mut ledger, events(0..MOST + 100), at(1), all), []);
        // What is over makes room at once, and no more than is wanted is forgotten.
        assert_eq!(tell(&mut ledger, events(200..MOST + 100), at(2), all).len(), 100);
        assert_eq!((ledger.told.len(), ledger.backlog().problem()), (MOST, None));
        assert_eq!(tell(&mut ledger, events(0..MOST), at(3), all).len(), 100, "half of what was over is known still");
        assert_eq!(ledger.told.len(), MOST);
    }
}
