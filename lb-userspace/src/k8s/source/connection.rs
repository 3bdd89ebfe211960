//! A client for one of the API servers at a time.

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{AuthError, Body, ConfigExt as _},
};
use tokio::sync::Mutex;
use tower::{BoxError, ServiceBuilder};

use super::{
    access::{Access, AccessError, chain},
    calls::Calls,
    failure::Failure,
    task::words,
};

/// A peer that vanished is noticed after this and three probes, not after hours.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);

/// A client for one of the servers at a time.
#[derive(Debug)]
pub(super) struct Connection {
    access: Access,
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
}

/// A client in use.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) client: Client,
    /// Its server.
    pub(super) server: String,
    pub(super) calls: Calls,
    number: u64,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Connection {
    /// Makes a client of the credentials once, so that what is wrong with them is told at the start. A plugin that fails may
    /// do better later.
    pub(super) async fn open(access: Access) -> Result<Self, AccessError> {
        if let Some(config) = access.configs().await?.into_iter().next()
            && let Err(unusable) = build(config).await
            && !unusable.may_pass
        {
            return Err(access.unusable(unusable.cause));
        }
        Ok(Self { access, calls: Calls::default(), state: Mutex::default() })
    }

    /// The client in use, or a new one with the credentials as they are now.
    pub(super) async fn client(&self) -> Result<Current, Failure> {
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current {
            return Ok(current.clone());
        }
        let mut configs = self.access.configs().await.map_err(|error| Failure::setup(error.to_string()))?;
        let at = state.next % configs.len();
        let config = configs.swap_remove(at);
        let server = config.cluster_url.to_string();
        let client = build(config).await;
        let client = client.map_err(|unusable| Failure::setup(self.access.unusable(unusable.cause).to_string()))?;
        state.made += 1;
        let server = server.trim_end_matches('/').to_owned();
        let current = Current { client, server, calls: self.calls.clone(), number: state.made };
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

/// Why credentials make no client.
struct Unusable {
    cause: String,
    may_pass: bool,
}

/// Makes a client. A plugin for credentials may take its time, and there are credentials that `kube` panics at.
async fn build(config: Config) -> Result<Client, Unusable> {
    let plugin = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone());
    match tokio::task::spawn_blocking(move || build_now(&with_authorities(config))).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => {
            let may_pass = matches!(error, kube::Error::Auth(AuthError::AuthExecRun { .. }));
            let of_plugin = plugin.filter(|_| matches!(error, kube::Error::Auth(_)));
            let by = of_plugin.map(|command| format!("its plugin {command}: ")).unwrap_or_default();
            Err(Unusable { cause: format!("{by}{}", chain(&error)), may_pass })
        }
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
}
