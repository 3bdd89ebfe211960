//! What goes wrong between the source and an API server is told once, in words that help, and is over when it is over.

mod credentials;
mod failover;

use std::{net::TcpListener, time::Duration};

use lb_tests::api_server::{ApiServer, Fault};
use lb_userspace::{
    file_source::Severity,
    k8s::source::{Access, AccessError, Options, Selectors, Source, Timing},
    model::Model,
    report::Problem,
};
use serde_json::{Value, json};

fn server() -> ApiServer {
    let api = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("a listener")).expect("a server");
    api.put(service("web", 80));
    api
}

fn service(name: &str, port: impl Into<Value>) -> Value {
    let (ip, port) = ("10.96.0.10", port.into());
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [{"port": port}], "future": [1]},
        "future": {"a": null},
    })
}

const QUICK: Timing = Timing {
    first: Duration::from_millis(5),
    away: Duration::from_millis(20),
    answers: Duration::from_millis(20),
    second_look: Duration::from_millis(1),
    between: Duration::from_millis(1),
    lasting: Duration::from_millis(50),
};

async fn start(access: Access) -> Result<Source, AccessError> {
    Source::start(Options { access, selectors: Selectors::datapath("n"), service_cidrs: true, timing: QUICK }).await
}

/// Applies news until `done`.
async fn until(source: &mut Source, model: &mut Model, what: &str, done: impl Fn(&Source, &Model) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done(source, model) {
            source.changed(model).await;
        }
    });
    let told = waited.await;
    assert!(
        told.is_ok(),
        "{what}: {:?}, {:?}, {:?}",
        source.status(),
        source.problems(Severity::Error),
        model.services
    );
}

fn of(source: &Source, resource: &str) -> Option<Problem> {
    let object = format!("watch of {resource}");
    source.problems(Severity::Error).into_iter().find(|problem| problem.object == object)
}

#[tokio::test]
async fn each_error_names_its_cause_and_ends() {
    for (verb, fault, part) in [
        ("list", Fault::Answer(500, None), "answers 500: injected 500"),
        ("watch", Fault::Answer(500, None), "answers 500"),
        ("list", Fault::Answer(429, Some(0)), "answers 429"),
        ("list", Fault::Answer(401, None), "does not accept the credentials (401)"),
        ("list", Fault::Answer(403, None), "may not list services (403): services is forbidden: User \"ballast\""),
        ("watch", Fault::Answer(403, None), "may not watch services (403)"),
        ("list", Fault::Answer(418, None), "refuses to list (answer 418)"),
        ("list", Fault::Truncated, "sent what is not understood: list:"),
        ("list", Fault::Close, "cannot be reached"),
    ] {
        let api = server();
        api.refuse(verb, "services", Some(fault.clone()));
        let mut source = start(Access::Master(api.url())).await.expect("started");
        let mut model = Model::default();
        let told = |source: &Source, _: &Model| of(source, "services").is_some_and(|told| told.cause.contains(part));
        until(&mut source, &mut model, &format!("{verb} {fault:?}"), told).await;
        if fault == Fault::Answer(403, None) {
            let problem = of(&source, "services").expect("told");
            let rule = r#"{apiGroups: [""], resources: [services], verbs: [list, watch]}"#;
            assert!(problem.fix.contains(rule), "{problem:?}");
        }
        assert!(!(source.is_complete() && verb == "list"), "{fault:?}");
        api.refuse(verb, "services", None);
        let well = |source: &Source, model: &Model| {
            source.is_complete() && source.status().iter().all(|watch| watch.synced) && model.services.len() == 1
        };
        until(&mut source, &mut model, &format!("{verb} {fault:?} is over"), well).await;
        assert_eq!(source.problems(Severity::Error), []);
        let row = source.status().into_iter().find(|row| row.resource == "services").expect("a row");
        assert!(row.last_error.is_some_and(|error| error.contains(part)), "{fault:?}");
    }
}

#[tokio::test]
async fn each_missing_right_is_named_with_its_rule() {
    for (group, resource) in
        [("", "services"), ("discovery.k8s.io", "endpointslices"), ("", "nodes"), ("networking.k8s.io", "servicecidrs")]
    {
        for verb in ["list", "watch"] {
            let api = server();
            api.refuse(verb, resource, Some(Fault::Answer(403, None)));
            let mut source = start(Access::Master(api.url())).await.expect("started");
            let mut model = Model::default();
            let told = |source: &Source, _: &Model| of(source, resource).is_some();
            until(&mut source, &mut model, &format!("{verb} {resource}"), told).await;
            let problem = of(&source, resource).expect("told");
            assert!(problem.cause.starts_with(&format!("may not {verb} {resource} (403)")), "{problem:?}");
            let rule = format!(r#"{{apiGroups: ["{group}"], resources: [{resource}], verbs: [list, watch]}}"#);
            assert_eq!(problem.fix, format!("add the rule {rule} to the ClusterRole"));
            // Without the right to list, nothing is known; ServiceCIDRs are not needed.
            let waits = verb == "list" && resource != "servicecidrs";
            if !waits {
                until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
            }
            assert_eq!(source.is_complete(), !waits, "{verb} {resource}");
        }
    }
}

#[tokio::test]
async fn large_objects_are_read() {
    let api = server();
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    let endpoint = |index: u32| json!({"addresses": [std::net::Ipv4Addr::from_bits(0x0af4_0000 + index)]});
    let endpoints: Vec<_> = (1..=5_000).map(endpoint).collect();
    let annotations = json!({"note": "x".repeat(3 << 19)});
    let labels = json!({"kubernetes.io/service-name": "web"});
    let metadata = json!({"name": "web-1", "namespace": "default", "labels": labels, "annotations": annotations});
    let ports = json!([{"name": "", "protocol": "TCP", "port": 8080}]);
    api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": metadata,
        "ports": ports, "endpoints": endpoints,
    }));
    let all = |_: &Source, model: &Model| model.slices.values().any(|slice| slice.endpoints.len() == 5_000);
    until(&mut source, &mut model, "5,000 endpoints in 1.5 MiB and more", all).await;
    assert_eq!(source.problems(Severity::Error), []);
}

#[tokio::test]
async fn a_cluster_without_service_cidrs_is_served_and_told_so() {
    for (code, severity) in [(404, Severity::Warning), (403, Severity::Error)] {
        let api = server();
        api.refuse("list", "servicecidrs", Some(Fault::Answer(code, None)));
        let mut source = start(Access::Master(api.url())).await.expect("started");
        let mut model = Model::default();
        until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
        let told = source.problems(severity);
        assert!(told.iter().any(|problem| problem.object == "watch of servicecidrs"), "{code}: {told:?}");
        assert_eq!(model.services.len(), 1);
        // Allowed later, it counts.
        let cidrs = json!({"cidrs": ["10.96.0.0/16"]});
        api.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": cidrs}));
        api.refuse("list", "servicecidrs", None);
        until(&mut source, &mut model, "the range", |_, model| model.service_cidrs.len() == 1).await;
    }
}

#[tokio::test]
async fn service_cidrs_are_given_up_only_where_they_stay_refused() {
    let cidrs = json!({"cidrs": ["10.96.0.0/16"]});
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": cidrs});
    // A server that has just started: it has not read its roles yet.
    let api = server();
    api.put(cidr);
    api.fail("servicecidrs", [Fault::Answer(403, None), Fault::Answer(403, None)]);
    let access = Access::Master(api.url());
    let timing = Timing { lasting: Duration::from_mins(1), ..QUICK };
    let options = Options { access, selectors: Selectors::datapath("n"), service_cidrs: true, timing };
    let mut source = Source::start(options).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    assert_eq!(model.service_cidrs.len(), 1);
    // It stays so: the ranges that are known, as of a snapshot, stay too.
    api.refuse("list", "servicecidrs", Some(Fault::Answer(403, None)));
    let mut source = start(Access::Master(api.url())).await.expect("started");
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    assert_eq!(model.service_cidrs.len(), 1);
    assert!(of(&source, "servicecidrs").is_some());
}

#[tokio::test]
async fn one_bad_object_blocks_no_other_and_keeps_its_last_good_version() {
    let api = server();
    api.put(service("bad", "eighty"));
    api.put(service("worse", 0));
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    assert_eq!(model.services.len(), 1);
    let problems = source.problems(Severity::Error);
    let named: Vec<&str> = problems.iter().map(|problem| &*problem.object).collect();
    assert_eq!(named, ["Service default/bad", "Service default/worse"]);
    assert!(problems.iter().all(|problem| problem.cause.starts_with("spec.ports[0].port: ")), "{problems:?}");
    // Changed for the worse: the good version stays. Corrected or deleted: the finding goes.
    api.put(service("web", 70_000));
    let kept =
        |source: &Source, model: &Model| source.problems(Severity::Error).len() == 3 && model.services.len() == 1;
    until(&mut source, &mut model, "kept", kept).await;
    api.put(service("web", 81));
    api.put(service("bad", 82));
    api.delete("services", "default", "worse");
    let well =
        |source: &Source, model: &Model| source.problems(Severity::Error).is_empty() && model.services.len() == 2;
    until(&mut source, &mut model, "well", well).await;
}

#[tokio::test]
async fn whoever_is_no_api_server_is_told_apart() {
    let api = server();
    for resource in ["services", "servicecidrs"] {
        api.refuse("list", resource, Some(Fault::Answer(404, None)));
    }
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    let both =
        |source: &Source, _: &Model| of(source, "services").is_some() && !source.problems(Severity::Warning).is_empty();
    until(&mut source, &mut model, "told", both).await;
    let services = of(&source, "services").expect("told");
    assert!(services.fix.contains("check that the URL is one's"), "{services:?}");
    let cidrs = source.problems(Severity::Warning).into_iter().find(|told| told.object == "watch of servicecidrs");
    assert_eq!(cidrs.map(|told| told.fix), Some("use Kubernetes 1.33 or newer".to_owned()));
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let api = server();
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        for verb in ["list", "watch"] {
            api.refuse(verb, resource, Some(Fault::Slow(400)));
        }
    }
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    let well = |source: &Source, _: &Model| {
        assert_eq!(source.problems(Severity::Error), [], "slow is no error");
        source.is_complete() && source.status().iter().all(|watch| watch.synced)
    };
    until(&mut source, &mut model, "complete", well).await;
    api.put(service("late", 80));
    until(&mut source, &mut model, "a change", |_, model| model.services.len() == 2).await;
    // Each was asked once: nobody was given up on.
    assert_eq!(
        api.requests().iter().filter(|request| *request == "list endpointslices").count(),
        2,
        "{:?}",
        api.requests()
    );
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it() {
    let api = server();
    api.fail("services", [Fault::Answer(429, Some(1))]);
    let begin = std::time::Instant::now();
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "asked again after {:?}", begin.elapsed());
    assert_eq!(api.requests().iter().filter(|request| *request == "list services").count(), 2);
}

#[tokio::test]
async fn a_refused_watch_is_not_followed_by_list_after_list() {
    let count = |api: &ApiServer, what: &str| api.requests().iter().filter(|request| *request == what).count();
    for (code, most_lists) in [(403, 1), (500, 5), (410, 12)] {
        let api = server();
        api.refuse("watch", "services", Some(Fault::Answer(code, None)));
        let access = Access::Master(api.url());
        let timing = Timing { answers: Duration::from_millis(100), ..QUICK };
        let options = Options { access, selectors: Selectors::datapath("n"), service_cidrs: true, timing };
        let begin = std::time::Instant::now();
        let mut source = Source::start(options).await.expect("started");
        let mut model = Model::default();
        let tried = |_: &Source, _: &Model| count(&api, "watch services") >= 12;
        until(&mut source, &mut model, &format!("{code}"), tried).await;
        // Half of 5, 10, 20, 40, 80 and six times 100 ms.
        assert!(begin.elapsed() >= Duration::from_millis(370), "{code}: 12 watches in {:?}", begin.elapsed());
        let lists = count(&api, "list services");
        assert!(lists <= most_lists + 1, "{code}: {lists} lists");
        let problem = of(&source, "services").expect("told");
        assert!(problem.cause.contains(&format!("{code}")), "{problem:?}");
    }
}

#[tokio::test]
async fn a_watch_that_ends_after_each_word_is_not_begun_at_once() {
    let api = server();
    let access = Access::Master(api.url());
    let timing = Timing { between: Duration::from_millis(100), ..QUICK };
    let options = Options { access, selectors: Selectors::datapath("n"), service_cidrs: true, timing };
    let mut source = Source::start(options).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    let begin = std::time::Instant::now();
    let watches = |api: &ApiServer| api.requests().iter().filter(|request| *request == "watch services").count();
    let before = watches(&api);
    for port in 81..87 {
        api.put(service("web", port));
        let is_there = |_: &Source, model: &Model| {
            model.services.values().flat_map(|service| &service.ports).any(|there| there.port.get() == port)
        };
        until(&mut source, &mut model, "the change", is_there).await;
        api.cut("services", false);
    }
    let most = begin.elapsed().as_millis() / 100 + 2;
    assert!(
        watches(&api) - before <= usize::try_from(most).expect("few"),
        "{} in {:?}",
        watches(&api),
        begin.elapsed()
    );
}

#[tokio::test]
async fn events_in_another_order_are_not_lost() {
    let api = server();
    let mut source = start(Access::Master(api.url())).await.expect("started");
    let mut model = Model::default();
    let synced = |source: &Source, _: &Model| source.status().iter().all(|watch| watch.synced);
    until(&mut source, &mut model, "complete", synced).await;
    api.reorder(true);
    api.put(service("first", 81));
    api.put(service("second", 82));
    until(&mut source, &mut model, "both", |_, model| model.services.len() == 3).await;
    // Of one object the newer version stays.
    api.put(service("first", 83));
    api.put(service("first", 84));
    api.delete("services", "default", "second");
    api.put(service("third", 85));
    let ports = |model: &Model| -> Vec<u16> {
        model.services.values().flat_map(|service| &service.ports).map(|port| port.port.get()).collect()
    };
    until(&mut source, &mut model, "the last", |_, model| ports(model) == [84, 85, 80]).await;
    api.reorder(false);
    until(&mut source, &mut model, "well", |source, _| source.problems(Severity::Error).is_empty()).await;
}
