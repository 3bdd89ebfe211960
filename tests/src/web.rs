//! Questions to the agent's HTTP servers, from where a prober or scraper is; and a server for curl's.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::Place;

/// Status and body of `GET path` at the address `to`; the error in words.
pub fn get(from: &Place, to: &str, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = from.namespace().run(ask).map_err(|error| format!("{error:#}"))?.map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {text}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| head.to_owned())?;
    Ok((status, body.to_owned()))
}

/// The value of a series of a page of metrics.
///
/// # Panics
///
/// Where it has none.
pub fn value(page: &str, series: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("{series} is not in\n{page}"))
}

/// A server that answers every HTTP request with its place's name, so that curl tells who answered.
#[derive(Debug)]
pub struct Named {
    listener: TcpListener,
    thread: Option<thread::JoinHandle<()>>,
}

impl Named {
    /// Listens on every address of `place`, both families.
    pub fn start(place: &Place, port: u16) -> anyhow::Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let listener = place.namespace().run(|| TcpListener::bind(any))??;
        let (accepting, name) = (listener.try_clone()?, place.name().to_owned());
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                // A client that went away again is its own matter.
                drop(stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer.as_bytes())));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // The thread's wait for a client ends with an error.
        if rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a server panicked");
        }
    }
}
