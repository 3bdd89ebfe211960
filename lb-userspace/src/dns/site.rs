//! The pages of the name service.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus_client::registry::Registry;

use super::{server::Handler, zones::Zones};
use crate::{
    k8s::source::Calls,
    web::{Listening, pages},
};

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

    /// From here on it is neither healthy nor ready.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Serves health, and metrics, where they are asked for.
    pub fn listen(self: &Arc<Self>, health: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Vec<Listening> {
        pages::serve(self, health, metrics)
    }
}

impl pages::Site for Site {
    const NAME: &'static str = "DNS";

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn waits(&self) -> Option<&'static str> {
        (!self.zones.is_set()).then_some("the objects have not all been read yet")
    }

    fn register(&self, registry: &mut Registry) {
        self.calls.register(registry);
        self.handler.register(registry.sub_registry_with_prefix("ballast"));
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
        let codes = || ["/health", "/ready", "/other"].map(|path| pages::health(&*site, path).status().as_u16());
        assert_eq!(codes(), [200, 503, 404]);
        zones.set(Zone::new(&Model::default(), Options::new("cluster.local".to_owned(), 5)));
        assert_eq!(codes(), [200, 200, 404]);
        site.end();
        assert_eq!(codes(), [503, 503, 404]);
        let page = pages::page(&*site, "/metrics").into_body().collect().await.expect("a body").to_bytes();
        let page = String::from_utf8_lossy(&page);
        for line in ["ballast_dns_services 0", "ballast_dns_rate_limited_total{outcome=\"dropped\"} 0", "# EOF"] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
