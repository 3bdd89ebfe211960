//! The agent's HTTP servers: health as kube-proxy gives it, and metrics.

pub mod health;
pub mod local;
pub mod metrics;
mod now;
pub mod pages;
pub mod probes;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::report::Problem;

/// Between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Time a client has for the head of its request, and the whole exchange.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time: a prober and a scraper each have one or two.
const CLIENTS: usize = 64;

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// An answer with a body of this type.
pub fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// For a path nobody serves.
pub fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
}

/// A server in the background; it ends when this is dropped.
#[derive(Debug)]
pub struct Listening {
    task: tokio::task::JoinHandle<()>,
    problem: Arc<Mutex<Option<Problem>>>,
}

impl Listening {
    /// Listens at `at` and answers by `site`. What cannot be bound is tried again and told meanwhile: `object` is what
    /// listens there, `fix` what to do.
    pub fn start<S, F>(at: SocketAddr, object: &str, fix: &str, site: S) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::listen(at, object, fix, site, None)
    }

    /// The same where the first try must succeed.
    pub fn start_or_fail<S, F>(at: SocketAddr, object: &str, fix: &str, site: S) -> io::Result<Self>
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Self::listen(at, object, fix, site, Some(TcpListener::from_std(listener)?)))
    }

    /// Without a listener the first try is the task's, which comes after the end of those that were dropped before.
    fn listen<S, F>(at: SocketAddr, object: &str, fix: &str, site: S, mut bound: Option<TcpListener>) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let problem = Arc::new(Mutex::new(None::<Problem>));
        let (told, object, fix) = (Arc::clone(&problem), object.to_owned(), fix.to_owned());
        let tell = move |error: Option<&io::Error>| {
            let new = error.map(|error| Problem {
                object: object.clone(),
                cause: format!("cannot listen at {at}: {error}; tried again every {} s", RETRY.as_secs()),
                fix: fix.clone(),
            });
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(new) = new.as_ref().filter(|new| told.as_ref() != Some(new)) {
                tracing::warn!("{}: {}", new.object, new.cause);
            }
            *told = new;
        };
        let task = tokio::spawn(async move {
            loop {
                let listener = match bound.take() {
                    Some(listener) => Ok(listener),
                    None => TcpListener::bind(at).await,
                };
                tell(listener.as_ref().err());
                if let Ok(listener) = listener {
                    accept(&listener, &site).await;
                }
                sleep(RETRY).await;
            }
        });
        Self { task, problem }
    }

    /// Why it does not listen.
    pub fn problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<S, F>(listener: &TcpListener, site: &S)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CLIENTS));
    // Those of this listener end with it.
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: it may pass.
                    tracing::debug!("accepting a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = clients.join_next() => continue,
        };
        let site = site.clone();
        clients.spawn(async move {
            serve(stream, site).await;
            drop(permit);
        });
    }
}

async fn serve<S, F>(stream: TcpStream, site: S)
where
    S: Fn(Request<Incoming>) -> F + Send + Sync,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(|request| {
        let answer = site(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    // A connection serves one request after the other, as probers and scrapers keep theirs; idle ones end.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(PATIENCE * 60, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a client: {error}"),
        Err(_) => tracing::debug!("a client stayed too long"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }

    #[tokio::test]
    async fn who_cannot_listen_tells_it_and_listens_once_there_is_room() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = taken.local_addr().expect("an address");
        let site = |request: Request<Incoming>| async move {
            answer(StatusCode::OK, "text/plain", format!("{} {}", request.method(), request.uri().path()))
        };
        let listening = Listening::start(at, "a test", "free it", site);
        let problem = async {
            while listening.problem().is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(5), problem).await.expect("told");
        assert!(listening.problem().is_some_and(|problem| problem.cause.contains(&at.to_string())));
        drop(taken);
        let well = async {
            while listening.problem().is_some() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(RETRY * 3, well).await.expect("listening");
        let text = ask(at, "DELETE /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("DELETE /x"), "{text}");
        let text = ask(at, "no http at all\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    }
}
