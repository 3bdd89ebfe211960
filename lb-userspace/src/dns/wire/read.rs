//! Questions.

use std::fmt::Write as _;

use super::{HEADER, LABEL, NAME, OPT, UDP_LEAST};

/// Flags that are answered with what was asked.
const OPCODE: u16 = 0x7800;
const QR: u16 = 0x8000;
const RD: u16 = 0x0100;
/// In the flags of an EDNS record.
const DNSSEC_OK: u16 = 0x8000;

/// The beginning of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Head {
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Head {
    /// Whether it is a plain query (opcode 0).
    pub(in crate::dns) const fn is_query(self) -> bool {
        self.flags & OPCODE == 0
    }

    /// Whether the client wants other names looked up.
    pub(in crate::dns) const fn recursion_desired(self) -> bool {
        self.flags & RD != 0
    }

    /// What of its flags an answer repeats.
    pub(super) const fn repeated(self) -> u16 {
        self.flags & (OPCODE | RD)
    }
}

/// Type of a question, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Type(pub(in crate::dns) u16);

impl Type {
    pub(in crate::dns) const A: Self = Self(1);
    pub(in crate::dns) const NS: Self = Self(2);
    pub(in crate::dns) const CNAME: Self = Self(5);
    pub(in crate::dns) const SOA: Self = Self(6);
    pub(in crate::dns) const PTR: Self = Self(12);
    pub(in crate::dns) const MX: Self = Self(15);
    pub(in crate::dns) const TXT: Self = Self(16);
    pub(in crate::dns) const AAAA: Self = Self(28);
    pub(in crate::dns) const SRV: Self = Self(33);
    pub(in crate::dns) const HTTPS: Self = Self(65);
    pub(in crate::dns) const ANY: Self = Self(255);
    const IXFR: Self = Self(251);
    const AXFR: Self = Self(252);

    /// Whether nobody gets an answer of this type: all there is of a name, or of the zone.
    pub(in crate::dns) const fn is_refused(self) -> bool {
        matches!(self, Self::ANY | Self::AXFR | Self::IXFR)
    }
}

/// Class of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Class(u16);

impl Class {
    /// The Internet.
    pub(in crate::dns) const IN: Self = Self(1);

    pub(super) const fn number(self) -> u16 {
        self.0
    }
}

/// What a client says of itself (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    pub(super) payload: u16,
    version: u8,
    pub(super) dnssec_ok: bool,
}

/// A message with one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Query<'a> {
    pub(in crate::dns) head: Head,
    /// Name, type and class as they came.
    pub(super) question: &'a [u8],
    pub(in crate::dns) kind: Type,
    pub(in crate::dns) class: Class,
    pub(super) edns: Option<Edns>,
}

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) enum Read<'a> {
    /// Nothing to answer: too short for a header, or an answer itself.
    Nothing,
    /// A message that cannot be understood; a client that spoke EDNS may hear of it.
    Broken(Head),
    /// A question.
    Query(Query<'a>),
}

/// Reads a message. All its records are walked over, and none but that of EDNS is looked at.
pub(in crate::dns) fn read(bytes: &[u8]) -> Read<'_> {
    let mut cursor = Cursor { bytes, at: 0 };
    let Some(head) = head(&mut cursor).filter(|head| head.flags & QR == 0) else { return Read::Nothing };
    message(&mut cursor, head).map_or(Read::Broken(head), Read::Query)
}

fn head(cursor: &mut Cursor<'_>) -> Option<Head> {
    (cursor.bytes.len() >= HEADER).then_some(())?;
    Some(Head { id: cursor.word()?, flags: cursor.word()? })
}

fn message<'a>(cursor: &mut Cursor<'a>, head: Head) -> Option<Query<'a>> {
    let [questions, answers, authorities, others] = [cursor.word()?, cursor.word()?, cursor.word()?, cursor.word()?];
    // RFC 9619: a query has one question.
    (questions == 1).then_some(())?;
    cursor.name(false)?;
    let (kind, class) = (Type(cursor.word()?), Class(cursor.word()?));
    let question = cursor.bytes.get(HEADER..cursor.at)?;
    for _ in 0..u32::from(answers) + u32::from(authorities) {
        record(cursor)?;
    }
    let mut edns = None;
    for _ in 0..others {
        if let Record::Edns(found) = record(cursor)? {
            // RFC 6891 section 6.1.1: one at most.
            edns.is_none().then_some(())?;
            edns = Some(found);
        }
    }
    Some(Query { head, question, kind, class, edns })
}

/// A record behind the question.
enum Record {
    Edns(Edns),
    Other,
}

/// Walks over a record; none if it is broken.
fn record(cursor: &mut Cursor<'_>) -> Option<Record> {
    let owner = cursor.name(true)?;
    let (kind, class) = (cursor.word()?, cursor.word()?);
    let ([_, version], flags) = (cursor.word()?.to_be_bytes(), cursor.word()?);
    let length = cursor.word()?;
    cursor.skip(length.into())?;
    if kind != OPT {
        return Some(Record::Other);
    }
    // Its owner is the root.
    (owner == 1).then_some(())?;
    let payload = class.max(UDP_LEAST);
    Some(Record::Edns(Edns { payload, version, dnssec_ok: flags & DNSSEC_OK != 0 }))
}

impl Query<'_> {
    /// The longest answer that the client takes over UDP, as it says.
    pub(in crate::dns) fn payload(&self) -> u16 {
        self.edns.map_or(UDP_LEAST, |edns| edns.payload)
    }

    /// Whether the client speaks a version of EDNS that nobody knows.
    pub(in crate::dns) fn is_of_future_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// Writes the name as it came, without a dot at its end. What no name of ours can have is written as numbers.
    pub(in crate::dns) fn name(&self, text: &mut String) {
        text.clear();
        let mut rest = self.question;
        while let Some((length, more)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let Some((label, next)) = more.split_at_checked(usize::from(*length)) else { return };
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' | 0..=b' ' | 127.. => drop(write!(text, "\\{byte:03}")),
                    _ => text.push(char::from(*byte)),
                }
            }
            rest = next;
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        self.at = at;
        Some(())
    }

    /// Walks over a name; how long it is here. Only a name behind others may end with a pointer to one, which is not
    /// followed: nobody asks what it is.
    fn name(&mut self, pointer: bool) -> Option<usize> {
        let begin = self.at;
        loop {
            match usize::from(self.byte()?) {
                0 => break,
                length @ 1..=LABEL => self.skip(length)?,
                0xc0.. if pointer => {
                    self.byte()?;
                    break;
                }
                _ => return None,
            }
            (self.at - begin < NAME).then_some(())?;
        }
        (self.at - begin <= NAME).then_some(self.at - begin)
    }
}
