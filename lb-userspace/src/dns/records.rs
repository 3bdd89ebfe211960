//! Records of a zone, as messages have them.

use super::{
    wire::{Type, Writer},
    zone::{Data, Kind, Zone},
};

/// SOA: seconds after which a secondary asks again, tries again, and gives up. There are no secondaries.
const SOA_TIMES: [u32; 3] = [7200, 1800, 86_400];

/// What a zone is asked for.
pub(super) const fn kind(asked: Type) -> Kind {
    match asked {
        Type::A => Kind::A,
        Type::AAAA => Kind::Aaaa,
        Type::SRV => Kind::Srv,
        Type::PTR => Kind::Ptr,
        Type::CNAME => Kind::Cname,
        Type::TXT => Kind::Txt,
        Type::SOA => Kind::Soa,
        Type::NS => Kind::Ns,
        _ => Kind::Other,
    }
}

/// The type of a record.
pub(super) const fn number(data: &Data) -> Type {
    match data {
        Data::A(_) => Type::A,
        Data::Aaaa(_) => Type::AAAA,
        Data::Srv { .. } => Type::SRV,
        Data::Ptr(_) => Type::PTR,
        Data::Cname(_) => Type::CNAME,
        Data::Txt(_) => Type::TXT,
        Data::Soa => Type::SOA,
        Data::Ns(_) => Type::NS,
    }
}

/// Writes the data of a record.
pub(super) fn write(writer: &mut Writer<'_>, zone: &Zone, data: &Data) {
    match data {
        Data::A(address) => writer.address((*address).into()),
        Data::Aaaa(address) => writer.address((*address).into()),
        Data::Srv { port, target } => {
            // Priority and weight.
            for word in [0, 100, *port] {
                writer.word(word);
            }
            writer.whole_name(target);
        }
        Data::Ptr(target) | Data::Cname(target) | Data::Ns(target) => writer.name(target),
        Data::Txt(text) => writer.text(text),
        Data::Soa => {
            writer.name(&zone.server());
            writer.name(&zone.mailbox());
            let [refresh, retry, expire] = SOA_TIMES;
            for value in [zone.serial(), refresh, retry, expire, zone.ttl()] {
                writer.long(value);
            }
        }
    }
}

/// NODATA or NXDOMAIN: the SOA tells how long it holds (RFC 2308).
pub(super) fn soa(writer: &mut Writer<'_>, zone: &Zone, apex: &str) {
    writer.authority(apex, Type::SOA, zone.ttl(), |writer| write(writer, zone, &Data::Soa));
}
