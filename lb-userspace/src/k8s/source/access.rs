//! Where the API server is and how it is asked: never through the Service `kubernetes`, which this program has yet to
//! serve.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::sync::Mutex;
use tower::{BoxError, ServiceBuilder};

use super::{calls::Calls, failure::Failure, servers};

/// A peer that vanished is noticed after this and three probes, not after hours.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);
/// The name that every API server's certificate has, whatever its address is.
const TLS_NAME: &str = "kubernetes.default.svc";
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By a kubeconfig; `master` replaces its server.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// URL, if given.
        master: Option<String>,
    },
    /// By its URL alone.
    Master(String),
    /// As a pod: the service account's token and CA. `master` replaces what the environment says; it is tried before the
    /// servers that are remembered in `servers`.
    InCluster {
        /// Folder of the service account, with `token` and `ca.crt`.
        account: PathBuf,
        /// URL, if given.
        master: Option<String>,
        /// Where the servers' addresses are kept.
        servers: PathBuf,
    },
}

/// No way to an API server is known, or the one that was given is wrong.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing was given.
    #[error(
        "no source: give -f PATH for documents, or for a cluster --kubeconfig FILE or --master URL (in a pod the service \
         account is used)"
    )]
    Nothing,
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {cause}; give a file that `kubectl --kubeconfig` can use")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The URL cannot be used.
    #[error("--master {url}: {cause}; give a URL such as https://192.0.2.10:6443")]
    Master {
        /// The URL.
        url: String,
        /// Why.
        cause: String,
    },
    /// The service account cannot be used.
    #[error("service account: {0}; mount it (automountServiceAccountToken), or give --kubeconfig FILE")]
    ServiceAccount(String),
    /// The environment of a pod is not there.
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, and no server is remembered; give --master URL"
    )]
    Environment,
}

impl Access {
    /// Chooses: what was given, `KUBECONFIG`, the service account of a pod.
    pub fn find(kubeconfig: Option<PathBuf>, master: Option<String>, state_dir: &Path) -> Result<Self, AccessError> {
        let given = kubeconfig.filter(|path| !path.as_os_str().is_empty());
        let master = master.filter(|url| !url.is_empty());
        let account = PathBuf::from(SERVICE_ACCOUNT);
        let in_pod = account.join("token").exists();
        let from_environment = || env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = given.or_else(|| if in_pod || master.is_some() { None } else { from_environment() });
        match (path, master) {
            (Some(path), master) => Ok(Self::Kubeconfig { path, master }),
            (None, master) if in_pod => Ok(Self::InCluster { account, master, servers: servers::file(state_dir) }),
            (None, Some(url)) => Ok(Self::Master(url)),
            (None, None) => Err(AccessError::Nothing),
        }
    }

    /// For people.
    pub fn words(&self) -> String {
        match self {
            Self::Kubeconfig { path, .. } => format!("kubeconfig {}", path.display()),
            Self::Master(url) => format!("--master {url}"),
            Self::InCluster { .. } => "service account".to_owned(),
        }
    }

    /// Ways to the servers, the first to be tried first.
    async fn configs(&self) -> Result<Vec<Config>, AccessError> {
        match self {
            Self::Kubeconfig { path, master } => {
                let wrong = |cause: String| AccessError::Kubeconfig { path: path.clone(), cause };
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
                let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| wrong(chain(&error)))?;
                if let Some(url) = master {
                    config.cluster_url = uri(url)?;
                }
                Ok(vec![config])
            }
            Self::Master(url) => Ok(vec![Config::new(uri(url)?)]),
            Self::InCluster { account, master, servers } => {
                let mut configs = Vec::new();
                let first = match master {
                    Some(url) => Some(uri(url)?),
                    None => environment(),
                };
                if let Some(server) = first {
                    configs.push(of_account(account, &server.to_string(), None).await?);
                }
                for server in servers::read(servers) {
                    configs.push(of_account(account, &format!("https://{server}"), Some(TLS_NAME)).await?);
                }
                if configs.is_empty() { Err(AccessError::Environment) } else { Ok(configs) }
            }
        }
    }
}

/// A service account is a kubeconfig that nobody wrote.
async fn of_account(account: &Path, server: &str, tls_name: Option<&str>) -> Result<Config, AccessError> {
    let wrong = |error: &dyn std::error::Error| AccessError::ServiceAccount(chain(error));
    let kubeconfig = json!({
        "current-context": "pod",
        "contexts": [{"name": "pod", "context": {"cluster": "pod", "user": "pod"}}],
        "clusters": [{"name": "pod", "cluster": {
            "server": server, "certificate-authority": account.join("ca.crt"), "tls-server-name": tls_name,
        }}],
        "users": [{"name": "pod", "user": {"tokenFile": account.join("token")}}],
    });
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).map_err(|error| wrong(&error))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| wrong(&error))
}

/// What a kubelet tells a pod.
fn environment() -> Option<Uri> {
    let host = env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port: u16 = env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{port}").parse().ok()
}

fn uri(url: &str) -> Result<Uri, AccessError> {
    let wrong = |cause: String| AccessError::Master { url: url.to_owned(), cause };
    // As client-go: a host alone is spoken to without TLS only if it says so.
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed: Uri = full.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
    match parsed.scheme_str() {
        Some("http" | "https") if parsed.host().is_some_and(|host| !host.is_empty()) => Ok(parsed),
        _ => Err(wrong("no http or https URL".to_owned())),
    }
}

/// An error with what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

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
    /// Reads the credentials once, so that what is wrong with them is told at the start.
    pub(super) async fn open(access: Access) -> Result<Self, AccessError> {
        access.configs().await?;
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
        let client = build(config).map_err(|error| Failure::setup(chain(&error)))?;
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

fn build(config: Config) -> Result<Client, kube::Error> {
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
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
        let connection =
            Connection::open(in_cluster(directory.path(), Some("https://192.0.2.9"))).await.expect("opened");
        let failure = connection.client().await.expect_err("refused");
        assert!(matches!(failure.cause, super::super::failure::Cause::Setup(_)), "{failure:?}");
    }

    #[test]
    fn urls_are_as_client_go_takes_them() {
        let words = |url: &str| uri(url).map(|uri| uri.to_string()).map_err(|error| error.to_string());
        assert_eq!(words("192.0.2.1:6443"), Ok("https://192.0.2.1:6443/".to_owned()));
        assert_eq!(words("http://localhost:8080"), Ok("http://localhost:8080/".to_owned()));
        assert!(words("ftp://a").is_err_and(|error| error.contains("--master ftp://a")));
    }
}
