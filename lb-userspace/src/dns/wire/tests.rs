//! Against the library's own reader and writer of messages.

use hickory_proto::{
    op::{Message, MessageType, OpCode},
    rr::{DNSClass, Name, RData, RecordType, rdata::CNAME},
};
use proptest::prelude::*;

use super::*;

/// A query for this name and type, with `more` behind it.
fn query(name: &[&[u8]], kind: u16, counts: [u8; 4], more: &[u8]) -> Vec<u8> {
    let [questions, answers, authorities, others] = counts;
    let mut bytes = vec![7, 9, 1, 0, 0, questions, 0, answers, 0, authorities, 0, others];
    for label in name {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(more);
    bytes
}

fn opt(owner: &[u8], version: u8, payload: u16) -> Vec<u8> {
    [owner, &[0, 41], &payload.to_be_bytes(), &[0, version, 0x80, 0, 0, 0]].concat()
}

fn is_broken(bytes: &[u8]) -> bool {
    matches!(read(bytes), Read::Broken(_))
}

#[test]
fn a_question_is_read_as_it_is() {
    let bytes = query(&[b"Web", b"a.b"], 28, [1, 0, 0, 1], &opt(&[0], 0, 4096));
    let Read::Query(query) = read(&bytes) else { panic!("no question") };
    let mut name = String::new();
    query.name(&mut name);
    assert_eq!(name, "Web.a\\046b", "a dot in a label is no end of it");
    assert_eq!((query.kind, query.class, query.payload()), (Type::AAAA, Class::IN, 4096));
    assert!(query.head.is_query() && query.head.recursion_desired() && !query.is_of_future_version());
}

/// RFC 6891 section 6.2.5.
#[test]
fn less_than_512_octets_are_512() {
    for (said, meant) in [(0, 512), (511, 512), (512, 512), (513, 513)] {
        let bytes = query(&[b"a"], 1, [1, 0, 0, 1], &opt(&[0], 0, said));
        let Read::Query(query) = read(&bytes) else { panic!("no question") };
        assert_eq!(query.payload(), meant);
    }
}

#[test]
fn what_is_no_question_is_told_apart() {
    assert_eq!(read(&[0; 11]), Read::Nothing, "no header");
    let mut answer = query(&[b"a"], 1, [1, 0, 0, 0], &[]);
    answer[2] |= 0x80;
    assert_eq!(read(&answer), Read::Nothing, "an answer");
    let long = [b'x'; 63];
    let names: [(&str, Vec<u8>); 8] = [
        ("no question", query(&[b"a"], 1, [0, 0, 0, 0], &[])),
        ("two questions", query(&[b"a"], 1, [2, 0, 0, 0], &[1, b'a', 0, 0, 1, 0, 1])),
        ("256 octets of name", query(&[&long, &long, &long, &long[..62]], 1, [1, 0, 0, 0], &[])),
        ("a record that is not there", query(&[b"a"], 1, [1, 0, 0, 1], &[])),
        ("a record that is cut", query(&[b"a"], 1, [1, 0, 0, 1], &opt(&[0], 0, 512)[..8])),
        ("two EDNS records", query(&[b"a"], 1, [1, 0, 0, 2], &[opt(&[0], 0, 512), opt(&[0], 0, 512)].concat())),
        ("an EDNS record with a name", query(&[b"a"], 1, [1, 0, 0, 1], &opt(&[1, b'a', 0], 0, 512))),
        ("data longer than the message", query(&[b"a"], 1, [1, 1, 0, 0], &[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 9])),
    ];
    for (what, bytes) in names {
        assert!(is_broken(&bytes), "{what}");
    }
    assert!(!is_broken(&query(&[&long, &long, &long, &long[..61]], 1, [1, 0, 0, 0], &[])), "255 octets of name");
    // A pointer, to itself and forward, and a label of a type that nobody uses.
    for name in [[0xc0, 12], [0xc0, 14], [0x40, 0], [0x80, 0]] {
        let mut bytes = query(&[], 1, [1, 0, 0, 0], &[]);
        bytes.splice(12..13, name);
        assert!(is_broken(&bytes), "{name:?}");
    }
    // Behind the question a name may be a pointer.
    let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4][..], &[1; 4]].concat();
    assert!(!is_broken(&query(&[b"a"], 1, [1, 1, 0, 0], &record)));
    // With which it is no longer than any other.
    for (last, broken) in [(60, false), (61, true)] {
        let labels = [&long[..], &long, &long, &long[..last]]
            .map(|label| [&[u8::try_from(label.len()).expect("short")], label].concat());
        let record = [&labels.concat()[..], &record].concat();
        assert_eq!(is_broken(&query(&[b"a"], 1, [1, 1, 0, 0], &record)), broken, "{last}");
    }
}

fn decoded(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a message")
}

/// A zone may be so long that its Services have names and endpoints of them have none.
#[test]
fn a_name_of_more_than_255_octets_is_none() {
    let asked = query(&[b"a"], 33, [1, 0, 0, 0], &[]);
    let Read::Query(query) = read(&asked) else { panic!("no question") };
    let label = "x".repeat(63);
    for (last, broken) in [(61, false), (62, true)] {
        let name = format!("{label}.{label}.{label}.{}", "y".repeat(last));
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, &query, 4096, 1232);
        writer.answer(None, Type::SRV, 5, |it| it.whole_name(&name));
        assert_eq!(writer.is_broken(), broken, "a whole name");
        let mut writer = Writer::new(&mut bytes, &query, 4096, 1232);
        writer.answer(None, Type::PTR, 5, |it| it.name(&name));
        assert_eq!(writer.is_broken(), broken, "a name");
    }
}

#[test]
fn answers_are_those_that_are_written() {
    let asked = query(&[b"WEB", b"svc", b"cluster", b"local"], 1, [1, 0, 0, 1], &opt(&[0], 0, 900));
    let Read::Query(query) = read(&asked) else { panic!("no question") };
    // Behind what is there already: pointers count from where the message begins.
    let mut bytes = vec![1, 2, 3];
    let mut writer = Writer::new(&mut bytes, &query, 900, 1232);
    writer.answer(None, Type::CNAME, 5, |it| it.name("db.svc.cluster.local"));
    writer.answer(Some("db.svc.cluster.local"), Type::CNAME, 6, |it| it.name("x.db.svc.cluster.local"));
    writer.answer(Some("x.db.svc.cluster.local"), Type::A, 7, |it| it.address([10, 0, 0, 1].into()));
    writer.authority("cluster.local", Type::NS, 8, |it| it.name("local"));
    let flags = Flags { authoritative: true, recursion: true, truncated: false };
    assert!(!writer.is_broken());
    assert_eq!(writer.finish(Code::NxDomain, flags), 3);
    let message = decoded(&bytes[3..]);
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let cname = |text: &str| RData::CNAME(CNAME(name(text)));
    assert_eq!(message.queries[0].name().to_ascii(), "WEB.svc.cluster.local.");
    let answers: Vec<_> = message.answers.iter().map(|it| (it.name.to_ascii(), it.ttl)).collect();
    let expected = [("WEB.svc.cluster.local.", 5), ("db.svc.cluster.local.", 6), ("x.db.svc.cluster.local.", 7)];
    assert_eq!(answers, expected.map(|(name, ttl)| (name.to_owned(), ttl)));
    assert!(message.answers.iter().chain(&message.authorities).all(|it| it.dns_class == DNSClass::IN));
    assert_eq!(message.answers[0].data, cname("db.svc.cluster.local."));
    assert_eq!(message.answers[1].data, cname("x.db.svc.cluster.local."));
    assert_eq!(
        (message.authorities[0].record_type(), message.authorities[0].name.to_ascii()),
        (RecordType::NS, "cluster.local.".to_owned())
    );
    let metadata = message.metadata;
    assert_eq!((metadata.id, metadata.message_type, metadata.op_code), (0x0709, MessageType::Response, OpCode::Query));
    assert!(
        metadata.authoritative && metadata.recursion_available && metadata.recursion_desired && !metadata.truncation
    );
    let edns = message.edns.expect("an EDNS record");
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok, edns.version()), (1232, true, 0));
    // Names are written once.
    assert_eq!(bytes.windows(7).filter(|window| window == b"cluster").count(), 1);
}

#[test]
fn records_that_do_not_fit_are_left_out_whole() {
    let asked = query(&[b"a"], 1, [1, 0, 0, 1], &opt(&[0], 0, 512));
    let Read::Query(query) = read(&asked) else { panic!("no question") };
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &query, 512, 1232);
    for _ in 0..100 {
        writer.answer(None, Type::A, 5, |it| it.address([10, 0, 0, 1].into()));
    }
    writer.authority("a", Type::NS, 5, |it| it.name("b"));
    writer.finish(Code::NoError, Flags::default());
    let message = decoded(&bytes);
    assert!(bytes.len() <= 512 && message.metadata.truncation && message.edns.is_some());
    // Header, question, EDNS record; 16 octets a record.
    assert_eq!((message.answers.len(), message.authorities.len()), ((512 - 12 - 7 - 11) / 16, 0));
    // One octet is missing for another answer, and none for a shorter record: what is behind a gap is left out too.
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &query, 12 + 7 + 11 + 16 + 15, 1232);
    for _ in 0..2 {
        writer.answer(None, Type::A, 5, |it| it.address([10, 0, 0, 1].into()));
    }
    writer.authority("a", Type::NS, 5, |it| it.name("b"));
    writer.finish(Code::NoError, Flags::default());
    let message = decoded(&bytes);
    assert_eq!((message.answers.len(), message.authorities.len()), (1, 0));
}

#[test]
fn what_is_no_name_is_told() {
    let asked = query(&[b"a"], 1, [1, 0, 0, 0], &[]);
    let Read::Query(query) = read(&asked) else { panic!("no question") };
    for name in ["a..b", &"x".repeat(64), ".a"] {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, &query, 512, 1232);
        writer.answer(None, Type::CNAME, 5, |it| it.name(name));
        assert!(writer.is_broken(), "{name}");
    }
}

proptest! {
    /// Nothing panics, and what is read as a question the library reads as the same.
    #[test]
    fn any_bytes(head in prop::array::uniform12(0_u8..4), rest in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..80)) {
        let bytes = [&head[..], &rest].concat();
        if let Read::Query(query) = read(&bytes) {
            let mut name = String::new();
            query.name(&mut name);
            let mut answer = Vec::new();
            Writer::new(&mut answer, &query, 512, 1232).finish(Code::NoError, Flags::default());
            let message = decoded(&answer);
            prop_assert_eq!(u16::from(message.queries[0].query_type()), query.kind.0);
        }
    }
}
