//! Bytes as Kubernetes documents: source, model, desired state, tables.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use lb_userspace::{
    desired::{NodeContext, desired},
    file_source::{LoadError, Options, Source},
    ids::Ids,
    image::{Capacity, Image, NextHopInfo, build},
    plan,
    store::testing::FakeStore,
};

use super::tables::node;

/// A line that ends one state of the file and begins the next.
const NEXT: &str = "#next\n";
/// Few enough that a Service of many ports does not fit.
const ROOM: u32 = 24;

/// Reads bytes as the states that a file of documents goes through, one after the other, with allocation, and programs
/// each state into tables of the same memory. Findings and errors name what they are about.
pub fn file_source(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let documents = folder.path().join("documents.yaml");
    let mut options = Options::new(&documents);
    options.allocations = Some(folder.path().join("allocations.json"));
    options.write_allocations = true;
    let context = node(&options);
    let mut source = Source::new(options);
    let mut node = Programmed::new();
    for state in states(bytes) {
        fs::write(&documents, state).expect("a file");
        match source.reload() {
            Ok(loaded) => {
                for finding in &loaded.findings {
                    assert!(finding.file.ends_with("documents.yaml"), "{finding:?}");
                    assert!(!finding.reason.is_empty() && !finding.fix.is_empty(), "{finding:?}");
                }
                assert_eq!(source.reload().as_ref(), Ok(&loaded), "read twice");
                node.program(&loaded.model, &context);
            }
            Err(error) => told(&error, &documents),
        }
    }
}

/// The states, without the lines between them.
fn states(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let text = rest?;
        let at = text.windows(NEXT.len()).position(|window| window == NEXT.as_bytes());
        rest = at.and_then(|at| text.get(at + NEXT.len()..));
        text.get(..at.unwrap_or(text.len()))
    })
}

/// An error is about the documents, never about a file that this program itself wrote.
fn told(error: &LoadError, documents: &Path) {
    match error {
        LoadError::Unreadable { path, cause } => assert!(path == documents && !cause.is_empty(), "{error}"),
        LoadError::NoDocument(finding) => {
            assert!(finding.file.ends_with("documents.yaml") && !finding.reason.is_empty(), "{error}");
        }
        LoadError::AllocationsCorrupt { .. }
        | LoadError::AllocationsUnreadable { .. }
        | LoadError::AllocationsLocked { .. }
        | LoadError::AllocationsUnwritable { .. } => panic!("{error}"),
    }
}

/// Tables of a node that is programmed again and again.
struct Programmed {
    store: FakeStore,
    mirror: Image,
    ids: Ids,
}

impl Programmed {
    fn new() -> Self {
        Self { store: FakeStore::new(Capacity::uniform(ROOM)), mirror: Image::default(), ids: Ids::default() }
    }

    fn program(&mut self, model: &lb_userspace::model::Model, context: &NodeContext) {
        let desired = desired(model, context);
        for problem in &desired.problems {
            assert!(!problem.object.is_empty() && !problem.cause.is_empty() && !problem.fix.is_empty(), "{problem:?}");
        }
        let hop = NextHopInfo { ifindex: 2, prefsrc: None, local: false };
        let ways: BTreeMap<IpAddr, NextHopInfo> =
            desired.services.values().flat_map(|service| service.backends.iter()).map(|at| (at.addr, hop)).collect();
        let capacity = Capacity::of(&self.store);
        loop {
            let built = build(&desired, &mut self.ids, &ways, &[], &capacity);
            for problem in &built.refused {
                assert!(!problem.object.is_empty() && !problem.fix.is_empty(), "{problem:?}");
            }
            let plan = plan::diff(&built.image, &self.mirror);
            plan::apply(&plan, &mut self.store, &mut self.mirror).expect("what was built fits");
            assert!(plan::diff(&built.image, &self.mirror).is_empty(), "a plan leads to what was built");
            if !self.ids.commit() || built.refused.is_empty() {
                break;
            }
        }
        let held = plan::read_mirror(&mut self.store).expect("tables");
        assert_eq!(held, self.mirror, "the mirror is what the tables hold");
        let saved = Ids::from_json(&self.ids.to_json().expect("JSON")).expect("what was saved can be read");
        let mut restarted = saved;
        restarted.adopt(&self.mirror, &desired);
        let again = build(&desired, &mut restarted, &ways, &[], &capacity);
        assert!(plan::diff(&again.image, &self.mirror).is_empty(), "a restart writes nothing");
    }
}
