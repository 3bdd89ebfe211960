//! Answers.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;

use super::{
    HEADER, LABEL, NAME, OPT, OPT_LENGTH,
    read::{Class, Head, Query, Type},
};

const QR: u16 = 0x8000;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RA: u16 = 0x0080;
/// In the flags of an EDNS record.
const DNSSEC_OK: u16 = 0x8000;
/// A pointer to the name of the question.
const QUESTION: u16 = 0xc00c;
/// Names that later ones may point to; more are not remembered.
const NAMES: usize = 16;

/// Response codes (RFC 1035 section 4.1.1, RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) enum Code {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    /// With EDNS alone.
    BadVers,
}

impl Code {
    /// That of another server's answer, if it is one that we give too.
    pub(in crate::dns) const fn of(code: ResponseCode) -> Option<Self> {
        Some(match code {
            ResponseCode::NoError => Self::NoError,
            ResponseCode::FormErr => Self::FormErr,
            ResponseCode::ServFail => Self::ServFail,
            ResponseCode::NXDomain => Self::NxDomain,
            ResponseCode::NotImp => Self::NotImp,
            ResponseCode::Refused => Self::Refused,
            _ => return None,
        })
    }

    /// As tools and metrics write it.
    pub(in crate::dns) const fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }
}

/// What an answer says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::dns) struct Flags {
    pub(in crate::dns) authoritative: bool,
    /// The client may ask for other names too.
    pub(in crate::dns) recursion: bool,
    pub(in crate::dns) truncated: bool,
}

/// Writes one answer behind what may be there already.
pub(in crate::dns) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    /// Where the message begins.
    begin: usize,
    /// What its records may take.
    room: usize,
    head: Head,
    questions: u16,
    edns: Option<(u16, bool)>,
    counts: [u16; 3],
    /// A record did not fit.
    full: bool,
    /// A name was none.
    broken: bool,
    /// Where names are that others may point to.
    names: [u16; NAMES],
    named: usize,
}

impl<'a> Writer<'a> {
    /// An answer to a message that was not understood: no more than its head.
    pub(in crate::dns) fn of_head(bytes: &'a mut Vec<u8>, head: Head) -> Self {
        let begin = bytes.len();
        bytes.extend_from_slice(&head.id.to_be_bytes());
        bytes.resize(begin + HEADER, 0);
        let (edns, counts, names) = (None, [0; 3], [0; NAMES]);
        let (full, broken) = (false, false);
        Self { bytes, begin, room: HEADER, head, questions: 0, edns, counts, full, broken, names, named: 0 }
    }

    /// An answer to a question, which comes back as it was written, of at most `limit` octets. `own` is the longest answer
    /// that we take over UDP.
    pub(in crate::dns) fn new(bytes: &'a mut Vec<u8>, query: &Query<'_>, limit: usize, own: u16) -> Self {
        let mut writer = Self::of_head(bytes, query.head);
        writer.bytes.extend_from_slice(query.question);
        writer.questions = 1;
        writer.edns = query.edns.map(|edns| (own, edns.dnssec_ok));
        writer.room = limit.saturating_sub(if writer.edns.is_some() { OPT_LENGTH } else { 0 });
        writer.remember(HEADER, query.question.len().saturating_sub(4));
        writer
    }

    /// A record of an answer; none for the name of the question.
    pub(in crate::dns) fn answer(&mut self, owner: Option<&str>, kind: Type, ttl: u32, data: impl FnOnce(&mut Self)) {
        self.record(0, owner, kind, ttl, data);
    }

    /// A record of the authority section.
    pub(in crate::dns) fn authority(&mut self, owner: &str, kind: Type, ttl: u32, data: impl FnOnce(&mut Self)) {
        self.record(1, Some(owner), kind, ttl, data);
    }

    fn record(&mut self, section: usize, owner: Option<&str>, kind: Type, ttl: u32, data: impl FnOnce(&mut Self)) {
        let (before, named) = (self.bytes.len(), self.named);
        if self.full {
            return;
        }
        match owner {
            None => self.word(QUESTION),
            Some(owner) => self.name(owner),
        }
        self.word(kind.0);
        self.word(Class::IN.number());
        self.long(ttl);
        let length = self.bytes.len();
        self.word(0);
        data(self);
        let end = self.bytes.len();
        let data = u16::try_from(end - length - 2);
        if let (Ok(data), Some(place)) = (data, self.bytes.get_mut(length..length + 2))
            && end - self.begin <= self.room
        {
            place.copy_from_slice(&data.to_be_bytes());
            if let Some(count) = self.counts.get_mut(section) {
                *count += 1;
            }
        } else {
            // Only whole records, and none behind one that is missing.
            self.bytes.truncate(before);
            self.named = named;
            self.full = true;
        }
    }

    /// Two octets.
    pub(in crate::dns) fn word(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// Four octets.
    pub(in crate::dns) fn long(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// An address.
    pub(in crate::dns) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.bytes.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => self.bytes.extend_from_slice(&address.octets()),
        }
    }

    /// Text of at most 255 octets.
    pub(in crate::dns) fn text(&mut self, text: &str) {
        let text = text.as_bytes();
        let text = text.get(..255).unwrap_or(text);
        self.bytes.extend(u8::try_from(text.len()));
        self.bytes.extend_from_slice(text);
    }

    /// A name, which ends with a pointer where its end has been written before.
    pub(in crate::dns) fn name(&mut self, name: &str) {
        let (begin, mut rest) = (self.bytes.len(), self.checked(name));
        while !rest.is_empty() {
            if let Some(at) = self.find(rest) {
                self.word(0xc000 | at);
                self.remember_from(begin);
                return;
            }
            rest = self.label(rest);
        }
        self.bytes.push(0);
        self.remember_from(begin);
    }

    /// A name without pointers (RFC 2782).
    pub(in crate::dns) fn whole_name(&mut self, name: &str) {
        let mut rest = self.checked(name);
        while !rest.is_empty() {
            rest = self.label(rest);
        }
        self.bytes.push(0);
    }

    /// Without the dot at its end. On the wire each label has its length in front, and the root is one octet.
    fn checked<'b>(&mut self, name: &'b str) -> &'b str {
        let name = name.trim_end_matches('.');
        self.broken |= name.len() > NAME - 2;
        name
    }

    /// Writes the first label; what is behind it.
    fn label<'b>(&mut self, name: &'b str) -> &'b str {
        let (label, rest) = name.split_once('.').unwrap_or((name, ""));
        self.broken |= label.is_empty() || label.len() > LABEL;
        self.bytes.extend(u8::try_from(label.len()));
        self.bytes.extend_from_slice(label.as_bytes());
        rest
    }

    /// Whether something that was to be a name is none: the message is not fit to be sent.
    pub(in crate::dns) const fn is_broken(&self) -> bool {
        self.broken
    }

    fn remember_from(&mut self, at: usize) {
        self.remember(at - self.begin, self.bytes.len() - at);
    }

    /// Keeps where a name is, if it can be pointed to. Its ends are found by walking.
    fn remember(&mut self, at: usize, length: usize) {
        if let (Ok(at), Some(place)) = (u16::try_from(at), self.names.get_mut(self.named))
            && at < 0x4000
            && length > 2
        {
            *place = at;
            self.named += 1;
        }
    }

    /// Where this name stands at the end of one that is remembered.
    fn find(&self, name: &str) -> Option<u16> {
        let names = self.names.get(..self.named)?;
        names.iter().find_map(|begin| {
            let mut at = usize::from(*begin);
            loop {
                if self.is(at, name) {
                    return u16::try_from(at).ok().filter(|at| *at < 0x4000);
                }
                match usize::from(self.byte(at)?) {
                    length @ 1..=LABEL => at += 1 + length,
                    // Where it points to is remembered too.
                    _ => return None,
                }
            }
        })
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(self.begin + at).copied()
    }

    /// Whether the name here is this one, in any case.
    fn is(&self, mut at: usize, name: &str) -> bool {
        let mut labels = name.split('.');
        loop {
            let Some(length) = self.byte(at).map(usize::from) else { return false };
            match length {
                0 => return labels.next().is_none(),
                0xc0.. => {
                    let Some(low) = self.byte(at + 1) else { return false };
                    // Ours point backwards alone.
                    at = (length & 0x3f) << 8 | usize::from(low);
                }
                _ => {
                    let begin = self.begin + at + 1;
                    let here = self.bytes.get(begin..begin + length);
                    let Some((here, label)) = here.zip(labels.next()) else { return false };
                    if !here.eq_ignore_ascii_case(label.as_bytes()) {
                        return false;
                    }
                    at += 1 + length;
                }
            }
        }
    }

    /// Completes the message; where it begins.
    pub(in crate::dns) fn finish(mut self, code: Code, flags: Flags) -> usize {
        let code = code.number();
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        let truncated = flags.truncated || self.full;
        let flags = bit(flags.authoritative, AA) | bit(truncated, TC) | bit(flags.recursion, RA);
        let flags = QR | self.head.repeated() | flags | code & 15;
        if let Some((payload, dnssec_ok)) = self.edns {
            self.bytes.push(0);
            self.word(OPT);
            self.word(payload);
            let high = u32::from(code >> 4) << 24;
            self.long(high | u32::from(bit(dnssec_ok, DNSSEC_OK)));
            self.word(0);
            self.counts[2] = 1;
        }
        let [answers, authorities, others] = self.counts;
        let words = [flags, self.questions, answers, authorities, others];
        for (index, word) in words.into_iter().enumerate() {
            let at = self.begin + 2 + 2 * index;
            if let Some(place) = self.bytes.get_mut(at..at + 2) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        self.begin
    }
}
