//! Several documents of one object.

use super::*;

const FIRST: &str = "ports: [{port: 81}]";
const SECOND: &str = "ports: [{port: 82}]";
const BROKEN: &str = "clusterIP: 910.96.0.7, ports: [{port: 83}]";

/// What is said about the Service `a` and the port it is used with; both the same when it is read once more.
fn read(folder: &Folder, source: &mut Source) -> (Vec<String>, Option<u16>) {
    let loaded = source.reload().unwrap();
    assert_eq!(source.reload().unwrap(), loaded, "read twice");
    let path = format!("{}/", folder.docs().display());
    let said = loaded.findings.iter().map(|finding| {
        let text = finding.to_string().replace(&path, "");
        let (file, _) = text.split_once(':').unwrap_or_default();
        let outcome = finding.reason.replace(&path, "").rsplit(": ").next().unwrap_or_default().to_owned();
        format!("{file}: {outcome}")
    });
    (said.collect(), loaded.model.services.get(&name("a")).map(|service| service.ports[0].port.get()))
}

#[test]
fn of_several_documents_the_last_valid_one_is_used_and_the_others_are_told() {
    let later = "b.yaml: the later document is used";
    let refused_first = "a.yaml: refused, its other document in b.yaml is used";
    let refused_second = "b.yaml: refused, its other document in a.yaml is used";
    for (first, second, said, port) in [
        (FIRST, SECOND, vec![later], Some(82)),
        (BROKEN, SECOND, vec![refused_first, later], Some(82)),
        (FIRST, BROKEN, vec![refused_second], Some(81)),
        (BROKEN, BROKEN, vec!["a.yaml: refused", "b.yaml: refused"], None),
    ] {
        let folder = Folder::new(&[("a.yaml", &service("a", first)), ("b.yaml", &service("a", second))]);
        let read = read(&folder, &mut Source::new(folder.options()));
        assert_eq!(read, (said.iter().map(ToString::to_string).collect(), port), "{first} and {second}");
    }
}

#[test]
fn the_last_good_version_stays_only_while_no_document_is_valid() {
    let folder = Folder::new(&[("a.yaml", &service("a", FIRST))]);
    let mut source = Source::new(folder.options());
    assert_eq!(read(&folder, &mut source), (vec![], Some(81)));
    folder.write("a.yaml", &service("a", BROKEN));
    folder.write("b.yaml", &service("a", BROKEN));
    let kept = ["a.yaml: its last good version stays in use", "b.yaml: its last good version stays in use"];
    assert_eq!(read(&folder, &mut source), (kept.map(str::to_owned).to_vec(), Some(81)));
    // A valid one is used whatever was before.
    folder.write("a.yaml", &service("a", SECOND));
    let refused = "b.yaml: refused, its other document in a.yaml is used".to_owned();
    assert_eq!(read(&folder, &mut source), (vec![refused], Some(82)));
}
