//! `KubeProxyConfiguration`, every field of it in one of three classes.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::state::Timeouts;
use serde_json::Value;

use super::{
    Bind, ClientConnection, ConfigError, DetectLocal, HEALTHZ_PORT, Loaded, METRICS_PORT, is_zero, network, wrong,
};
use crate::{
    file_source::document::Document, logs, net::node_ports::NodePortAddresses, report::Problem, suggest::closest,
};

pub(super) const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Does what it says.
    Honoured,
    /// Means nothing to a datapath like this one, for this reason; told if set.
    NoEffect(&'static str),
    /// Cannot be right here; refused if set.
    Refused,
    /// A section: its fields have classes of their own.
    Section(&'static [(&'static str, Self)]),
}

use Class::{Honoured, NoEffect, Refused, Section};

const JSON: &str = "objects are read as JSON";
const AT_ONCE: &str = "changes are programmed as they come, and what is programmed is verified all the time";
const NETFILTER: &str = "it is about the kernel's conntrack, which translates none of these flows";
const OWN_TABLE: &str =
    "it sizes the kernel's conntrack; flows have a table of their own (BallastConfiguration: maps.conntrack)";
const NO_MARK: &str = "packets are masqueraded without a mark";
const NO_IPVS: &str = "there is no IPVS; each Service port chooses its backends by hash";

/// `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go` of Kubernetes 1.37.
const FIELDS: &[(&str, Class)] = &[
    ("apiVersion", Honoured),
    ("kind", Honoured),
    ("bindAddress", Honoured),
    ("bindAddressHardFail", Honoured),
    (
        "clientConnection",
        Section(&[
            ("kubeconfig", Honoured),
            ("qps", Honoured),
            ("burst", Honoured),
            ("contentType", NoEffect(JSON)),
            ("acceptContentTypes", NoEffect(JSON)),
        ]),
    ),
    ("clusterCIDR", Honoured),
    ("configSyncPeriod", NoEffect("objects are watched, and listed again only where a watch is lost")),
    (
        "conntrack",
        Section(&[
            ("maxPerCore", NoEffect(OWN_TABLE)),
            ("min", NoEffect(OWN_TABLE)),
            ("tcpBeLiberal", NoEffect(NETFILTER)),
            ("tcpEstablishedTimeout", Honoured),
            ("tcpCloseWaitTimeout", Honoured),
            ("udpTimeout", Honoured),
            ("udpStreamTimeout", Honoured),
        ]),
    ),
    ("detectLocal", Section(&[("bridgeInterface", Honoured), ("interfaceNamePrefix", Honoured)])),
    ("detectLocalMode", Honoured),
    ("enableProfiling", NoEffect("there is no profiling server")),
    ("featureGates", NoEffect("the gates switch parts of kube-proxy")),
    ("healthzBindAddress", Honoured),
    ("hostnameOverride", Honoured),
    (
        "iptables",
        Section(&[
            ("localhostNodePorts", Honoured),
            ("masqueradeAll", Honoured),
            ("masqueradeBit", NoEffect(NO_MARK)),
            ("minSyncPeriod", NoEffect(AT_ONCE)),
            ("syncPeriod", NoEffect(AT_ONCE)),
        ]),
    ),
    (
        "ipvs",
        Section(&[
            ("excludeCIDRs", NoEffect(NO_IPVS)),
            ("minSyncPeriod", NoEffect(AT_ONCE)),
            ("scheduler", NoEffect(NO_IPVS)),
            ("strictARP", NoEffect(NO_IPVS)),
            ("syncPeriod", NoEffect(AT_ONCE)),
            ("tcpFinTimeout", NoEffect(NO_IPVS)),
            ("tcpTimeout", NoEffect(NO_IPVS)),
            ("udpTimeout", NoEffect(NO_IPVS)),
        ]),
    ),
    (
        "logging",
        Section(&[
            ("flushFrequency", NoEffect("each line is written at once")),
            ("format", Honoured),
            ("options", NoEffect("lines go to standard error, whole")),
            ("verbosity", Honoured),
        ]),
    ),
    ("metricsBindAddress", Honoured),
    ("mode", NoEffect("there is one datapath, in eBPF")),
    (
        "nftables",
        Section(&[
            ("masqueradeAll", Honoured),
            ("masqueradeBit", NoEffect(NO_MARK)),
            ("minSyncPeriod", NoEffect(AT_ONCE)),
            ("syncPeriod", NoEffect(AT_ONCE)),
        ]),
    ),
    ("nodePortAddresses", Honoured),
    ("oomScoreAdj", Honoured),
    ("portRange", NoEffect("nodePorts are what the Services say; kube-proxy ignores it too")),
    ("showHiddenMetricsForVersion", NoEffect("no metric is hidden")),
    ("windowsRunAsService", Refused),
    ("winkernel", Refused),
    ("minSyncPeriod", NoEffect(AT_ONCE)),
    ("syncPeriod", NoEffect(AT_ONCE)),
];

/// Values kubeadm or kube-proxy itself writes into a file nobody edited: no warning for them.
const DEFAULTS: &[(&str, &[&str])] = &[("mode", &["iptables", "nftables", "ipvs"])];

pub(super) fn read(document: &Document, loaded: &mut Loaded) -> Result<(), ConfigError> {
    let Some(fields) = document.value.as_object() else {
        return Err(wrong(document, "", "not a mapping", "write `field: value` lines"));
    };
    for (name, value) in fields {
        visit(document, name, name, value, FIELDS, loaded)?;
    }
    let config = &mut loaded.config;
    let connection = document.value.get("clientConnection");
    let of = |name: &str| connection.and_then(|connection| connection.get(name));
    config.client_connection = ClientConnection {
        kubeconfig: text(document, "clientConnection.kubeconfig", of("kubeconfig"))?.unwrap_or_default(),
        qps: number(document, "clientConnection.qps", of("qps"))?,
        #[expect(clippy::cast_possible_truncation, reason = "a count; a fraction of it means nothing")]
        burst: number(document, "clientConnection.burst", of("burst"))? as i64,
    };
    config.hostname_override = text(document, "hostnameOverride", document.value.get("hostnameOverride"))?;
    config.detect_local = detect_local(document, &mut loaded.notes)?;
    let masquerade_all =
        |section| inner(document, section, "masqueradeAll").is_some_and(|set| *set == Value::Bool(true));
    config.masquerade_all = masquerade_all("iptables") || masquerade_all("nftables");
    config.timeouts = timeouts(document)?;
    config.bind_address = bind_address(document)?;
    config.bind_hard_fail = document.value.get("bindAddressHardFail") == Some(&Value::Bool(true));
    config.oom_score_adj = oom_score_adj(document)?;
    config.node_port_addresses = node_port_addresses(document)?;
    config.localhost_node_ports = document.value.pointer("/iptables/localhostNodePorts") != Some(&Value::Bool(false));
    if !config.localhost_node_ports && config.node_port_addresses.asks_for_localhost() {
        let cause = "asks for loopback addresses, which iptables.localhostNodePorts: false takes away";
        loaded.notes.push(note(document, "nodePortAddresses", cause, "remove one of the two"));
    }
    config.healthz_bind = bind(document, "healthzBindAddress", HEALTHZ_PORT)?;
    config.metrics_bind = bind(document, "metricsBindAddress", METRICS_PORT)?;
    config.logging = logging(document)?;
    Ok(())
}

/// The node's own address, as kube-proxy means it: nothing listens there. The unspecified ones say nothing.
fn bind_address(document: &Document) -> Result<Option<IpAddr>, ConfigError> {
    const FIELD: &str = "bindAddress";
    let Some(written) = text(document, FIELD, document.value.get(FIELD))? else { return Ok(None) };
    let addr: IpAddr = written.parse().map_err(|_| {
        wrong(
            document,
            FIELD,
            &format!("{written:?} is no address"),
            "write an address of this node, such as 192.0.2.1",
        )
    })?;
    Ok((!addr.is_unspecified()).then_some(addr))
}

/// As Linux takes it, and kube-proxy checks it.
fn oom_score_adj(document: &Document) -> Result<Option<i16>, ConfigError> {
    const FIELD: &str = "oomScoreAdj";
    match document.value.get(FIELD) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64().map(i16::try_from) {
            Some(Ok(score @ -1000..=1000)) => Ok(Some(score)),
            _ => Err(wrong(document, FIELD, &format!("{value} is no score"), "use a whole number from -1000 to 1000")),
        },
    }
}

fn inner<'a>(document: &'a Document, section: &str, name: &str) -> Option<&'a Value> {
    document.value.get(section)?.get(name)
}

/// As kube-proxy's `getLocalDetectors` reads it, but that without a word the own Node tells (semantics.md 2.3.8).
fn detect_local(document: &Document, notes: &mut Vec<Problem>) -> Result<DetectLocal, ConfigError> {
    const MODE: &str = "detectLocalMode";
    let ranges = cluster_cidrs(document)?;
    let name = |field: &str| {
        let path = format!("detectLocal.{field}");
        let name = text(document, &path, inner(document, "detectLocal", field))?;
        name.ok_or_else(|| {
            wrong(document, MODE, &format!("{path} is missing"), &format!("write detectLocal: {{{field}: ...}}"))
        })
    };
    Ok(match text(document, MODE, document.value.get(MODE))?.as_deref() {
        // Who writes ranges and no mode means kube-proxy's default.
        None if ranges.is_empty() => DetectLocal::NodeCidr,
        Some("NodeCIDR") => DetectLocal::NodeCidr,
        None | Some("ClusterCIDR") => {
            if ranges.is_empty() {
                let fix = "write clusterCIDR, or use NodeCIDR";
                notes.push(note(document, MODE, "detects no pod without clusterCIDR", fix));
            }
            DetectLocal::ClusterCidr(ranges)
        }
        Some("BridgeInterface") => DetectLocal::BridgeInterface(name("bridgeInterface")?),
        Some("InterfaceNamePrefix") => DetectLocal::InterfaceNamePrefix(name("interfaceNamePrefix")?),
        Some(other) => {
            let fix = "use NodeCIDR, ClusterCIDR, BridgeInterface or InterfaceNamePrefix";
            return Err(wrong(document, MODE, &format!("{other:?} is no mode"), fix));
        }
    })
}

/// Zero is the default, as kube-proxy leaves the kernel's then.
fn timeouts(document: &Document) -> Result<Timeouts, ConfigError> {
    let of = |name: &str, longest: u32| {
        let path = format!("conntrack.{name}");
        let Some(written) = text(document, &path, inner(document, "conntrack", name))? else { return Ok(0) };
        let seconds = written.parse::<jiff::SignedDuration>().ok().and_then(|it| u32::try_from(it.as_secs()).ok());
        match seconds {
            Some(seconds) if seconds <= longest => Ok(seconds),
            Some(_) => {
                Err(wrong(document, &path, &format!("{written} is too long"), &format!("use {longest}s or less")))
            }
            None => Err(wrong(
                document,
                &path,
                &format!("{written:?} is no duration"),
                "write hours, minutes and seconds such as 24h0m0s",
            )),
        }
    };
    Ok(Timeouts::new(
        of("tcpEstablishedTimeout", Timeouts::LONGEST_TCP)?,
        of("tcpCloseWaitTimeout", Timeouts::LONGEST_TCP)?,
        of("udpTimeout", Timeouts::LONGEST_UDP)?,
        of("udpStreamTimeout", Timeouts::LONGEST_UDP)?,
    ))
}

/// One range, or one of each family with a comma between.
fn cluster_cidrs(document: &Document) -> Result<Vec<IpNet>, ConfigError> {
    const FIELD: &str = "clusterCIDR";
    let written = text(document, FIELD, document.value.get(FIELD))?.unwrap_or_default();
    let ranges = written.split(',').map(str::trim).filter(|part| !part.is_empty());
    ranges
        .map(|part| {
            let fix = "write a range such as 10.244.0.0/16, or one of each family with a comma between";
            network(part).ok_or_else(|| wrong(document, FIELD, &format!("{part:?} is no range"), fix))
        })
        .collect()
}

/// The words stand without ranges, and `all` stands alone, as kube-proxy wants it.
fn node_port_addresses(document: &Document) -> Result<NodePortAddresses, ConfigError> {
    const FIELD: &str = "nodePortAddresses";
    let list = match document.value.get(FIELD) {
        None | Some(Value::Null) => return Ok(NodePortAddresses::All),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong(document, FIELD, "not a list", "write a list of ranges")),
    };
    let (mut all, mut primary, mut localhost, mut ranges) = (false, false, false, Vec::new());
    for (index, entry) in list.iter().enumerate() {
        match entry.as_str() {
            Some("all") => all = true,
            Some("primary") => primary = true,
            Some("localhost") => localhost = true,
            text => ranges.push(text.and_then(network).ok_or_else(|| {
                let fix = "write a range such as 192.0.2.0/24, or primary, localhost or all";
                wrong(document, &format!("{FIELD}[{index}]"), &format!("{entry} is no range"), fix)
            })?),
        }
    }
    let mixed = |cause: &str, fix: &str| Err(wrong(document, FIELD, cause, fix));
    match (all, primary, localhost, ranges.is_empty()) {
        (true | false, false, false, true) => Ok(NodePortAddresses::All),
        (true, ..) => mixed("all stands beside others", "write all alone, or leave it out"),
        (false, false, false, false) => Ok(NodePortAddresses::Ranges(ranges)),
        (false, _, _, false) => mixed("primary or localhost stands beside ranges", "write words or ranges, not both"),
        (false, true, true, true) => Ok(NodePortAddresses::PrimaryAndLocalhost),
        (false, true, false, true) => Ok(NodePortAddresses::Primary),
        (false, false, true, true) => Ok(NodePortAddresses::Localhost),
    }
}

fn visit(
    document: &Document,
    path: &str,
    name: &str,
    value: &Value,
    known: &[(&str, Class)],
    loaded: &mut Loaded,
) -> Result<(), ConfigError> {
    let Some((_, class)) = known.iter().find(|(known, _)| *known == name) else {
        let fix = closest(name, known.iter().map(|(name, _)| *name))
            .map_or_else(|| "remove it".to_owned(), |close| format!("did you mean {close}?"));
        return Err(wrong(document, path, &format!("no field of {KIND}"), &fix));
    };
    let set = !is_zero(value)
        && !DEFAULTS
            .iter()
            .any(|(field, values)| *field == path && value.as_str().is_some_and(|value| values.contains(&value)));
    match class {
        Section(inner) => match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    visit(document, &format!("{path}.{name}"), name, value, inner, loaded)?;
                }
            }
            Value::Null => {}
            _ => return Err(wrong(document, path, "not a mapping", "write `field: value` lines below it")),
        },
        Refused if set => {
            return Err(wrong(document, path, "is for Windows", "remove it: this program runs on Linux"));
        }
        NoEffect(reason) if set => {
            let cause = format!("has no effect here: {reason}");
            loaded.notes.push(note(document, path, &cause, "nothing; remove it to silence this"));
        }
        Honoured | NoEffect(_) | Refused => {}
    }
    Ok(())
}

fn note(document: &Document, path: &str, cause: &str, fix: &str) -> Problem {
    let line = document.line(path).map(|line| format!(":{line}")).unwrap_or_default();
    Problem { object: format!("config {}{line}", document.file), cause: format!("{path} {cause}"), fix: fix.to_owned() }
}

fn text(document: &Document, path: &str, value: Option<&Value>) -> Result<Option<String>, ConfigError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok((!text.is_empty()).then(|| text.clone())),
        Some(_) => Err(wrong(document, path, "not a text", "write it in quotes")),
    }
}

fn bind(document: &Document, path: &str, port: u16) -> Result<Option<Bind>, ConfigError> {
    let text = text(document, path, document.value.get(path))?;
    let parse = |text: String| {
        let fix = "write ADDRESS:PORT, such as 0.0.0.0:10256, or off";
        Bind::parse(&text, port).ok_or_else(|| wrong(document, path, &format!("{text:?} is no address"), fix))
    };
    text.map(parse).transpose()
}

fn logging(document: &Document) -> Result<logs::Options, ConfigError> {
    let section = document.value.get("logging");
    let of = |name: &str| section.and_then(|section| section.get(name));
    let format = match text(document, "logging.format", of("format"))?.as_deref() {
        None | Some("text") => logs::Format::Text,
        Some("json") => logs::Format::Json,
        Some(other) => {
            return Err(wrong(document, "logging.format", &format!("{other:?} is no format"), "use text or json"));
        }
    };
    let verbosity = match of("verbosity") {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_u64().and_then(|level| u32::try_from(level).ok()).ok_or_else(|| {
            wrong(document, "logging.verbosity", &format!("{value} is no verbosity"), "use a number from 0 to 10")
        })?,
    };
    Ok(logs::Options { format, verbosity })
}

fn number(document: &Document, path: &str, value: Option<&Value>) -> Result<f64, ConfigError> {
    match value {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => value.as_f64().ok_or_else(|| wrong(document, path, "not a number", "write a number")),
    }
}
