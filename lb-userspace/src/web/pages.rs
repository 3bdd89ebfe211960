//! `/health`, `/ready` and `/metrics`, as `CoreDNS` splits them: alive until it is told to end, ready once it can do its
//! work.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use prometheus_client::{encoding::text, registry::Registry};

use super::{Answer, Listening, answer, metrics, not_found};

const TEXT: &str = "text/plain; charset=utf-8";

/// A program that has these pages.
pub trait Site: Send + Sync + 'static {
    /// What it is.
    const NAME: &'static str;

    /// Whether it was told to end: whoever sends something here should look elsewhere.
    fn is_ending(&self) -> bool;

    /// Why it cannot do its work yet; none if it can.
    fn waits(&self) -> Option<&'static str>;

    /// Adds its metrics, with their prefixes.
    fn register(&self, registry: &mut Registry);
}

/// Serves health and metrics of `site` where they are asked for.
pub fn serve<S: Site>(site: &Arc<S>, health_at: Option<SocketAddr>, metrics_at: Option<SocketAddr>) -> Vec<Listening> {
    let start = |at: Option<SocketAddr>, answer: fn(&S, &str) -> Answer, what, flag| {
        let site = Arc::clone(site);
        let respond = move |request: Request<Incoming>| std::future::ready(answer(&site, request.uri().path()));
        let (object, fix) = (format!("{what} of {}", S::NAME), format!("give another {flag} ADDR:PORT"));
        Some(Listening::start(at?, &object, &fix, respond))
    };
    let health = start(health_at, health, "health", "--healthz-bind-address");
    let metrics = start(metrics_at, page, "metrics", "--metrics-bind-address");
    health.into_iter().chain(metrics).collect()
}

/// The page of health at a path.
pub fn health<S: Site>(site: &S, path: &str) -> Answer {
    let why = match path {
        "/health" | "/ready" if site.is_ending() => Some("it is ending"),
        "/health" => None,
        "/ready" => site.waits(),
        _ => return not_found(),
    };
    match why {
        None => answer(StatusCode::OK, TEXT, "OK\n".to_owned()),
        Some(why) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
    }
}

/// The page of metrics at a path.
pub fn page<S: Site>(site: &S, path: &str) -> Answer {
    if path != "/metrics" {
        return not_found();
    }
    let mut registry = Registry::default();
    site.register(&mut registry);
    metrics::process(registry.sub_registry_with_prefix("process"));
    let mut page = String::new();
    match text::encode(&mut page, &registry) {
        Ok(()) => answer(StatusCode::OK, metrics::CONTENT_TYPE, page),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}
