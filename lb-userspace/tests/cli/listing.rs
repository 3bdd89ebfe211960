//! `backend list` and `conntrack list`: the kernel's tables, with an agent and without one.

use serde_json::Value;

use crate::{
    agent::start,
    place::{Place, skip},
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn backends_are_listed_with_an_agent_and_without_one() {
    let (bpffs, agent) = match start() {
        Ok(started) => started,
        Err(reason) => return skip(reason),
    };
    let place = &bpffs.place;
    let read = || {
        let answer = place.run(&["backend", "list", "-o", "json"]);
        answer.expect(0, &[]);
        json(&answer.stdout)
    };
    let with_agent = read();
    let rows = with_agent.as_array().expect("a list");
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            (text("namespace"), text("name"), text("portName"), text("address"), text("state"))
        })
        .collect();
    let row = |address: &str| ["default", "web", "http", address, "in use"].map(str::to_owned).into();
    assert_eq!(told, [row("10.244.1.5"), row("10.244.2.5")]);
    for row in rows {
        assert!(row["slot"].as_u64() > Some(0) && row["generation"].as_u64() > Some(0), "{row}");
        // The agent's namespace has no route.
        assert!(row["device"].is_null() && row["connections"] == 0 && row["port"] == 8080, "{row}");
    }
    drop(agent);
    assert_eq!(read(), with_agent);
    place.run(&["backend", "list"]).expect(0, &["SERVICE", "default/web:http", "10.244.1.5:8080"]);
    place.run(&["backend", "list", "-o", "yaml"]).expect(0, &["10.244.1.5", "portName: http"]);
    place.run(&["backend", "list", "--service", "default/web"]).expect(0, &["10.244.2.5:8080"]);
    let parts = ["hold no Service default/absent", "ballast service list", "ids.json"];
    place.run(&["backend", "list", "--service", "default/absent"]).expect_error(1, &parts);

    place.run(&["conntrack", "list"]).expect(0, &["No flows."]);
    let empty = place.run(&["conntrack", "list", "-o", "json", "--client", "fd00::1"]);
    assert_eq!(json(&empty.stdout), serde_json::json!({"flows": [], "leftOut": 0}));
    place.run(&["conntrack", "list", "--service", "default/absent"]).expect_error(1, &parts);
}

#[test]
fn without_tables_the_lists_say_where_they_looked() {
    let place = Place::new();
    for command in ["backend", "conntrack"] {
        place.run(&[command, "list"]).expect_error(1, &["is not a bpffs", "--bpffs"]);
        place.run(&[command, "list", "--service", "web"]).expect_error(2, &["NAMESPACE/NAME"]);
    }
    place.run(&["conntrack", "list", "--client", "web"]).expect_error(2, &["--client"]);
    place.run(&["conntrack", "list", "--limit", "many"]).expect_error(2, &["limit"]);
}
