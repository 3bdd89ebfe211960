//! What a controller asks an API server beside its watches: single objects, read and written.

use std::{sync::Arc, time::SystemTime};

use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    access::{Access, AccessError},
    calls::Calls,
    connection::Connection,
    failure::{Cause, Failure, Rule},
    kind::{Kind, Watched as _},
    recorder::micro_time,
    request::{Content, ask, read},
};
use crate::{
    controller::{Record, Wanted},
    k8s::{CONDITION_ADDRESSES, Service},
    model::{self, ObjectName},
    report::Problem,
};

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
const LEASES: Rule = Rule { group: "coordination.k8s.io", resource: "leases", verbs: "get, create, update" };
const STATUSES: Rule = Rule { group: "", resource: "services/status", verbs: "patch" };
const SERVICES: Rule = Rule { group: "", resource: "services", verbs: "get, list, watch" };
const CONFIG_MAPS: Rule = Rule { group: "", resource: "configmaps", verbs: "get" };

/// A way to the API server, for as long as one of its clones lives.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) connection: Arc<Connection>,
    pub(super) access: Access,
}

/// A Lease as it was read.
#[derive(Clone, Debug)]
pub struct Lease {
    /// What it says.
    pub record: Record,
    raw: Value,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Done,
    /// The object is another one by now, or is gone: to be decided anew.
    Newer,
}

impl Api {
    /// Reads the credentials once, so that what is wrong with them is told at the start.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub async fn open(access: Access) -> Result<Self, AccessError> {
        let connection = Arc::new(Connection::open(access.clone()).await?);
        Ok(Self { connection, access })
    }

    /// What was asked of API servers.
    pub fn calls(&self) -> Calls {
        self.connection.calls.clone()
    }

    /// For people.
    pub fn words(&self) -> String {
        self.access.words()
    }

    /// Asks, and gives up a client that failed.
    async fn ask(&self, method: Method, path: &str, content: Option<Content>) -> Result<Vec<u8>, (Failure, String)> {
        let current = self.connection.client().await.map_err(|failure| (failure, "the API server".to_owned()))?;
        let answer = match ask(&current, method, path, content).await {
            Ok(response) => read(response.into_body()).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(bytes) => Ok(bytes),
            Err(failure) => {
                if failure.is_of_server() || failure.is_of_credentials() {
                    self.connection.give_up(&current, failure.is_of_server()).await;
                }
                Err((failure, current.server))
            }
        }
    }

    async fn object<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, (Failure, String)> {
        match self.ask(Method::GET, path, None).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| (Failure::broken(format!("{path}: {error}")), "the API server".to_owned())),
            Err((Failure { cause: Cause::Missing, .. }, _)) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// The Lease of that name; none: there is none yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn lease(&self, name: &ObjectName) -> Result<Option<Lease>, Problem> {
        let found = self.object::<Value>(&lease_path(name, true)).await;
        let raw =
            found.map_err(|(failure, server)| told(&failure, &format!("Lease {name}"), &LEASES, "get", &server))?;
        Ok(raw.map(|raw| {
            let text = |field: &str| raw["spec"][field].as_str().unwrap_or_default().to_owned();
            let number = |field: &str| raw["spec"][field].as_u64().unwrap_or_default();
            let record = Record {
                holder: text("holderIdentity"),
                seconds: number("leaseDurationSeconds"),
                acquired: text("acquireTime"),
                renewed: text("renewTime"),
                transitions: number("leaseTransitions"),
            };
            Lease { record, raw }
        }))
    }

    /// Writes the Lease over the one that was read, or creates it; whether nobody was faster.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write_lease(&self, name: &ObjectName, read: Option<Lease>, record: &Record) -> Result<bool, Problem> {
        let metadata = json!({"namespace": name.namespace, "name": name.name});
        let new = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
        let (method, verb, mut raw) = match read {
            Some(lease) => (Method::PUT, "update", lease.raw),
            None => (Method::POST, "create", new),
        };
        for (field, value) in [
            ("holderIdentity", json!(record.holder)),
            ("leaseDurationSeconds", json!(record.seconds)),
            ("acquireTime", json!(record.acquired)),
            ("renewTime", json!(record.renewed)),
            ("leaseTransitions", json!(record.transitions)),
        ] {
            raw["spec"][field] = value;
        }
        let content = Content { kind: JSON, bytes: raw.to_string().into_bytes() };
        match self.ask(method.clone(), &lease_path(name, method == Method::PUT), Some(content)).await {
            Ok(_) => Ok(true),
            // Somebody else was faster, or deleted it.
            Err((Failure { cause: Cause::Refused(409, _), .. }, _)) => Ok(false),
            Err((Failure { cause: Cause::Missing, .. }, _)) if method == Method::PUT => Ok(false),
            Err((failure, server)) => Err(told(&failure, &format!("Lease {name}"), &LEASES, verb, &server)),
        }
    }

    /// The data of a `ConfigMap`; none: there is no such object.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn config_map(&self, name: &ObjectName) -> Result<Option<Vec<(String, String)>>, Problem> {
        // Of the server's cache: it is asked for again and again.
        let path = format!("/api/v1/namespaces/{}/configmaps/{}?resourceVersion=0", name.namespace, name.name);
        let found = self.object::<Value>(&path).await;
        let object = format!("ConfigMap {name}");
        let raw = found.map_err(|(failure, server)| told(&failure, &object, &CONFIG_MAPS, "get", &server))?;
        let pair = |(key, value): (&String, &Value)| (key.clone(), value.as_str().unwrap_or_default().to_owned());
        Ok(raw.map(|raw| raw["data"].as_object().into_iter().flatten().map(pair).collect()))
    }

    /// Writes what the status of a Service should say of its load balancer, if the Service is still the one it was decided
    /// for.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write_status(
        &self,
        name: &ObjectName,
        decided_for: &model::Service,
        wanted: &Wanted,
    ) -> Result<Written, Problem> {
        let object = format!("Service {name}");
        let path = format!("{}/{}", Kind::Service.path_in(&name.namespace), name.name);
        let found = self.object::<Value>(&path).await;
        let raw = found.map_err(|(failure, server)| told(&failure, &object, &SERVICES, "get", &server))?;
        let Some(raw) = raw else { return Ok(Written::Newer) };
        let typed: Option<Service> = serde_json::from_value(raw.clone()).ok();
        let now = typed.and_then(|service| service.convert().ok()).map(|(service, _)| service);
        if now.as_ref() != Some(decided_for) {
            return Ok(Written::Newer);
        }
        let patch = patch(&raw, wanted, SystemTime::now());
        let content = Content { kind: MERGE, bytes: patch.to_string().into_bytes() };
        match self.ask(Method::PATCH, &format!("{path}/status"), Some(content)).await {
            Ok(_) => Ok(Written::Done),
            Err((Failure { cause: Cause::Refused(409, _) | Cause::Missing, .. }, _)) => Ok(Written::Newer),
            Err((failure, server)) => Err(told(&failure, &object, &STATUSES, "patch", &server)),
        }
    }
}

fn told(failure: &Failure, object: &str, rule: &Rule, verb: &str, server: &str) -> Problem {
    failure.told(object.to_owned(), rule, verb, server)
}

fn lease_path(name: &ObjectName, of_one: bool) -> String {
    let one = if of_one { format!("/{}", name.name) } else { String::new() };
    format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases{one}", name.namespace)
}

/// A merge patch replaces lists whole, so the other conditions are in it; the version keeps it from replacing what it does
/// not know.
fn patch(raw: &Value, wanted: &Wanted, at: SystemTime) -> Value {
    let old = raw["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is_ours = |condition: &Value| condition["type"] == CONDITION_ADDRESSES;
    let before = old.iter().find(|condition| is_ours(condition)).cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = old.into_iter().filter(|condition| !is_ours(condition)).collect();
    if let Some(condition) = &wanted.condition {
        let status = if condition.is_true { "True" } else { "False" };
        let since = if before["status"] == status { before["lastTransitionTime"].clone() } else { json!(seconds(at)) };
        conditions.push(json!({
            "type": CONDITION_ADDRESSES, "status": status, "reason": condition.reason, "message": condition.message,
            "lastTransitionTime": since,
        }));
    }
    let mut status = json!({"conditions": conditions});
    if let Some(ips) = &wanted.ingress {
        let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        status["loadBalancer"] = json!({"ingress": ingress});
    }
    json!({"metadata": {"resourceVersion": raw["metadata"]["resourceVersion"]}, "status": status})
}

/// `metav1.Time` has whole seconds.
fn seconds(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| micro_time(at), |at| format!("{at:.0}"))
}

/// The time of now as a Lease writes it.
pub fn lease_time() -> String {
    micro_time(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BalancerCondition;

    #[test]
    fn a_patch_keeps_the_conditions_of_others() {
        let raw = json!({"metadata": {"resourceVersion": "7"}, "status": {"conditions": [
            {"type": "other", "status": "True"},
            {"type": CONDITION_ADDRESSES, "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}});
        let condition = |is_true| BalancerCondition { is_true, reason: "R".to_owned(), message: "m".to_owned() };
        let wanted = |ips: Option<&[&str]>, condition| Wanted {
            ingress: ips.map(|ips| ips.iter().map(|ip| ip.parse().expect("an address")).collect()),
            condition,
        };
        let at = SystemTime::UNIX_EPOCH;
        let written = patch(&raw, &wanted(Some(&["192.0.2.1", "2001:db8::1"]), Some(condition(true))), at);
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "2001:db8::1", "ipMode": "VIP"}]);
        assert_eq!(written["status"]["loadBalancer"]["ingress"], ingress);
        assert_eq!(written["status"]["conditions"][0]["type"], "other");
        assert_eq!(written["status"]["conditions"][1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        // The same status again is no transition; without an ingress of ours it stays.
        let same = patch(&raw, &wanted(None, Some(condition(false))), at);
        assert_eq!(same["status"]["conditions"][1]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert!(same["status"].get("loadBalancer").is_none());
        assert_eq!(patch(&raw, &wanted(None, None), at)["status"]["conditions"].as_array().map(Vec::len), Some(1));
    }
}
