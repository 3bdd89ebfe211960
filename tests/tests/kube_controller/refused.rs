//! Services that the API server gives and that cannot be understood: what their statuses hold stays theirs.

use super::*;

fn holding(spec: &Value) -> Value {
    let mut wrong = service("wrong", spec);
    wrong["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}});
    wrong
}

/// What is refused, and what is not even of the right types.
fn wrong_specs() -> [Value; 2] {
    [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"ports": [{"port": "eighty"}]})]
}

#[test]
fn what_a_refused_service_holds_nobody_else_gets() {
    for spec in wrong_specs() {
        let api = cluster();
        let wrong = holding(&spec);
        api.put(wrong.clone());
        api.put(service("a", &json!({})));
        api.put(service("b", &json!({"loadBalancerIP": "198.51.100.1"})));
        let controller = Controller::with_map(&api);
        controller.wait("a has the other address", || has(&api, "a", &["198.51.100.2"]));
        controller.wait("b is told whose it is", || {
            let condition = condition(&find(&api, "b"));
            let told =
                condition["message"].as_str().is_some_and(|text| text.contains("kept for Service default/wrong"));
            if told && condition["status"] == "False" { Ok(()) } else { Err(condition.to_string()) }
        });
        assert_eq!(find(&api, "wrong")["status"], wrong["status"]);
        let log = controller.process.stderr();
        assert!(log.contains("refused, and what its status has is kept for it: 198.51.100.1"), "{log}");
        let page = Controller::get(controller.metrics, "/metrics");
        let line = "ballast_controller_pool_addresses_in_use{pool=\"home\"} 2";
        assert!(page.lines().any(|found| found == line), "{page}");
        api.delete("services", "default", "wrong");
        controller.wait("b has what it asked for", || has(&api, "b", &["198.51.100.1"]));
    }
}

#[test]
fn a_refused_service_that_is_corrected_has_its_address_still() {
    for spec in wrong_specs() {
        let api = cluster();
        api.put(holding(&spec));
        api.put(service("a", &json!({})));
        let controller = Controller::with_map(&api);
        controller.wait("a has the other address", || has(&api, "a", &["198.51.100.2"]));
        api.put(holding(&json!({})));
        controller.wait("the condition says whose it is", || {
            let condition = condition(&find(&api, "wrong"));
            if condition["message"] == "198.51.100.1 of pool home" { Ok(()) } else { Err(condition.to_string()) }
        });
        has(&api, "wrong", &["198.51.100.1"]).expect("its address");
    }
}
