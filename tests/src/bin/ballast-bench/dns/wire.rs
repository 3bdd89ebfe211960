//! Questions and answers as bytes.

pub(super) const A: u16 = 1;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
pub(super) const SRV: u16 = 33;

/// A question without its id.
#[derive(Clone, Debug)]
pub(super) struct Question {
    bytes: Vec<u8>,
    shown: String,
}

impl Question {
    /// With an EDNS record, as resolvers of Go send it, or without one, as glibc does.
    pub(super) fn new(name: &str, kind: u16, edns: bool) -> Self {
        let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            bytes.extend(u8::try_from(label.len()));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        if edns {
            // Payload of 1232 octets.
            bytes.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        Self { bytes, shown: format!("{name} {kind}") }
    }

    /// Its bytes under this id.
    pub(super) fn write(&self, id: u16, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(&id.to_be_bytes());
        buffer.extend_from_slice(self.bytes.get(2..).unwrap_or_default());
    }

    /// In words.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

/// What an answer says: its id, its code and how many records answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) id: u16,
    pub(super) code: u8,
    pub(super) records: u16,
}

impl Answer {
    /// Of the bytes of an answer.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [id_high, id_low, flags, code, _, _, high, low, ..] = *bytes else { return None };
        let id = u16::from_be_bytes([id_high, id_low]);
        (flags & 0x80 != 0).then_some(Self { id, code: code & 15, records: u16::from_be_bytes([high, low]) })
    }
}
