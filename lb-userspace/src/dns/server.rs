//! Questions from the wire, answered from the [`Zone`] of the moment.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hickory_server::{
    net::{
        NetError,
        runtime::{Time, TokioTime},
        xfer::Protocol,
    },
    proto::{
        ProtoError,
        op::{Edns, Header, HeaderCounts, LowerQuery, Message, Metadata, OpCode, ResponseCode},
        rr::{
            DNSClass, Name, RData, Record as WireRecord, RecordType,
            rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
        },
        serialize::binary::BinEncoder,
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::{MessageResponse, MessageResponseBuilder},
};
use ipnet::IpNet;
use prometheus_client::registry::Registry;

use super::{
    limit::{Limit, Verdict},
    metrics::{Metrics, Sizes},
    upstream::{Failure, Upstream},
    zone::{Answer, Data, Kind, Record, Zone},
};
use crate::model::Model;

/// Longest UDP answer: what no path cuts into fragments (RFC 9715).
pub(super) const UDP_LIMIT: u16 = 1232;
/// SOA: seconds after which a secondary asks again, tries again, and gives up. There are no secondaries.
const SOA_TIMES: (i32, i32, i32) = (7200, 1800, 86_400);

/// The zone of the moment; none before the first one is known.
#[derive(Debug, Default)]
pub struct Zones {
    zone: RwLock<Option<Zone>>,
}

impl Zones {
    /// From here on, questions are answered from this zone. Its serial is greater than that of an earlier process.
    pub fn set(&self, mut zone: Zone) {
        zone.set_serial(now());
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(zone);
    }

    /// The zone, if there is one, becomes that of another state; whether there is one.
    pub fn follow(&self, model: &Model) -> bool {
        let mut zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        let Some(zone) = zone.as_mut() else { return false };
        zone.follow(model, now());
        true
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.with(|_| ()).is_some()
    }

    /// What it is, for metrics.
    pub fn sizes(&self) -> Sizes {
        let of = |zone: &Zone| {
            let (services, endpoints) = zone.sizes();
            Sizes { services, endpoints, serial: zone.serial() }
        };
        self.with(of).unwrap_or_default()
    }

    fn with<T>(&self, body: impl FnOnce(&Zone) -> T) -> Option<T> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(body)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

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

/// What the zone says.
enum Local {
    Reply(Reply),
    /// A name of nobody's zone of ours.
    Foreign,
    /// It ends with an alias for a name of another zone.
    LeadsOut(Reply, Name),
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
}

impl Inner {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        let (query, client) = (info.query, request.src().ip());
        let upstream = self.upstream(client);
        let asks = upstream.filter(|_| request.metadata.recursion_desired);
        let kind = query.query_type();
        let mut reply = match (self.local(query), asks) {
            (Err(_), _) => Reply::code(ResponseCode::ServFail),
            (Ok(Local::Reply(reply) | Local::LeadsOut(reply, _)), None) | (Ok(Local::Reply(reply)), _) => reply,
            (Ok(Local::Foreign), None) => Reply::code(ResponseCode::Refused),
            (Ok(Local::Foreign), Some(upstream)) => self.ask(upstream, query.original().name(), kind).await,
            (Ok(Local::LeadsOut(alias, target)), Some(upstream)) => alias.then(self.ask(upstream, &target, kind).await),
        };
        reply.recursion = upstream.is_some();
        reply
    }

    /// The servers that questions of this client are passed on to.
    fn upstream(&self, client: IpAddr) -> Option<&Upstream> {
        let client = client.to_canonical();
        self.rules.upstream.as_ref().filter(|_| self.rules.recursion.iter().any(|net| net.contains(&client)))
    }

    async fn ask(&self, upstream: &Upstream, name: &Name, kind: RecordType) -> Reply {
        let answer = upstream.ask(name, kind).await;
        self.metrics.passed_on(match answer {
            Ok(_) => "answered",
            Err(Failure::Busy) => "refused",
            Err(Failure::Silent) => "failed",
        });
        answer.map_or_else(|_| Reply::code(ResponseCode::ServFail), Reply::of)
    }

    fn local(&self, query: &LowerQuery) -> Result<Local, ProtoError> {
        let refused = matches!(query.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || refused {
            return Ok(Local::Reply(Reply::code(ResponseCode::Refused)));
        }
        let asked = query.original().name();
        let text = asked.to_ascii();
        let name = text.trim_end_matches('.');
        let answered = self.zones.with(|zone| self.in_zone(zone, asked, name, kind(query.query_type())));
        answered.unwrap_or_else(|| Ok(Local::Reply(Reply::code(ResponseCode::ServFail))))
    }

    fn in_zone(&self, zone: &Zone, asked: &Name, text: &str, kind: Kind) -> Result<Local, ProtoError> {
        Ok(match zone.answer(text, kind) {
            Answer::Foreign => Local::Foreign,
            Answer::NoData { apex } => Local::Reply(Reply::none(ResponseCode::NoError, zone, &apex)?),
            Answer::NxDomain { apex } => Local::Reply(Reply::none(ResponseCode::NXDomain, zone, &apex)?),
            Answer::Records(mut records) => {
                self.rotate(&mut records);
                let answers = records.iter().map(|record| wire(record, asked, zone)).collect::<Result<_, _>>()?;
                let reply = Reply { authoritative: true, answers, ..Reply::code(ResponseCode::NoError) };
                match zone.leads_out(&records).filter(|_| kind != Kind::Cname) {
                    Some(target) => Local::LeadsOut(reply, name(target)?),
                    None => Local::Reply(reply),
                }
            }
        })
    }

    /// Each answer begins with another record; aliases stay in front of what they lead to.
    fn rotate(&self, records: &mut [Record]) {
        let aliases = records.iter().filter(|record| matches!(record.data, Data::Cname(_))).count();
        let Some(rest) = records.get_mut(aliases..).filter(|rest| !rest.is_empty()) else { return };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        rest.rotate_left(turn.checked_rem(rest.len()).unwrap_or(0));
    }

    /// What the client may have; none for nothing at all.
    async fn answer(&self, request: &Request) -> Option<Reply> {
        let verdict = match request.protocol() {
            Protocol::Udp => self.rules.limit.count(request.src().ip(), self.start.elapsed().as_secs()),
            _ => Verdict::Answer,
        };
        match verdict {
            Verdict::Answer => Some(self.reply(request).await),
            Verdict::Truncate => {
                self.metrics.limited("truncated");
                Some(Reply { truncated: true, ..Reply::code(ResponseCode::NoError) })
            }
            Verdict::Drop => {
                self.metrics.limited("dropped");
                None
            }
        }
    }
}

/// Takes the answer instead of a socket.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Option<Vec<u8>>>>);

#[async_trait::async_trait]
impl ResponseHandler for Taken {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a WireRecord> + Send + 'a,
            impl Iterator<Item = &'a WireRecord> + Send + 'a,
            impl Iterator<Item = &'a WireRecord> + Send + 'a,
            impl Iterator<Item = &'a WireRecord> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(response.edns().map_or(512, Edns::max_payload));
        let info = response.destructive_emit(&mut encoder)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Ok(info)
    }
}

impl Handler {
    /// The UDP answer to these bytes, if the server's library can read them: as over a socket, for tests and fuzzing.
    pub async fn datagram(&self, bytes: Vec<u8>, client: SocketAddr) -> Option<Vec<u8>> {
        let request = Request::from_bytes(bytes, client, Protocol::Udp).ok()?;
        let taken = Taken::default();
        self.handle_request::<_, TokioTime>(&request, taken.clone()).await;
        taken.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let (inner, begin) = (&self.inner, Instant::now());
        let kind = request.queries.queries().first().map_or(RecordType::ZERO, LowerQuery::query_type);
        inner.metrics.asked(request.protocol(), request.src().ip(), kind);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let Some(reply) = inner.answer(request).await else {
            return ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() });
        };
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = reply.recursion;
        metadata.truncation = reply.truncated;
        metadata.checking_disabled = false;
        let mut edns = Edns::new();
        edns.set_max_payload(request.max_payload().min(UDP_LIMIT));
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authority, &[], &[]);
        let sent = handle.send_response(response).await;
        inner.metrics.answered(reply.code, begin.elapsed());
        match sent {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!("an answer to {} cannot be sent: {error}", request.src());
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

struct Reply {
    code: ResponseCode,
    authoritative: bool,
    /// The client may ask for other names too.
    recursion: bool,
    truncated: bool,
    answers: Vec<WireRecord>,
    authority: Vec<WireRecord>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        let (answers, authority) = (Vec::new(), Vec::new());
        Self { code, authoritative: false, recursion: false, truncated: false, answers, authority }
    }

    /// What another server said.
    fn of(message: Message) -> Self {
        let Message { metadata, answers, authorities, .. } = message;
        Self { answers, authority: authorities, ..Self::code(metadata.response_code) }
    }

    /// This alias, and what it leads to; the code is that of its end (RFC 6604).
    fn then(mut self, target: Self) -> Self {
        self.answers.extend(target.answers);
        Self { code: target.code, authority: target.authority, ..self }
    }

    /// NODATA or NXDOMAIN: the SOA tells how long it holds (RFC 2308).
    fn none(code: ResponseCode, zone: &Zone, apex: &str) -> Result<Self, ProtoError> {
        let soa = Record { owner: None, ttl: zone.ttl(), data: Data::Soa };
        let authority = vec![wire(&soa, &name(apex)?, zone)?];
        Ok(Self { authoritative: true, authority, ..Self::code(code) })
    }
}

fn kind(record: RecordType) -> Kind {
    match record {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::CNAME => Kind::Cname,
        RecordType::TXT => Kind::Txt,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        _ => Kind::Other,
    }
}

fn name(text: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(text)?;
    name.set_fqdn(true);
    Ok(name)
}

/// The record under the name that was asked for, in the case it was asked in.
fn wire(record: &Record, asked: &Name, zone: &Zone) -> Result<WireRecord, ProtoError> {
    let owner = record.owner.as_deref().map_or_else(|| Ok(asked.clone()), name)?;
    let data = match &record.data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Ns(target) => RData::NS(NS(name(target)?)),
        Data::Soa => {
            let (refresh, retry, expire) = SOA_TIMES;
            let (server, mailbox) = (name(&zone.server())?, name(&zone.mailbox())?);
            RData::SOA(SOA::new(server, mailbox, zone.serial(), refresh, retry, expire, zone.ttl()))
        }
    };
    Ok(WireRecord::from_rdata(owner, record.ttl, data))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
