//! What the agent tells about itself.

use std::collections::BTreeMap;

use super::Agent;
use crate::{
    control::Response,
    describe::{self, ServiceNumbers},
    desired::{BackendAddr, ServiceKey},
    gc::{self, Survey},
    ids::BackendKey,
    image::Table,
    model::{IpFamily, ObjectName},
    report::{MapStatus, Problem, ServiceRow, Status},
};

impl Agent {
    pub(super) fn service_rows(&self) -> Vec<ServiceRow> {
        describe::service_rows(&self.model, &self.engine.desired)
    }

    /// What the conntrack maps hold now, IPv4 and IPv6.
    fn surveys(&self) -> [Survey; 2] {
        let maps = &self.datapath.maps;
        [gc::survey::<[u8; 4]>(maps), gc::survey::<[u8; 16]>(maps)].map(|survey| {
            survey.unwrap_or_else(|error| {
                tracing::warn!("cannot list the flows: {error}");
                Survey::default()
            })
        })
    }

    pub(super) fn describe(&self, namespace: &str, name: &str) -> Response {
        let object = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        let surveys = self.surveys();
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
        let Some(service) = self.engine.ids().services.get(key) else { return ServiceNumbers::default() };
        let maps = &self.datapath.maps;
        let word = |map: &str, index: u32| {
            maps.word(map, index).unwrap_or_else(|error| {
                tracing::warn!("cannot read {map}: {error}");
                0
            })
        };
        let live = |pick: fn(&(u64, u64)) -> u64| -> u64 {
            surveys.iter().filter_map(|survey| survey.traffic.get(&service)).map(pick).sum()
        };
        let packets = word("LB_SVC_TRAFFIC", service * 2).wrapping_add(live(|(packets, _)| *packets));
        let bytes = word("LB_SVC_TRAFFIC", service * 2 + 1).wrapping_add(live(|(_, bytes)| *bytes));
        let family = self.engine.ids().family(key.family);
        let map = match key.family {
            IpFamily::V4 => "LB4_BKD_CONNS",
            IpFamily::V6 => "LB6_BKD_CONNS",
        };
        let of_service = self.engine.desired.services.get(key);
        let backends: BTreeMap<BackendAddr, u64> = of_service
            .into_iter()
            .flat_map(|desired| &desired.backends)
            .filter_map(|at| Some((*at, word(map, family.backends.get(&BackendKey { service, at: *at })?))))
            .collect();
        let path = packets > 0;
        ServiceNumbers {
            connections: word("LB_SVC_CONNS", service),
            packets: path.then_some(packets),
            bytes: path.then_some(bytes),
            backends,
        }
    }

    /// Everything that is not as asked.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.findings.iter().map(Problem::from).collect();
        problems.extend(self.source_error.clone());
        problems.extend(self.sync_error.clone());
        problems.extend(self.start_problems.iter().cloned());
        problems.extend(self.options.notes.not_yet.iter().cloned());
        problems.extend(self.engine.desired.problems.iter().cloned());
        problems.extend(self.engine.refused.iter().cloned());
        problems.extend(self.network.problems());
        if !self.socket_hooks.attached {
            problems.push(Problem {
                object: "socket hooks".to_owned(),
                cause: self.socket_hooks.detail.clone(),
                fix: "host processes use ballast0 instead and do not reach this node's own nodePorts: mount cgroup2, name \
                      it with --cgroup, or set socketHooks: true"
                    .to_owned(),
            });
        }
        problems
    }

    pub(super) fn status(&self) -> Status {
        let [v4, v6] = self.surveys();
        let desired = &self.engine.desired;
        let mirror = self.engine.mirror();
        let mut maps = self.datapath.maps.status();
        for table in Table::ALL {
            if let Some(status) = maps.get_mut(table.map_name()) {
                status.used = mirror.table(table).count() as u64;
            }
        }
        for (name, used) in [("LB4_CONNTRACK", v4.entries), ("LB6_CONNTRACK", v6.entries)] {
            if let Some(status) = maps.get_mut(name) {
                *status = MapStatus { used, ..*status };
            }
        }
        let counters = self.datapath.maps.counters().unwrap_or_else(|error| {
            tracing::warn!("cannot read the counters: {error}");
            BTreeMap::new()
        });
        let cidrs: Vec<String> = desired.local_pod_cidrs.iter().map(ToString::to_string).collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.options.node.clone(),
            agent_pid: Some(std::process::id()),
            source: self.options.path.display().to_string(),
            detector: if cidrs.is_empty() { "none".to_owned() } else { format!("NodeCIDR {}", cidrs.join(",")) },
            socket_hooks: self.socket_hooks.clone(),
            devices: self.network.device_status(),
            maps,
            bpf_memory_bytes: self.datapath.maps.memory(),
            services: self.model.services.len() as u64,
            frontends: self.frontends() as u64,
            backends: self.engine.desired.services.values().map(|service| service.backends.len() as u64).sum(),
            flows: v4.flows + v6.flows,
            counters: counters
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(counter, count)| (format!("{counter:?}"), count))
                .collect(),
            problems: self.problems(),
            warnings: self.options.notes.no_effect.clone(),
            not_honoured: desired
                .not_honoured
                .iter()
                .map(|(name, fields)| (name.to_string(), fields.clone()))
                .collect(),
        }
    }
}
