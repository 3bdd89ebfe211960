//! Bytes as what an earlier run left, and as a question to the agent.

use std::{collections::BTreeMap, fs};

use lb_userspace::{
    control::Request,
    desired::desired,
    file_source::{LoadError, Options, Source},
    ids::Ids,
    image::{Capacity, Image, build},
    plan,
    store::testing::FakeStore,
};

use super::tables::{DOCUMENTS, node};

/// Reads bytes as the allocation file of known documents. A file that is refused is named and stays as it was.
pub fn allocations(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (documents, file) = (folder.path().join("documents.yaml"), folder.path().join("allocations.json"));
    fs::write(&documents, ALLOCATING).expect("a file");
    fs::write(&file, bytes).expect("a file");
    let mut options = Options::new(documents);
    options.allocations = Some(file.clone());
    options.write_allocations = true;
    let mut source = Source::new(options);
    match source.reload() {
        Ok(loaded) => {
            let written = fs::read(&file).expect("the file");
            let again = source.reload().expect("what was written can be read");
            assert_eq!(again, loaded, "read twice");
            assert_eq!(fs::read(&file).expect("the file"), written, "nothing changed");
        }
        Err(LoadError::AllocationsCorrupt { path, cause }) => {
            assert!(path == file && !cause.is_empty(), "{cause}");
            assert_eq!(fs::read(&file).expect("the file"), bytes, "a damaged file is never overwritten");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Services of which each wants something else allocated.
const ALLOCATING: &str = "
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, ports: [
  {name: x, port: 80}, {name: y, port: 80, protocol: UDP}, {name: z, port: 81, nodePort: 30081}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: c}, spec: {type: LoadBalancer, clusterIP: 10.96.0.7, ports: [{port: 80}]}}
";

/// Reads bytes as saved ids, twice the same way, and numbers known Services with them.
pub fn ids(bytes: &[u8]) {
    let saved = match Ids::from_json(bytes) {
        Ok(saved) => saved,
        Err(error) => {
            assert!(error.to_string().contains("delete the file"), "{error}");
            return;
        }
    };
    // Numbers of backends are read where an earlier agent wrote them, and not written.
    let mut written = saved.clone();
    (written.v4.backends, written.v6.backends) = Default::default();
    assert_eq!(Ids::from_json(&saved.to_json().expect("JSON")).as_ref(), Ok(&written), "saved and read");
    let folder = tempfile::tempdir().expect("a folder");
    let documents = folder.path().join("documents.yaml");
    fs::write(&documents, DOCUMENTS).expect("a file");
    let options = Options::new(documents);
    let context = node(&options);
    let model = Source::new(options).reload().expect("known documents").model;
    let desired = desired(&model, &context);
    let mut ids = saved;
    ids.adopt(&Image::default(), &desired);
    let mut store = FakeStore::new(Capacity::uniform(64));
    let capacity = Capacity::of(&store);
    let built = build(&desired, &mut ids, &BTreeMap::new(), &[], &capacity);
    let mut mirror = Image::default();
    plan::apply(&plan::diff(&built.image, &mirror), &mut store, &mut mirror).expect("what was built fits");
    assert_eq!(mirror, built.image);
}

/// Reads bytes as a question to the agent: the same way twice, or an error with a place.
pub fn request(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match serde_json::from_str::<Request>(text) {
        Ok(request) => {
            let written = serde_json::to_string(&request).expect("JSON");
            assert_eq!(serde_json::from_str::<Request>(&written).ok(), Some(request));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
