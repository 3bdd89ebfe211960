//! Credentials and URLs that cannot work, or no longer.

use std::path::{Path, PathBuf};

use super::*;

fn kubeconfig(server: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
}

#[tokio::test]
async fn credentials_are_read_anew() {
    let api = server();
    api.require_token("second");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    let token = |token: &str| {
        std::fs::write(&path, kubeconfig(&api.url(), &format!("token: {token}"))).expect("written");
    };
    token("first");
    let access = Access::Kubeconfig { path: path.clone(), master: None };
    let mut source = start(access).await.expect("started");
    let mut model = Model::default();
    let told = |source: &Source, _: &Model| of(source, "services").is_some_and(|told| told.cause.contains("(401)"));
    until(&mut source, &mut model, "refused", told).await;
    token("second");
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
}

#[tokio::test]
async fn a_token_file_may_end_with_a_line_end() {
    let api = server();
    api.require_token("secret");
    let directory = tempfile::tempdir().expect("a directory");
    let (path, token) = (directory.path().join("kubeconfig"), directory.path().join("token"));
    std::fs::write(&path, kubeconfig(&api.url(), &format!("tokenFile: {}", token.display()))).expect("written");
    std::fs::write(&token, "secret\n").expect("written");
    let mut source = start(Access::Kubeconfig { path, master: None }).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
}

fn plugin(command: &str) -> String {
    let version = "client.authentication.k8s.io/v1";
    format!("exec: {}", json!({"apiVersion": version, "command": command, "interactiveMode": "Never"}))
}

#[tokio::test]
async fn a_plugin_that_fails_is_tried_again() {
    let api = server();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig(&api.url(), &plugin("false"))).expect("written");
    let mut source = start(Access::Kubeconfig { path: path.clone(), master: None }).await.expect("started");
    let mut model = Model::default();
    let told = |source: &Source, _: &Model| {
        of(source, "services").is_some_and(|told| told.cause.contains("its plugin false: "))
    };
    until(&mut source, &mut model, "told", told).await;
    std::fs::write(&path, kubeconfig(&api.url(), "token: a")).expect("written");
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
}

/// The processes that still run of those whose pids, each a line, are in this file: they and all of their groups.
fn running(pids: &Path) -> (usize, Vec<String>) {
    let pids = std::fs::read_to_string(pids).unwrap_or_default();
    let begun: Vec<&str> = pids.lines().collect();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").expect("processes").flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // State, parent, group: behind the name in parentheses, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        let group = fields.get(2).copied().unwrap_or_default();
        if fields.first().is_some_and(|state| *state != "Z") && begun.contains(&group) {
            found.push(stat);
        }
    }
    (begun.len(), found)
}

/// A plugin that takes longer than anybody waits for it, and leaves its pid in a file.
fn hanging(directory: &Path) -> (PathBuf, PathBuf) {
    let (script, pids) = (directory.join("hanging"), directory.join("pids"));
    std::fs::write(&script, format!("echo $$ >> {}\necho who are you >&2\nsleep 40\necho\n", pids.display()))
        .expect("written");
    (script, pids)
}

fn in_shell(script: &Path) -> String {
    let version = "client.authentication.k8s.io/v1";
    let exec = json!({"apiVersion": version, "command": "/bin/sh", "args": [script], "interactiveMode": "IfAvailable"});
    format!("exec: {exec}")
}

#[tokio::test]
async fn a_plugin_that_hangs_holds_nobody_and_ends_with_whoever_asked_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    let (script, pids) = hanging(directory.path());
    std::fs::write(&path, kubeconfig("https://192.0.2.1", &in_shell(&script))).expect("written");
    let begin = std::time::Instant::now();
    let mut source = start(Access::Kubeconfig { path: path.clone(), master: None }).await.expect("started");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(running(&pids).1.is_empty(), "{:?}", running(&pids));
    let mut model = Model::default();
    until(&mut source, &mut model, "told", |source, _| of(source, "services").is_some()).await;
    let told = of(&source, "services").expect("told");
    let file = format!("kubeconfig {}: its plugin /bin/sh: no answer within 10 s", path.display());
    assert!(told.cause.starts_with(&file) && told.cause.contains("who are you"), "{told:?}");
    // All the watches ask: one plugin runs for them.
    let again = tokio::time::timeout(Duration::from_secs(10), async {
        while running(&pids).0 < 2 {
            tokio::select! {
                _ = source.changed(&mut model) => {}
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    });
    again.await.expect("tried again");
    drop(source);
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while !running(&pids).1.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(ended.await.is_ok(), "{:?}", running(&pids));
    assert_eq!(running(&pids).0, 2, "one at the start and one for all watches");
}

#[tokio::test]
async fn a_wrong_kubeconfig_or_url_ends_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = std::cell::Cell::new(0);
    let config = |text: &str| {
        let path = directory.path().join(format!("kubeconfig-{}", files.replace(files.get() + 1)));
        std::fs::write(&path, text).expect("written");
        Access::Kubeconfig { path, master: None }
    };
    for (access, part) in [
        (Access::Kubeconfig { path: "/nonexistent/config".into(), master: None }, "/nonexistent/config"),
        (config("kind: ["), "kubeconfig"),
        (config("apiVersion: v1\nkind: Config\n"), "context"),
        (config("apiVersion: v1\nkind: Config\ncurrent-context: gone\ncontexts: []\n"), "gone"),
        (config(&kubeconfig("127.0.0.1:99999", "token: a")), "127.0.0.1:99999"),
        (config(&kubeconfig("ftp://a", "token: a")), "server ftp://a"),
        (config(&kubeconfig("/just/path", "token: a")), "server /just/path"),
        (config(&kubeconfig("https://192.0.2.1", r#"token: "abc\n""#)), "the user's token"),
        (
            config(&kubeconfig(
                "https://192.0.2.1",
                "client-certificate-data: cnViYmlzaA==, client-key-data: cnViYmlzaA==",
            )),
            "identity PEM",
        ),
        (config(&kubeconfig("https://192.0.2.1", &plugin("/nonexistent/plugin"))), "its plugin /nonexistent/plugin: "),
        (config(&kubeconfig("https://192.0.2.1", &plugin("echo"))), "its plugin echo: its "),
        (
            config(&kubeconfig("https://192.0.2.1", &plugin("echo").replace("Never", "Always"))),
            "its plugin echo: interactiveMode: Always",
        ),
        (
            config(&kubeconfig(
                "https://192.0.2.1",
                "auth-provider: {name: gcp, config: {cmd-path: sleep, cmd-args: '40'}}",
            )),
            "auth-provider gcp is not supported",
        ),
        (
            config(
                &kubeconfig("https://192.0.2.1", "token: a").replace("{server:", "{proxy-url: \"http://p:1\", server:"),
            ),
            "cluster c: proxy-url is not supported",
        ),
        (Access::Master("ftp://a".into()), "give a URL such as"),
        (Access::Master("https://".into()), "--master"),
    ] {
        let started = start(access.clone()).await;
        let Err(error) = started.map_err(|error| error.to_string()) else {
            panic!("{access:?} is not refused: {part}")
        };
        assert!(error.contains(part), "{access:?}: {error}");
        let of_file = matches!(access, Access::Kubeconfig { .. });
        assert!(!of_file || error.contains("`kubectl --kubeconfig` can use"), "{error}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_breaks_while_it_is_used_is_told_and_read_again() {
    let api = server();
    api.require_token("good");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    let good = kubeconfig(&api.url(), "token: good");
    std::fs::write(&path, &good).expect("written");
    let mut source = start(Access::Kubeconfig { path: path.clone(), master: None }).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    let line_end = kubeconfig(&api.url(), r#"token: "good\n""#);
    // A plugin's token is known only when it is used.
    let answer =
        r#"{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "good\n"}}"#;
    let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [answer], "interactiveMode": "Never"});
    let by_plugin = kubeconfig(&api.url(), &format!("exec: {exec}"));
    for (index, bad) in ["kind: [", &line_end, &by_plugin].into_iter().enumerate() {
        std::fs::write(&path, bad).expect("written");
        // A watch that heard something goes on with its client where the server is back at once.
        api.away(true);
        let told = |source: &Source, _: &Model| {
            of(source, "services").is_some_and(|told| told.cause.contains(&path.display().to_string()))
        };
        until(&mut source, &mut model, bad, told).await;
        assert_eq!(model.services.len(), index + 1, "what was known stays");
        std::fs::write(&path, &good).expect("written");
        api.away(false);
        api.put(service(&format!("late-{index}"), 80));
        until(&mut source, &mut model, "well", |_, model| model.services.len() == index + 2).await;
    }
}

#[tokio::test]
async fn a_pod_remembers_the_servers() {
    let api = server();
    let directory = tempfile::tempdir().expect("a directory");
    for (file, text) in [("token", "a"), ("ca.crt", "")] {
        std::fs::write(directory.path().join(file), text).expect("written");
    }
    let servers = directory.path().join("api-servers.json");
    let labels = json!({"kubernetes.io/service-name": "kubernetes"});
    api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "ports": [{"name": "https", "protocol": "TCP", "port": 6443}],
        "endpoints": [{"addresses": ["192.0.2.1"]}],
    }));
    let access =
        Access::InCluster { account: directory.path().to_owned(), master: Some(api.url()), servers: servers.clone() };
    let mut source = start(access).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "complete", |source, _| source.is_complete()).await;
    let kept = std::fs::read_to_string(&servers).expect("kept");
    assert_eq!(kept, r#"["192.0.2.1:6443"]"#);
    // Without any, what was known is the best there is.
    api.delete("endpointslices", "default", "kubernetes");
    until(&mut source, &mut model, "gone", |_, model| model.slices.is_empty()).await;
    assert_eq!(std::fs::read_to_string(&servers).expect("kept"), kept);
}
