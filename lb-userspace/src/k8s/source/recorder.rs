//! Sends Events, as `events.k8s.io/v1`: what kube-proxy's recorder does, with names that make one Event of what several
//! nodes tell, and of what is told again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    connection::{Connection, Current},
    failure::{Cause, Failure, Rule},
    pace::{Pace, Timing},
    request::{Content, ask, read},
    task::keep_running,
    wire::encode,
};
use crate::{
    events::{Due, Event, Regarding},
    report::Problem,
};

/// Events that may wait.
const QUEUE: usize = 256;
/// Events that may be sent at once; after that one at a time.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_secs(1);
/// Before another try where the right is missing.
const FORBIDDEN: Duration = Duration::from_mins(5);
/// Bytes of a note, by the API's validation.
const NOTE: usize = 1024;
const RULE: Rule = Rule { group: "events.k8s.io", resource: "events", verbs: "create, patch" };
const CONTROLLER: &str = "ballast";

/// Takes Events, never waits.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: mpsc::Sender<(Due, SystemTime)>,
    state: Arc<Mutex<Sent>>,
}

/// What became of the Events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The server has them.
    pub sent: u64,
    /// The object was gone, or the server would not have them.
    pub dropped: u64,
    /// Why none can be sent now.
    pub problem: Option<Problem>,
}

impl Recorder {
    pub(super) fn start(connection: Arc<Connection>, timing: Timing, node: &str, tasks: &mut JoinSet<()>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let state = Arc::default();
        let task = Task {
            connection,
            node: node.to_owned(),
            state: Arc::clone(&state),
            pace: Pace::new(timing),
            budget: Budget { left: BURST, since: Instant::now() },
        };
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let of_defects = task.clone();
        let tell = move |failure: Failure| {
            of_defects.tell(&failure, "create", "the API server");
            std::future::ready(true)
        };
        tasks.spawn(keep_running(timing, move || task.clone().run(Arc::clone(&queue)), tell));
        Self { sender, state }
    }

    /// Sends it, soon; whether there was room for it.
    #[must_use]
    pub fn send(&self, due: Due) -> bool {
        self.sender.try_send((due, SystemTime::now())).is_ok()
    }

    /// What became of those so far.
    pub fn sent(&self) -> Sent {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
struct Task {
    connection: Arc<Connection>,
    node: String,
    state: Arc<Mutex<Sent>>,
    pace: Pace,
    budget: Budget,
}

/// So many at once, and one each [`EVERY`].
#[derive(Clone)]
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    /// Waits until one more may be sent.
    async fn spend(&mut self) {
        let more = self.since.elapsed().as_secs() / EVERY.as_secs();
        let more = u32::try_from(more).unwrap_or(BURST);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = Instant::now();
        }
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
        } else {
            sleep_until(self.since + EVERY).await;
            self.since = Instant::now();
        }
    }
}

/// What one try led to.
enum Outcome {
    Sent,
    /// There is nothing to send it about.
    Dropped,
}

impl Task {
    async fn run(mut self, queue: Arc<tokio::sync::Mutex<mpsc::Receiver<(Due, SystemTime)>>>) {
        let mut queue = queue.lock().await;
        while let Some((due, at)) = queue.recv().await {
            self.budget.spend().await;
            loop {
                let (failure, verb, current) = match self.step(&due, at).await {
                    Ok(outcome) => {
                        self.done(&outcome);
                        break;
                    }
                    Err(failed) => failed,
                };
                let server = current.as_ref().map_or("the API server", |current| &current.server);
                self.tell(&failure, verb, server);
                if let Some(current) = &current
                    && (failure.is_of_server() || failure.is_of_credentials())
                {
                    self.connection.give_up(current, failure.is_of_server()).await;
                }
                match failure.cause {
                    // Nothing is gained by this one; the next may be of another kind.
                    Cause::Refused(..) | Cause::Missing => {
                        self.done(&Outcome::Dropped);
                        break;
                    }
                    Cause::Forbidden(_) if verb == "patch" => {
                        self.with(|state| state.dropped += 1);
                        break;
                    }
                    Cause::Forbidden(_) => sleep(FORBIDDEN).await,
                    _ => sleep(self.pace.after(&failure)).await,
                }
            }
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Sent) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn done(&mut self, outcome: &Outcome) {
        self.pace.success();
        self.with(|state| match outcome {
            Outcome::Sent => {
                state.sent += 1;
                if state.problem.take().is_some() {
                    tracing::info!("events: well again");
                }
            }
            Outcome::Dropped => state.dropped += 1,
        });
    }

    /// That the server is away, its watches tell; what only Events need is told here, once.
    fn tell(&self, failure: &Failure, verb: &str, server: &str) {
        if failure.is_away() || matches!(failure.cause, Cause::Setup(_) | Cause::Certificate(_) | Cause::Missing) {
            return;
        }
        let problem = failure.told("events".to_owned(), &RULE, verb, server);
        self.with(|state| {
            if state.problem.as_ref() != Some(&problem) {
                tracing::warn!("{}: {} ({})", problem.object, problem.cause, problem.fix);
                state.problem = Some(problem);
            }
        });
    }

    async fn step(&self, due: &Due, at: SystemTime) -> Result<Outcome, (Failure, &'static str, Option<Current>)> {
        let current = self.connection.client().await.map_err(|failure| (failure, "create", None))?;
        let failed = |verb: &'static str| {
            let current = current.clone();
            move |failure| (failure, verb, Some(current))
        };
        let names = Names::of(&due.event, &self.node);
        if due.count > 1 {
            let series = json!({"series": {"count": due.count, "lastObservedTime": micro_time(at)}});
            let content = Content { kind: "application/merge-patch+json", bytes: series.to_string().into_bytes() };
            match ask(&current, Method::PATCH, &names.path(true), Some(content)).await {
                Ok(_) => return Ok(Outcome::Sent),
                // It is forgotten, after an hour by default.
                Err(failure) if failure.cause == Cause::Missing => {}
                Err(failure) => return Err(failed("patch")(failure)),
            }
        }
        let Some(uid) = uid(&current, &due.event).await.map_err(failed("create"))? else { return Ok(Outcome::Dropped) };
        let body = body(&due.event, &names, &uid, &self.node, at);
        let content = Content { kind: "application/json", bytes: body.to_string().into_bytes() };
        match ask(&current, Method::POST, &names.path(false), Some(content)).await {
            Ok(_) | Err(Failure { cause: Cause::Refused(409, _), .. }) => Ok(Outcome::Sent),
            // The object goes with it.
            Err(Failure { cause: Cause::Forbidden(why), .. }) if why.contains("being terminated") => {
                Ok(Outcome::Dropped)
            }
            Err(failure) => Err(failed("create")(failure)),
        }
    }
}

/// Where an Event is.
struct Names {
    namespace: String,
    name: String,
}

impl Names {
    fn of(event: &Event, node: &str) -> Self {
        let (Regarding { kind, name: object }, reason, note, of_node) = event.identity();
        let node = if of_node { node } else { "" };
        let mut hash = Sha256::new();
        for part in [kind.to_string().as_str(), reason, note, node] {
            hash.update(part);
            hash.update([0]);
        }
        let digest = format!("{:x}", hash.finalize());
        // A name has 253 bytes at most.
        let object_name: String = object.name.chars().take(200).collect();
        let name = format!("{object_name}.{}", digest.get(..16).unwrap_or_default());
        // Where the API server wants those of cluster-wide objects to be (Kubernetes `pkg/apis/core/validation/events.go`).
        let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
        Self { namespace: namespace.to_owned(), name }
    }

    fn path(&self, of_one: bool) -> String {
        let name = if of_one { format!("/{}", self.name) } else { String::new() };
        format!("/apis/events.k8s.io/v1/namespaces/{}/events{name}", self.namespace)
    }
}

fn body(event: &Event, names: &Names, uid: &str, node: &str, at: SystemTime) -> Value {
    let object = &event.regarding;
    let mut regarding = json!({
        "apiVersion": object.kind.api_version(), "kind": object.kind.to_string(),
        "name": object.name.name, "uid": uid,
    });
    if object.kind.is_namespaced() {
        regarding["namespace"] = object.name.namespace.clone().into();
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": names.name, "namespace": names.namespace},
        "eventTime": micro_time(at),
        "type": "Warning",
        "reason": event.reason,
        "note": shortened(&event.note),
        "action": "Program",
        "regarding": regarding,
        "reportingController": CONTROLLER,
        // 128 bytes at most.
        "reportingInstance": format!("{CONTROLLER}-{node}").chars().take(128).collect::<String>(),
    })
}

fn shortened(note: &str) -> &str {
    let end = (0..=NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note.get(..end).unwrap_or_default()
}

pub(super) fn micro_time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "1970-01-01T00:00:00.000000Z".to_owned(), |at| format!("{at:.6}"))
}

/// The object's uid: `kubectl describe` shows the Events of that. `None`: there is no such object any more. Asked of the
/// server's cache, with the right to list, which the watches have.
async fn uid(current: &Current, event: &Event) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        items: Option<Vec<Item>>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        #[serde(default)]
        uid: String,
    }
    let object = &event.regarding;
    let selector = encode(&format!("metadata.name={}", object.name.name));
    let collection = object.kind.path_in(&object.name.namespace);
    let path = format!("{collection}?fieldSelector={selector}&resourceVersion=0");
    let answer = read(ask(current, Method::GET, &path, None).await?.into_body()).await?;
    let list: List = serde_json::from_slice(&answer).map_err(|error| Failure::broken(format!("list: {error}")))?;
    Ok(list.items.unwrap_or_default().into_iter().next().map(|item| item.metadata.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn event(note: &str, of_node: bool) -> Event {
        let name = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        let regarding = Regarding { kind: super::super::Kind::Service, name };
        Event { regarding, reason: "NoRoom", note: note.to_owned(), of_node, varies: false }
    }

    #[test]
    fn what_is_so_everywhere_has_one_name() {
        let name = |event: &Event, node: &str| Names::of(event, node).name;
        assert_eq!(name(&event("a", false), "n1"), name(&event("a", false), "n2"));
        assert_ne!(name(&event("a", true), "n1"), name(&event("a", true), "n2"));
        assert_ne!(name(&event("a", false), "n1"), name(&event("b", false), "n1"));
        let long = Event {
            regarding: Regarding {
                name: ObjectName { namespace: "default".to_owned(), name: "s".repeat(253) },
                ..event("a", false).regarding
            },
            ..event("a", false)
        };
        assert!(name(&long, "n").len() <= 253);
    }

    #[test]
    fn a_note_is_as_long_as_the_api_takes_it() {
        let note = "\u{e9}".repeat(NOTE);
        let names = Names::of(&event(&note, false), "n");
        let body = body(&event(&note, false), &names, "u", "n", SystemTime::UNIX_EPOCH);
        let text = body["note"].as_str().expect("text");
        assert!(text.len() == NOTE && note.starts_with(text));
        assert_eq!(shortened("short"), "short");
        assert_eq!(body["eventTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(body["regarding"]["apiVersion"], "v1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_followed_by_one_at_a_time() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, since: start };
        for _ in 0..BURST + 10 {
            budget.spend().await;
        }
        let took = start.elapsed();
        assert!(took >= EVERY * 9 && took <= EVERY * 11, "{took:?}");
    }
}
