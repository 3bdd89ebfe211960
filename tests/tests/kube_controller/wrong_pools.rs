//! Pools that are wrong: at the start, and later.

use lb_tests::api_server::ApiServer;
use serde_json::{Value, json};

use super::{CONDITION, Controller, cluster, condition, find, has, pools, service};

#[test]
fn broken_pools_change_nothing_and_mended_ones_are_taken() {
    let api = cluster();
    api.put(service("a", &json!({})));
    let controller = Controller::with_map(&api);
    controller.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
    let stale = |wanted: &'static str| {
        let page = Controller::get(controller.metrics, "/metrics");
        if page.lines().any(|line| line == wanted) { Ok(()) } else { Err(page) }
    };
    api.put(pools("[{name: x, addresses: [192.0.2.0/28]}, {name: y, addresses: [192.0.2.8/30]}]"));
    controller.wait("it tells of the overlap", || stale("ballast_controller_pools_stale 1"));
    let log = controller.process.stderr();
    assert!(
        log.contains("192.0.2.8/30 of pool y overlaps 192.0.2.0/28 of pool x")
            && log.contains("the last good pools stay in use"),
        "{log}"
    );
    api.put(service("b", &json!({})));
    controller.wait("b is served by the last good ones", || has(&api, "b", &["198.51.100.2"]));
    api.put(pools("[{name: home, addresses: [198.51.100.1]}, {name: more, addresses: [192.0.2.8/30]}]"));
    controller.wait("the new ones are used", || has(&api, "b", &["192.0.2.8"]));
    has(&api, "a", &["198.51.100.1"]).expect("a keeps its address");
    stale("ballast_controller_pools_stale 0").expect("well again");
}

fn note(api: &ApiServer, kind: &str, name: &str) -> String {
    let of = |event: &&Value| event["regarding"]["kind"] == kind && event["regarding"]["name"] == name;
    let events = api.objects("events");
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let notes = events.iter().filter(of).map(|event| format!("{} {}", text(event, "reason"), text(event, "note")));
    notes.collect::<Vec<_>>().join("\n")
}

#[test]
fn wrong_pools_are_told_by_events_on_their_config_map() {
    let api = cluster();
    let controller = Controller::with_map(&api);
    controller.wait("it leads", || if controller.leads() { Ok(()) } else { Err("it does not".to_owned()) });
    let told = |what: &str| {
        let found = note(&api, "ConfigMap", "pools");
        if found.contains("InvalidAddressPools") && found.contains(what) { Ok(()) } else { Err(found) }
    };
    for (text, expected) in [
        (
            "[{name: x, addresses: [192.0.2.0/28]}, {name: y, addresses: [192.0.2.8/30]}]",
            "192.0.2.8/30 of pool y overlaps 192.0.2.0/28 of pool x",
        ),
        ("[{name: x, addresses: [abc]}]", "\"abc\" is no range of addresses"),
        ("[{name: x, addresses: {", "unclosed bracket"),
    ] {
        api.put(pools(text));
        controller.wait(text, || told(expected));
    }
    // Nobody who has an address, or gets one of the last good pools, is told anything.
    api.put(service("a", &json!({})));
    controller.wait("a has an address", || has(&api, "a", &["198.51.100.1"]));
    assert_eq!(note(&api, "Service", "a"), "");
}

#[test]
fn before_the_first_good_pools_whoever_waits_is_told_what_is_wrong_with_them() {
    let api = cluster();
    api.put(pools("[{name: x, addresses: [192.0.2.0/28]}, {name: y, addresses: [192.0.2.8/30]}]"));
    api.put(service("a", &json!({})));
    api.put(service("b", &json!({"loadBalancerClass": "ballast.dev/lb"})));
    let mut has_one = service("c", &json!({}));
    has_one["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}, "conditions": [
        {"type": CONDITION, "status": "True", "reason": "Assigned", "message": "192.0.2.1 of pool x"}]});
    api.put(has_one.clone());
    let controller = Controller::with_map(&api);
    let expected = "192.0.2.8/30 of pool y overlaps 192.0.2.0/28 of pool x";
    controller.wait("those who wait are told", || {
        let found = [note(&api, "Service", "a"), note(&api, "Service", "b"), note(&api, "ConfigMap", "pools")];
        if found.iter().all(|note| note.contains(expected)) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let condition_of_b = condition(&find(&api, "b"));
    assert_eq!(
        (&condition_of_b["status"], &condition_of_b["reason"]),
        (&json!("False"), &json!("InvalidAddressPools"))
    );
    assert!(condition(&find(&api, "a")).is_null(), "without a class it may be another controller's");
    assert_eq!(
        (find(&api, "c")["status"].clone(), note(&api, "Service", "c")),
        (has_one["status"].clone(), String::new())
    );
    api.put(pools("[{name: x, addresses: [192.0.2.0/28]}]"));
    controller.wait("they have addresses", || {
        has(&api, "a", &["192.0.2.0"])?;
        has(&api, "b", &["192.0.2.2"])?;
        has(&api, "c", &["192.0.2.1"])
    });
}
