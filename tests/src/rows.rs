//! Rows of a matrix: a connection each, and what is expected of it. All are tried before the test fails.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    Agent, Place,
    client::{Answer, Call, Transport},
};

/// At once, in milliseconds: a refusal that comes with the first retransmission is none.
const AT_ONCE: f64 = 100.0;

/// What a row expects.
#[derive(Clone, Copy, Debug)]
pub enum Expect<'a> {
    /// An answer of one of these backends, which saw this source.
    Reach(&'a [&'a Place], IpAddr),
    /// Refused at once.
    Refused,
    /// No answer at all.
    Silence,
    /// Nobody answers: silence, or a router says that it leads nowhere. What two hops send each other is one of both.
    Nobody,
}

/// The rows tried so far.
#[derive(Debug, Default)]
pub struct Rows {
    count: usize,
    failures: Vec<String>,
}

impl Rows {
    /// Tries one.
    ///
    /// # Panics
    /// If the connection cannot even be tried.
    pub fn row(&mut self, name: &str, from: &Place, transport: Transport, to: SocketAddr, expect: &Expect<'_>) {
        self.count += 1;
        let timeout = match expect {
            Expect::Silence | Expect::Nobody => Duration::from_millis(300),
            Expect::Reach(..) | Expect::Refused => Duration::from_secs(2),
        };
        let answer = Call::new(transport, to).timeout(timeout).run_one(from).expect("a run");
        if let Err(error) = check(&answer, to, expect) {
            self.failures.push(format!("{name}, {transport:?} to {to}: {error}: {answer:?}"));
        }
    }

    /// Ends the test if one failed, with what the agents say.
    ///
    /// # Panics
    /// If one failed, or none was tried.
    pub fn finish(self, agents: &[Agent]) {
        let Self { count, failures } = self;
        println!("{count} rows");
        assert!(count > 0, "no rows");
        if !failures.is_empty() {
            for agent in agents {
                eprintln!("{}", agent.query(&["status"]).unwrap_or_else(|error| format!("{error:#}")));
            }
            panic!("{} of {count} rows failed:\n{}", failures.len(), failures.join("\n"));
        }
    }
}

fn check(answer: &Answer, to: SocketAddr, expect: &Expect<'_>) -> Result<(), String> {
    match expect {
        Expect::Reach(backends, source) => {
            let (backend, seen) = answer.reached().map_err(|error| error.to_string())?;
            let names: BTreeSet<&str> = backends.iter().map(|place| place.name()).collect();
            if !names.contains(backend) {
                return Err(format!("{backend} answered instead of {names:?}"));
            }
            if seen != *source {
                return Err(format!("{backend} saw {seen} instead of {source}"));
            }
            // However the backend was chosen, the client must not notice.
            if answer.peer != Some(to) {
                return Err("the peer's address is not the one that was asked for".to_owned());
            }
        }
        Expect::Refused => {
            if answer.error.as_deref() != Some("ECONNREFUSED") {
                return Err("not refused".to_owned());
            }
            if answer.elapsed_ms >= AT_ONCE {
                return Err(format!("refused only after {} ms", answer.elapsed_ms));
            }
        }
        Expect::Silence => match answer.error.as_deref() {
            Some("ETIMEDOUT") => {}
            _ => return Err("not silent".to_owned()),
        },
        Expect::Nobody => match answer.error.as_deref() {
            Some("ETIMEDOUT" | "EHOSTUNREACH" | "ENETUNREACH") => {}
            _ => return Err("answered".to_owned()),
        },
    }
    Ok(())
}
