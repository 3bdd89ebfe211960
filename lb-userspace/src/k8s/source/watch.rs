//! Lists and watches one kind for ever.
//!
//! A list is applied whole, once its last page is there. After that the server's events are; whatever goes wrong with
//! them, the next list makes the model what the server has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Update,
    cluster::{Delta, Found},
    connection::{Connection, Current},
    failure::{Cause, Failure},
    kind::{Kind, Watched},
    pace::{Pace, Timing, spread},
    request::{ask, network, read},
    wire::{Event, Heard, Lines, encode, event, page},
};
use crate::model::ObjectName;

/// Objects in a page of a list, as client-go asks for.
const PAGE: u32 = 500;
/// A server that says nothing for so long within a watch is not waited for. Servers send a bookmark every minute.
const IDLE: Duration = Duration::from_secs(150);
/// What a server is asked to end a watch after, spread over as much again, so that nodes do not all come back at once.
const WATCH: Duration = Duration::from_mins(5);
/// Longer than any object: etcd takes 1.5 MiB.
const LONGEST_LINE: usize = 64 << 20;
/// A watch that ended sooner without a word was no watch.
const SHORTEST: Duration = Duration::from_secs(2);
/// A watch that could not be begun so often in a row is begun with a list.
const MAX_STARTS: u32 = 3;

/// The watch of one kind.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) connection: Arc<Connection>,
    /// Query parameter and selector.
    pub(super) selector: Option<(&'static str, String)>,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) timing: Timing,
}

/// Nobody listens any more.
struct Closed;

/// What ends a list or a watch before its end.
enum End {
    Failed(Box<Failure>, Option<Current>),
    Closed,
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Where a watch goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Position {
    /// resourceVersion; none: to be listed.
    version: Option<String>,
    /// Starts of a watch that failed in a row.
    starts: u32,
    /// Whole lists in one page: a page's continuation had expired.
    unpaged: bool,
}

impl Watch {
    /// Runs until nobody listens.
    pub(super) async fn run<O: Watched>(self) {
        let mut pace = Pace::new(self.timing);
        let mut position = Position::default();
        let mut was_gone = false;
        loop {
            let verb = if position.version.is_some() { "watch" } else { "list" };
            let begin = Instant::now();
            let (failure, current) = match self.step::<O>(&mut position, &mut pace).await {
                Ok(()) if verb == "watch" => {
                    // A server may end each of its watches at once.
                    tokio::time::sleep(self.timing.between.saturating_sub(begin.elapsed())).await;
                    continue;
                }
                Ok(()) => continue,
                Err(End::Closed) => return,
                Err(End::Failed(failure, current)) => (*failure, current),
            };
            if verb == "watch" {
                position.starts += 1;
            }
            let broken = matches!(failure.cause, Cause::Gone | Cause::Broken(_) | Cause::Missing);
            // Nobody may list more often than watch because watching is not allowed.
            let listing_may_help = !failure.is_away() && !matches!(failure.cause, Cause::Forbidden(_));
            if broken || position.starts >= MAX_STARTS && listing_may_help {
                position.version = None;
                position.starts = 0;
            }
            if failure.cause == Cause::Gone && verb == "list" {
                position.unpaged = true;
            }
            if let Some(current) = &current
                && (failure.is_of_server() || failure.is_of_credentials())
            {
                self.connection.give_up(current, failure.is_of_server()).await;
            }
            // A watch too old to go on is no trouble: a busy cluster forgets within minutes. One that is too old right after
            // its list is.
            let gone = failure.cause == Cause::Gone && verb == "watch";
            let routine = gone && (!was_gone || pace.is_fresh());
            was_gone = gone;
            let server = current.map_or_else(|| "the API server".to_owned(), |current| current.server);
            let problem = failure.problem(O::KIND, verb, &server);
            let update = Update::Failed(O::KIND, failure.clone(), problem);
            if !routine && self.updates.send(update).await.is_err() {
                return;
            }
            tokio::time::sleep(pace.after(&failure)).await;
        }
    }

    async fn step<O: Watched>(&self, position: &mut Position, pace: &mut Pace) -> Result<(), End> {
        let current = self.connection.client().await.map_err(|failure| End::Failed(Box::new(failure), None))?;
        let failed = |failure| End::Failed(Box::new(failure), Some(current.clone()));
        match &position.version {
            None => {
                let limit = if position.unpaged { None } else { Some(PAGE) };
                let mut list = self.list::<O>(&current, limit).await.map_err(failed)?;
                if list.items.is_empty() && O::KIND.is_never_empty() {
                    tokio::time::sleep(self.timing.second_look).await;
                    list = self.list::<O>(&current, limit).await.map_err(failed)?;
                }
                *position = Position { version: Some(list.version), ..Position::default() };
                self.send(Update::Change(Box::new(O::change(Delta::Whole(list.items))), Some(current.server.clone())))
                    .await?;
            }
            Some(version) => {
                let query = format!(
                    "watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
                    encode(version),
                    (WATCH + spread(WATCH)).as_secs()
                );
                let response = self.get(&current, O::KIND, &query).await.map_err(failed)?;
                self.send(Update::Following(O::KIND, current.server.clone())).await?;
                self.follow::<O>(&current, response, position, pace).await?;
                position.starts = 0;
                // A list alone is no success: what cannot be watched would be listed again and again without a pause.
                pace.success();
            }
        }
        Ok(())
    }

    async fn send(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }

    async fn get(&self, current: &Current, kind: Kind, query: &str) -> Result<Response<Body>, Failure> {
        let selector = self.selector.as_ref().map(|(name, value)| format!("&{name}={}", encode(value)));
        let path = format!("{}?{query}{}", kind.path(), selector.unwrap_or_default());
        ask(current, Method::GET, &path, None).await
    }

    /// All there is, page by page.
    async fn list<O: Watched>(&self, current: &Current, limit: Option<u32>) -> Result<List<O::Value>, Failure> {
        let limit = limit.map(|limit| format!("limit={limit}")).unwrap_or_default();
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let query = if next.is_empty() { limit.clone() } else { format!("{limit}&continue={}", encode(&next)) };
            let body = read(self.get(current, O::KIND, &query).await?.into_body()).await?;
            // A page of slices is tens of megabytes: meanwhile the network's events are heard.
            let page = tokio::task::spawn_blocking(move || page::<O>(&body)).await;
            let page = page.map_err(|error| Failure::broken(format!("it could not be read: {error}")))??;
            all.extend(page.items);
            if page.next.is_empty() {
                return Ok(List { version: page.version, items: all });
            }
            next = page.next;
        }
    }

    /// Follows the events of a watch to its end.
    async fn follow<O: Watched>(
        &self,
        current: &Current,
        response: Response<Body>,
        position: &mut Position,
        pace: &mut Pace,
    ) -> Result<(), End> {
        let failed = |failure| End::Failed(Box::new(failure), Some(current.clone()));
        let mut body = response.into_body();
        let mut lines = Lines::default();
        let begin = Instant::now();
        let mut heard = false;
        let mut versions = Heard::since(position.version.as_deref());
        loop {
            let data = match timeout(IDLE, body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                // What came before counts, and the next watch goes on after it; whether the server is gone, that one tells.
                _ if heard || begin.elapsed() >= SHORTEST => return Ok(()),
                Ok(Some(Err(error))) => return Err(failed(Failure::of(Cause::Unreachable(network(&error))))),
                Ok(None) | Err(_) => {
                    return Err(failed(Failure::of(Cause::Unreachable("the watch ended at once".to_owned()))));
                }
            };
            lines.push(&data);
            if lines.rest().len() > LONGEST_LINE {
                return Err(failed(Failure::broken("an event without an end")));
            }
            if begin.elapsed() >= SHORTEST {
                pace.success();
            }
            while let Some(line) = lines.next() {
                match event::<O>(line, &mut versions).map_err(failed)? {
                    Event::Old => {}
                    Event::Bookmark(version) => {
                        position.version = Some(version);
                        heard = true;
                        self.send(Update::Heard(O::KIND)).await?;
                    }
                    Event::Delta(version, delta) => {
                        position.version = Some(version);
                        heard = true;
                        self.send(Update::Change(Box::new(O::change(delta)), None)).await?;
                    }
                }
                if heard {
                    position.starts = 0;
                    pace.success();
                }
            }
        }
    }
}

struct List<T> {
    version: String,
    items: Vec<(ObjectName, Found<T>)>,
}
