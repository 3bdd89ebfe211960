//! The environment variables by which a container finds Services, as the kubelet sets them.
//!
//! Rule numbers are those of the project's semantics; the kubelet's code is `pkg/kubelet/envvars/envvars.go` and
//! `getServiceEnvVarMap` in `pkg/kubelet/kubelet_pods.go`. Pure: a snapshot of the model goes in, and what comes out stays as it
//! is for the life of the process that gets it (E9).

mod expand;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::{IpAddr, SocketAddr},
};

pub use self::expand::expand;
use crate::model::{Model, ObjectName, Service, ServiceType};

/// Namespace and name of the Service that every container hears of (E2).
const MASTER: (&str, &str) = ("default", "kubernetes");

/// What a container of one namespace gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEnv {
    /// Values by name. Where two Services make the same name, the Service that is later in the alphabet has it.
    pub variables: BTreeMap<String, String>,
    /// Services that would have variables, but have no cluster IP yet.
    pub without_address: Vec<ObjectName>,
}

impl ServiceEnv {
    /// The variables for a container in `namespace`. `links` is the pod's `enableServiceLinks`.
    pub fn of(model: &Model, namespace: &str, links: bool) -> Self {
        let mut env = Self::default();
        let (addressed, without_address) = in_scope(model, namespace, links);
        for (name, service, address) in addressed.into_values() {
            env.add(&name.name, address, service);
        }
        env.without_address = without_address.into_iter().cloned().collect();
        env
    }

    /// Those of the variables that `has` does not know: what the caller has set itself wins (E10).
    pub fn absent(&self, has: impl Fn(&OsStr) -> bool) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter(move |(name, _)| !has(OsStr::new(name)))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn add(&mut self, name: &str, address: IpAddr, service: &Service) {
        let prefix = variable_name(name);
        let mut set = |suffix: &str, value: String| self.variables.insert(format!("{prefix}_{suffix}"), value);
        set("SERVICE_HOST", address.to_string());
        for (index, port) in service.ports.iter().enumerate() {
            let number = port.port.get();
            let protocol = port.protocol.to_string();
            let scheme = protocol.to_lowercase();
            let url = format!("{scheme}://{}", SocketAddr::new(address, number));
            if index == 0 {
                set("SERVICE_PORT", number.to_string());
                set("PORT", url.clone());
            }
            if !port.name.is_empty() {
                set(&format!("SERVICE_PORT_{}", variable_name(&port.name)), number.to_string());
            }
            let of_port = format!("PORT_{number}_{protocol}");
            set(&of_port, url);
            set(&format!("{of_port}_PROTO"), scheme);
            set(&format!("{of_port}_PORT"), number.to_string());
            set(&format!("{of_port}_ADDR"), address.to_string());
        }
    }
}

type Addressed<'a> = BTreeMap<&'a str, (&'a ObjectName, &'a Service, IpAddr)>;

/// E2, E3: own Services with links, and the master's unless an own one has its name; beside them those that have no address.
fn in_scope<'a>(model: &'a Model, namespace: &str, links: bool) -> (Addressed<'a>, Vec<&'a ObjectName>) {
    let (mut services, mut without) = (BTreeMap::new(), Vec::new());
    for (name, service) in &model.services {
        let master = (name.namespace.as_str(), name.name.as_str()) == MASTER;
        let own = links && name.namespace == namespace;
        // E1, before E3: a `kubernetes` that is headless, or has no address yet, replaces nothing.
        if !(own || master) || service.headless || service.service_type == ServiceType::ExternalName {
            continue;
        }
        let Some(address) = service.cluster_ips.first() else {
            without.push(name);
            continue;
        };
        if own || !services.contains_key(name.name.as_str()) {
            services.insert(name.name.as_str(), (name, service, *address));
        }
    }
    (services, without)
}

/// What the variables of a Service, or of a port's name, have of it (E4).
pub fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests;
