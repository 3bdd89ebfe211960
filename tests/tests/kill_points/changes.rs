//! Changes of endpoints, after which an agent looks at what changed alone.

use lb_userspace::{
    engine::{Backends, Engine},
    image::{Capacity, Table},
    model::{ObjectName, Touched},
    plan,
    store::testing::FakeStore,
};

use crate::{
    reader,
    run::{Mortal, SETTINGS, expected, live},
    states::{self, Random, State},
};

/// What changes of endpoints led to.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Changes after which only what changed was looked at.
    pub(crate) partly: u64,
    /// And where all was.
    pub(crate) whole: u64,
    /// Agents killed in one.
    pub(crate) died: u64,
}

/// An agent that lives through changes, most of them of endpoints alone, as a program sees it: after each write a state,
/// old or new; after each change the new one; and looking at all of it finds nothing to do.
pub(crate) fn changes(seed: u64, seen: &mut Changes) {
    let mut random = Random(seed);
    let store = &mut FakeStore::new(Capacity::uniform(1024));
    let directory = tempfile::tempdir().expect("a directory");
    let mut state = states::state(&mut random);
    live(store, directory.path(), &state).expect("the first state");
    let (mut engine, _) = Engine::open(store, directory.path()).expect("a readable state");
    let mut touched = Touched::All;
    for step in 0..12 {
        let next = match random.below(12) {
            0 => states::state(&mut random),
            1 => state.clone(),
            _ => other_endpoints(&mut random, &state),
        };
        touched.add(Touched::between(&state.model, &next.model));
        // Ways are another listing's.
        if state.next_hops != next.next_hops {
            touched = Touched::All;
        }
        let allowed = vec![expected(&state), expected(&next)];
        let left = (random.below(6) == 0).then(|| random.below(6));
        let what = format!("seed {seed}, step {step}");
        let mut mortal = Mortal::new(store, left, allowed, what.clone());
        let Backends { addrs, whole } = engine.compute(&next.model, &states::node(), &touched);
        let missing = next.model.slices.values().flat_map(|slice| &slice.endpoints).filter(|it| it.serving);
        assert!(!whole || missing.count() == 0 || !addrs.is_empty(), "{what}");
        *(if whole { &mut seen.whole } else { &mut seen.partly }) += 1;
        let result = engine.sync(&mut mortal, &next.next_hops, &SETTINGS);
        let image = mortal.image;
        assert_eq!(image, plan::read_mirror(store).expect("a dump"), "{what}");
        if result.is_err() {
            // The next agent, or the same one.
            seen.died += 1;
            if random.below(2) == 0 {
                (engine, _) = Engine::open(store, directory.path()).expect("a readable state");
            }
            let allowed = vec![expected(&state), expected(&next)];
            let mut mortal = Mortal::new(store, None, allowed, what.clone());
            let _backends = engine.compute(&next.model, &states::node(), &touched);
            engine.sync(&mut mortal, &next.next_hops, &SETTINGS).expect("a sync");
        }
        let end = plan::read_mirror(store).expect("a dump");
        let asked: Vec<_> = expected(&next).frontends.into_iter().map(|(at, (_, rules))| (at, rules)).collect();
        assert_eq!(reader::read(&end).into_iter().collect::<Vec<_>>(), asked, "{what}");
        touched = Touched::NOTHING;
        if random.below(3) == 0 {
            let _backends = engine.compute(&next.model, &states::node(), &Touched::All);
            engine.sync(store, &next.next_hops, &SETTINGS).expect("a sync");
            let again = plan::read_mirror(store).expect("a dump");
            // Next hops that nobody uses go when all is looked at, and not before.
            for table in Table::ALL.into_iter().filter(|it| !matches!(it, Table::NextHops4 | Table::NextHops6)) {
                assert!(again.table(table).eq(end.table(table)), "{what}: {}", table.map_name());
            }
        }
        state = next;
    }
}

/// The same with other endpoints of some Services: slices that differ, that went, that came.
fn other_endpoints(random: &mut Random, state: &State) -> State {
    let mut state = state.clone();
    for _ in 0..=random.below(2) {
        let count = state.model.services.len() as u64;
        if count == 0 {
            break;
        }
        let at = usize::try_from(random.below(count)).unwrap_or(0);
        let Some((name, service)) = state.model.services.iter().nth(at) else { break };
        for family in service.ip_families.clone() {
            // Some Services have two slices of a family.
            let part = if random.once_in(4) { "-more" } else { "" };
            let slice_name =
                ObjectName { namespace: name.namespace.clone(), name: format!("{}-{family}{part}", name.name) };
            if random.once_in(5) {
                state.model.slices.remove(&slice_name);
            } else {
                state.model.slices.insert(slice_name, states::slice(random, &name.name, service, family));
            }
        }
    }
    state
}
