//! HTTP/1.1, as much of it as a client of lists and watches needs.

use std::{collections::BTreeMap, io, net::TcpListener, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::{
    Fault, Shared,
    store::{Gone, Selector, kind},
};

/// Of TCP, or of TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (shared, tls) = (shared.clone(), tls.clone());
        tasks.spawn(async move {
            let departures = shared.store().departures;
            let mut news = shared.news.subscribe();
            let left = news.wait_for(|_| {
                let store = shared.store();
                store.away || store.departures != departures
            });
            let served = async {
                match tls {
                    Some(tls) => serve(tls.accept(stream).await?, &shared).await,
                    None => serve(stream, &shared).await,
                }
            };
            tokio::select! {
                // First, so that a server that is away answers nothing.
                biased;
                _ = left => {}
                // The client went away.
                _ = served => {}
            }
        });
    }
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
    query: BTreeMap<String, String>,
    token: Option<String>,
}

/// What a path is about.
struct Place {
    namespace: Option<String>,
    resource: String,
    name: Option<String>,
    /// `status`
    part: Option<String>,
}

/// `[namespaces NAMESPACE] RESOURCE [NAME [PART]]`, behind the version. Namespaces themselves are a resource too.
fn place(path: &str) -> Option<Place> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    // `api v1` or `apis GROUP VERSION`.
    let _version = if parts.next()? == "api" { parts.next()? } else { parts.nth(1)? };
    let mut first = parts.next()?;
    let mut namespace = None;
    if first == "namespaces"
        && let Some(name) = parts.next()
    {
        namespace = Some(name.to_owned());
        first = parts.next()?;
    }
    let mut rest = parts.map(str::to_owned);
    Some(Place { namespace, resource: first.to_owned(), name: rest.next(), part: rest.next() })
}

/// `v1` or `GROUP/VERSION`, as a list of the objects at `path` carries it.
fn api_version(path: &str) -> String {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let count = if parts.next() == Some("apis") { 2 } else { 1 };
    parts.take(count).collect::<Vec<_>>().join("/")
}

async fn serve(mut stream: impl Stream, shared: &Shared) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await? {
        let Some(Place { namespace, resource, name, part }) = place(&request.path) else { return Ok(()) };
        let parameter = |name: &str| request.query.get(name).map(String::as_str);
        let watching = parameter("watch") == Some("true");
        let selector = Selector {
            absent_labels: parameter("labelSelector")
                .into_iter()
                .flat_map(|labels| labels.split(','))
                .map(|label| label.trim_start_matches('!').to_owned())
                .collect(),
            namespace: namespace.clone(),
            name: parameter("fieldSelector").and_then(|field| field.strip_prefix("metadata.name=")).map(str::to_owned),
        };
        let verb = match &*request.method {
            "POST" => "create",
            "PATCH" => "patch",
            "PUT" => "update",
            _ if name.is_some() => "get",
            _ if watching => "watch",
            _ => "list",
        };
        let (fault, token) = {
            let mut store = shared.store();
            let resource = part.as_ref().map_or_else(|| resource.clone(), |part| format!("{resource}/{part}"));
            (store.fault(verb, &resource), store.token.clone())
        };
        if token.is_some() && token != request.token {
            answer(&mut stream, 401, "", &status(401, "Unauthorized").to_string()).await?;
            continue;
        }
        match fault {
            Fault::Answer(code, retry_after) => {
                let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
                let message = match code {
                    403 => format!("{resource} is forbidden: User \"ballast\" cannot {verb} resource \"{resource}\""),
                    _ => format!("injected {code}"),
                };
                answer(&mut stream, code, &header, &status(code, &message).to_string()).await?;
                continue;
            }
            Fault::Close => return Ok(()),
            Fault::Slow(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds.into())).await,
            Fault::Truncated | Fault::Empty | Fault::None => {}
        }
        let within = namespace.as_deref().unwrap_or_default();
        if let Some(name) = name.as_deref().filter(|_| verb == "get") {
            let found = shared.store().get(&resource, within, name).map(|object| (200, object));
            let (code, object) = found.unwrap_or_else(|| (404, status(404, &format!("{resource} {name:?} not found"))));
            answer(&mut stream, code, "", &object.to_string()).await?;
            continue;
        }
        if matches!(verb, "create" | "patch" | "update") {
            let (code, object) = write(shared, &request, &resource, within, name, part.as_deref());
            answer(&mut stream, code, "", &object.to_string()).await?;
            continue;
        }
        if watching {
            let after = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            let listed = parameter("sendInitialEvents") == Some("true");
            return follow(&mut stream, shared, &resource, &selector, (!listed).then_some(after)).await;
        }
        let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let page = shared.store().list(&resource, &selector, limit, parameter("continue"));
        let Ok((items, version, next)) = page else {
            answer(&mut stream, 410, "", &status(410, "The provided continue parameter is too old").to_string())
                .await?;
            continue;
        };
        // As of a server that has read nothing yet: no objects, at the first version. Not one that lacks a page.
        let empty = fault == Fault::Empty && parameter("continue").is_none();
        let (items, version, next) = if empty { (Vec::new(), 1, String::new()) } else { (items, version, next) };
        let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
        let (kind, version) = (format!("{}List", kind(&resource)), api_version(&request.path));
        let mut body = json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items}).to_string();
        if fault == Fault::Truncated {
            body.truncate(body.len() / 2);
        }
        answer(&mut stream, 200, "", &body).await?;
    }
    Ok(())
}

/// Creates an object, replaces it, or merges what is sent into it (RFC 7386); of `status` only that part. Whoever names a
/// version changes that version alone.
fn write(
    shared: &Shared,
    request: &Request,
    resource: &str,
    namespace: &str,
    name: Option<String>,
    part: Option<&str>,
) -> (u16, Value) {
    let Ok(sent) = serde_json::from_slice::<Value>(&request.body) else {
        return (400, status(400, "the body is no JSON"));
    };
    if let Some(message) = refusal(resource, namespace, &sent) {
        return (422, status(422, message));
    }
    let named = name.or_else(|| sent["metadata"]["name"].as_str().map(str::to_owned)).unwrap_or_default();
    shared.change(|store| {
        let there = store.get(resource, namespace, &named);
        let version = &sent["metadata"]["resourceVersion"];
        let (code, object) = match (&*request.method, there) {
            ("POST", Some(_)) => return (409, status(409, &format!("{resource} {named:?} already exists"))),
            ("POST", None) => (201, sent),
            (_, None) => return (404, status(404, &format!("{resource} {named:?} not found"))),
            (_, Some(object)) if !version.is_null() && *version != object["metadata"]["resourceVersion"] => {
                return (409, status(409, &format!("{resource} {named:?}: the object has been modified")));
            }
            (method, Some(mut object)) => {
                let sent = match part {
                    Some(part) => json!({part: sent[part]}),
                    None => sent,
                };
                if method == "PUT" && part.is_none() {
                    object = sent;
                } else {
                    merge(&mut object, &sent);
                }
                (200, object)
            }
        };
        let before = store.get(resource, namespace, &named);
        store.put(object.clone());
        let now = store.get(resource, namespace, &named).unwrap_or(object);
        if let Some(before) = before.filter(|_| request.method == "PATCH") {
            store.undo(resource, &before);
        }
        (code, now)
    })
}

/// Why an object may not be written where it is sent to (Kubernetes `pkg/apis/core/validation/events.go`).
fn refusal(resource: &str, namespace: &str, sent: &Value) -> Option<&'static str> {
    let of_cluster = sent.get("regarding").is_some_and(|regarding| regarding["namespace"].as_str().is_none());
    let is_misplaced = resource == "events" && of_cluster && !["default", "kube-system"].contains(&namespace);
    is_misplaced.then_some("involvedObject.namespace: Invalid value: \"\": does not match event.namespace")
}

fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(field));
        } else {
            merge(&mut object[field], value);
        }
    }
}

async fn read(stream: &mut impl Stream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let length = lines.clone().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let length: usize = length.unwrap_or(0);
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = buffer.drain(..length).collect();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_owned(), decode(value)));
    let token = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let bearer = name.eq_ignore_ascii_case("authorization").then(|| value.trim().strip_prefix("Bearer "))?;
        bearer.map(str::to_owned)
    });
    let query = query.split('&').filter_map(pair).collect();
    Ok(Some(Request { method: method.to_owned(), path: path.to_owned(), body, query, token }))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let encoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%');
        bytes.push(encoded.unwrap_or(*first));
        rest = if encoded.is_some() { more.get(2..).unwrap_or_default() } else { more };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message})
}

async fn answer(stream: &mut impl Stream, code: u16, headers: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n");
    send(stream, &format!("{head}{body}")).await
}

/// TLS keeps what is not flushed.
async fn send(stream: &mut impl Stream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// A watch, until it is cut: from a version on, or from all objects on and a bookmark behind them.
async fn follow(
    stream: &mut impl Stream,
    shared: &Shared,
    resource: &str,
    selector: &Selector,
    after: Option<u64>,
) -> io::Result<()> {
    let mut news = shared.news.subscribe();
    let (cuts, mut bookmarks) = {
        let store = shared.store();
        (store.cuts(resource).0, store.bookmarks)
    };
    send(stream, "HTTP/1.1 200 x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    let mut after = match after {
        Some(version) => version,
        None => begin(stream, shared, resource, selector).await?,
    };
    loop {
        news.borrow_and_update();
        let (mut lines, version, cut) = {
            let store = shared.store();
            let cut = Some(store.cuts(resource)).filter(|(number, _)| *number != cuts);
            let mut lines = Vec::new();
            let mut waits = store.is_held(resource);
            match store.events(resource, selector, after) {
                _ if waits => {}
                Ok(events) if store.reordered && events.len() == 1 => waits = true,
                Err(Gone) => lines.push(json!({"type": "ERROR", "object": status(410, "too old resource version")})),
                Ok(events) => {
                    let again = if store.duplicated { events.clone() } else { Vec::new() };
                    after = events.last().map_or(after, |(version, _)| *version);
                    let mut events = events;
                    if store.reordered {
                        events.reverse();
                    }
                    lines.extend(events.into_iter().chain(again.into_iter().rev()).map(|(_, event)| event));
                }
            }
            if bookmarks != store.bookmarks && !waits {
                bookmarks = store.bookmarks;
                after = after.max(store.version);
                let metadata = json!({"resourceVersion": after.to_string()});
                lines.push(json!({"type": "BOOKMARK", "object": {"metadata": metadata}}));
            }
            (lines, store.version, cut)
        };
        let last_is_error = lines.last().is_some_and(|line| line["type"] == "ERROR");
        if let Some((_, true)) = cut
            && (lines.is_empty() || shared.store().reordered)
        {
            // Something to be cut in: an older event that is lost behind a newer one nobody could miss.
            let metadata = json!({"resourceVersion": version.to_string(), "name": "cut"});
            lines.push(json!({"type": "BOOKMARK", "object": {"metadata": metadata}}));
        }
        let count = lines.len();
        for (index, line) in lines.iter().enumerate() {
            let mut text = format!("{line}\n");
            let in_a_line = cut.is_some_and(|(_, in_a_line)| in_a_line) && index + 1 == count;
            let whole = text.len();
            if in_a_line {
                text.truncate(whole / 2);
            }
            send(stream, &format!("{whole:x}\r\n{text}")).await?;
            if in_a_line {
                return Ok(());
            }
            send(stream, "\r\n").await?;
        }
        if cut.is_some() || last_is_error {
            return send(stream, "0\r\n\r\n").await;
        }
        let mut ignored = [0; 1];
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok(()) },
            // A client that watches says nothing more.
            read = stream.read(&mut ignored) => if read? == 0 { return Ok(()) },
        }
    }
}

/// All there is as events, and the bookmark that says so; its version.
async fn begin(stream: &mut impl Stream, shared: &Shared, resource: &str, selector: &Selector) -> io::Result<u64> {
    let listed = shared.store().list(resource, selector, usize::MAX, None);
    // Only a page that goes on can be gone.
    let Ok((items, version, _)) = listed else { return Ok(0) };
    let added = items.into_iter().map(|object| json!({"type": "ADDED", "object": object}));
    let metadata = json!({
        "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
    });
    let end = json!({"type": "BOOKMARK", "object": {"kind": kind(resource), "metadata": metadata}});
    let mut text: String = added.map(|event| format!("{event}\n")).collect();
    text.push_str(&format!("{end}\n"));
    send(stream, &format!("{:x}\r\n{text}\r\n", text.len())).await?;
    Ok(version)
}
