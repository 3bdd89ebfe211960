//! `/health`, `/ready` and `/metrics`, as `CoreDNS` splits them: alive until it is told to end, ready once it has a zone.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::StatusCode;
use prometheus_client::{encoding::text, registry::Registry};

use super::{server::Handler, zones::Zones};
use crate::{
    k8s::source::Calls,
    web::{self, Answer, Listening, answer, metrics, not_found},
};

const TEXT: &str = "text/plain; charset=utf-8";

/// What the pages are made of.
#[derive(Debug)]
pub struct Site {
    zones: Arc<Zones>,
    handler: Handler,
    calls: Calls,
    ending: AtomicBool,
}

impl Site {
    /// Of this server.
    pub fn new(handler: &Handler, calls: Calls) -> Arc<Self> {
        let ending = AtomicBool::new(false);
        Arc::new(Self { zones: handler.zones(), handler: handler.clone(), calls, ending })
    }

    /// From here on it is neither healthy nor ready: whoever sends questions here should look elsewhere.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Serves health, and metrics, where they are asked for.
    pub fn listen(self: &Arc<Self>, health: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Vec<Listening> {
        web::pages(self, "DNS", (health, Self::health), (metrics, Self::page))
    }

    fn health(&self, path: &str) -> Answer {
        let ending = self.ending.load(Ordering::Relaxed);
        let why = match path {
            "/health" | "/ready" if ending => "it is ending",
            "/ready" if !self.zones.is_set() => "the objects have not all been read yet",
            "/health" | "/ready" => return answer(StatusCode::OK, TEXT, "OK\n".to_owned()),
            _ => return not_found(),
        };
        answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n"))
    }

    fn page(&self, path: &str) -> Answer {
        if path != "/metrics" {
            return not_found();
        }
        let mut registry = Registry::default();
        self.calls.register(&mut registry);
        self.handler.register(registry.sub_registry_with_prefix("ballast"));
        metrics::process(registry.sub_registry_with_prefix("process"));
        let mut page = String::new();
        match text::encode(&mut page, &registry) {
            Ok(()) => answer(StatusCode::OK, metrics::CONTENT_TYPE, page),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{
        dns::{
            server::Rules,
            zone::{Options, Zone},
        },
        model::Model,
    };

    #[tokio::test]
    async fn alive_from_the_start_ready_with_a_zone_neither_at_the_end() {
        let zones = Arc::new(Zones::default());
        let handler = Handler::new(Arc::clone(&zones), Rules::default());
        let site = Site::new(&handler, Calls::default());
        let codes = || ["/health", "/ready", "/other"].map(|path| site.health(path).status().as_u16());
        assert_eq!(codes(), [200, 503, 404]);
        zones.set(Zone::new(&Model::default(), Options::new("cluster.local".to_owned(), 5)));
        assert_eq!(codes(), [200, 200, 404]);
        site.end();
        assert_eq!(codes(), [503, 503, 404]);
        let page = site.page("/metrics").into_body().collect().await.expect("a body").to_bytes();
        let page = String::from_utf8_lossy(&page);
        for line in ["ballast_dns_services 0", "ballast_dns_rate_limited_total{outcome=\"dropped\"} 0", "# EOF"] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
