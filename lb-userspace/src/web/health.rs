//! `/healthz` and `/livez` as kube-proxy answers them (semantics.md 2.6.5; kube-proxy `pkg/proxy/healthcheck/proxy_health.go`).
//!
//! Healthy is who has written everything there was to write: what waits is counted from the change that came first, and only a
//! write to the maps that succeeded ends the wait. Whether an API server answers does not matter. Whoever is not healthy says
//! why (`cause`), which kube-proxy does not.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::time::Instant;

use super::{Answer, answer, not_found};
use crate::report::Problem;

/// How long a change may wait: kube-proxy's default, twice its sync period.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// What the answers are made of.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    timeout: Duration,
}

#[derive(Debug)]
struct State {
    /// When the first of the changes came that are not in the maps yet.
    waiting: Option<Instant>,
    /// Why they are not, where that is known.
    cause: Option<String>,
    /// When the maps were last made what they should be.
    updated: Option<SystemTime>,
    /// The Node is not going away.
    eligible: bool,
    /// Answers given, by path and code.
    given: BTreeMap<(&'static str, u16), u64>,
}

/// The paths.
pub const PATHS: [&str; 2] = ["healthz", "livez"];

impl Default for Health {
    fn default() -> Self {
        Self::new(TIMEOUT)
    }
}

impl Health {
    fn new(timeout: Duration) -> Self {
        let state = State { waiting: None, cause: None, updated: None, eligible: true, given: BTreeMap::new() };
        Self { state: Mutex::new(state), timeout }
    }

    fn with<T>(&self, body: impl FnOnce(&mut State) -> T) -> T {
        body(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something changed that the maps do not have yet.
    pub fn queued(&self) {
        self.with(|state| *state.waiting.get_or_insert_with(Instant::now));
    }

    /// The maps are not what they should be, for this reason.
    pub fn failed(&self, Problem { object, cause, fix }: &Problem) {
        self.queued();
        self.with(|state| state.cause = Some(format!("{object}: {cause} ({fix})")));
    }

    /// The maps are what they should be.
    pub fn updated(&self) {
        self.with(|state| {
            state.waiting = None;
            state.cause = None;
            state.updated = Some(SystemTime::now());
        });
    }

    /// Whether the own Node takes new traffic: it is not being deleted and not tainted for it.
    pub fn set_eligible(&self, eligible: bool) {
        self.with(|state| state.eligible = eligible);
    }

    /// Whether nothing waits for too long.
    pub fn is_healthy(&self) -> bool {
        self.cause().is_none()
    }

    /// Why it is not healthy.
    fn cause(&self) -> Option<String> {
        self.with(|state| {
            let waited = state.waiting.map(|since| since.elapsed()).filter(|waited| *waited > self.timeout)?;
            let known = state.cause.clone();
            Some(known.unwrap_or_else(|| format!("maps: a change has waited for {} s to be written", waited.as_secs())))
        })
    }

    /// Answers given so far, by path and code.
    pub fn given(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.with(|state| state.given.clone())
    }

    /// The answer to a request for `path`, whatever its method.
    pub fn answer(&self, path: &str) -> Answer {
        let Some(name) = PATHS.into_iter().find(|name| path.strip_prefix('/') == Some(name)) else {
            return not_found();
        };
        let cause = self.cause();
        let now = SystemTime::now();
        self.with(|state| {
            let eligible = state.eligible || name == "livez";
            let status = if cause.is_none() && eligible { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            *state.given.entry((name, status.as_u16())).or_default() += 1;
            // Who has nothing to write is up to date now.
            let updated = if cause.is_none() { Some(now) } else { state.updated };
            let mut body = serde_json::Map::new();
            body.insert("lastUpdated".to_owned(), time(updated).into());
            body.insert("currentTime".to_owned(), time(Some(now)).into());
            if name == "healthz" {
                body.insert("nodeEligible".to_owned(), state.eligible.into());
            }
            body.extend(cause.map(|cause| ("cause".to_owned(), cause.into())));
            answer(status, "application/json", serde_json::Value::Object(body).to_string())
        })
    }
}

/// RFC 3339, as Go writes a time; its zero time for none.
fn time(at: Option<SystemTime>) -> String {
    let at = at.and_then(|at| jiff::Timestamp::try_from(at).ok());
    at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(health: &Health, path: &str) -> (u16, serde_json::Value) {
        let response = health.answer(path);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test(start_paused = true)]
    async fn rule_2_6_5_healthy_until_a_change_waits_for_too_long() {
        let health = Health::new(TIMEOUT);
        assert_eq!(ask(&health, "/healthz").await.0, 200, "at start");
        health.queued();
        tokio::time::advance(TIMEOUT).await;
        // A later change does not begin the wait anew.
        health.queued();
        assert_eq!(ask(&health, "/healthz").await.0, 200, "not yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        for path in ["/healthz", "/livez"] {
            let (status, body) = ask(&health, path).await;
            assert_eq!((status, &body["lastUpdated"]), (503, &"0001-01-01T00:00:00Z".into()), "never written: {body}");
            assert_eq!(body["cause"], "maps: a change has waited for 61 s to be written");
        }
        health.updated();
        let (status, body) = ask(&health, "/healthz").await;
        assert!(status == 200 && body.get("cause").is_none(), "{body}");
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        health.queued();
        tokio::time::advance(TIMEOUT * 2).await;
        let (status, body) = ask(&health, "/livez").await;
        assert!(status == 503 && body["lastUpdated"] != "0001-01-01T00:00:00Z", "{body}");
        assert_eq!(health.given(), [(("healthz", 200), 3), (("healthz", 503), 1), (("livez", 503), 2)].into());
    }

    #[tokio::test]
    async fn rule_2_6_5_a_node_that_goes_is_not_eligible_but_lives() {
        let health = Health::default();
        health.set_eligible(false);
        let (status, body) = ask(&health, "/healthz").await;
        assert_eq!((status, &body["nodeEligible"]), (503, &false.into()));
        let (status, body) = ask(&health, "/livez").await;
        assert!(status == 200 && body.get("nodeEligible").is_none(), "{body}");
        health.set_eligible(true);
        assert_eq!(ask(&health, "/healthz").await.0, 200);
    }

    #[test]
    fn other_paths_are_not_found() {
        let health = Health::default();
        for path in ["/", "healthz", "/healthz/", "/metrics"] {
            assert_eq!(health.answer(path).status(), 404, "{path}");
        }
        assert!(health.given().is_empty());
    }
}
