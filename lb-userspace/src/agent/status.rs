//! What the agent tells about itself.

use super::{Agent, dns::Dns};
use crate::{
    control::Response,
    convert::Severity,
    describe::{self, ServiceNumbers},
    desired::{BackendAddr, ServiceKey},
    gc::{Clock, Survey},
    ids::BackendKey,
    model::ObjectName,
    numbers,
    report::{Problem, ServiceRow, Status},
    rights,
};

impl Agent {
    pub(super) fn service_rows(&self) -> Vec<ServiceRow> {
        describe::service_rows(&self.model, &self.engine.desired)
    }

    pub(super) fn describe(&self, namespace: &str, name: &str) -> Response {
        let object = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        let surveys = numbers::surveys(&self.datapath.maps);
        let numbers = |key: &ServiceKey| self.numbers(key, &surveys);
        let detail = describe::service_detail(&self.model, &self.engine.desired, &object, &self.options.node, &numbers);
        match detail {
            Some(mut detail) => {
                let about = format!("Service {object}");
                detail.problems.extend(self.problems().into_iter().filter(|problem| problem.object == about));
                detail.problems.sort();
                detail.problems.dedup();
                Response::Detail(Box::new(detail))
            }
            None => Response::NotFound { namespace: namespace.to_owned(), name: name.to_owned() },
        }
    }

    fn numbers(&self, key: &ServiceKey, surveys: &[Survey]) -> ServiceNumbers {
        let ids = self.engine.ids();
        let Some(service) = ids.services.get(key) else { return ServiceNumbers::default() };
        let numbered =
            |at: &BackendAddr| Some((*at, ids.family(key.family).backends.get(&BackendKey { service, at: *at })?));
        let desired = self.engine.desired.services.get(key).into_iter();
        let backends = desired.flat_map(|desired| &desired.backends).filter_map(numbered);
        numbers::of_service(&self.datapath.maps, service, key.family, backends, surveys)
    }

    /// What may not be as meant.
    async fn warnings(&self) -> Vec<Problem> {
        let without_documents = self.options.notes.iter().chain(self.network.warnings());
        let silent = self.network.silent_neighbours().await;
        let network = without_documents.chain(&self.takeover.warning).cloned().chain(silent);
        network
            .chain(self.engine.desired.warnings.iter().cloned())
            .chain(self.input.problems(Severity::Warning))
            .chain(self.without_ranges())
            .chain(self.without_node())
            .chain(rights::effective().ok().and_then(rights::unseen))
            .chain(self.verification.warning())
            .chain(self.foreign.warnings())
            .chain(self.events.problems())
            .collect()
    }

    /// Rule 2.3.7 of the semantics needs to know them.
    fn without_ranges(&self) -> Option<Problem> {
        (self.input.is_ready() && self.service_cidrs().is_empty()).then(|| Problem {
            object: "Service CIDRs".to_owned(),
            cause: "unknown: packets to their addresses that no Service has are passed on instead of dropped"
                .to_owned(),
            fix: "give --service-cidr, or let the agent list ServiceCIDR objects (Kubernetes 1.33 or newer)".to_owned(),
        })
    }

    /// The Node tells which pods are this node's, and documents may do without.
    fn without_node(&self) -> Option<Problem> {
        let known = self.model.nodes.contains_key(&self.options.node);
        (self.input.is_of_cluster() && !known).then(|| Problem {
            object: format!("Node {}", self.options.node),
            cause: "the cluster has no Node of this name: its pod ranges are unknown".to_owned(),
            fix: "give its name with --hostname-override".to_owned(),
        })
    }

    /// Everything that is not as asked.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.input.problems(Severity::Error);
        problems.extend(self.sync_error.clone());
        problems.extend(self.verification.problem().cloned());
        problems.extend(self.snapshots.problem().cloned());
        problems.extend(self.start_problems.iter().cloned());
        problems.extend(self.engine.desired.problems.iter().cloned());
        problems.extend(self.engine.refused.iter().cloned());
        problems.extend(self.collection.problem());
        problems.extend(self.network.problems());
        problems.extend(self.web.problems());
        // Both sources have the same objects: what is wrong with one is said once.
        let of_names = self.dns.iter().flat_map(Dns::problems).filter(|problem| !problems.contains(problem));
        let of_names: Vec<_> = of_names.collect();
        problems.extend(of_names);
        problems.extend(self.orphans.problems().filter(|_| self.socket_hooks.attached));
        if !self.socket_hooks.attached {
            problems.push(Problem {
                object: "socket hooks".to_owned(),
                cause: self.socket_hooks.detail.clone(),
                fix: "host processes use ballast0 instead and do not reach nodePorts on this node's own and loopback addresses: mount cgroup2, name \
                      it with --cgroup, or set socketHooks: true"
                    .to_owned(),
            });
        }
        problems
    }

    fn takeover_seconds(&self) -> Option<u32> {
        let word = Some(self.takeover.word).filter(|word| *word != 0)?;
        Clock::of(&self.datapath.maps).ok()?.takeover_seconds(word)
    }

    pub(super) async fn status(&self) -> Status {
        self.status_with(&numbers::surveys(&self.datapath.maps)).await
    }

    /// The status with what the conntrack maps were seen to hold.
    pub(super) async fn status_with(&self, surveys: &[Survey; 2]) -> Status {
        let desired = &self.engine.desired;
        let maps = &self.datapath.maps;
        let cidrs: Vec<String> = desired.detected.iter().map(ToString::to_string).collect();
        let mode = self.options.config.detect_local.mode();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.options.node.clone(),
            agent_pid: Some(std::process::id()),
            source: self.input.words(),
            watches: self.input.watches(),
            stale_seconds: self.input.stale_seconds(),
            detector: if cidrs.is_empty() { "none".to_owned() } else { format!("{mode} {}", cidrs.join(",")) },
            socket_hooks: self.socket_hooks.clone(),
            takeover_seconds: self.takeover_seconds(),
            devices: self.network.device_status(),
            maps: numbers::map_use(maps, self.engine.mirror(), surveys),
            bpf_memory_bytes: maps.memory(),
            services: self.model.services.len() as u64,
            frontends: self.frontends() as u64,
            backends: self.engine.desired.services.values().map(|service| service.backends.len() as u64).sum(),
            flows: surveys.iter().map(|survey| survey.flows).sum(),
            counters: numbers::counters(maps),
            verified: Some(self.verification.status()),
            problems: self.problems(),
            warnings: self.warnings().await,
        }
    }
}
