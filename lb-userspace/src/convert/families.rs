//! IP families and written cluster IPs of a Service.

use std::net::IpAddr;

use super::{Origin, addresses::usable_address, issue::Issue};
use crate::{
    k8s::ServiceSpec,
    model::{IpFamily, ServiceType},
};

/// What [`resolve`] found.
#[derive(Debug, Default)]
pub(crate) struct Families {
    pub(crate) families: Vec<IpFamily>,
    /// Written ones, in the order of `families`.
    pub(crate) cluster_ips: Vec<IpAddr>,
}

/// The default family of a document is that of the first service range; a family that has no range can only be used with
/// a written address.
pub(crate) fn resolve(
    spec: &ServiceSpec,
    service_type: ServiceType,
    headless: bool,
    origin: Origin<'_>,
) -> Result<Families, Issue> {
    let cluster_ips = written(spec, headless)?;
    if service_type == ServiceType::ExternalName {
        return if cluster_ips.is_empty() {
            Ok(Families::default())
        } else {
            Err(Issue::error("spec.clusterIP", "type ExternalName has no cluster IP", "remove clusterIP"))
        };
    }
    let mut families = listed(spec)?;
    for (index, address) in cluster_ips.iter().enumerate() {
        let family = IpFamily::of(address);
        match families.get(index) {
            Some(listed) if *listed == family => {}
            Some(listed) => {
                return Err(Issue::error(
                    format!("spec.clusterIPs[{index}]"),
                    format!("{address} is not an {listed} address, as ipFamilies[{index}] says"),
                    "make clusterIPs and ipFamilies agree",
                ));
            }
            None if families.contains(&family) => {
                return Err(Issue::error("spec.clusterIPs", "two addresses of one family", "write one per family"));
            }
            None => families.push(family),
        }
    }
    let Origin::Document { service_cidrs: cidrs } = origin else { return Ok(Families { families, cluster_ips }) };
    let configured = |family: IpFamily| cidrs.iter().any(|net| IpFamily::of(&net.network()) == family);
    let selectorless_headless = headless && spec.selector.is_empty();
    let policy = match spec.ip_family_policy.as_deref() {
        Some(policy @ ("SingleStack" | "PreferDualStack" | "RequireDualStack")) => policy,
        None | Some("") if families.len() > 1 || selectorless_headless => "RequireDualStack",
        None | Some("") => "SingleStack",
        Some(other) => {
            return Err(Issue::error(
                "spec.ipFamilyPolicy",
                format!("unknown policy {other:?}"),
                "write SingleStack, PreferDualStack or RequireDualStack",
            ));
        }
    };
    if policy == "SingleStack" && families.len() > 1 {
        return Err(Issue::error(
            "spec.ipFamilyPolicy",
            "SingleStack, but two families are given",
            "write PreferDualStack or RequireDualStack, or give one family",
        ));
    }
    if families.is_empty() {
        families.push(cidrs.first().map_or(IpFamily::V4, |net| IpFamily::of(&net.network())));
    }
    if policy != "SingleStack" && families.len() == 1 {
        let other = if families.contains(&IpFamily::V4) { IpFamily::V6 } else { IpFamily::V4 };
        // A headless Service without selector takes its addresses from elsewhere: no range is needed.
        if configured(other) || selectorless_headless {
            families.push(other);
        } else if policy == "RequireDualStack" {
            return Err(Issue::error(
                "spec.ipFamilyPolicy",
                format!("RequireDualStack, but there is no {other} service range"),
                "add a range to --service-cidr, or write PreferDualStack",
            ));
        }
    }
    for (index, family) in families.iter().enumerate() {
        if !headless && !configured(*family) && cluster_ips.get(index).is_none() {
            return Err(Issue::error(
                format!("spec.ipFamilies[{index}]"),
                format!("there is no {family} service range"),
                "add a range to --service-cidr",
            ));
        }
    }
    Ok(Families { families, cluster_ips })
}

fn listed(spec: &ServiceSpec) -> Result<Vec<IpFamily>, Issue> {
    let mut families = Vec::new();
    for (index, text) in spec.ip_families.iter().enumerate() {
        let family = match text.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            other => {
                return Err(Issue::error(
                    format!("spec.ipFamilies[{index}]"),
                    format!("unknown family {other:?}"),
                    "write IPv4 or IPv6",
                ));
            }
        };
        if families.contains(&family) {
            return Err(Issue::error("spec.ipFamilies", format!("{family} is there twice"), "remove one"));
        }
        families.push(family);
    }
    Ok(families)
}

fn written(spec: &ServiceSpec, headless: bool) -> Result<Vec<IpAddr>, Issue> {
    let first = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    if let (Some(first), Some(listed)) = (first, spec.cluster_ips.first())
        && first != listed
    {
        return Err(Issue::error(
            "spec.clusterIPs[0]",
            format!("{listed} differs from clusterIP {first}"),
            "make clusterIP and clusterIPs[0] the same",
        ));
    }
    if headless {
        return if spec.cluster_ips.len() > 1 {
            Err(Issue::error("spec.clusterIPs", "None cannot stand beside an address", "write None alone"))
        } else {
            Ok(Vec::new())
        };
    }
    if spec.cluster_ips.is_empty() {
        return first.map(|text| usable_address("spec.clusterIP", text)).into_iter().collect();
    }
    if spec.cluster_ips.len() > 2 {
        return Err(Issue::error("spec.clusterIPs", "more than two addresses", "write one per family"));
    }
    let parse = |(index, text): (usize, &String)| usable_address(&format!("spec.clusterIPs[{index}]"), text);
    spec.cluster_ips.iter().enumerate().map(parse).collect()
}
