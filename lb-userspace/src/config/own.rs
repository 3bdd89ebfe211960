//! `BallastConfiguration`.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, Loaded, check_names, network, wrong};
use crate::{
    bpf::MapSizes,
    desired::ExternalIps,
    file_source::document::Document,
    net::roles::{InterfaceRule, XdpMode},
    pools::{AddressPool, PoolError},
};

pub(super) const VERSION: &str = "ballast.dev/v1alpha1";
pub(super) const KIND: &str = "BallastConfiguration";

const FIELDS: [&str; 10] = [
    "apiVersion",
    "kind",
    "xdp",
    "socketHooks",
    "interfaces",
    "maps",
    "snatPorts",
    "takeoverSeconds",
    "externalIPs",
    "addressPools",
];
const EXTERNAL_FIELDS: [&str; 2] = ["enabled", "allowedCIDRs"];

const MAP_FIELDS: [&str; 5] = ["services", "frontends", "backends", "rings", "conntrack"];
const POOL_FIELDS: [&str; 8] = [
    "name",
    "addresses",
    "avoidBuggyIPs",
    "autoAssign",
    "priority",
    "namespaces",
    "namespaceSelector",
    "serviceSelector",
];
const RULE_FIELDS: [&str; 3] = ["match", "role", "xdp"];

/// More is no cluster anybody has, and would take the node's memory at start.
const MOST_ENTRIES: u32 = 1 << 24;

/// The longest takeover: as long as an idle connection lives.
const MOST_SECONDS: u32 = 86_400;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Own {
    xdp: Option<XdpMode>,
    socket_hooks: Option<bool>,
    #[serde(default)]
    interfaces: Vec<InterfaceRule>,
    #[serde(default)]
    maps: Maps,
    snat_ports: Option<String>,
    takeover_seconds: Option<u32>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<External>,
    #[serde(default)]
    address_pools: Vec<AddressPool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct External {
    enabled: bool,
    #[serde(rename = "allowedCIDRs")]
    allowed: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Maps {
    services: Option<u32>,
    frontends: Option<u32>,
    backends: Option<u32>,
    rings: Option<u32>,
    conntrack: Option<u32>,
}

pub(super) fn read(document: &Document, loaded: &mut Loaded) -> Result<(), ConfigError> {
    check_names(document, "", &document.value, KIND, &FIELDS)?;
    if let Some(maps) = document.value.get("maps") {
        check_names(document, "maps", maps, "maps", &MAP_FIELDS)?;
    }
    if let Some(external) = document.value.get("externalIPs") {
        check_names(document, "externalIPs", external, "externalIPs", &EXTERNAL_FIELDS)?;
    }
    let rules = document.value.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    for (index, rule) in rules.enumerate() {
        check_names(document, &format!("interfaces[{index}]"), rule, "interfaces", &RULE_FIELDS)?;
    }
    let pools = document.value.get("addressPools").and_then(Value::as_array).into_iter().flatten();
    for (index, pool) in pools.enumerate() {
        check_names(document, &format!("addressPools[{index}]"), pool, "addressPools", &POOL_FIELDS)?;
    }
    let own: Own = serde_path_to_error::deserialize(&*document.value).map_err(|error| {
        let path = error.path().to_string();
        wrong(document, &path, &error.inner().to_string(), "correct it")
    })?;
    let config = &mut loaded.config;
    config.xdp = own.xdp.unwrap_or_default();
    config.socket_hooks = own.socket_hooks.unwrap_or(true);
    config.interfaces = own.interfaces;
    let default = MapSizes::default();
    let size = |name: &str, wanted: Option<u32>, default: u32, most: u32| match wanted {
        None => Ok(default),
        Some(size) if (16..=most).contains(&size) => Ok(size),
        Some(size) => {
            let field = format!("maps.{name}");
            Err(wrong(document, &field, &format!("{size} is out of range"), &format!("use 16 to {most}")))
        }
    };
    config.maps = MapSizes {
        services: size("services", own.maps.services, default.services, MOST_ENTRIES)?,
        // A socket slot has 24 bits for the frontend's record, and there are twice as many records as frontends.
        frontends: size("frontends", own.maps.frontends, default.frontends, MOST_ENTRIES / 2)?,
        backends: size("backends", own.maps.backends, default.backends, MOST_ENTRIES)?,
        rings: size("rings", own.maps.rings, default.rings, MOST_ENTRIES)?,
        conntrack: size("conntrack", own.maps.conntrack, default.conntrack, MOST_ENTRIES)?,
    };
    config.address_pools = own
        .address_pools
        .try_into()
        .map_err(|PoolError { field, cause, fix }| wrong(document, &field, &cause, &fix))?;
    if let Some(external) = own.external_ips {
        config.external_ips = external_ips(document, external)?;
    }
    if let Some(text) = own.snat_ports {
        config.snat_ports = ports(&text).ok_or_else(|| {
            let fix = "write two ports from 1024 on, such as \"49152-65535\"";
            wrong(document, "snatPorts", &format!("{text:?} is no range of ports"), fix)
        })?;
    }
    if let Some(seconds) = own.takeover_seconds {
        if seconds > MOST_SECONDS {
            let fix = format!("use 0 (never) to {MOST_SECONDS}, a day");
            return Err(wrong(document, "takeoverSeconds", &format!("{seconds} is out of range"), &fix));
        }
        config.takeover_seconds = seconds;
    }
    Ok(())
}

fn external_ips(document: &Document, external: External) -> Result<ExternalIps, ConfigError> {
    let Some(texts) = external.allowed else {
        return Ok(if external.enabled { ExternalIps::All } else { ExternalIps::Off });
    };
    if texts.is_empty() {
        let fix = "name ranges, or leave the field out to allow every address";
        return Err(wrong(document, "externalIPs.allowedCIDRs", "it allows nothing", fix));
    }
    let mut allowed = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("externalIPs.allowedCIDRs[{index}]");
        let fix = "write a range such as 198.51.100.0/24";
        allowed.push(network(text).ok_or_else(|| wrong(document, &field, &format!("{text:?} is no range"), fix))?);
    }
    Ok(if external.enabled { ExternalIps::Within(allowed) } else { ExternalIps::Off })
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first >= 1024 && first <= last).then_some(first..=last)
}
