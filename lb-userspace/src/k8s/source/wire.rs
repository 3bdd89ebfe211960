//! The API's lists and events as bytes.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    cluster::{Delta, Found},
    failure::Failure,
    kind::{Watched, name},
};
use crate::{convert::Issue, k8s::ObjectMeta, model::ObjectName};

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
    let items = raw.items.unwrap_or_default().into_iter();
    let items: Result<Vec<_>, Failure> =
        items.map(|item| object::<O>(item.get()).map(|object| (object.name, object.found))).collect();
    Ok(Page { version: raw.metadata.resource_version, next: raw.metadata.next.unwrap_or_default(), items: items? })
}

struct Object<T> {
    name: ObjectName,
    version: String,
    found: Found<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NameOnly {
    metadata: ObjectMeta,
}

/// Reads an object. One that has a name is never a failure: it is refused alone.
fn object<O: Watched>(json: &str) -> Result<Object<O::Value>, Failure> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let (meta, found) = match serde_path_to_error::deserialize::<_, O>(&mut reader) {
        Ok(raw) => (raw.meta().clone(), raw.convert()),
        Err(error) => {
            let only: NameOnly = serde_json::from_str(json).unwrap_or_default();
            let field = error.path().to_string();
            let fix = "see whether a newer release knows this version of the API";
            (only.metadata, Err(Issue::error(field, error.into_inner().to_string(), fix)))
        }
    };
    if meta.name.is_empty() {
        return Err(Failure::broken(format!("a {} without a name", O::KIND)));
    }
    Ok(Object { name: name(&meta), version: meta.resource_version, found })
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

pub(super) fn event<O: Watched>(line: &[u8], last: Option<&str>) -> Result<Event<O::Value>, Failure> {
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(|error| Failure::broken(format!("event: {error}")))?;
    match &*raw.event_type {
        "ADDED" | "MODIFIED" | "DELETED" => {}
        "BOOKMARK" => {
            let only: NameOnly = serde_json::from_str(raw.object.get())
                .map_err(|error| Failure::broken(format!("bookmark: {error}")))?;
            return Ok(Event::Bookmark(only.metadata.resource_version));
        }
        "ERROR" => return Err(Failure::event(raw.object.get())),
        other => return Err(Failure::broken(format!("an event of type {other:?}"))),
    }
    let Object { name, version, found } = object::<O>(raw.object.get())?;
    if last.is_some_and(|last| is_old(&version, last)) {
        return Ok(Event::Old);
    }
    let delta = if raw.event_type == "DELETED" { Delta::Gone(name) } else { Delta::Set(name, found) };
    Ok(Event::Delta(version, delta))
}

/// Versions of a built-in resource are numbers that grow.
fn is_old(version: &str, last: &str) -> bool {
    let number = |text: &str| text.parse::<u128>().ok();
    matches!((number(version), number(last)), (Some(version), Some(last)) if version <= last)
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
            {"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"ports":[{"port":"eighty"}]}},
            {"metadata":{"name":"b","namespace":"d","future":[1]},"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ports":[{"port":80}],"future":{}}}]}"#;
        let page = page::<Service>(body).expect("a page");
        assert_eq!((page.version.as_str(), page.next.as_str(), page.items.len()), ("7", "", 2));
        let issue = page.items[0].1.as_ref().expect_err("refused");
        assert_eq!(issue.field, "spec.ports[0].port");
        assert!(page.items[1].1.is_ok());
        assert!(super::page::<Service>(&body[..body.len() - 3]).is_err(), "truncated");
    }

    #[test]
    fn what_was_heard_already_is_old() {
        assert!(is_old("9", "10") && is_old("10", "10") && !is_old("11", "10"));
        assert!(!is_old("a", "10") && !is_old("", "10"));
    }

    #[test]
    fn values_are_encoded() {
        assert_eq!(encode("!a.b/c,d=e"), "%21a.b%2Fc%2Cd%3De");
    }
}
