//! What is asked of API servers, under the names client-go has for it (`k8s.io/component-base/metrics/prometheus/restclient`).

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    code: String,
    method: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Latency {
    verb: String,
    host: String,
}

/// Counts of requests and their durations. Clones count together.
#[derive(Clone, Debug)]
pub struct Calls {
    requests: Family<Request, Counter>,
    durations: Family<Latency, Histogram, fn() -> Histogram>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { requests: Family::default(), durations: Family::new_with_constructor(buckets) }
    }
}

fn buckets() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Calls {
    /// A request was answered, or failed: `code` is the status, `<error>` for none.
    pub(crate) fn answered(&self, method: &str, host: &str, code: String, took: Duration) {
        let (method, host) = (method.to_owned(), host.to_owned());
        self.requests.get_or_create(&Request { code, method: method.clone(), host: host.clone() }).inc();
        self.durations.get_or_create(&Latency { verb: method, host }).observe(took.as_secs_f64());
    }

    /// Adds them to a page of metrics.
    pub fn register(&self, registry: &mut Registry) {
        let client = registry.sub_registry_with_prefix("rest_client");
        client.register("requests", "Requests to API servers by status code, method and host", self.requests.clone());
        client.register_with_unit(
            "request_duration",
            "Time to the head of an API server's answer by verb and host",
            Unit::Seconds,
            self.durations.clone(),
        );
    }
}
