//! The manifests of deploy/ on a real API server, and the agent as the pod they make.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use lb_tests::{
    Agent, ControlPlane, Echo, Manifest, PodSetup, TARGET, World,
    client::Call,
    kube::{PodSpec, Service},
    needs_control_plane, program, wait_until,
};
use serde_json::{Value, json};

/// Runs kubectl in the control plane's namespace as the administrator.
fn kubectl(plane: &ControlPlane, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command: Command = plane.place().command(program("kubectl")?)?;
    command.arg("--kubeconfig").arg(plane.admin_kubeconfig()).args(arguments);
    let output = command.output().context("cannot run kubectl")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), text(&output.stderr));
    // A field that the server does not know is a warning.
    ensure!(output.stderr.is_empty(), "kubectl {}: {}", arguments.join(" "), text(&output.stderr));
    Ok(text(&output.stdout))
}

fn deploy(name: &str) -> String {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "deploy", name].iter().collect();
    folder.display().to_string()
}

/// The credentials of the `ServiceAccount` in a folder, as a kubelet mounts them.
fn service_account(plane: &ControlPlane, world: &World) -> anyhow::Result<PathBuf> {
    let token = kubectl(plane, &["-n", "kube-system", "create", "token", "ballast"])?;
    let folder = world.directory().join("service-account");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("token"), token.trim())?;
    fs::copy(plane.directory().join("ca.crt"), folder.join("ca.crt"))?;
    Ok(folder)
}

#[test]
fn a_real_api_server_takes_the_manifests_and_serves_their_pods() {
    needs_control_plane!();
    for (manifest, file) in Manifest::all().expect("manifests").iter().zip(["install.yaml", "install-least.yaml"]) {
        install(manifest, file).unwrap_or_else(|error| panic!("{file}: {error:#}"));
    }
}

fn install(manifest: &Manifest, file: &str) -> anyhow::Result<()> {
    let world = World::builder().rp_filter(1).build()?;
    let plane = ControlPlane::start(&world)?;
    plane.apply_nodes(&world)?;
    let path = deploy(file);
    kubectl(&plane, &["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", &path])?;
    ensure!(plane.get("daemonsets", "kube-system", "ballast")?.is_none(), "a dry run made something");
    kubectl(&plane, &["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", &path])?;
    // The second time changes nothing.
    kubectl(&plane, &["diff", "--server-side", "--force-conflicts", "-f", &path])?;
    // A pod for each node, as the real controller makes them.
    wait_until("a pod of the DaemonSet for each node", Duration::from_secs(30), || {
        let pods = plane
            .list("pods", "kube-system", "app.kubernetes.io/name=ballast")
            .map_err(|error| format!("{error:#}"))?;
        if pods.len() == world.nodes().len() { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    })?;

    for pod in world.pods() {
        plane.apply_pod(pod, &PodSpec::labelled("app", "web"))?;
    }
    plane.apply_service(&Service::new("web", "app", "web").port(80, TARGET, None))?;
    let servers = world.pods().map(|pod| Echo::start(pod.place(), &[TARGET], &[TARGET]));
    let _servers: Vec<_> = servers.collect::<anyhow::Result<_>>()?;
    let api = plane.address();
    let environment =
        [("KUBERNETES_SERVICE_HOST", api.ip().to_string()), ("KUBERNETES_SERVICE_PORT", api.port().to_string())];
    let setup = PodSetup {
        service_account: service_account(&plane, &world)?,
        environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
        ..PodSetup::default()
    };
    let node = world.node(0);
    let agent = Agent::start_in_pod(&world, node, manifest, &setup)?;
    for ip in agent.cluster_ips("web", 8)? {
        wait_until(&format!("an answer by {ip}"), Duration::from_secs(20), || {
            let answer =
                Call::tcp(SocketAddr::new(ip, 80)).timeout(Duration::from_secs(2)).run_one(node.pod(0).place());
            answer.and_then(|answer| answer.reached().map(drop)).map_err(|error| format!("{error:#}"))
        })?;
    }
    wait_until("every watch to be in step with the rights of the role", Duration::from_secs(20), || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let synced = status.watches.len() == 4 && status.watches.iter().all(|watch| watch.synced);
        if synced && status.problems.is_empty() { Ok(()) } else { Err(format!("{status:#?}")) }
    })
}

#[test]
fn the_install_files_are_what_kubectl_makes_of_the_overlays() {
    needs_control_plane!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let plane = ControlPlane::start(&world).expect("a control plane");
    for manifest in Manifest::all().expect("manifests") {
        let overlay = deploy(&format!("overlays/{}", manifest.flavour));
        let text = kubectl(&plane, &["kustomize", &overlay]).expect("a build");
        let built: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let sorted = |documents: &[Value]| {
            let mut documents: Vec<Value> = documents.iter().filter(|it| !it.is_null()).map(in_order).collect();
            documents.sort_by_key(|document| document["kind"].to_string());
            documents
        };
        assert_eq!(sorted(&built), sorted(&manifest.documents), "{}", manifest.flavour);
    }
}

/// The same with its lists of mounts and volumes in an order: which Kustomize keeps is not ours to know.
fn in_order(document: &Value) -> Value {
    let mut document = document.clone();
    for (list, key) in
        [("/spec/template/spec/containers/0/volumeMounts", "mountPath"), ("/spec/template/spec/volumes", "name")]
    {
        if let Some(items) = document.pointer_mut(list).and_then(Value::as_array_mut) {
            items.sort_by_key(|item| item.get(key).map_or_else(|| json!(null).to_string(), Value::to_string));
        }
    }
    document
}
