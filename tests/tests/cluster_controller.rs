//! `ballast controller` on a real API server, with the rights that deploy/ gives it: statuses, Events, and the Lease that
//! goes from one replica to the next.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::Context as _;
use lb_tests::{ControlPlane, Manifest, Process, World, binary, needs_control_plane, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);

/// A kubeconfig of the `ServiceAccount` of the manifest.
fn kubeconfig(plane: &ControlPlane) -> anyhow::Result<PathBuf> {
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/ballast-controller/token";
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = plane.with_client(|client| async move {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(request.to_string().into_bytes())?;
        Ok(client.request::<Value>(request).await?)
    })?;
    let token = answer["status"]["token"].as_str().context("no token")?;
    let ca = plane.directory().join("ca.crt");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", plane.address()), "certificate-authority": ca}}],
        "users": [{"name": "c", "user": {"token": token}}],
    });
    let file = plane.directory().join("controller.kubeconfig");
    fs::write(&file, config.to_string())?;
    Ok(file)
}

fn replica(plane: &ControlPlane, kubeconfig: &PathBuf, label: &str) -> anyhow::Result<Process> {
    let mut command: Command = plane.place().command(binary("ballast")?)?;
    command.args(["controller", "--config-map", "kube-system/ballast-address-pools", "--kubeconfig"]).arg(kubeconfig);
    Process::spawn(label, command)
}

fn pools(pools: &Value) -> Value {
    let text = json!({"apiVersion": "ballast.dev/v1alpha1", "kind": "BallastConfiguration", "addressPools": pools});
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"config.yaml": text.to_string()},
        "metadata": {"name": "ballast-address-pools", "namespace": "kube-system"},
    })
}

fn service(name: &str, fields: &Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80}],
    });
    spec.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn wait(plane: &ControlPlane, name: &str, expected: &[&str]) -> anyhow::Result<Value> {
    wait_until(&format!("Service {name} with {expected:?}"), PATIENCE, || {
        let found = plane.get("services", "default", name).map_err(|error| format!("{error:#}"))?.unwrap_or_default();
        let ingress = found["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        let ips: Vec<_> = ingress.iter().filter_map(|entry| entry["ip"].as_str()).collect();
        let vips = ingress.iter().all(|entry| entry["ipMode"] == "VIP");
        if ips == expected && vips { Ok(found) } else { Err(found["status"].to_string()) }
    })
}

fn holder(plane: &ControlPlane) -> anyhow::Result<String> {
    wait_until("somebody holds the Lease", PATIENCE, || {
        let lease = plane.get("leases", "kube-system", "ballast-controller").map_err(|error| format!("{error:#}"))?;
        let holder = lease.unwrap_or_default()["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        if holder.is_empty() { Err("nobody".to_owned()) } else { Ok(holder) }
    })
}

#[test]
fn a_real_cluster_gets_addresses_from_one_leader_after_another() {
    needs_control_plane!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let plane = ControlPlane::start(&world).expect("a control plane");
    for document in Manifest::controller().expect("a manifest").documents {
        plane.apply_document(document).expect("applied");
    }
    plane
        .apply_document(pools(
            &json!([{"name": "home", "addresses": ["198.51.100.1-198.51.100.3", "2001:db8:100::/120"]}]),
        ))
        .expect("pools");
    let kubeconfig = kubeconfig(&plane).expect("a kubeconfig");
    run(&plane, &kubeconfig).unwrap_or_else(|error| panic!("{error:#}"));
}

fn run(plane: &ControlPlane, kubeconfig: &PathBuf) -> anyhow::Result<()> {
    let first = replica(plane, kubeconfig, "the first controller")?;
    let one = holder(plane)?;
    let second = replica(plane, kubeconfig, "the second controller")?;
    plane.apply_document(service("a", &json!({})))?;
    let status = wait(plane, "a", &["198.51.100.1", "2001:db8:100::"])?["status"].clone();
    assert_eq!(status["conditions"][0]["type"], "ballast.dev/LoadBalancerAddresses", "{status}");
    assert_eq!(status["conditions"][0]["message"], "198.51.100.1 of pool home; 2001:db8:100:: of pool home");

    // One asks for what is taken: it is told, as kubectl describe shows it.
    let wanted = service("b", &json!({"loadBalancerIP": "198.51.100.1", "loadBalancerClass": "ballast.dev/lb"}));
    let uid = plane.apply_document(wanted)?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    wait_until("the Event", PATIENCE, || {
        let path = format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}");
        let list = plane.with_client(|client| async move {
            Ok(client.request::<Value>(http::Request::get(path).body(Vec::new())?).await?)
        });
        let list = list.map_err(|error| format!("{error:#}"))?;
        let told = list["items"].as_array().into_iter().flatten().any(|event| {
            event["reason"] == "LoadBalancerIPTaken"
                && event["message"]
                    .as_str()
                    .is_some_and(|it| it.contains("198.51.100.1 of pool home belongs to Service default/a"))
        });
        if told { Ok(()) } else { Err(list["items"].to_string()) }
    })?;
    // And a foreign class is left alone.
    plane.apply_document(service("foreign", &json!({"loadBalancerClass": "example.org/lb"})))?;

    // The leader ends; the other one goes on where it was.
    first.signal(Signal::TERM)?;
    wait_until("the second leads", PATIENCE, || match holder(plane) {
        Ok(holder) if holder != one => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    assert!(first.stderr().contains("gave back Lease kube-system/ballast-controller"), "{}", first.stderr());
    plane.apply_document(service("c", &json!({"ipFamilyPolicy": "SingleStack"})))?;
    wait(plane, "c", &["198.51.100.2"])?;
    wait(plane, "a", &["198.51.100.1", "2001:db8:100::"])?;
    wait(plane, "foreign", &[])?;

    // Its type changes: the address goes, and whoever waits for it has it.
    plane.patch("services", "default", "a", json!({"spec": {"type": "ClusterIP"}}))?;
    let a = wait(plane, "a", &[])?;
    wait(plane, "b", &["198.51.100.1", "2001:db8:100::1"])
        .or_else(|_| wait(plane, "b", &["198.51.100.1", "2001:db8:100::"]))?;
    wait_until("a says nothing any more", PATIENCE, || {
        let a = plane.get("services", "default", "a").map_err(|error| format!("{error:#}"))?.unwrap_or_default();
        let conditions = a["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.is_empty() { Ok(()) } else { Err(a["status"].to_string()) }
    })
    .with_context(|| a["status"].to_string())?;

    // Killed, the last one is followed by whoever waits for the end of its Lease.
    let third = replica(plane, kubeconfig, "the third controller")?;
    let two = holder(plane)?;
    second.signal(Signal::KILL)?;
    wait_until("the third leads", PATIENCE, || match holder(plane) {
        Ok(holder) if holder != two => Ok(()),
        other => Err(format!("{other:?}\n{}", third.stderr())),
    })?;
    plane.delete("services", "default", "c")?;
    plane.apply_document(service("d", &json!({"ipFamilyPolicy": "SingleStack"})))?;
    wait(plane, "d", &["198.51.100.2"])?;
    Ok(())
}
