//! One run: a node goes from one state to another, its agent is killed on the way, and others finish.

use std::{collections::BTreeSet, fs, io};

use lb_common::settings::Setting;
use lb_userspace::{
    engine::{Engine, SyncError},
    image::{Capacity, Image, Table},
    model::Touched,
    plan,
    store::{Cursor, Entry, MapStore, testing::FakeStore},
};

use crate::{
    reader::{self, Expected},
    states::{self, Random, State},
};

pub(crate) const SETTINGS: [(Setting, u64); 2] = [(Setting::HashSeed, 7), (Setting::TicksPerSecond, 100)];

/// Tables whose process dies after some operations, and which are read as a program would after each of them.
pub(crate) struct Mortal<'a, S> {
    inner: &'a mut S,
    /// What the tables hold.
    pub(crate) image: Image,
    /// Operations until the end; `None` lives on.
    left: Option<u64>,
    done: u64,
    /// What a reader may see; nobody reads if it is empty.
    allowed: Vec<Expected>,
    what: String,
}

impl<'a, S: MapStore> Mortal<'a, S> {
    pub(crate) fn new(inner: &'a mut S, left: Option<u64>, allowed: Vec<Expected>, what: String) -> Self {
        let image = plan::read_mirror(inner).expect("a dump");
        Self { inner, image, left, done: 0, allowed, what }
    }

    /// One operation less to live.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => return Err(io::Error::other("killed")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.done += 1;
        Ok(())
    }

    /// Every frontend has the rules of one of the states, and leads to a whole set, of one of the states, of a Service
    /// that has the frontend in one of them.
    fn assert_readable(&self) {
        if self.allowed.is_empty() {
            return;
        }
        for (at, seen) in reader::read(&self.image) {
            let owners: Vec<_> = self.allowed.iter().filter_map(|state| state.frontends.get(&at)).collect();
            for (client, (masquerade, set)) in seen.iter().enumerate() {
                // A rule comes with the frontend's word and its set with the service's: each is old or new.
                let has_rule = owners.iter().any(|(_, rules)| rules[client].0 == *masquerade);
                let mut sets = self
                    .allowed
                    .iter()
                    .flat_map(|state| owners.iter().filter_map(|(owner, _)| state.sets.get(owner)).flatten());
                assert!(
                    has_rule && sets.any(|known| known == set),
                    "{}: {at:?} leads to {seen:?}, its owners are {owners:?}",
                    self.what
                );
            }
        }
    }
}

impl<S: MapStore> MapStore for Mortal<'_, S> {
    fn update(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.inner.update(table, key, value)?;
        self.image.insert_bytes(table, key.into(), value.into());
        self.assert_readable();
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.inner.delete(table, key)?;
        self.image.remove_bytes(table, key);
        self.assert_readable();
        Ok(())
    }

    fn dump(&mut self, table: Table) -> io::Result<Vec<Entry>> {
        self.inner.dump(table)
    }

    fn read(&mut self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.inner.read(table, key)
    }

    fn walk(&mut self, table: Table, from: Option<&Cursor>, most: u32) -> io::Result<(Vec<Entry>, Option<Cursor>)> {
        self.inner.walk(table, from, most)
    }

    fn forget_clients(&mut self, services: &BTreeSet<u32>) -> io::Result<()> {
        self.spend()?;
        self.inner.forget_clients(services)
    }

    fn capacity(&self, table: Table) -> u32 {
        self.inner.capacity(table)
    }

    fn grace_period(&mut self) -> io::Result<()> {
        self.spend()?;
        self.inner.grace_period()
    }
}

/// An agent's life: it reads what is there and makes it `state`.
pub(crate) fn live<S: MapStore>(store: &mut S, directory: &std::path::Path, state: &State) -> Result<usize, SyncError> {
    let (mut engine, problem) = Engine::open(store, directory).expect("a readable state");
    assert_eq!(problem, None);
    let _backends = engine.compute(&state.model, &states::node(), &Touched::All);
    let result = engine.sync(store, &state.next_hops, &SETTINGS);
    assert!(engine.refused.is_empty(), "{:?}", engine.refused);
    result
}

pub(crate) fn expected(state: &State) -> Expected {
    reader::expected(&lb_userspace::desired::desired(&state.model, &states::node()))
}

/// The run of a seed, on tables that are empty or were left by another run. How many agents died in it.
pub(crate) fn one<S: MapStore>(seed: u64, store: &mut S) -> u64 {
    let mut random = Random(seed);
    let (from, to) = (states::state(&mut random), states::state(&mut random));
    let allowed = vec![expected(&from), expected(&to)];

    // Undisturbed, to know the end and the number of operations.
    let (calm, directory) = (&mut FakeStore::new(Capacity::uniform(1024)), tempfile::tempdir().expect("a directory"));
    live(calm, directory.path(), &from).expect("the first state");
    let mut counted = Mortal::new(calm, None, Vec::new(), format!("seed {seed}, undisturbed"));
    live(&mut counted, directory.path(), &to).expect("the second state");
    let (operations, wanted) = (counted.done, reader::meaning(&counted.image));

    let directory = tempfile::tempdir().expect("a directory");
    live(store, directory.path(), &from).expect("the first state");
    // Some agents die more than once before one of them gets through.
    let (mut deaths, mut died) = (1 + random.below(3), 0);
    loop {
        let left = (deaths > 0).then(|| random.below(operations + 1));
        let what = format!("seed {seed}, dies after {left:?} of {operations}");
        let mut mortal = Mortal::new(store, left, allowed.clone(), what.clone());
        mortal.assert_readable();
        let result = live(&mut mortal, directory.path(), &to);
        let image = mortal.image;
        assert_eq!(image, plan::read_mirror(store).expect("a dump"), "{what}");
        if result.is_ok() {
            break;
        }
        deaths -= 1;
        died += 1;
        // The file of numbers may be gone as well.
        if random.below(8) == 0 {
            fs::remove_file(directory.path().join("ids.json")).expect("the file is there");
        }
    }
    let end = plan::read_mirror(store).expect("a dump");
    assert_eq!(reader::meaning(&end), wanted, "seed {seed}");
    let asked: Vec<_> = allowed[1].frontends.iter().map(|(at, (_, rules))| (*at, rules.clone())).collect();
    assert_eq!(reader::read(&end).into_iter().collect::<Vec<_>>(), asked, "seed {seed}");
    // Another start finds nothing to do.
    let writes = live(store, directory.path(), &to).expect("a sync");
    assert_eq!((writes, plan::read_mirror(store).expect("a dump")), (0, end), "seed {seed}");
    died
}
