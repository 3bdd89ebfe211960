//! A client for one of the API servers at a time.

use std::time::{Duration, Instant};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
};
use tokio::sync::Mutex;
use tower::{BoxError, ServiceBuilder};

use super::{
    access::{Access, AccessError, chain, check_token},
    calls::Calls,
    failure::Failure,
    plugin::{self, Unusable},
    task::words,
};

/// A peer that vanished is noticed after this and three probes, not after hours.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);

/// How long a plugin for credentials is waited for; it may ask a network.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// At the start, which waits for it.
    start: Duration,
    /// Later: what is known is served meanwhile.
    later: Duration,
    /// Watches and Events want a client at once: for so long all of them have failed with the one that tried.
    shared: Duration,
}

const PATIENCE: Patience =
    Patience { start: Duration::from_secs(10), later: Duration::from_mins(1), shared: Duration::from_secs(1) };

/// A client for one of the servers at a time.
#[derive(Debug)]
pub(super) struct Connection {
    access: Access,
    patience: Patience,
    /// What its clients counted.
    pub(super) calls: Calls,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Index into the ways, taken modulo their number.
    next: usize,
    /// Number of the last client.
    made: u64,
    current: Option<Current>,
    /// What the plugin failed with, and when.
    failed: Option<(Instant, Failure)>,
}

/// A client in use.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) client: Client,
    /// Its server.
    pub(super) server: String,
    pub(super) calls: Calls,
    number: u64,
    /// When its credentials are to be asked for anew.
    until: Option<Instant>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Connection {
    /// Makes a client of the credentials once, so that what is wrong with them is told at the start. A plugin that fails or
    /// takes too long may do better later.
    pub(super) async fn open(access: Access) -> Result<Self, AccessError> {
        Self::open_with(access, PATIENCE).await
    }

    async fn open_with(access: Access, patience: Patience) -> Result<Self, AccessError> {
        let connection = Self { access, patience, calls: Calls::default(), state: Mutex::default() };
        let made = connection.make(&mut *connection.state.lock().await, patience.start).await;
        match made {
            Err(Refused { error, may_pass: false }) => Err(error),
            Ok(_) | Err(_) => Ok(connection),
        }
    }

    /// The client in use, or a new one with the credentials as they are now. One plugin runs at a time.
    pub(super) async fn client(&self) -> Result<Current, Failure> {
        let mut state = self.state.lock().await;
        let lasts = |current: &&Current| current.until.is_none_or(|until| Instant::now() < until);
        if let Some(current) = state.current.as_ref().filter(lasts) {
            return Ok(current.clone());
        }
        if let Some((at, failure)) = &state.failed
            && at.elapsed() < self.patience.shared
        {
            return Err(failure.clone());
        }
        let made = self.make(&mut state, self.patience.later).await;
        made.map_err(|refused| Failure::setup(refused.error.to_string()))
    }

    async fn make(&self, state: &mut State, patience: Duration) -> Result<Current, Refused> {
        state.failed = None;
        let mut configs = self.access.configs().await.map_err(|error| Refused { error, may_pass: false })?;
        let at = state.next % configs.len();
        let config = configs.swap_remove(at);
        let server = config.cluster_url.to_string();
        let (client, until) = build(config, patience).await.map_err(|Unusable { cause, may_pass }| {
            let error = self.access.unusable(cause);
            if may_pass {
                state.failed = Some((Instant::now(), Failure::setup(error.to_string())));
            }
            Refused { error, may_pass }
        })?;
        state.made += 1;
        let server = server.trim_end_matches('/').to_owned();
        let current = Current { client, server, calls: self.calls.clone(), number: state.made, until };
        state.current = Some(current.clone());
        Ok(current)
    }

    /// This client failed: the next one reads the credentials anew, and asks another server if there are several. Of the
    /// failures of several watches with one client, the first counts.
    pub(super) async fn give_up(&self, failed: &Current, other_server: bool) {
        let mut state = self.state.lock().await;
        if state.current.as_ref().is_some_and(|current| current.number == failed.number) {
            state.current = None;
            state.next = state.next.wrapping_add(usize::from(other_server));
        }
    }
}

/// There is no client with this access now.
struct Refused {
    error: AccessError,
    /// As in [`Unusable`].
    may_pass: bool,
}

/// Makes a client, and tells until when its credentials last. There are credentials that `kube` panics at.
async fn build(mut config: Config, patience: Duration) -> Result<(Client, Option<Instant>), Unusable> {
    let plugin = plugin::of(&config.auth_info).and_then(|exec| exec.command.clone());
    let until = plugin::resolve(&mut config.auth_info, patience).await?;
    check_token(&config).map_err(|cause| {
        let by = plugin.as_ref().map(|command| format!("its plugin {command}: ")).unwrap_or_default();
        Unusable { cause: format!("{by}{cause}"), may_pass: false }
    })?;
    match tokio::task::spawn_blocking(move || build_now(&with_authorities(config))).await {
        Ok(Ok(client)) => Ok((client, until)),
        Ok(Err(error)) => Err(Unusable { cause: chain(&error), may_pass: false }),
        Err(panicked) => {
            let cause = format!("the credentials cannot be used: {}", words(panicked));
            Err(Unusable { cause, may_pass: plugin.is_some() })
        }
    }
}

/// Where no certificate is looked at, the machine need not have authorities of its own: an image from scratch has none.
fn with_authorities(mut config: Config) -> Config {
    if config.accept_invalid_certs || config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    config
}

fn build_now(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_PROBE));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{
        super::{access::TLS_NAME, servers},
        *,
    };

    fn account() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("token"), "secret").expect("written");
        // Nobody is connected to: an empty bundle will do.
        fs::write(directory.path().join("ca.crt"), "").expect("written");
        directory
    }

    fn in_cluster(directory: &Path, master: Option<&str>) -> Access {
        let servers = servers::file(directory);
        Access::InCluster { account: directory.to_owned(), master: master.map(str::to_owned), servers }
    }

    #[test]
    fn authorities_are_wanted_where_a_certificate_is_looked_at() {
        let of = |url: &str, insecure| {
            let mut config = Config::new(url.parse().expect("a URL"));
            config.accept_invalid_certs = insecure;
            with_authorities(config).root_cert
        };
        assert_eq!(of("http://192.0.2.1", false), Some(Vec::new()));
        assert_eq!(of("https://192.0.2.1", true), Some(Vec::new()));
        assert_eq!(of("https://192.0.2.1", false), None, "those of the machine");
    }

    #[tokio::test]
    async fn a_pod_fails_over_to_the_servers_it_remembers() {
        let directory = account();
        let remembered = ["192.0.2.1:6443", "[2001:db8::1]:6443"].map(|server| server.parse().expect("an address"));
        servers::keep(&servers::file(directory.path()), &remembered.into()).expect("kept");
        let access = in_cluster(directory.path(), Some("https://192.0.2.9"));
        let configs = access.configs().await.expect("ways");
        let names: Vec<_> = configs.iter().map(|config| config.tls_server_name.as_deref()).collect();
        assert_eq!(names, [None, Some(TLS_NAME), Some(TLS_NAME)]);
        let connection = Connection::open(access).await.expect("opened");
        let mut tried = Vec::new();
        for _ in 0..4 {
            let current = connection.client().await.expect("a client");
            tried.push(current.server.clone());
            // The watches fail together; that counts once.
            connection.give_up(&current, true).await;
            connection.give_up(&current, true).await;
        }
        let expected =
            ["https://192.0.2.9", "https://192.0.2.1:6443", "https://[2001:db8::1]:6443", "https://192.0.2.9"];
        assert_eq!(tried, expected);
        // Refused credentials are read anew and tried at the same server.
        let current = connection.client().await.expect("a client");
        connection.give_up(&current, false).await;
        assert_eq!(connection.client().await.expect("a client").server, current.server);
    }

    #[tokio::test]
    async fn an_incomplete_service_account_is_told() {
        let directory = account();
        fs::remove_file(directory.path().join("ca.crt")).expect("removed");
        let error = Connection::open(in_cluster(directory.path(), Some("https://192.0.2.9"))).await.err();
        let error = error.expect("refused").to_string();
        assert!(error.starts_with("service account: "), "{error}");
        let directory = account();
        fs::remove_file(directory.path().join("token")).expect("removed");
        let error = Connection::open(in_cluster(directory.path(), Some("https://192.0.2.9"))).await.err();
        let error = error.expect("refused").to_string();
        assert!(error.starts_with("service account: ") && error.contains("token"), "{error}");
    }

    /// A kubeconfig whose plugin adds a line to the file `runs` and goes on with this shell script.
    fn with_plugin(directory: &Path, script: &str) -> Access {
        let path = directory.join("kubeconfig");
        let script = format!("echo >> {}/runs; {script}", directory.display());
        let version = "client.authentication.k8s.io/v1";
        let exec = serde_json::json!({"apiVersion": version, "command": "sh", "args": ["-c", script]});
        let text = serde_json::json!({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://192.0.2.1"}}],
            "users": [{"name": "u", "user": {"exec": exec}}],
        });
        fs::write(&path, text.to_string()).expect("written");
        Access::Kubeconfig { path, master: None }
    }

    fn runs(directory: &Path) -> usize {
        fs::read_to_string(directory.join("runs")).map_or(0, |text| text.lines().count())
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_ended_and_runs_once_for_all_who_wait() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let [start, later] = [Duration::from_millis(300), Duration::from_millis(400)];
        let patience = Patience { start, later, shared: Duration::from_hours(1) };
        let connection = Connection::open_with(with_plugin(directory, "sleep 40"), patience).await.expect("opened");
        let failure = connection.client().await.map(|current| current.server).expect_err("no answer");
        let text = format!("{failure:?}");
        assert!(text.contains("/kubeconfig: its plugin sh: no answer within 0.3 s"), "{text}");
        assert_eq!(runs(directory), 1, "the failure of the start is everybody's");
        let begin = Instant::now();
        let patience = Patience { shared: Duration::from_millis(200), ..patience };
        let connection = Connection { patience, ..connection };
        let failed_late = async {
            while connection.state.lock().await.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < patience.shared) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        failed_late.await;
        let all = tokio::join!(connection.client(), connection.client(), connection.client(), connection.client());
        let all = [all.0, all.1, all.2, all.3].map(|client| client.err().map(|failure| failure.cause));
        assert!(format!("{all:?}").matches("within 0.4 s").count() == 4, "{all:?}");
        assert_eq!(runs(directory), 2);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        // It does better, and its credentials last.
        with_plugin(directory, "echo '{status: {token: a}}'");
        let mut client = connection.client().await;
        while client.is_err() && begin.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            client = connection.client().await;
        }
        let number = client.expect("a client").number;
        assert_eq!(number, 1);
        assert_eq!(connection.client().await.expect("a client").number, number);
        assert_eq!(runs(directory), 3);
    }

    #[tokio::test]
    async fn credentials_that_end_are_asked_for_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let ended = "echo '{status: {token: a, expirationTimestamp: \"2020-01-01T00:00:00Z\"}}'";
        let connection = Connection::open(with_plugin(directory.path(), ended)).await.expect("opened");
        let first = connection.client().await.expect("a client");
        let second = connection.client().await.expect("a client");
        assert!(second.number > first.number);
        // Whoever still has the first one takes nothing from the second.
        connection.give_up(&first, true).await;
        assert_eq!(connection.state.lock().await.current.as_ref().map(|current| current.number), Some(second.number));
    }
}
