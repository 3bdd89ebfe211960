//! The API's lists and events as bytes.

use std::{collections::BTreeSet, net::IpAddr};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    cluster::{Delta, Found, Refused},
    failure::Failure,
    kind::{Kind, Watched, name},
};
use crate::{convert::Issue, model::ObjectName};

/// Percent-encodes a value of a query.
pub(super) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

pub(super) struct Page<T> {
    pub(super) version: String,
    pub(super) next: String,
    pub(super) items: Vec<(ObjectName, Found<T>)>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct RawList<'a> {
    metadata: RawListMeta,
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMeta {
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

pub(super) fn page<O: Watched>(body: &[u8]) -> Result<Page<O::Value>, Failure> {
    let raw: RawList<'_> = serde_json::from_slice(body).map_err(|error| Failure::broken(format!("list: {error}")))?;
    if raw.metadata.resource_version.is_empty() {
        return Err(Failure::broken("list: no resourceVersion"));
    }
    let of = |(index, item): (usize, &RawValue)| match object::<O>(item.get()) {
        Some(object) => Ok((object.name, object.found)),
        None => Err(Failure::broken(format!("list: items[{index}] is a {} without a name", O::KIND))),
    };
    let items: Result<Vec<_>, Failure> = raw.items.unwrap_or_default().into_iter().enumerate().map(of).collect();
    Ok(Page { version: raw.metadata.resource_version, next: raw.metadata.next.unwrap_or_default(), items: items? })
}

struct Object<T> {
    name: ObjectName,
    version: String,
    found: Found<T>,
}

/// What is read of an object whatever the rest of it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NameOnly {
    metadata: NameMeta,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NameMeta {
    namespace: Value,
    name: Value,
    resource_version: Value,
}

impl NameOnly {
    /// Its name and version.
    fn parts(&self) -> (ObjectName, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let NameMeta { namespace, name, resource_version } = &self.metadata;
        (ObjectName { namespace: text(namespace), name: text(name) }, text(resource_version))
    }
}

/// Reads an object; nothing if it has no name. One that has is refused alone.
fn object<O: Watched>(json: &str) -> Option<Object<O::Value>> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let ((name, version), found) = match serde_path_to_error::deserialize::<_, O>(&mut reader) {
        Ok(raw) => ((name(raw.meta()), raw.meta().resource_version.clone()), raw.convert()),
        Err(error) => {
            let only: NameOnly = serde_json::from_str(json).unwrap_or_default();
            let field = error.path().to_string();
            let fix = "see whether a newer release knows this version of the API";
            (only.parts(), Err(Issue::error(field, error.into_inner().to_string(), fix)))
        }
    };
    let found = found.map_err(|issue| Refused { issue, holds: holds(O::KIND, json) });
    (!name.name.is_empty()).then_some(Object { name, version, found })
}

/// Load balancer addresses that a Service has by its status, whatever the rest of it is.
fn holds(kind: Kind, json: &str) -> Vec<IpAddr> {
    if kind != Kind::Service {
        return Vec::new();
    }
    let object: Value = serde_json::from_str(json).unwrap_or_default();
    let entries = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let entries = entries.filter(|entry| text(entry, "ipMode").as_deref() != Some("Proxy"));
    entries.filter_map(|entry| text(entry, "ip")?.parse().ok()).collect()
}

pub(super) enum Event<T> {
    /// Heard already.
    Old,
    Bookmark(String),
    Delta(String, Delta<T>),
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    event_type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

pub(super) fn event<O: Watched>(line: &[u8], heard: &mut Heard) -> Result<Event<O::Value>, Failure> {
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(|error| Failure::broken(format!("event: {error}")))?;
    match &*raw.event_type {
        "ADDED" | "MODIFIED" | "DELETED" => {}
        "BOOKMARK" => {
            let only: NameOnly = serde_json::from_str(raw.object.get())
                .map_err(|error| Failure::broken(format!("bookmark: {error}")))?;
            let (_, version) = only.parts();
            let is_new = heard.bookmark(with_version(&version, "BOOKMARK")?);
            return Ok(if is_new { Event::Bookmark(version) } else { Event::Old });
        }
        "ERROR" => return Err(Failure::event(raw.object.get())),
        other => return Err(Failure::broken(format!("an event of type {other:?}"))),
    }
    let object = object::<O>(raw.object.get());
    let object = object.ok_or_else(|| Failure::broken(format!("event: a {} without a name", O::KIND)))?;
    let Object { name, version, found } = object;
    match heard.event(with_version(&version, &raw.event_type)?) {
        Order::Next => {}
        Order::Again => return Ok(Event::Old),
        Order::Late => {
            return Err(Failure::broken(format!("{} {name} of version {version} came too late", raw.event_type)));
        }
    }
    let delta = if raw.event_type == "DELETED" { Delta::Gone(name) } else { Delta::Set(name, found) };
    Ok(Event::Delta(version, delta))
}

/// Without one nobody knows where a watch goes on.
fn with_version<'a>(version: &'a str, event: &str) -> Result<&'a str, Failure> {
    if version.is_empty() { Err(Failure::broken(format!("{event} without a resourceVersion"))) } else { Ok(version) }
}

/// Versions of events that are remembered; what is older than these counts as heard.
const REMEMBERED: usize = 4096;

/// What was heard since a watch began, by version. Versions of a built-in resource are numbers that grow; any others are
/// taken in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// All up to here were.
    begin: u128,
    last: u128,
    events: BTreeSet<u128>,
}

#[derive(Debug, PartialEq, Eq)]
enum Order {
    Next,
    /// Heard already.
    Again,
    /// Not heard, though something newer was.
    Late,
}

impl Heard {
    /// For a watch that begins after this version.
    pub(super) fn since(version: Option<&str>) -> Self {
        let begin = version.and_then(number).unwrap_or_default();
        Self { begin, last: begin, events: BTreeSet::new() }
    }

    fn event(&mut self, version: &str) -> Order {
        let Some(version) = number(version) else { return Order::Next };
        if version > self.last {
            self.last = version;
            self.events.insert(version);
            if self.events.len() > REMEMBERED
                && let Some(oldest) = self.events.pop_first()
            {
                self.begin = oldest;
            }
            return Order::Next;
        }
        if version <= self.begin || self.events.contains(&version) { Order::Again } else { Order::Late }
    }

    /// Whether it is news.
    fn bookmark(&mut self, version: &str) -> bool {
        let version = number(version);
        let is_new = version.is_none_or(|version| version >= self.last);
        self.last = self.last.max(version.unwrap_or_default());
        is_new
    }
}

fn number(text: &str) -> Option<u128> {
    text.parse().ok()
}

/// Bytes into lines.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// Before here there is no line end that was not returned.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, data: &[u8]) {
        self.bytes.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        self.bytes.extend_from_slice(data);
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    pub(super) fn next(&mut self) -> Option<&[u8]> {
        loop {
            let unseen = self.bytes.get(self.searched..).unwrap_or_default();
            let Some(length) = unseen.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return None;
            };
            let (begin, end) = (self.begin, self.searched + length);
            self.begin = end + 1;
            self.searched = self.begin;
            if end > begin {
                return self.bytes.get(begin..end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::Service;

    #[test]
    fn lines_are_found_whatever_the_pieces_are() {
        let text = b"one\ntwo\n\nthree\nhalf";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next() {
                    found.push(String::from_utf8_lossy(line).into_owned());
                }
            }
            assert_eq!(found, ["one", "two", "three"], "pieces of {size}");
            assert_eq!(lines.rest(), b"half");
        }
    }

    #[test]
    fn an_object_of_other_types_is_refused_alone() {
        let body = br#"{"metadata":{"resourceVersion":"7"},"items":[
            {"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"ports":[{"port":"eighty"}]},
             "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.1"},{"ip":"198.51.100.2","ipMode":"Proxy"},{"hostname":"x"}]}}},
            {"metadata":{"name":"b","namespace":"d","future":[1]},"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ports":[{"port":80}],"future":{}}}]}"#;
        let page = page::<Service>(body).expect("a page");
        assert_eq!((page.version.as_str(), page.next.as_str(), page.items.len()), ("7", "", 2));
        let Refused { issue, holds } = page.items[0].1.as_ref().expect_err("refused");
        assert_eq!(issue.field, "spec.ports[0].port");
        assert_eq!(*holds, [IpAddr::from([198, 51, 100, 1])], "what is not another's");
        assert!(page.items[1].1.is_ok());
        assert!(super::page::<Service>(&body[..body.len() - 3]).is_err(), "truncated");
    }

    #[test]
    fn what_was_heard_already_is_old() {
        let mut heard = Heard::since(Some("10"));
        let orders = ["9", "10", "12", "12", "11", "13", "12", "a"].map(|version| heard.event(version));
        let expected = [
            Order::Again,
            Order::Again,
            Order::Next,
            Order::Again,
            Order::Late,
            Order::Next,
            Order::Again,
            Order::Next,
        ];
        assert_eq!(orders, expected);
        assert!(heard.bookmark("20") && heard.bookmark("20") && !heard.bookmark("19") && heard.bookmark("a"));
        assert_eq!((heard.event("15"), heard.event("13"), heard.event("21")), (Order::Late, Order::Again, Order::Next));
        // Of a long watch the latest are remembered.
        for version in 100..100 + 2 * REMEMBERED {
            assert_eq!(heard.event(&version.to_string()), Order::Next);
        }
        assert_eq!(heard.events.len(), REMEMBERED);
        assert_eq!((heard.event("22"), heard.event("5000")), (Order::Again, Order::Again));
    }

    #[test]
    fn an_event_says_its_version() {
        let read = |text: &str| event::<Service>(text.as_bytes(), &mut Heard::default());
        for (kind, metadata) in [
            ("BOOKMARK", "{}"),
            ("BOOKMARK", r#"{"resourceVersion": ""}"#),
            ("ADDED", r#"{"name": "a", "namespace": "d"}"#),
            ("DELETED", r#"{"name": "a", "namespace": "d"}"#),
        ] {
            let failure = read(&format!(r#"{{"type": "{kind}", "object": {{"metadata": {metadata}}}}}"#)).err();
            let expected = Failure::broken(format!("{kind} without a resourceVersion"));
            assert_eq!(failure, Some(expected), "{metadata}");
        }
        let failure = read(r#"{"type": "ADDED", "object": {"metadata": {"resourceVersion": "1"}}}"#).err();
        assert_eq!(failure, Some(Failure::broken("event: a Service without a name")));
    }

    #[test]
    fn an_object_of_odd_metadata_is_refused_alone() {
        let of = |metadata: &str| {
            let good = r#"{"metadata":{"name":"b","namespace":"d"},"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ports":[{"port":80}]}}"#;
            let text =
                format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{good},{{"metadata":{metadata}}}]}}"#);
            page::<Service>(text.as_bytes())
        };
        for odd in [
            r#""labels":{"a":1}"#,
            r#""annotations":[]"#,
            r#""labels":7,"deletionTimestamp":{}"#,
            r#""resourceVersion":3,"labels":7"#,
        ] {
            let page = of(&format!(r#"{{"name":"a","namespace":"d",{odd}}}"#)).expect("a page");
            assert!(page.items[0].1.is_ok());
            let (name, found) = &page.items[1];
            assert_eq!(name.to_string(), "d/a", "{odd}");
            assert!(
                found.as_ref().is_err_and(|refused| refused.issue.field.starts_with("metadata.")),
                "{odd}: {found:?}"
            );
        }
        let failure = of(r#"{"name":5}"#).err();
        assert_eq!(failure, Some(Failure::broken("list: items[1] is a Service without a name")));
    }

    #[test]
    fn values_are_encoded() {
        assert_eq!(encode("!a.b/c,d=e"), "%21a.b%2Fc%2Cd%3De");
    }
}
