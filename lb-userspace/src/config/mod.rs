//! Configuration files: `KubeProxyConfiguration` as kubeadm writes it, and our own `BallastConfiguration`.

mod kube_proxy;
mod own;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
};

use ipnet::IpNet;
use lb_common::state::Timeouts;
use serde_json::Value;

use crate::{
    bpf::MapSizes,
    desired::ExternalIps,
    file_source::document::{self, Document},
    logs,
    net::{
        node_ports::NodePortAddresses,
        roles::{InterfaceRule, XdpMode},
    },
    pools::Pools,
    report::Problem,
    suggest::closest,
};

/// Who is a pod: the local-traffic detector (semantics.md 2.3.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Who has an address in the podCIDRs of the own Node.
    #[default]
    NodeCidr,
    /// Who has one in these ranges: any pod of the cluster.
    ClusterCidr(Vec<IpNet>),
    /// Whom routes reach by this bridge.
    BridgeInterface(String),
    /// Whom routes reach by interfaces whose names begin so.
    InterfaceNamePrefix(String),
}

impl DetectLocal {
    /// As `detectLocalMode` says it.
    pub const fn mode(&self) -> &'static str {
        match self {
            Self::NodeCidr => "NodeCIDR",
            Self::ClusterCidr(_) => "ClusterCIDR",
            Self::BridgeInterface(_) => "BridgeInterface",
            Self::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
        }
    }
}

/// How to reach the API server; used by the Kubernetes source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientConnection {
    /// Path of a kubeconfig; empty for none.
    pub kubeconfig: String,
    /// Queries per second; 0 for the default.
    pub qps: f64,
    /// Burst; 0 for the default.
    pub burst: i64,
}

/// What the configuration asks for; [`Config::default`] without a file.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the files")]
pub struct Config {
    /// The node addresses nodePorts are served on.
    pub node_port_addresses: NodePortAddresses,
    /// Local-traffic detector.
    pub detect_local: DetectLocal,
    /// Cluster IPs rewrite the source of pods too (semantics.md 2.4.1).
    pub masquerade_all: bool,
    /// How long flows live.
    pub timeouts: Timeouts,
    /// Node name, if given.
    pub hostname_override: Option<String>,
    /// The API server.
    pub client_connection: ClientConnection,
    /// XDP for all devices.
    pub xdp: XdpMode,
    /// Whether the socket hooks are attached.
    pub socket_hooks: bool,
    /// Overrides for devices.
    pub interfaces: Vec<InterfaceRule>,
    /// Sizes of the maps.
    pub maps: MapSizes,
    /// Source ports of masqueraded flows.
    pub snat_ports: RangeInclusive<u16>,
    /// Where health is asked for; none: the default of the source.
    pub healthz_bind: Option<Bind>,
    /// Where metrics are; none: the default of the source.
    pub metrics_bind: Option<Bind>,
    /// How long connections that kube-proxy's rules opened are left to them after a first start; 0: not at all.
    pub takeover_seconds: u32,
    /// Which externalIPs of Services are served.
    pub external_ips: ExternalIps,
    /// The node's primary address of its family, instead of what the own Node says; nothing is bound there.
    pub bind_address: Option<IpAddr>,
    /// Whether an agent ends that cannot listen where health and metrics are asked for.
    pub bind_hard_fail: bool,
    /// Whether nodePorts are served on loopback addresses, where [`Self::node_port_addresses`] has them.
    pub localhost_node_ports: bool,
    /// What the agent makes of its `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i16>,
    /// Where Services of type LoadBalancer get their addresses; of documents alone, for in a cluster the controller gives them.
    pub address_pools: Pools,
    /// What is logged, and how.
    pub logging: logs::Options,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_port_addresses: NodePortAddresses::All,
            detect_local: DetectLocal::NodeCidr,
            masquerade_all: false,
            timeouts: Timeouts::DEFAULT,
            hostname_override: None,
            client_connection: ClientConnection::default(),
            xdp: XdpMode::Auto,
            socket_hooks: true,
            interfaces: Vec::new(),
            maps: MapSizes::default(),
            snat_ports: 49_152..=65_535,
            healthz_bind: None,
            metrics_bind: None,
            takeover_seconds: 600,
            external_ips: ExternalIps::Off,
            bind_address: None,
            bind_hard_fail: false,
            localhost_node_ports: true,
            oom_score_adj: None,
            address_pools: Pools::default(),
            logging: logs::Options::default(),
        }
    }
}

/// Where a server listens: an address, as kube-proxy takes it, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// There.
    At(SocketAddr),
    /// The server is switched off.
    Off,
}

/// Port of `/healthz` and `/livez`.
pub const HEALTHZ_PORT: u16 = 10256;
/// Port of `/metrics`.
pub const METRICS_PORT: u16 = 10249;

impl Bind {
    /// `ADDRESS:PORT`, `ADDRESS` with the usual port, or `off`.
    pub fn parse(text: &str, port: u16) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match text {
            "off" => Some(Self::Off),
            text => text.parse().ok().or_else(|| Some(SocketAddr::new(bare.parse().ok()?, port))).map(Self::At),
        }
    }
}

/// A configuration and what may not be as meant in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Fields without meaning to a datapath like this one: nothing is missing.
    pub notes: Vec<Problem>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {cause}; give --config a readable file")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        cause: String,
    },
    /// A place in it is wrong.
    #[error("{place}: {cause}; {fix}")]
    Wrong {
        /// File and line.
        place: String,
        /// What is wrong.
        cause: String,
        /// What to do.
        fix: String,
    },
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { file: file.clone(), cause: error.to_string() })?;
    parse(&file, &text)
}

/// Reads the text of a configuration file.
pub fn parse(file: &str, text: &str) -> Result<Loaded, ConfigError> {
    let (documents, broken) = document::parse(&file.into(), &text.into());
    if let Some(first) = broken.into_iter().next() {
        let line = first.line.map(|line| format!(":{line}")).unwrap_or_default();
        let fix = "correct the YAML".to_owned();
        return Err(ConfigError::Wrong { place: format!("{file}{line}"), cause: first.reason, fix });
    }
    let mut loaded = Loaded::default();
    let mut seen: Vec<&'static str> = Vec::new();
    for document in &documents {
        let field = |name: &str| document.value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (field("apiVersion"), field("kind"));
        let kind = match (&*version, &*kind) {
            (kube_proxy::VERSION, kube_proxy::KIND) => kube_proxy::KIND,
            (own::VERSION, own::KIND) => own::KIND,
            _ => {
                let cause = format!("apiVersion {version:?} with kind {kind:?} is no configuration");
                let fix = format!("use {} {} or {} {}", kube_proxy::VERSION, kube_proxy::KIND, own::VERSION, own::KIND);
                return Err(wrong(document, "kind", &cause, &fix));
            }
        };
        if seen.contains(&kind) {
            return Err(wrong(document, "kind", &format!("a second {kind}"), "keep one of them"));
        }
        seen.push(kind);
        if kind == own::KIND {
            own::read(document, &mut loaded)?;
        } else {
            kube_proxy::read(document, &mut loaded)?;
        }
    }
    Ok(loaded)
}

fn wrong(document: &Document, field: &str, cause: &str, fix: &str) -> ConfigError {
    let line = document.line(field).map(|line| format!(":{line}")).unwrap_or_default();
    let cause = if field.is_empty() || field == "kind" { cause.to_owned() } else { format!("{field}: {cause}") };
    ConfigError::Wrong { place: format!("{}{line}", document.file), cause, fix: fix.to_owned() }
}

/// Whether a value says nothing: what kubeadm writes into fields nobody set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Refuses the fields of a mapping that are not `known`. `path` is the mapping's own, empty for the document; of what
/// it is, `owner` tells.
fn check_names(document: &Document, path: &str, value: &Value, owner: &str, known: &[&str]) -> Result<(), ConfigError> {
    let names = value.as_object().into_iter().flat_map(|fields| fields.keys());
    let Some(name) = names.into_iter().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
    let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
    let fix = closest(name, known.iter().copied())
        .map_or_else(|| format!("fields are {}", known.join(", ")), |close| format!("did you mean {close}?"));
    Err(wrong(document, &field, &format!("no field of {owner}"), &fix))
}

/// A range, or an address as a range of one.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests;
