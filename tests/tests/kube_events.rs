//! Events as the API server gets them: once for each cause, with what `kubectl describe` looks for, and never a flood.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use lb_tests::api_server::{ApiServer, Fault};
use lb_userspace::{
    events::{Backlog, Due, Event, Outbox, Regarding},
    k8s::source::{Access, Kind, Options, Recorder, Selectors, Source, Timing},
    model::ObjectName,
    report::Problem,
};
use serde_json::{Value, json};

const QUICK: Timing = Timing {
    first: Duration::from_millis(5),
    away: Duration::from_millis(20),
    answers: Duration::from_millis(20),
    second_look: Duration::from_millis(1),
    between: Duration::from_millis(1),
    lasting: Duration::from_millis(50),
};

/// A server with Service `default/web`, and whoever sends Events to it.
async fn recorder() -> (ApiServer, Source, Recorder) {
    let api = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("a listener")).expect("a server");
    for name in ["web", "other"] {
        api.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
            "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
        }));
    }
    let access = Access::Master(api.url());
    let options = Options { access, selectors: Selectors::datapath("n"), service_cidrs: false, timing: QUICK };
    let mut source = Source::start(options).await.expect("started");
    let recorder = source.recorder("n1");
    (api, source, recorder)
}

fn event(name: &str, note: &str) -> Event {
    let name = ObjectName { namespace: "default".to_owned(), name: name.to_owned() };
    let regarding = Regarding { kind: Kind::Service, name };
    Event { regarding, reason: "NoRoom", note: note.to_owned(), of_node: true, varies: false }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

fn due(event: Event, count: u32) -> Due {
    Due { event, count }
}

#[tokio::test]
async fn an_event_names_object_cause_and_reporter_and_is_counted_when_it_comes_again() {
    let (api, _source, recorder) = recorder().await;
    assert!(recorder.send(due(event("web", "map full"), 1)));
    until("sent", || recorder.sent().sent == 1).await;
    let all = api.objects("events");
    assert_eq!(all.len(), 1, "{all:?}");
    let told = &all[0];
    assert_eq!(
        told["regarding"],
        json!({"apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web", "uid": "uid-of-web"})
    );
    for (field, value) in [
        ("reason", "NoRoom"),
        ("note", "map full"),
        ("type", "Warning"),
        ("reportingController", "ballast"),
        ("reportingInstance", "ballast-n1"),
        ("action", "Program"),
        ("apiVersion", "events.k8s.io/v1"),
    ] {
        assert_eq!(told[field], value, "{field}");
    }
    assert_eq!(told["metadata"]["namespace"], "default");
    let name = told["metadata"]["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("web."), "{name}");

    // Again: the same Event, counted. Forgotten by the server: told anew.
    assert!(recorder.send(due(event("web", "map full"), 2)));
    until("counted", || recorder.sent().sent == 2).await;
    let all = api.objects("events");
    assert_eq!((all.len(), &all[0]["series"]["count"]), (1, &Value::from(2)), "{all:?}");
    api.delete("events", "default", &name);
    assert!(recorder.send(due(event("web", "map full"), 3)));
    until("told anew", || recorder.sent().sent == 3).await;
    assert_eq!(api.objects("events").len(), 1);
    // An agent that starts again tells what is told already: it is one Event still.
    assert!(recorder.send(due(event("web", "map full"), 1)));
    until("known", || recorder.sent().sent == 4).await;
    assert_eq!(api.objects("events").len(), 1);
    assert_eq!(recorder.sent().problem, None);
}

#[tokio::test]
async fn events_of_cluster_wide_objects_are_where_those_of_kube_proxy_are_and_the_same_of_all_nodes() {
    let (api, mut source, recorder) = recorder().await;
    let other = source.recorder("n2");
    for (kind, version, name) in [("Node", "v1", "n1"), ("ServiceCIDR", "networking.k8s.io/v1", "kubernetes")] {
        api.put(
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "uid": format!("uid-of-{name}")}}),
        );
        let problem = Problem {
            object: format!("{kind} {name}"),
            cause: "spec is no range".to_owned(),
            fix: "write one".to_owned(),
        };
        let event = Event::of(&problem, "Invalid", false).expect("of an object");
        let before = (recorder.sent().sent, other.sent().sent);
        assert!(recorder.send(due(event.clone(), 1)) && other.send(due(event.clone(), 1)));
        until("sent", || (recorder.sent().sent, other.sent().sent) == (before.0 + 1, before.1 + 1)).await;
        assert!(recorder.send(due(event, 2)));
        until("counted", || recorder.sent().sent == before.0 + 2).await;
        let events = api.objects("events").into_iter().filter(|event| event["regarding"]["kind"] == kind);
        let [told] = <[Value; 1]>::try_from(events.collect::<Vec<_>>()).expect("one Event");
        let regarding = json!({"apiVersion": version, "kind": kind, "name": name, "uid": format!("uid-of-{name}")});
        assert_eq!((&told["regarding"], &told["metadata"]["namespace"]), (&regarding, &"default".into()), "{told}");
        assert_eq!(told["series"]["count"], 2, "{told}");
    }
    assert_eq!((recorder.sent().problem, recorder.sent().dropped), (None, 0));
}

#[tokio::test]
async fn an_object_that_is_gone_has_no_event() {
    let (api, _source, recorder) = recorder().await;
    assert!(recorder.send(due(event("never", "map full"), 1)));
    assert!(recorder.send(due(event("web", "map full"), 1)));
    until("sent", || recorder.sent().sent == 1).await;
    assert_eq!((recorder.sent().dropped, api.objects("events").len()), (1, 1));
}

#[tokio::test]
async fn a_missing_right_is_told_once_with_its_rule() {
    for verb in ["create", "patch"] {
        let (api, _source, recorder) = recorder().await;
        api.refuse(verb, "events", Some(Fault::Answer(403, None)));
        for number in 0..5 {
            assert!(recorder.send(due(event("web", &format!("cause {number}")), if verb == "patch" { 2 } else { 1 })));
        }
        until("told", || recorder.sent().problem.is_some()).await;
        let problem = recorder.sent().problem.expect("told");
        assert!(problem.cause.starts_with(&format!("may not {verb} events (403): ")), "{problem:?}");
        let rule = r#"{apiGroups: ["events.k8s.io"], resources: [events], verbs: [create, patch]}"#;
        assert_eq!(problem.fix, format!("add the rule {rule} to the ClusterRole"));
        if verb == "create" {
            // It is not asked again and again.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let asked = api.requests().iter().filter(|request| *request == "create events").count();
            assert_eq!(asked, 1);
        } else {
            // What can be told is: a new cause needs no patch.
            assert!(recorder.send(due(event("web", "another cause"), 1)));
            until("the next one", || recorder.sent().sent == 1).await;
            assert_eq!(recorder.sent().problem, None, "well again");
        }
    }
}

#[tokio::test]
async fn nothing_is_lost_while_the_server_fails_and_the_sender_never_waits() {
    let (api, _source, recorder) = recorder().await;
    for fault in [
        Fault::Answer(500, None),
        Fault::Answer(429, Some(0)),
        Fault::Close,
        Fault::Answer(503, None),
        Fault::Answer(401, None),
    ] {
        api.refuse("create", "events", Some(fault.clone()));
        let before = recorder.sent().sent;
        assert!(recorder.send(due(event("web", &format!("{fault:?}")), 1)));
        let asked = || api.requests().iter().filter(|request| *request == "create events").count();
        let begin = asked();
        until("tried again", || asked() >= begin + 2).await;
        assert_eq!(recorder.sent().sent, before);
        api.refuse("create", "events", None);
        until("sent", || recorder.sent().sent == before + 1).await;
    }
    // Away: what does not fit is told to the caller, at once.
    api.away(true);
    let begin = Instant::now();
    let taken = (0..1000).filter(|number| recorder.send(due(event("web", &format!("n{number}")), 1))).count();
    assert!((1..=300).contains(&taken) && begin.elapsed() < Duration::from_secs(1), "{taken}");
    api.away(false);
    until("some of them", || recorder.sent().sent >= 15).await;
}

#[tokio::test]
async fn a_thousand_refused_services_are_no_flood() {
    let (api, _source, recorder) = recorder().await;
    let mut outbox = Outbox::new(recorder);
    let problem = |number: u32| Problem {
        object: "Service default/web".to_owned(),
        cause: format!("cause {number}"),
        fix: "mend it".to_owned(),
    };
    let current = || (0..1000).filter_map(|number| Event::of(&problem(number), "NotServed", false)).collect();
    for _ in 0..10 {
        outbox.tell(current());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let created = api.requests().iter().filter(|request| *request == "create events").count();
    assert!((20..=40).contains(&created), "{created} in a second");
    // What is queued or waits was told of once, however often it was looked at.
    let Backlog { waiting, untold, delayed } = outbox.counts().backlog;
    assert!((700..=730).contains(&waiting) && (waiting..=750).contains(&delayed) && untold == 0, "{waiting} {delayed}");
}
