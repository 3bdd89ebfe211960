//! Several API servers with TLS, as a pod remembers them.

use std::path::Path;

use lb_tests::Pki;

use super::*;

/// The name that is asked for where a server is remembered by its address.
const NAME: &str = "kubernetes.default.svc";

/// A server with Service `service`, whose certificate is for these names.
fn tls_server(pki: &Pki, names: &[&str], name: &str) -> ApiServer {
    let identity = pki.identity(names.iter().map(ToString::to_string)).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let api = ApiServer::start_tls(listener, &identity).expect("a server");
    api.put(service(name, 80));
    api.require_token("secret");
    api
}

fn authority(folder: &Path) -> Pki {
    std::fs::create_dir(folder).expect("a folder");
    Pki::create(folder).expect("an authority")
}

/// A pod's access: nobody is at the address it is given, as before Services are served.
fn in_pod(directory: &Path, pki: &Pki, servers: &[&ApiServer]) -> Access {
    std::fs::write(directory.join("token"), "secret\n").expect("written");
    std::fs::copy(pki.path("ca.crt"), directory.join("ca.crt")).expect("copied");
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let remembered: Vec<_> = servers.iter().map(|api| api.address()).collect();
    let servers = directory.join("api-servers.json");
    std::fs::write(&servers, json!(remembered).to_string()).expect("written");
    Access::InCluster { account: directory.to_owned(), master: Some(format!("https://{nobody}")), servers }
}

fn all_synced(source: &Source) -> bool {
    source.is_complete() && source.status().iter().all(|watch| watch.synced)
}

#[tokio::test]
async fn the_second_server_goes_on_where_the_first_one_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let pki = authority(&directory.path().join("pki"));
    let mut servers = [tls_server(&pki, &[NAME], "web"), tls_server(&pki, &[NAME], "web")];
    // They are tried in the order of their addresses.
    servers.sort_by_key(ApiServer::address);
    let [first, second] = servers;
    let mut source = start(in_pod(directory.path(), &pki, &[&first, &second])).await.expect("started");
    let mut model = Model::default();
    until(&mut source, &mut model, "the first", |source, _| all_synced(source)).await;
    assert!(source.words().starts_with(&first.url()), "{}", source.words());
    assert_eq!((model.services.len(), second.requests()), (1, Vec::new()));
    drop(first);
    second.put(service("late", 80));
    let both = |source: &Source, model: &Model| model.services.len() == 2 && all_synced(source);
    until(&mut source, &mut model, "the second", both).await;
    assert!(source.words().starts_with(&second.url()), "{}", source.words());
    assert_eq!(source.problems(Severity::Error), []);
}

#[tokio::test]
async fn whoever_has_another_certificate_is_told_and_not_believed() {
    let directory = tempfile::tempdir().expect("a directory");
    let [pki, another] = ["pki", "another"].map(|folder| authority(&directory.path().join(folder)));
    for (wrong, part) in [
        (tls_server(&another, &[NAME], "false"), "invalid peer certificate: BadSignature"),
        (
            tls_server(&pki, &["kubernetes.other.svc", "127.0.0.1"], "false"),
            "not valid for name \"kubernetes.default.svc\"",
        ),
    ] {
        let mut source = start(in_pod(directory.path(), &pki, &[&wrong])).await.expect("started");
        let mut model = Model::default();
        let cause = format!("{} has a certificate that is not accepted: ", wrong.url());
        let told = |source: &Source, _: &Model| {
            of(source, "services").is_some_and(|told| told.cause.starts_with(&cause) && told.cause.contains(part))
        };
        until(&mut source, &mut model, part, told).await;
        let told = of(&source, "services").expect("told");
        assert!(told.fix.contains("certificate-authority") && told.fix.contains("ca.crt"), "{told:?}");
        assert_eq!((source.is_complete(), wrong.requests()), (false, Vec::new()), "nothing was asked of it");
        // Beside it a server of the cluster.
        let right = tls_server(&pki, &[NAME], "true");
        let mut source = start(in_pod(directory.path(), &pki, &[&wrong, &right])).await.expect("started");
        until(&mut source, &mut model, "the right one", |source, _| all_synced(source)).await;
        assert!(model.services.keys().all(|name| name.name == "true") && model.services.len() == 1, "{model:?}");
        assert_eq!(wrong.requests(), Vec::<String>::new());
    }
}
