//! What becomes of a message: an answer from the [`Zone`] of the moment, a question to others, or nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RecordType},
};
use ipnet::IpNet;
use prometheus_client::registry::Registry;

use super::{
    limit::{Limit, Verdict},
    metrics::Metrics,
    records::{kind, number, soa, write},
    upstream::{Failure, Upstream},
    wire::{Class, Code, Flags, Head, Query, Read, Type, Writer, read},
    zone::{Answer, Data, Kind, Record, Zone},
    zones::Zones,
};

/// Longest UDP answer: what no path cuts into fragments (RFC 9715).
pub(super) const UDP_LIMIT: u16 = 1232;

/// Who may ask what.
#[derive(Debug)]
pub struct Rules {
    /// Who knows other names.
    pub upstream: Option<Upstream>,
    /// Clients whose questions are passed on.
    pub recursion: Vec<IpNet>,
    /// Answers for each client.
    pub limit: Limit,
}

impl Default for Rules {
    fn default() -> Self {
        Self { upstream: None, recursion: Vec::new(), limit: Limit::new(0, Vec::new()) }
    }
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Answers each question; see [`super::listen`].
#[derive(Clone, Debug)]
pub struct Handler {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    zones: Arc<Zones>,
    rules: Rules,
    metrics: Metrics,
    turn: AtomicUsize,
    start: Instant,
}

/// What becomes of a message.
pub(super) enum Outcome {
    /// The answer is written.
    Answered,
    /// Nothing is said.
    Nothing,
    /// Others are asked first.
    Elsewhere(Box<Elsewhere>),
}

/// A question that others are to be asked, and the answer so far: an alias, or nothing.
pub(super) struct Elsewhere {
    answer: Message,
    target: Name,
    kind: RecordType,
    limit: usize,
    client: IpAddr,
    begin: Instant,
}

/// What the zone says.
enum Local {
    Done(Code),
    /// A name of nobody's zone of ours.
    Foreign,
    /// It ends with an alias for a name of another zone.
    LeadsOut(String),
}

impl Handler {
    /// Answers from these zones.
    pub fn new(zones: Arc<Zones>, rules: Rules) -> Self {
        let (metrics, turn, start) = (Metrics::default(), AtomicUsize::new(0), Instant::now());
        Self { inner: Arc::new(Inner { zones, rules, metrics, turn, start }) }
    }

    pub(super) fn zones(&self) -> Arc<Zones> {
        Arc::clone(&self.inner.zones)
    }

    /// Adds its metrics to a page, under `dns_`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry, self.inner.zones.sizes());
    }

    /// Writes the answer to these bytes into `out`, whose contents go.
    pub(super) fn respond(&self, bytes: &[u8], client: SocketAddr, over: Transport, out: &mut Vec<u8>) -> Outcome {
        out.clear();
        self.inner.respond(bytes, client.ip(), over, out)
    }

    /// The answer once others have been asked.
    pub(super) async fn finish(&self, elsewhere: Elsewhere) -> Option<Vec<u8>> {
        self.inner.finish(elsewhere).await
    }

    /// Finds out whether the servers that know other names lead back here.
    pub(super) fn probe(&self) {
        if let Some(upstream) = &self.inner.rules.upstream {
            upstream.probe();
        }
    }

    /// The UDP answer to these bytes: as over a socket, for tests and fuzzing.
    pub async fn datagram(&self, bytes: &[u8], client: SocketAddr) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match self.respond(bytes, client, Transport::Udp, &mut out) {
            Outcome::Answered => Some(out),
            Outcome::Nothing => None,
            Outcome::Elsewhere(elsewhere) => self.finish(*elsewhere).await,
        }
    }
}

impl Inner {
    fn respond(&self, bytes: &[u8], client: IpAddr, over: Transport, out: &mut Vec<u8>) -> Outcome {
        let begin = Instant::now();
        let Some(asked) = Asked::read(bytes, over) else { return Outcome::Nothing };
        self.metrics.asked(over, client, asked.query.as_ref().map(|query| query.kind));
        let code = match self.verdict(client, over) {
            Verdict::Drop => return Outcome::Nothing,
            Verdict::Truncate => asked.plain(out, Code::NoError, Flags { truncated: true, ..Flags::default() }),
            Verdict::Answer => match self.answer(&asked, client, out) {
                Ok(code) => code,
                Err(elsewhere) => return Outcome::Elsewhere(elsewhere),
            },
        };
        self.metrics.answered(Some(code), begin.elapsed());
        Outcome::Answered
    }

    fn verdict(&self, client: IpAddr, over: Transport) -> Verdict {
        if over == Transport::Tcp {
            return Verdict::Answer;
        }
        let verdict = self.rules.limit.count(client, self.start.elapsed().as_secs());
        match verdict {
            Verdict::Answer => {}
            Verdict::Truncate => self.metrics.limited("truncated"),
            Verdict::Drop => self.metrics.limited("dropped"),
        }
        verdict
    }

    /// Writes the answer; its code, or what others are to be asked.
    fn answer(&self, asked: &Asked<'_>, client: IpAddr, out: &mut Vec<u8>) -> Result<Code, Box<Elsewhere>> {
        let query = match asked.question() {
            Ok(query) => query,
            Err(code) => return Ok(asked.plain(out, code, Flags::default())),
        };
        let recursion = self.may_recurse(client);
        let flags = Flags { recursion, ..Flags::default() };
        let asks = recursion && asked.head.recursion_desired();
        let target = match self.ask_zone(asked, query, flags, out) {
            Local::Done(code) => return Ok(code),
            Local::Foreign if self.came_back(query) => return Ok(asked.plain(out, Code::Refused, flags)),
            Local::LeadsOut(_) if !asks => return Ok(Code::NoError),
            Local::Foreign if !asks => return Ok(asked.plain(out, Code::Refused, flags)),
            Local::LeadsOut(target) => Some(target),
            Local::Foreign => {
                asked.plain(out, Code::NoError, flags);
                None
            }
        };
        let elsewhere = Elsewhere::new(out, target.as_deref(), query.kind, asked.limit, client);
        elsewhere.map_or_else(|| Ok(asked.plain(out, Code::ServFail, flags)), |elsewhere| Err(Box::new(elsewhere)))
    }

    /// Whether questions of this client are passed on.
    fn may_recurse(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.rules.upstream.is_some() && self.rules.recursion.iter().any(|net| net.contains(&client))
    }

    /// Whether it is what we ask others, to find out whether they lead back here.
    fn came_back(&self, query: &Query<'_>) -> bool {
        self.rules.upstream.as_ref().is_some_and(|upstream| {
            let mut name = String::new();
            query.name(&mut name);
            upstream.came_back(&name.to_ascii_lowercase())
        })
    }

    fn ask_zone(&self, asked: &Asked<'_>, query: &Query<'_>, flags: Flags, out: &mut Vec<u8>) -> Local {
        let mut name = String::new();
        query.name(&mut name);
        let said = self.zones.with(|zone| self.in_zone(zone, asked, query, &name, flags, out));
        said.unwrap_or_else(|| Local::Done(asked.plain(out, Code::ServFail, flags)))
    }

    fn in_zone(
        &self,
        zone: &Zone,
        asked: &Asked<'_>,
        query: &Query<'_>,
        name: &str,
        flags: Flags,
        out: &mut Vec<u8>,
    ) -> Local {
        let kind = kind(query.kind);
        let found = zone.answer(name, kind);
        if found == Answer::Foreign {
            return Local::Foreign;
        }
        out.clear();
        let mut writer = Writer::new(out, query, asked.limit, UDP_LIMIT);
        let (mut code, mut target) = (Code::NoError, None);
        match found {
            Answer::Foreign => {}
            Answer::NoData { apex } => soa(&mut writer, zone, &apex),
            Answer::NxDomain { apex } => {
                code = Code::NxDomain;
                soa(&mut writer, zone, &apex);
            }
            Answer::Records(mut records) => {
                self.rotate(&mut records);
                for Record { owner, ttl, data } in &records {
                    writer.answer(owner.as_deref(), number(data), *ttl, |writer| write(writer, zone, data));
                }
                target = zone.leads_out(&records).filter(|_| kind != Kind::Cname).map(str::to_owned);
            }
        }
        if writer.is_broken() {
            return Local::Done(asked.plain(out, Code::ServFail, flags));
        }
        writer.finish(code, Flags { authoritative: true, ..flags });
        target.map_or(Local::Done(code), Local::LeadsOut)
    }

    /// Each answer begins with another record; aliases stay in front of what they lead to.
    fn rotate(&self, records: &mut [Record]) {
        let aliases = records.iter().filter(|record| matches!(record.data, Data::Cname(_))).count();
        let Some(rest) = records.get_mut(aliases..).filter(|rest| rest.len() > 1) else { return };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        rest.rotate_left(turn.checked_rem(rest.len()).unwrap_or(0));
    }

    async fn finish(&self, elsewhere: Elsewhere) -> Option<Vec<u8>> {
        let Elsewhere { mut answer, target, kind, limit, client, begin } = elsewhere;
        let found = self.rules.upstream.as_ref()?.ask(&target, kind, client).await;
        self.metrics.passed_on(match found {
            Ok(_) => "answered",
            Err(Failure::Busy) => "refused",
            Err(Failure::Silent) => "failed",
        });
        // The code is that of the end of the aliases (RFC 6604).
        answer.metadata.response_code = match found {
            Ok(found) => {
                answer.answers.extend_from_slice(&found.answers);
                answer.authorities.clone_from(&found.authorities);
                found.metadata.response_code
            }
            Err(_) => ResponseCode::ServFail,
        };
        self.metrics.answered(Code::of(answer.metadata.response_code), begin.elapsed());
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }
}

impl Elsewhere {
    /// Begins with the answer that is written so far; none if there is nothing to ask.
    fn new(written: &[u8], target: Option<&str>, kind: Type, limit: usize, client: IpAddr) -> Option<Self> {
        let answer = Message::from_vec(written).ok()?;
        let target = match target {
            Some(target) => {
                let mut name = Name::from_ascii(target).ok()?;
                name.set_fqdn(true);
                name
            }
            None => answer.queries.first()?.name().clone(),
        };
        Some(Self { answer, target, kind: RecordType::from(kind.0), limit, client, begin: Instant::now() })
    }
}

/// A message that gets an answer.
struct Asked<'a> {
    head: Head,
    /// None if it cannot be understood.
    query: Option<Query<'a>>,
    /// Most octets of an answer.
    limit: usize,
}

impl<'a> Asked<'a> {
    fn read(bytes: &'a [u8], over: Transport) -> Option<Self> {
        let (head, query) = match read(bytes) {
            Read::Nothing => return None,
            Read::Broken(head) => (head, None),
            Read::Query(query) => (query.head, Some(query)),
        };
        let limit = match over {
            Transport::Tcp => u16::MAX,
            Transport::Udp => query.as_ref().map_or(0, Query::payload).min(UDP_LIMIT),
        };
        Some(Self { head, query, limit: limit.into() })
    }

    /// The question, if it is one that zones answer.
    fn question(&self) -> Result<&Query<'a>, Code> {
        if !self.head.is_query() {
            return Err(Code::NotImp);
        }
        let query = self.query.as_ref().ok_or(Code::FormErr)?;
        if query.is_of_future_version() {
            return Err(Code::BadVers);
        }
        if query.class != Class::IN || query.kind.is_refused() {
            return Err(Code::Refused);
        }
        Ok(query)
    }

    /// Writes an answer without records.
    fn plain(&self, out: &mut Vec<u8>, code: Code, flags: Flags) -> Code {
        out.clear();
        let writer = match &self.query {
            Some(query) => Writer::new(out, query, self.limit, UDP_LIMIT),
            None => Writer::of_head(out, self.head),
        };
        writer.finish(code, flags);
        code
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
