//! One request to the API server and its answer, counted as client-go counts.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use http::{
    Method, Request, Response, Uri,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::time::timeout;

use super::{
    access::chain,
    connection::Current,
    failure::{Cause, Failure},
};

/// A server that says nothing for so long is not waited for: an answer, or the next piece of a list.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is sent with a request.
pub(super) struct Content {
    pub(super) kind: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// Asks; an answer that is no success is a failure.
pub(super) async fn ask(
    current: &Current,
    method: Method,
    path: &str,
    content: Option<Content>,
) -> Result<Response<Body>, Failure> {
    let mut request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("ballast/", env!("CARGO_PKG_VERSION")));
    if let Some(content) = &content {
        request = request.header(CONTENT_TYPE, content.kind);
    }
    let body = content.map_or_else(Body::empty, |content| Body::from(content.bytes));
    let request = request.body(body).map_err(|error| Failure::setup(error.to_string()))?;
    let begin = Instant::now();
    let answered = timeout(PATIENCE, current.client.send(request)).await;
    let code = match &answered {
        Ok(Ok(response)) => response.status().as_str().to_owned(),
        // As client-go has it.
        _ => "<error>".to_owned(),
    };
    current.calls.answered(method.as_str(), &host(&current.server), code, begin.elapsed());
    let response = match answered {
        Err(_) => return Err(Failure::of(Cause::Silent)),
        Ok(Err(error)) => {
            let cause = if is_certificate(&error) { Cause::Certificate } else { Cause::Unreachable };
            return Err(Failure::of(cause(network(&error))));
        }
        Ok(Ok(response)) => response,
    };
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = read(response.into_body()).await.unwrap_or_default();
    Err(Failure::answer(status, &body, after.map(Duration::from_secs)))
}

/// Reads a body whole.
pub(super) async fn read(mut body: Body) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        match timeout(PATIENCE, body.frame()).await {
            Err(_) => return Err(Failure::of(Cause::Silent)),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => return Err(Failure::of(Cause::Unreachable(format!("cut off: {error}")))),
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
    }
}

/// A network error without the client's own words around it.
pub(super) fn network(error: &dyn Error) -> String {
    let text = chain(error);
    text.trim_start_matches("ServiceError: ").to_owned()
}

/// Whether the server's certificate is what is wrong.
fn is_certificate(error: &(dyn Error + 'static)) -> bool {
    if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
        return true;
    }
    // What an I/O error carries is not its source.
    let carried = error.downcast_ref().and_then(io::Error::get_ref).map(|carried| carried as &(dyn Error + 'static));
    carried.or_else(|| error.source()).is_some_and(is_certificate)
}

/// Host and port of a URL.
fn host(server: &str) -> String {
    let uri: Option<Uri> = server.parse().ok();
    uri.and_then(|uri| uri.authority().map(ToString::to_string)).unwrap_or_else(|| server.to_owned())
}
