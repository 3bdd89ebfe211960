//! Where the API server is and how it is asked: never through the Service `kubernetes`, which this program has yet to
//! serve.

use std::{
    env,
    path::{Path, PathBuf},
};

use http::{HeaderValue, Uri};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use super::servers;

/// The name that every API server's certificate has, whatever its address is.
pub(super) const TLS_NAME: &str = "kubernetes.default.svc";
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

    /// Its credentials do not work.
    pub(super) fn unusable(&self, cause: String) -> AccessError {
        match self {
            Self::Kubeconfig { path, .. } => AccessError::Kubeconfig { path: path.clone(), cause },
            Self::Master(url) => AccessError::Master { url: url.clone(), cause },
            Self::InCluster { .. } => AccessError::ServiceAccount(cause),
        }
    }

    /// Ways to the servers, the first to be tried first.
    pub(super) async fn configs(&self) -> Result<Vec<Config>, AccessError> {
        match self {
            Self::Kubeconfig { path, master } => {
                let wrong = |cause: String| self.unusable(cause);
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
                if let Some(cluster) = behind_proxy(&kubeconfig) {
                    return Err(wrong(format!(
                        "cluster {cluster}: proxy-url is not supported, the server itself is asked; leave it out where the \
                         server can be reached without a proxy"
                    )));
                }
                let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| wrong(chain(&error)))?;
                config.cluster_url = match master {
                    Some(url) => uri(url)?,
                    None => server(&config.cluster_url.to_string()).map_err(wrong)?,
                };
                check_provider(&config).map_err(wrong)?;
                trim_token(&mut config);
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
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| wrong(&error))?;
    trim_token(&mut config);
    Ok(config)
}

/// What a kubelet tells a pod.
fn environment() -> Option<Uri> {
    let host = env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port: u16 = env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{port}").parse().ok()
}

fn uri(url: &str) -> Result<Uri, AccessError> {
    full(url).map_err(|cause| AccessError::Master { url: url.to_owned(), cause })
}

/// The server that a kubeconfig names.
fn server(url: &str) -> Result<Uri, String> {
    full(url).map_err(|cause| format!("server {url}: {cause}"))
}

/// A host alone is spoken to with TLS: whoever wants none says so.
fn full(url: &str) -> Result<Uri, String> {
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed: Uri = full.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let host = parsed.host().filter(|host| !host.is_empty());
    let Some(host) = host.filter(|_| matches!(parsed.scheme_str(), Some("http" | "https"))) else {
        return Err("no http or https URL".to_owned());
    };
    let named = parsed.authority().and_then(|authority| authority.as_str().rsplit('@').next()).unwrap_or_default();
    if named != host && parsed.port_u16().is_none_or(|port| port == 0) {
        return Err("no port number behind the host".to_owned());
    }
    Ok(parsed)
}

/// The cluster of the current context, if it is to be reached through a proxy.
fn behind_proxy(kubeconfig: &Kubeconfig) -> Option<&str> {
    let current = kubeconfig.current_context.as_deref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == current)?.context.as_ref()?;
    let named = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    let proxy = named.cluster.as_ref()?.proxy_url.as_deref().unwrap_or_default();
    (!proxy.is_empty()).then_some(&named.name)
}

/// `kube` would run a command of such a provider for as long as that takes; kubectl knows it no more.
fn check_provider(config: &Config) -> Result<(), String> {
    let provider = config.auth_info.auth_provider.as_ref().filter(|provider| provider.name == "gcp");
    provider.map_or(Ok(()), |_| {
        Err("auth-provider gcp is not supported, as by kubectl since 1.26; use the exec plugin gke-gcloud-auth-plugin".to_owned())
    })
}

/// A token that no header can carry.
pub(super) fn check_token(config: &Config) -> Result<(), String> {
    let written = serde_json::to_value(&config.auth_info).map_err(|error| error.to_string())?;
    let token = written["token"].as_str().unwrap_or_default();
    let carried = HeaderValue::from_str(token).map(drop);
    carried.map_err(|_| "the user's token has a line end or another character that no header may have".to_owned())
}

/// The token of a file that ends in a line end, as `echo` writes it, is taken without: `kube` takes such a file as it is. It
/// is read again with the next client.
fn trim_token(config: &mut Config) {
    if config.auth_info.token.is_some() {
        return;
    }
    let written = config.auth_info.token_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    if let Some(written) = written.filter(|written| written.trim() != written) {
        config.auth_info.token = Some(written.trim().to_owned().into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_http_or_https() {
        let words = |url: &str| uri(url).map(|uri| uri.to_string()).map_err(|error| error.to_string());
        assert_eq!(words("192.0.2.1:6443"), Ok("https://192.0.2.1:6443/".to_owned()));
        assert_eq!(words("http://localhost:8080"), Ok("http://localhost:8080/".to_owned()));
        assert_eq!(words("https://[2001:db8::1]:6443"), Ok("https://[2001:db8::1]:6443/".to_owned()));
        assert_eq!(words("https://[2001:db8::1]/a"), Ok("https://[2001:db8::1]/a".to_owned()));
        for bad in ["/just/path", "https://192.0.2.1:99999", "https://a:0", "https://a:b", "https://"] {
            assert!(words(bad).is_err(), "{bad}");
        }
        assert!(words("ftp://a").is_err_and(|error| error.contains("--master ftp://a")));
    }
}
