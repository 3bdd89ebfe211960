//! Questions from the wire, answered from the [`Zone`] of the moment.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering},
};

use hickory_server::{
    net::runtime::Time,
    proto::{
        ProtoError,
        op::{Edns, Header, HeaderCounts, LowerQuery, Metadata, OpCode, ResponseCode},
        rr::{
            DNSClass, Name, RData, Record as WireRecord, RecordType,
            rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};

use super::zone::{Answer, Data, Kind, Record, Zone};

/// Longest UDP answer: what no path cuts into fragments (RFC 9715).
const UDP_LIMIT: u16 = 1232;
/// SOA: seconds after which a secondary asks again, tries again, and gives up. There are no secondaries.
const SOA_TIMES: (i32, i32, i32) = (7200, 1800, 86_400);

/// The zone of the moment; none before the first one is known.
#[derive(Debug, Default)]
pub struct Zones {
    zone: RwLock<Option<Arc<Zone>>>,
}

impl Zones {
    /// From here on, questions are answered from this zone.
    pub fn set(&self, zone: Zone) {
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(zone));
    }

    fn get(&self) -> Option<Arc<Zone>> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers each question; see [`super::listen`].
#[derive(Debug)]
pub struct Handler {
    zones: Arc<Zones>,
    turn: AtomicUsize,
}

impl Handler {
    pub(super) fn new(zones: Arc<Zones>) -> Self {
        Self { zones, turn: AtomicUsize::new(0) }
    }

    fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        self.answer(info.query).unwrap_or_else(|_| Reply::code(ResponseCode::ServFail))
    }

    fn answer(&self, query: &LowerQuery) -> Result<Reply, ProtoError> {
        let refused = matches!(query.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || refused {
            return Ok(Reply::code(ResponseCode::Refused));
        }
        let Some(zone) = self.zones.get() else { return Ok(Reply::code(ResponseCode::ServFail)) };
        let asked = query.original().name();
        let text = asked.to_ascii();
        match zone.answer(text.trim_end_matches('.'), kind(query.query_type())) {
            Answer::Foreign => Ok(Reply::code(ResponseCode::Refused)),
            Answer::NoData { apex } => Reply::none(ResponseCode::NoError, &zone, &apex),
            Answer::NxDomain { apex } => Reply::none(ResponseCode::NXDomain, &zone, &apex),
            Answer::Records(mut records) => {
                self.rotate(&mut records);
                let wire = records.iter().map(|record| wire(record, asked, &zone)).collect::<Result<_, _>>()?;
                Ok(Reply { code: ResponseCode::NoError, authoritative: true, answers: wire, authority: Vec::new() })
            }
        }
    }

    /// Each answer begins with another record; aliases stay in front of what they lead to.
    fn rotate(&self, records: &mut [Record]) {
        let aliases = records.iter().filter(|record| matches!(record.data, Data::Cname(_))).count();
        let Some(rest) = records.get_mut(aliases..).filter(|rest| !rest.is_empty()) else { return };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        rest.rotate_left(turn.checked_rem(rest.len()).unwrap_or(0));
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let reply = self.reply(request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.checking_disabled = false;
        let mut edns = Edns::new();
        edns.set_max_payload(request.max_payload().min(UDP_LIMIT));
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authority, &[], &[]);
        match handle.send_response(response).await {
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
    answers: Vec<WireRecord>,
    authority: Vec<WireRecord>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authority: Vec::new() }
    }

    /// NODATA or NXDOMAIN: the SOA tells how long it holds (RFC 2308).
    fn none(code: ResponseCode, zone: &Zone, apex: &str) -> Result<Self, ProtoError> {
        let soa = Record { owner: None, ttl: zone.ttl(), data: Data::Soa };
        let authority = vec![wire(&soa, &name(apex)?, zone)?];
        Ok(Self { code, authoritative: true, answers: Vec::new(), authority })
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
