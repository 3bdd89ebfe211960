//! Which Events are due: what is wrong with an object is told once, again when it comes back, and now and then while it
//! lasts. No clock and no I/O; [`crate::k8s::source::Recorder`] sends them.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{k8s::source::Kind, model::ObjectName, report::Problem};

/// Between two messages about what comes and goes.
const FLAPPING: Duration = Duration::from_mins(5);
/// Between two messages about what lasts: API servers forget Events after an hour.
const LASTING: Duration = Duration::from_mins(30);
/// What is over for so long begins anew.
const FORGET: Duration = Duration::from_hours(1);
/// Events that are kept in mind.
const MOST: usize = 4096;

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
        let kind = [Kind::Service, Kind::EndpointSlice].into_iter().find(|known| known.to_string() == kind)?;
        let (namespace, name) = name.split_once('/')?;
        Some(Self { kind, name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() } })
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
}

#[derive(Debug)]
struct Told {
    /// It is so now.
    present: bool,
    count: u32,
    sent: Option<Instant>,
    /// It was not told yet that it came again.
    again: bool,
    seen: Instant,
}

impl Told {
    fn is_due(&mut self, now: Instant) -> bool {
        let Some(sent) = self.sent else { return true };
        let ago = now.saturating_duration_since(sent);
        if !self.again && ago >= LASTING {
            self.count = self.count.saturating_add(1);
            return true;
        }
        self.again && ago >= FLAPPING
    }
}

impl Ledger {
    /// What is due, `current` being all there is to tell now.
    pub fn observe(&mut self, current: BTreeSet<Event>, now: Instant) -> Vec<Due> {
        for (event, told) in &mut self.told {
            told.present &= current.contains(event);
        }
        self.told.retain(|_, told| told.present || now.saturating_duration_since(told.seen) < FORGET);
        let mut due = Vec::new();
        for event in current {
            if !self.told.contains_key(&event) && self.told.len() >= MOST {
                continue;
            }
            let new = Told { present: true, count: 1, sent: None, again: false, seen: now };
            let told = self.told.entry(event.clone()).or_insert(new);
            if !told.present {
                told.present = true;
                told.again = true;
                told.count = told.count.saturating_add(1);
            }
            told.seen = now;
            if told.is_due(now) {
                told.sent = Some(now);
                told.again = false;
                due.push(Due { event, count: told.count });
            }
        }
        due
    }

    /// An Event that was due could not be sent: it is due again.
    pub fn not_sent(&mut self, event: &Event) {
        if let Some(told) = self.told.get_mut(event) {
            told.sent = None;
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

    #[test]
    fn only_problems_of_objects_are_events() {
        for object in ["maps", "watch of services", "Service CIDRs", "Node n", "file a/b", "device eth0"] {
            assert_eq!(Regarding::of(object), None, "{object}");
        }
        let regarding = Regarding::of("EndpointSlice a/b-1").expect("an object");
        assert_eq!(
            (regarding.kind, &*regarding.name.namespace, &*regarding.name.name),
            (Kind::EndpointSlice, "a", "b-1")
        );
        assert_eq!(event("web", "broken").note, "broken; mend it");
    }

    #[test]
    fn what_lasts_is_told_once_and_now_and_then() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let current = || BTreeSet::from([event("web", "broken")]);
        assert_eq!(ledger.observe(current(), start), [Due { event: event("web", "broken"), count: 1 }]);
        for minutes in 1..30 {
            assert_eq!(ledger.observe(current(), start + Duration::from_mins(minutes)), [], "{minutes}");
        }
        assert_eq!(ledger.observe(current(), start + LASTING)[0].count, 2);
        assert_eq!(ledger.observe(current(), start + LASTING), []);
        // Another cause is another Event.
        let both = BTreeSet::from([event("web", "broken"), event("web", "worse")]);
        assert_eq!(ledger.observe(both, start + LASTING), [Due { event: event("web", "worse"), count: 1 }]);
    }

    #[test]
    fn what_comes_and_goes_is_counted_and_told_seldom() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut sent = Vec::new();
        for second in 0..1200 {
            let now = start + Duration::from_secs(second);
            let current = if second % 2 == 0 { [event("web", "broken")].into() } else { BTreeSet::new() };
            sent.extend(ledger.observe(current, now).into_iter().map(|due| (second, due.count)));
        }
        assert_eq!(sent, [(0, 1), (300, 151), (600, 301), (900, 451)]);
        // Over for an hour, it is forgotten.
        assert_eq!(ledger.observe(BTreeSet::new(), start + Duration::from_mins(20) + FORGET), []);
        assert!(ledger.told.is_empty());
    }

    #[test]
    fn what_was_not_sent_is_due_again_and_memory_is_bounded() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let current = || BTreeSet::from([event("web", "broken")]);
        assert_eq!(ledger.observe(current(), now).len(), 1);
        ledger.not_sent(&event("web", "broken"));
        assert_eq!(ledger.observe(current(), now)[0].count, 1);
        let many: BTreeSet<Event> = (0..2 * MOST).map(|index| event(&format!("s{index}"), "broken")).collect();
        assert_eq!(ledger.observe(many, now).len(), MOST - 1);
        assert_eq!(ledger.told.len(), MOST);
    }
}
